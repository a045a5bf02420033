//! `bgworker declare`: has a job done as this configuration has it, although another instance has declared it differently.

use std::error::Error;
use std::io::{self, Write as _};

use bgworker::config::Settings;
use bgworker::ticked::{self, Redeclared};
use clap::Args;

use crate::configuration::{self, Configuration};
use crate::exit::{self, Exit};

/// The arguments of `declare`.
#[derive(Debug, Args)]
pub(crate) struct DeclareArguments {
    #[command(flatten)]
    pub(crate) configuration: Configuration,
    /// The job.
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}

/// Declares the job, and prints what that has replaced.
pub(crate) fn declare(arguments: &DeclareArguments) -> Exit {
    crate::logging::init(None, "warn");
    let settings = match configuration::read(&arguments.configuration) {
        Ok(settings) => settings,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            return Exit::Configuration;
        }
    };
    let name = &arguments.name;
    match exit::in_system(run(name, settings)) {
        Ok(redeclared) => {
            let _ = writeln!(io::stdout(), "{name}: {}", show(&redeclared));
            Exit::Clean
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "{name}: {error}");
            Exit::Failed
        }
    }
}

async fn run(name: &str, settings: Settings) -> Result<Redeclared, Box<dyn Error>> {
    let when = configuration::when(&settings, name)?;
    let database = configuration::database(settings)?;
    let redeclared = ticked::redeclare(&database, name, &when).await;
    database.close().await;
    Ok(redeclared?)
}

fn show(redeclared: &Redeclared) -> String {
    match redeclared {
        Redeclared::New => "declared; it is new, and begins with its next tick".to_owned(),
        Redeclared::InPlaceOf(by) => format!(
            "declared, in the place of what {by} had declared: instances with that stand by from now on"
        ),
        // Later versions may tell more.
        _ => "it is declared this way already".to_owned(),
    }
}
