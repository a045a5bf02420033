//! Workers of tests, as a configuration file has them.

use bgworker::config::{self, ConfigFile, Functions, Problems, Settings, Sources};

use super::database::TestDatabase;

/// Reads a configuration of these workers on this database.
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
