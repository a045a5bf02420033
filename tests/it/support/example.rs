//! The examples as programs.

use std::path::PathBuf;
use std::process::Command;

/// The command that runs an example. Examples are built with the tests.
pub(crate) fn example(name: &str) -> Command {
    // The test binary is in `deps`, which is next to `examples`.
    let tests = std::env::current_exe().unwrap();
    let path: PathBuf = tests
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("examples")
        .join(name);
    assert!(
        path.exists(),
        "there is no {}: build the examples",
        path.display()
    );
    Command::new(path)
}
