//! Servers of a single test, at a fixed address, which it can stop and start, and which can have standbys.

use std::fs;
use std::path::{Path, PathBuf};

use bgworker::embedded::{Cluster, ClusterSettings};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::database::TestDatabase;
use super::files::{give_to_the_server, reachable_directory};
use super::proxy::free_port;

/// A server on a local port.
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

    /// Starts a server with these configuration parameters.
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

    /// The log of the server so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.data_dir().join("server.log")).unwrap()
    }

    fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Like `pg_ctl stop -m immediate`: clients get no goodbye, and the next start needs crash recovery.
    pub(crate) fn stop_immediately(&mut self) {
        let pid = fs::read_to_string(self.data_dir().join("postmaster.pid")).unwrap();
        let pid = pid.lines().next().unwrap().parse().unwrap();
        kill(Pid::from_raw(pid), Signal::SIGQUIT).unwrap();
        // Waits for its watchdog, which ends with the server.
        self.cluster.take().unwrap().stop().unwrap();
    }

    /// Stops all of the server's processes, as a machine that hangs would, until the guard is dropped. Drop it before the
    /// server.
    pub(crate) fn freeze(&self) -> Frozen {
        let pid = fs::read_to_string(self.data_dir().join("postmaster.pid")).unwrap();
        let postmaster: i32 = pid.lines().next().unwrap().parse().unwrap();
        let mut frozen = Frozen(Vec::new());
        // The postmaster first: then it has no new children.
        frozen.stop(postmaster);
        for child in children_of(postmaster) {
            frozen.stop(child);
        }
        frozen
    }

    /// Starts the server in the same place, and waits until it accepts connections.
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

    /// Starts a streaming standby of this server, from a copy of its files that is made in backup mode.
    pub(crate) async fn standby(&self) -> Self {
        let directory = reachable_directory();
        let data_dir = directory.path().join("data");
        let primary = TestDatabase::at(&self.conninfo()).await;
        let version: i32 = primary
            .value("SELECT current_setting('server_version_num')::int")
            .await;
        let (start, stop) = match version {
            150_000.. => ("pg_backup_start('standby', true)", "pg_backup_stop(false)"),
            _ => (
                "pg_start_backup('standby', true, false)",
                "pg_stop_backup(false, false)",
            ),
        };
        primary.execute(&format!("SELECT {start}")).await;
        copy_all(&self.data_dir(), &data_dir);
        let stop = format!("SELECT labelfile FROM {stop}");
        let label: String = primary.value(&stop).await;
        fs::write(data_dir.join("backup_label"), label).unwrap();
        fs::write(data_dir.join("standby.signal"), "").unwrap();
        let follow = format!("primary_conninfo = '{}'\n", self.conninfo());
        fs::write(data_dir.join("postgresql.auto.conf"), follow).unwrap();
        give_all_to_the_server(&data_dir);
        Self::in_directory(directory, &[])
    }
}

/// Processes that are stopped until this is dropped.
pub(crate) struct Frozen(Vec<Pid>);

impl Frozen {
    fn stop(&mut self, pid: i32) {
        let pid = Pid::from_raw(pid);
        // A child may have ended meanwhile.
        if kill(pid, Signal::SIGSTOP).is_ok() {
            self.0.push(pid);
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ = kill(*pid, Signal::SIGCONT);
        }
    }
}

fn children_of(parent: i32) -> Vec<i32> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let all = all.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
    let is_child = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // After the name in parentheses: the state, and the parent.
        let (_, rest) = stat.rsplit_once(')').unwrap_or_default();
        rest.split_whitespace().nth(1) == Some(&parent.to_string())
    };
    all.filter(is_child).collect()
}

/// Copies the files of a running server, except for those that say that it runs.
fn copy_all(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (name, path) = entry
            .map(|entry| (entry.file_name(), entry.path()))
            .unwrap();
        if path.is_dir() {
            copy_all(&path, &to.join(name));
        } else if !name.to_string_lossy().starts_with("postmaster.") {
            // Files that have gone meanwhile were temporary.
            let _ = fs::copy(&path, to.join(name));
        }
    }
}

/// The connection string of a local port.
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
