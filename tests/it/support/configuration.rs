//! Test workers, written as in a configuration file.

use bgworker::config::{self, ConfigFile, Functions, Problems, Settings, Sources};

use super::database::TestDatabase;

/// Reads a configuration with these workers on this database.
pub(crate) fn read(
    db: &TestDatabase,
    functions: &Functions,
    workers: &str,
) -> Result<Settings, Problems> {
    let url = db.conninfo().replace('\\', "\\\\").replace('"', "\\\"");
    let sources = Sources {
        file: Some(ConfigFile {
            path: "b.toml".into(),
            text: format!("[database]\nurl = \"{url}\"\n{workers}"),
        }),
        ..Sources::default()
    };
    config::read(&sources, functions)
}
