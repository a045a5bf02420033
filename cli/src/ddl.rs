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
    let settings = match configuration::read_without_server(&arguments.configuration) {
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
        Server::Embedded { .. } | Server::NotGiven => None,
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
            return Err(configuration::no_worker(name));
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
            text += &format!("{};\n", in_lines(&statement));
        }
    }
    Ok(text)
}

/// The longest line of a script that need not be broken.
const LINE_MAX: usize = 100;

/// A statement with a line for each column of a table, and otherwise in lines that fit a screen. Breaks only where a blank
/// may stand, outside of quotes.
fn in_lines(statement: &str) -> String {
    if statement.len() <= LINE_MAX {
        return statement.to_owned();
    }
    let is_table = statement.starts_with("CREATE TABLE");
    let (mut text, mut length, mut depth, mut quote) = (String::new(), 0, 0_usize, None);
    let mut characters = statement.chars().peekable();
    while let Some(c) = characters.next() {
        text.push(c);
        length += 1;
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None, '(') => depth += 1,
            (None, ')') => depth = depth.saturating_sub(1),
            _ => {}
        }
        let begins_or_ends_column = depth == 1 && (c == ',' || c == '(' && !text.contains('\n'));
        let is_full = c == ' ' && length > LINE_MAX - 20;
        let breaks = if is_table {
            begins_or_ends_column
        } else {
            is_full
        };
        if breaks && quote.is_none() {
            text.truncate(text.trim_end().len());
            text.push_str("\n    ");
            length = 0;
            characters.next_if_eq(&' ');
        }
    }
    text
}
