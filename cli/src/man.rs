//! `bgworker man`: the manual pages, which are made from the same texts as `--help`.

use std::io::{self, Write as _};

use clap::{Args, Command};
use clap_mangen::Man;

use crate::exit::Exit;

/// The arguments of `man`.
#[derive(Debug, Args)]
pub(crate) struct ManArguments {
    /// The command; the program itself unless given.
    #[arg(value_name = "COMMAND")]
    pub(crate) command: Option<String>,
}

/// Prints one page, as roff.
pub(crate) fn man(arguments: &ManArguments, mut program: Command) -> Exit {
    // Names the commands with the program in front.
    program.build();
    let page = match &arguments.command {
        None => Some(&program),
        Some(name) => program.find_subcommand(name),
    };
    let Some(page) = page else {
        let names: Vec<_> = program.get_subcommands().map(Command::get_name).collect();
        let refusal = format!(
            "there is no such command: the commands are {}",
            names.join(", ")
        );
        let _ = writeln!(io::stderr(), "{refusal}");
        return Exit::Failed;
    };
    let page = Man::new(page.clone()).manual("bgworker");
    // A reader that has gone away does not matter.
    let _ = page.render(&mut io::stdout());
    Exit::Clean
}
