//! `bgworker check`: every mistake in the configuration, and nothing else.

use std::io::{self, Write as _};

use crate::Configuration;
use crate::configuration;
use crate::exit::Exit;

/// Reads and checks, and prints the settings in force if asked to.
pub(crate) fn check(configuration: &Configuration, print: bool) -> Exit {
    let settings = match configuration::read(configuration) {
        Ok(settings) => settings,
        Err(error) => {
            // A reader that has gone away needs no report.
            let _ = writeln!(io::stderr(), "{error}");
            return Exit::Configuration;
        }
    };
    if print {
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
