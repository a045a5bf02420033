//! `bgworker completions`: what a shell needs to complete command lines.

use std::io::{self, Write as _};

use clap::{Args, Command};
use clap_complete::Shell;

use crate::exit::Exit;

/// The arguments of `completions`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArguments {
    /// The shell.
    pub(crate) shell: Shell,
}

/// Prints the completions of the shell.
pub(crate) fn completions(arguments: &CompletionsArguments, command: &mut Command) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, command, "bgworker", &mut script);
    // A reader that has gone away does not matter.
    let _ = io::stdout().lock().write_all(&script);
    Exit::Clean
}
