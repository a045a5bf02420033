//! Finding and reading the configuration file.

use std::io;
use std::path::{Path, PathBuf};

use bgworker::config::{ConfigFile, Problems, Settings, Sources};
use thiserror::Error;

use crate::Configuration;

/// Why there are no settings.
#[derive(Debug, Error)]
pub(crate) enum ConfigurationError {
    /// There is no file anywhere.
    #[error(
        "no configuration file: looked for {}: write one (conf/bgworker.toml is an example), or \
         name one with --config FILE",
        list(.looked)
    )]
    NotFound { looked: Vec<PathBuf> },
    /// The file cannot be read.
    #[error("could not read the configuration file \"{}\": {error}", .path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    /// There are mistakes in it.
    #[error(transparent)]
    Problems(#[from] Problems),
}

/// Reads the settings in force.
pub(crate) fn read(configuration: &Configuration) -> Result<Settings, ConfigurationError> {
    let path = find(configuration.config.as_deref())?;
    let text = std::fs::read(&path).and_then(|bytes| {
        String::from_utf8(bytes)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
    });
    let text = text.map_err(|error| ConfigurationError::Unreadable {
        path: path.clone(),
        error,
    })?;
    Ok(bgworker::config::read(&Sources {
        file: Some(ConfigFile { path, text }),
        environment: environment(),
        database: configuration.database.clone(),
    })?)
}

/// The environment, as far as it is text.
pub(crate) fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// The file that is named, or else the first that exists.
fn find(named: Option<&Path>) -> Result<PathBuf, ConfigurationError> {
    let variable = std::env::var_os("BGWORKER_CONFIG").filter(|path| !path.is_empty());
    if let Some(path) = named
        .map(Path::to_owned)
        .or_else(|| variable.map(PathBuf::from))
    {
        return Ok(path);
    }
    let mut looked = vec![
        PathBuf::from("./bgworker.toml"),
        PathBuf::from("./conf/bgworker.toml"),
    ];
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".config"));
    let directory = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    looked.extend(
        directory
            .or(home)
            .map(|directory| directory.join("bgworker/bgworker.toml")),
    );
    looked.push(PathBuf::from("/etc/bgworker/bgworker.toml"));
    let found = looked.iter().find(|path| path.exists()).cloned();
    found.ok_or(ConfigurationError::NotFound { looked })
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    paths.join(", ")
}
