//! Finding and reading the configuration file.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bgworker::config::{ConfigFile, Functions, Http, Problems, Server, Settings, Sources};
use bgworker::database::Database;
use bgworker::schedule::Timestamp;
use bgworker::ticked::When;
use clap::Args;
use thiserror::Error;

/// How long a configuration may take to be read while workers run.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// More than any configuration has.
const BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Where settings come from.
#[derive(Clone, Debug, Args)]
pub(crate) struct Configuration {
    /// The configuration file. Without it: $BGWORKER_CONFIG, ./bgworker.toml,
    /// ./conf/bgworker.toml, $XDG_CONFIG_HOME/bgworker/bgworker.toml, /etc/bgworker/bgworker.toml
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The server: a URL or a key=value string, as libpq takes it.
    #[arg(long, value_name = "URL")]
    pub(crate) database: Option<String>,
}

/// Why there are no settings.
#[derive(Debug, Error)]
pub(crate) enum ConfigurationError {
    /// There is no file in any of the usual places.
    #[error(
        "no configuration file: looked for {}: write one (conf/bgworker.toml is an example), or \
         name one with --config FILE",
        list(.looked)
    )]
    NotFound { looked: Vec<PathBuf> },
    /// The file cannot be read.
    #[error("could not read the configuration file \"{}\": {error}", .path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    /// The file exists, but cannot be what was meant.
    #[error("the configuration file \"{}\" {why}", .path.display())]
    NotWhole { path: PathBuf, why: &'static str },
    /// The file, or a file that it names, was not read in time.
    #[error(
        "the configuration file, or a file that it names, was not read within {}: does its file system answer?",
        humantime::format_duration(*.after)
    )]
    Late { after: Duration },
    /// A variable that settings may come from is not UTF-8.
    #[error("{variable}: its value is not UTF-8")]
    NotText { variable: String },
    /// The configuration has mistakes.
    #[error(transparent)]
    Problems(#[from] Problems),
}

/// Reads the settings in force.
pub(crate) fn read(configuration: &Configuration) -> Result<Settings, ConfigurationError> {
    let path = find(configuration.config.as_deref())?;
    let text = read_text(&path)?;
    check(configuration, path, text)
}

/// Reads the settings for a command that asks no server: none need be given.
pub(crate) fn read_without_server(
    configuration: &Configuration,
) -> Result<Settings, ConfigurationError> {
    let path = find(configuration.config.as_deref())?;
    let text = read_text(&path)?;
    let sources = sources(configuration, path, text)?;
    let settings = bgworker::config::read_without_server(&sources, &Functions::built_in());
    Ok(settings?)
}

/// Reads where an instance is served, though the file may have come to hold mistakes since it was started.
pub(crate) fn read_http(configuration: &Configuration) -> Result<Http, ConfigurationError> {
    let path = find(configuration.config.as_deref())?;
    let text = read_text(&path)?;
    let sources = sources(configuration, path, text)?;
    Ok(bgworker::config::read_http(
        &sources,
        &Functions::built_in(),
    )?)
}

/// When the work of this worker is done, if it can be done beside its schedule.
pub(crate) fn when(settings: &Settings, name: &str) -> Result<When, String> {
    let mut workers = settings.workers.iter();
    let worker = workers
        .find(|worker| *worker.worker.name == *name)
        .ok_or_else(|| no_worker(name))?;
    worker.function.when().ok_or_else(|| {
        let function = worker.function.name();
        format!("the worker \"{name}\" is no job: it runs {function}, which naps between two cycles and has no ticks")
    })
}

/// The server that the configuration names, for a command that does one thing there.
pub(crate) fn database(settings: Settings) -> Result<Database, Box<dyn Error>> {
    let Server::Given { conninfo, .. } = settings.server else {
        return Err(
            "the private server runs only as long as bgworker does: name one with --database URL"
                .into(),
        );
    };
    Ok(Database::new(*conninfo, settings.database_settings)?)
}

/// Says that there is no worker of this name.
pub(crate) fn no_worker(name: &str) -> String {
    format!("there is no worker \"{name}\" in the configuration")
}

