//! The private server: made, kept, stopped, and never left behind.

use std::fs;
use std::path::{Path, PathBuf};

use bgworker::embedded::{Binaries, BinariesError, Cluster, ClusterSettings, EmbeddedError};

use crate::support::database::TestDatabase;
use crate::support::files::{give_to_the_server, processes_with, reachable_directory};

#[test]
fn a_directory_of_another_user_is_not_touched() {
    let directory = reachable_directory();
    fs::write(directory.path().join("PG_VERSION"), "15\n").unwrap();
    // If the tests run as root, their directory belongs to another user than the server's; if not, root's does.
    let data_dir = if nix::unistd::Uid::effective().is_root() {
        directory.path()
    } else {
        Path::new("/etc")
    };
    let before = fs::read_dir(data_dir).unwrap().count();
    let error = Cluster::start(kept(data_dir)).unwrap_err();
    assert!(matches!(error, EmbeddedError::OtherOwner { .. }), "{error}");
    assert_eq!(fs::read_dir(data_dir).unwrap().count(), before);
}

fn kept(data_dir: &Path) -> ClusterSettings {
    ClusterSettings::kept(data_dir).option("fsync", "off")
}

#[actix::test]
async fn what_is_kept_is_there_after_a_stop_and_nothing_runs_or_listens_meanwhile() {
    let directory = reachable_directory();
    let data_dir = directory.path().join("data");
    let cluster = Cluster::start(kept(&data_dir)).unwrap();
    let socket_dir = cluster.socket_dir().to_owned();
    let db = TestDatabase::at(&cluster.conninfo()).await;
    db.execute("CREATE TABLE t AS SELECT 42 AS value").await;
    drop(db);
    cluster.stop().unwrap();
    assert!(!socket_dir.exists());
    assert_eq!(processes_with(&data_dir), Vec::<String>::new());
    let cluster = Cluster::start(kept(&data_dir)).unwrap();
    let db = TestDatabase::at(&cluster.conninfo()).await;
    assert_eq!(db.value::<i32>("SELECT value FROM t").await, 42);
}

#[actix::test]
async fn a_temporary_cluster_leaves_nothing() {
    let cluster = Cluster::start(ClusterSettings::temporary().option("fsync", "off")).unwrap();
    let (data_dir, socket_dir) = (
        cluster.data_dir().to_owned(),
        cluster.socket_dir().to_owned(),
    );
    assert!(data_dir.exists() && socket_dir.exists());
    drop(cluster);
    assert!(!data_dir.parent().unwrap().exists() && !socket_dir.exists());
}

#[test]
fn the_path_of_the_socket_is_short_enough_for_every_system() {
    let cluster = Cluster::start(ClusterSettings::temporary().option("fsync", "off")).unwrap();
    let socket = cluster.socket_dir().join(".s.PGSQL.5432");
    assert!(socket.exists());
    assert!(socket.as_os_str().len() <= 107, "{}", socket.display());
}

#[test]
fn a_directory_with_something_else_in_it_is_left_alone() {
    let directory = reachable_directory();
    let file = directory.path().join("precious");
    fs::write(&file, "").unwrap();
    give_to_the_server(directory.path());
    let error = Cluster::start(kept(directory.path())).unwrap_err();
    assert!(
        matches!(error, EmbeddedError::NotACluster { .. }),
        "{error}"
    );
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn what_an_interrupted_initdb_left_behind_is_cleared_away() {
    let directory = reachable_directory();
    let data_dir = directory.path().join("data");
    fs::create_dir_all(data_dir.join("base")).unwrap();
    fs::write(data_dir.join("PG_VERSION"), "15\n").unwrap();
    fs::write(directory.path().join("data.initdb"), "").unwrap();
    give_to_the_server(&data_dir);
    let cluster = Cluster::start(kept(&data_dir)).unwrap();
    assert!(!directory.path().join("data.initdb").exists());
    cluster.stop().unwrap();
}

#[test]
fn missing_parents_are_created_and_an_empty_directory_is_accepted() {
    let directory = reachable_directory();
    let deep = directory.path().join("not/yet/there");
    Cluster::start(kept(&deep)).unwrap().stop().unwrap();
    let empty = directory.path().join("empty");
    fs::create_dir(&empty).unwrap();
    Cluster::start(kept(&empty)).unwrap().stop().unwrap();
}

#[test]
fn a_log_that_is_a_link_is_not_followed() {
    let directory = reachable_directory();
    let data_dir = directory.path().join("data");
    Cluster::start(kept(&data_dir)).unwrap().stop().unwrap();
    let precious = directory.path().join("precious");
    fs::write(&precious, "mine").unwrap();
    let log = data_dir.join("server.log");
    fs::remove_file(&log).unwrap();
    std::os::unix::fs::symlink(&precious, &log).unwrap();
    let error = Cluster::start(kept(&data_dir)).unwrap_err().to_string();
    assert!(error.contains("server.log"), "{error}");
    assert_eq!(fs::read_to_string(&precious).unwrap(), "mine");
}

#[actix::test]
async fn a_signal_to_the_watchdogs_group_leaves_no_process_behind() {
    use nix::sys::signal::{Signal, killpg};
    let directory = reachable_directory();
    let data_dir = directory.path().join("data");
    let cluster = Cluster::start(kept(&data_dir)).unwrap();
    // The signal means a smart shutdown to the server; a connected client keeps that from completing.
    let db = TestDatabase::at(&cluster.conninfo()).await;
    let watchdog = fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let command = fs::read_to_string(entry.path().join("cmdline")).ok()?;
        let is_it = command.contains("bgworker-watchdog") && command.contains(data_dir.to_str()?);
        let pid = entry.file_name().to_str()?.parse::<i32>().ok()?;
        let group = nix::unistd::getpgid(Some(nix::unistd::Pid::from_raw(pid))).ok()?;
        (is_it && group.as_raw() == pid).then_some(group)
    });
    killpg(watchdog.expect("there is a watchdog"), Signal::SIGTERM).unwrap();
    cluster.stop().unwrap();
    assert_eq!(processes_with(&data_dir), Vec::<String>::new());
    drop(db);
}

#[test]
fn a_cluster_of_another_version_is_refused_naming_both() {
    let directory = reachable_directory();
    fs::write(directory.path().join("PG_VERSION"), "9\n").unwrap();
    give_to_the_server(directory.path());
    let error = Cluster::start(kept(directory.path()))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("made by PostgreSQL 9, but this machine has only version"),
        "{error}"
    );
}

#[test]
fn a_server_that_fails_to_start_says_why() {
    let settings = ClusterSettings::temporary().option("shared_buffers", "much");
    let error = Cluster::start(settings).unwrap_err();
    assert!(matches!(error, EmbeddedError::Ended { .. }), "{error}");
    assert!(error.to_string().contains("shared_buffers"), "{error}");
}

#[test]
fn missing_binaries_are_reported_with_every_place_and_how_to_install_them() {
    let places = [PathBuf::from("/no/such/bin"), PathBuf::from("/nor/this")];
    let error = Binaries::find_in(&places, None).unwrap_err();
    assert!(matches!(error, BinariesError::NotFound { .. }));
    let text = error.to_string();
    for part in [
        "/no/such/bin, /nor/this",
        "apt-get install -y postgresql",
        "dnf install -y postgresql-server",
        "brew install postgresql",
    ] {
        assert!(text.contains(part), "{text}");
    }
}
