//! `bgworker ddl`: prints the statements that create what workers need, for an administrator to run.

use std::io::{self, Write as _};

use bgworker::config::{Server, Settings};
use clap::Args;

use crate::configuration::{self, Configuration};
use crate::exit::Exit;

/// The arguments of `ddl`.
#[derive(Debug, Args)]
pub(crate) struct DdlArguments {
    #[command(flatten)]
    pub(crate) configuration: Configuration,
    /// Names of workers [default: all].
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// The role that bgworker connects as [default: from the database URL].
    #[arg(long, value_name = "ROLE")]
    pub(crate) role: Option<String>,
}

/// Prints the statements as a script for psql.
pub(crate) fn ddl(arguments: &DdlArguments) -> Exit {
    let settings = match configuration::read(&arguments.configuration) {
        Ok(settings) => settings,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            return Exit::Configuration;
        }
    };
    match statements(arguments, &settings) {
        Ok(text) => {
            let _ = io::stdout().lock().write_all(text.as_bytes());
            Exit::Clean
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            Exit::Failed
        }
    }
}

/// The statements for each database, each statement once.
fn statements(arguments: &DdlArguments, settings: &Settings) -> Result<String, String> {
    let user = match &settings.server {
        Server::Given { conninfo, .. } => conninfo.user(),
        Server::Embedded { .. } => None,
    };
    let role = arguments.role.as_deref().or(user);
    let role = role.ok_or("there is no role to grant rights to: name it with --role ROLE")?;
    for name in &arguments.names {
        let is_known = |one: &str| one == name;
        if !settings
            .workers
            .iter()
            .any(|worker| is_known(&worker.worker.name))
        {
            return Err(format!(
                "there is no worker \"{name}\" in the configuration"
            ));
        }
    }
    let meant = settings.workers.iter().filter(|worker| {
        let names = &arguments.names;
        names.is_empty() || names.iter().any(|name| **name == *worker.worker.name)
    });
    let mut databases: Vec<(Option<String>, Vec<String>)> = Vec::new();
    for worker in meant {
        let objects = worker.function.objects(role);
        let index = databases
            .iter()
            .position(|(database, _)| *database == objects.database);
        let index = index.unwrap_or_else(|| {
            databases.push((objects.database, Vec::new()));
            databases.len() - 1
        });
        let all = &mut databases[index].1;
        for statement in objects.statements {
            if !all.contains(&statement) {
                all.push(statement);
            }
        }
    }
    // The database of the URL, to which psql is connected, comes first.
    databases.sort_by_key(|(database, _)| database.is_some());
    let mut text = String::new();
    for (database, statements) in databases {
        if let Some(database) = database {
            text += &format!("\\connect \"{}\"\n", database.replace('"', "\"\""));
        }
        for statement in statements {
            text += &format!("{statement};\n");
        }
    }
    Ok(text)
}
