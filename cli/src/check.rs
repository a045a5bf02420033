//! `bgworker check`: reports every mistake in the configuration, and runs nothing.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use bgworker::config::{Origin, Server, Settings};
use clap::Args;

use crate::configuration::{self, Configuration};
use crate::exit::Exit;

/// The arguments of `check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArguments {
    #[command(flatten)]
    pub(crate) configuration: Configuration,
    /// Print the settings in force, and where each comes from. Secrets are left out.
    #[arg(long)]
    pub(crate) print: bool,
}

/// Reads and checks the configuration, and prints the settings in force if asked to.
pub(crate) fn check(arguments: &CheckArguments) -> Exit {
    let settings = match configuration::read(&arguments.configuration) {
        Ok(settings) => settings,
        Err(error) => {
            // A reader that has gone away needs no report.
            let _ = writeln!(io::stderr(), "{error}");
            return Exit::Configuration;
        }
    };
    let mut out = io::stdout().lock();
    if arguments.print {
        for setting in settings.shown {
            let _ = writeln!(
                out,
                "{} = {}  # {}",
                setting.key, setting.value, setting.origin
            );
        }
    } else {
        let path = configuration::path(&arguments.configuration);
        let _ = out.write_all(summary(&path, &settings).as_bytes());
        for warning in warnings(&path, &settings) {
            let _ = writeln!(out, "Warning: {warning}");
        }
    }
    Exit::Clean
}

/// What was found to be right, and what was not looked at.
fn summary(path: &str, settings: &Settings) -> String {
    let mut functions = BTreeMap::<_, usize>::new();
    for worker in &settings.workers {
        *functions.entry(worker.function.name()).or_default() += 1;
    }
    let counts = functions
        .iter()
        .map(|(name, count)| format!("{count} {name}"));
    let counts: Vec<_> = counts.collect();
    let server = match &settings.server {
        Server::Given { conninfo, .. } => conninfo.target(None),
        Server::Embedded { .. } => "a private server".to_owned(),
        Server::NotGiven => "none".to_owned(),
    };
    let listen = settings.http.listen;
    let listen = listen.map_or_else(
        || "nowhere: no page, no metrics, no bgworker status".to_owned(),
        |address| format!("http://{address}/"),
    );
    let workers = match &counts[..] {
        [] => "none: there is nothing to do".to_owned(),
        _ => format!("{} ({})", settings.workers.len(), counts.join(", ")),
    };
    let only = match &counts[..] {
        [] => " in what is there, but it has no [[worker]]",
        _ => "",
    };
    format!(
        "{path}: no mistakes{only}\n  workers  {workers}\n  server   {server}\n  listens  {listen}\nNot checked: the server, \
         its tables and the rights of the role, since no connection was made\n"
    )
}

/// What is no mistake, and still may not be meant.
fn warnings(path: &str, settings: &Settings) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(listen) = settings.http.listen
        && listen.ip().is_unspecified()
    {
        warnings.push(format!(
            "[http] listen = \"{listen}\" is every address of this machine, and the page has no password: keep the port \
             from untrusted networks"
        ));
    }
    let mut readable = |path: &Path, what| {
        if can_everyone_read(path) {
            let path = path.display();
            warnings.push(format!(
                "every user of this machine can read \"{path}\", {what}: chmod o-r \"{path}\""
            ));
        }
    };
    let of_url = settings.shown.iter().find(|one| one.key == "database.url");
    if let Server::Given { conninfo, .. } = &settings.server
        && of_url.is_some_and(|url| matches!(url.origin, Origin::File { .. }))
        && conninfo.has_password()
        && std::env::var_os("PGPASSWORD").is_none()
    {
        readable(Path::new(path), "which has a password");
    }
    if let Some(file) = &settings.database_settings.password_file {
        readable(file, "which is a password");
    }
    warnings
}

fn can_everyone_read(file: &Path) -> bool {
    let metadata = std::fs::metadata(file);
    metadata.is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o004 != 0)
}