/// Reads a time as an argument.
pub(crate) fn time(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| {
        let begins = text.trim().replacen(' ', "T", 1);
        let with = |rest: &str| format!("{begins}{rest}");
        let whole = [":00Z", "Z", "T00:00:00Z"].map(with);
        let whole = whole
            .into_iter()
            .find(|whole| whole.parse::<Timestamp>().is_ok());
        let example = whole.unwrap_or_else(|| "2026-11-26T02:15:00Z".to_owned());
        format!("it must be a time with its offset from UTC, such as {example}")
    })
}

/// The file that settings come from, as its path is written.
pub(crate) fn path(configuration: &Configuration) -> String {
    let path = find(configuration.config.as_deref());
    path.map_or_else(|_| String::new(), |path| path.display().to_string())
}

/// Reads the settings again, as [`read_again`] does, on a thread that may wait for a file system.
pub(crate) async fn read_beside(
    configuration: &Configuration,
) -> Result<Settings, ConfigurationError> {
    let configuration = configuration.clone();
    let reading = tokio::task::spawn_blocking(move || read_again(&configuration));
    match tokio::time::timeout(READ_TIMEOUT, reading).await {
        Ok(Ok(read)) => read,
        Ok(Err(_)) | Err(_) => Err(ConfigurationError::Late {
            after: READ_TIMEOUT,
        }),
    }
}

/// Reads the settings again, and refuses what may be only the rest of a configuration: a pipe that was read before,
/// a file that is empty or being written.
fn read_again(configuration: &Configuration) -> Result<Settings, ConfigurationError> {
    let path = find(configuration.config.as_deref())?;
    let unreadable = |error| ConfigurationError::Unreadable {
        path: path.clone(),
        error,
    };
    let not_whole = |why| ConfigurationError::NotWhole {
        path: path.clone(),
        why,
    };
    // Before the file is opened: opening a pipe without a writer would block.
    let metadata = std::fs::metadata(&path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(not_whole("is no ordinary file, and can be read only once"));
    }
    let text = read_text(&path)?;
    if text.trim().is_empty() {
        return Err(not_whole("is empty"));
    }
    if metadata.len() != text.len() as u64 {
        return Err(not_whole("was written to while it was read"));
    }
    check(configuration, path, text)
}

fn check(
    configuration: &Configuration,
    path: PathBuf,
    text: String,
) -> Result<Settings, ConfigurationError> {
    let sources = sources(configuration, path, text)?;
    Ok(bgworker::config::read(&sources, &Functions::built_in())?)
}

fn sources(
    configuration: &Configuration,
    path: PathBuf,
    text: String,
) -> Result<Sources, ConfigurationError> {
    Ok(Sources {
        file: Some(ConfigFile { path, text }),
        environment: environment()?,
        database: configuration.database.clone(),
    })
}

/// Reads the file, which may be a pipe.
fn read_text(path: &Path) -> Result<String, ConfigurationError> {
    let text = File::open(path).and_then(|file| {
        let mut bytes = Vec::new();
        file.take(BYTES_MAX + 1).read_to_end(&mut bytes)?;
        let wrong = |why| io::Error::new(io::ErrorKind::InvalidData, why);
        if bytes.len() as u64 > BYTES_MAX {
            return Err(wrong("it has no end within 64 MB"));
        }
        String::from_utf8(bytes).map_err(|_| wrong("it is not UTF-8"))
    });
    text.map_err(|error| ConfigurationError::Unreadable {
        path: path.to_owned(),
        error,
    })
}

/// The environment. A value that is not UTF-8 is skipped; it is an error if settings may come from the variable.
pub(crate) fn environment() -> Result<Vec<(String, String)>, ConfigurationError> {
    let mut environment = Vec::new();
    for (name, value) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        match value.into_string() {
            Ok(value) => environment.push((name, value)),
            Err(_) if Sources::counts(&name) => {
                return Err(ConfigurationError::NotText { variable: name });
            }
            Err(_) => {}
        }
    }
    Ok(environment)
}

/// The file that is named, by argument or variable, or else the first of the usual ones that exists.
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
