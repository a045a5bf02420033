//! Command lines of the program.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::daemon::Daemon;

/// A command line of the program, with an environment that says nothing about databases.
pub(crate) fn bgworker() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bgworker"));
    for (variable, _) in std::env::vars_os() {
        let name = variable.to_string_lossy();
        if name.starts_with("PG") || name.starts_with("BGWORKER_") || name.ends_with("DATABASE_URL")
        {
            command.env_remove(&variable);
        }
    }
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// Runs a command line to its end: exit code, standard output, standard error.
pub(crate) fn run(command: &mut Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap_or(-1),
        text(output.stdout),
        text(output.stderr),
    )
}

/// The command line that runs this configuration file, with its log as text.
pub(crate) fn run_command(config: &Path) -> Command {
    let mut command = bgworker();
    command.args(["run", "--log-format", "text", "--config"]);
    command.arg(config);
    command
}

/// Starts `run` with this configuration file, and with its log as text.
pub(crate) fn start(config: &Path) -> Daemon {
    Daemon::start(&mut run_command(config))
}

/// Waits until each of these texts has stood in a line, in any order.
#[track_caller]
pub(crate) fn wait_for_all(daemon: &mut Daemon, texts: &[&str]) {
    let mut open = texts.to_vec();
    while !open.is_empty() {
        let line = daemon.wait_for("");
        open.retain(|text| !line.contains(text));
    }
}
