//! `bgworker schema`: the JSON Schema of the configuration file.

use std::io::{self, Write as _};

use bgworker::config::Functions;

use crate::exit::Exit;

/// Prints the schema.
pub(crate) fn schema() -> Exit {
    let schema = bgworker::config::schema(&Functions::built_in());
    // A reader that has gone away does not matter.
    let _ = writeln!(io::stdout().lock(), "{schema:#}");
    Exit::Clean
}
