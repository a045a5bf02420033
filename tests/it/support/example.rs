//! The examples, as programs.

use std::path::PathBuf;
use std::process::Command;

/// A command line of an example, which is built with the tests.
pub(crate) fn example(name: &str) -> Command {
    // Tests run from `deps` of the directory that `examples` is in.
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
