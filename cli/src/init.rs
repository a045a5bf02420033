//! `bgworker init`: writes a configuration to begin with.

use std::fs::File;
use std::io::{self, ErrorKind, Write as _};
use std::path::PathBuf;

use clap::Args;

use crate::exit::Exit;

/// What it writes.
const BEGINNING: &str = include_str!("init.toml");

/// The arguments of `init`.
#[derive(Debug, Args)]
pub(crate) struct InitArguments {
    /// The file to write.
    #[arg(value_name = "FILE", default_value = "bgworker.toml")]
    pub(crate) file: PathBuf,
}

/// Writes the file, unless one exists.
pub(crate) fn init(arguments: &InitArguments) -> Exit {
    let path = arguments.file.display();
    let written =
        File::create_new(&arguments.file).and_then(|mut file| file.write_all(BEGINNING.as_bytes()));
    match written {
        Ok(()) => {
            let text = format!(
                "wrote {path}; next:\n    bgworker check --config {path}\n    bgworker --config {path}"
            );
            let _ = writeln!(io::stdout(), "{text}");
            Exit::Clean
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let _ = writeln!(io::stderr(), "\"{path}\" exists already: name another file");
            Exit::Failed
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "could not write \"{path}\": {error}");
            Exit::Failed
        }
    }
}
