//! Servers of a test's own: at an address that stays, stopped and started at will, with standbys.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bgworker::embedded::{Binaries, Cluster, ClusterSettings};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::proxy::free_port;
use crate::embedded::{give_to_the_server, reachable_directory};

/// A server on a port of this machine.
pub(crate) struct TestServer {
    pub(crate) port: u16,
    directory: tempfile::TempDir,
    options: Vec<(String, String)>,
    cluster: Option<Cluster>,
}

impl TestServer {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// With these parameters of the server's.
    pub(crate) fn start_with(options: &[(&str, &str)]) -> Self {
        Self::in_directory(reachable_directory(), options)
    }

    fn in_directory(directory: tempfile::TempDir, options: &[(&str, &str)]) -> Self {
        let options = options.iter();
        let mut server = Self {
            port: free_port(),
            directory,
            options: options
                .map(|(parameter, value)| ((*parameter).to_owned(), (*value).to_owned()))
                .collect(),
            cluster: None,
        };
        server.start_again();
        server
    }

    pub(crate) fn conninfo(&self) -> String {
        conninfo(self.port)
    }

    fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// `pg_ctl stop -m immediate`: no goodbye to anybody, and crash recovery at the next start.
    pub(crate) fn stop_immediately(&mut self) {
        let pid = fs::read_to_string(self.data_dir().join("postmaster.pid")).unwrap();
        let pid = pid.lines().next().unwrap().parse().unwrap();
        kill(Pid::from_raw(pid), Signal::SIGQUIT).unwrap();
        // Waits for its watchdog, which goes with it.
        self.cluster.take().unwrap().stop().unwrap();
    }

    /// Starts it where it was, and waits until it accepts connections.
    pub(crate) fn start_again(&mut self) {
        let mut settings = ClusterSettings::kept(self.data_dir())
            .option("fsync", "off")
            .option("listen_addresses", "127.0.0.1")
            .option("port", self.port.to_string());
        for (parameter, value) in &self.options {
            settings = settings.option(parameter, value);
        }
        self.cluster = Some(Cluster::start(settings).unwrap());
    }

    /// A streaming standby of this server, by `pg_basebackup`.
    pub(crate) fn standby(&self) -> Self {
        let directory = reachable_directory();
        let data_dir = directory.path().join("data");
        let program = Binaries::find(None).unwrap().program("pg_basebackup");
        let output = Command::new(program)
            .args(["--write-recovery-conf", "--checkpoint=fast", "--pgdata"])
            .arg(&data_dir)
            .arg("--dbname")
            .arg(self.conninfo())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        give_all_to_the_server(&data_dir);
        Self::in_directory(directory, &[])
    }
}

/// The connection string of a port of this machine.
pub(crate) fn conninfo(port: u16) -> String {
    format!("host=127.0.0.1 port={port} user=postgres dbname=postgres")
}

fn give_all_to_the_server(path: &Path) {
    give_to_the_server(path);
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).unwrap() {
            give_all_to_the_server(&entry.unwrap().path());
        }
    }
}
