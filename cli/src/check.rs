//! `bgworker check`: every mistake in the configuration, and nothing else.

use std::io::{self, Write as _};

use clap::Args;

use crate::configuration::{self, Configuration};
use crate::exit::Exit;

/// What `check` is told.
#[derive(Debug, Args)]
pub(crate) struct CheckArguments {
    #[command(flatten)]
    pub(crate) configuration: Configuration,
    /// Print the settings in force, and where each comes from. Secrets are left out.
    #[arg(long)]
    pub(crate) print: bool,
}

/// Reads and checks, and prints the settings in force if asked to.
pub(crate) fn check(arguments: &CheckArguments) -> Exit {
    let settings = match configuration::read(&arguments.configuration) {
        Ok(settings) => settings,
        Err(error) => {
            // A reader that has gone away needs no report.
            let _ = writeln!(io::stderr(), "{error}");
            return Exit::Configuration;
        }
    };
    if arguments.print {
        let mut out = io::stdout().lock();
        for setting in settings.shown {
            let _ = writeln!(
                out,
                "{} = {}  # {}",
                setting.key, setting.value, setting.origin
            );
        }
    }
    Exit::Clean
}
