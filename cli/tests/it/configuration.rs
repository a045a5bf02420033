//! Configuration files for the program.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::support::database::TestDatabase;
use crate::support::files::reachable_directory;

/// A configuration file, in a directory of its own.
pub(crate) struct Config {
    directory: TempDir,
    pub(crate) path: PathBuf,
}

impl Config {
    pub(crate) fn new(text: &str) -> Self {
        let directory = reachable_directory();
        let path = directory.path().join("bgworker.toml");
        let config = Self { directory, path };
        config.write(text);
        config
    }

    /// A configuration for the server of the test, with a worker of this naptime for each schema.
    pub(crate) fn given(db: &TestDatabase, naptime: &str, schemas: &[&str]) -> Self {
        Self::new(&given(db, naptime, schemas))
    }

    pub(crate) fn write(&self, text: &str) {
        fs::write(&self.path, text).unwrap();
    }

    pub(crate) fn read(&self) -> String {
        fs::read_to_string(&self.path).unwrap()
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }
}

/// The text of such a configuration: `[database]` and the workers.
pub(crate) fn given(db: &TestDatabase, naptime: &str, schemas: &[&str]) -> String {
    let url = db.conninfo().replace('"', "\\\"");
    let mut text = format!("[database]\nurl = \"{url}\"\n");
    for schema in schemas {
        text.push_str(&format!(
            "[[worker]]\nname = \"{schema}\"\nschema = \"{schema}\"\ntable = \"t\"\nnaptime = \"{naptime}\"\n"
        ));
    }
    text
}
