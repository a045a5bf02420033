//! Workers wait until the server has reached the state that their start time requires.

use std::cell::Cell;
use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use bgworker::database::ServerState;
use bgworker::embedded::{Cluster, ClusterSettings};
use bgworker::supervision::{Limits, Shutdown};
use bgworker::{BackgroundWorker, Postmaster, PostmasterHandle, RestartTime, StartTime};
use tracing::Level;

use crate::support::database::{TestDatabase, brisk_on_its_own, database, table};
use crate::support::files::reachable_directory;
use crate::support::log::Log;
use crate::support::server::TestServer;
use crate::support::{eventually, within};
use bgworker::testing::{Probe, Script};

const LEVELS: [StartTime; 3] = [
    StartTime::RecoveryFinished,
    StartTime::ConsistentState,
    StartTime::PostmasterStart,
];

/// Launches a Postmaster with one scripted worker for each start time, the latest first.
async fn one_of_each_level(conninfo: &str) -> (PostmasterHandle, Probe) {
    let postmaster = Postmaster::launch(Limits::default(), Some(database(conninfo))).unwrap();
    let probe = Probe::new();
    for level in LEVELS {
        let worker = BackgroundWorker::new(level.to_string()).start_time(level);
        postmaster
            .register(worker, probe.main(Script::NAPS))
            .await
            .unwrap();
    }
    (postmaster, probe)
}

async fn running(postmaster: &PostmasterHandle) -> usize {
    postmaster.status().await.unwrap().counts.running
}

#[actix::test]
async fn without_a_server_only_postmaster_start_runs_and_the_rest_follows_when_it_comes() {
    let log = Log::capture();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let conninfo = format!("host=127.0.0.1 port={port} user=postgres");
    let (postmaster, mut probe) = one_of_each_level(&conninfo).await;
    assert_eq!(probe.started().await.0, "postmaster start");
    eventually("the server is found away", || async {
        !log.with(Level::WARN, "server is away").is_empty()
    })
    .await;
    assert_eq!(running(&postmaster).await, 1);

    let settings = ClusterSettings::temporary()
        .option("fsync", "off")
        .option("listen_addresses", "127.0.0.1")
        .option("port", port.to_string());
    let starting = tokio::task::spawn_blocking(|| Cluster::start(settings).unwrap());
    let _cluster = starting.await.unwrap();
    within(Duration::from_secs(2), "all run", || async {
        running(&postmaster).await == 3
    })
    .await;
    assert_eq!(probe.started().await.0, "recovery finished");
    assert_eq!(probe.started().await.0, "consistent state");
    assert_eq!(
        log.with(Level::WARN, "server is").len(),
        1,
        "one line for each change"
    );
    assert_eq!(log.with(Level::INFO, "server is primary").len(), 1);
}

#[actix::test]
async fn on_a_standby_consistent_state_runs_and_the_rest_follows_its_promotion() {
    let directory = reachable_directory();
    let data_dir = directory.path().join("data");
    let settings = ClusterSettings::kept(&data_dir).option("fsync", "off");
    Cluster::start(settings.clone()).unwrap().stop().unwrap();
    // A cluster with this file comes up as a hot standby, and waits for its primary's WAL.
    fs::write(data_dir.join("standby.signal"), "").unwrap();
    let cluster = Cluster::start(settings).unwrap();
    assert_eq!(
        database(&cluster.conninfo()).server_state().await.0,
        ServerState::Standby
    );
    let (postmaster, mut probe) = one_of_each_level(&cluster.conninfo()).await;
    let mut started = [probe.started().await.0, probe.started().await.0];
    started.sort();
    assert_eq!(started, ["consistent state", "postmaster start"]);
    tokio::time::sleep(Duration::from_millis(1500)).await; // a second look at the server
    assert_eq!(running(&postmaster).await, 2);
    assert_eq!(
        postmaster.status().await.unwrap().reached,
        StartTime::ConsistentState
    );
    let db = TestDatabase::at(&cluster.conninfo()).await;
    assert!(db.value::<bool>("SELECT pg_promote()").await);
    within(Duration::from_secs(2), "all run", || async {
        running(&postmaster).await == 3
    })
    .await;
    assert_eq!(probe.started().await.0, "recovery finished");
    postmaster.shut_down(Shutdown::Smart);
    postmaster.exited().await.unwrap();
}

#[actix::test]
async fn a_server_that_refuses_bgworker_is_said_to_be_primary_only_once_it_was_asked() {
    let log = Log::capture();
    let server = TestServer::start();
    let db = TestDatabase::at(&server.conninfo()).await;
    let app = server.conninfo().replace("user=postgres", "user=app");
    let (postmaster, _probe) = one_of_each_level(&app).await;
    // Its workers start, and meet the refusal under their own names.
    eventually("all run", || async { running(&postmaster).await == 3 }).await;
    let status = || async { postmaster.status().await.unwrap().server.unwrap() };
    let refused = status().await;
    assert_eq!(refused.state, ServerState::Unknown);
    assert!(refused.reason.unwrap().contains("28000"));
    assert_eq!(log.with(Level::WARN, "refuses the connection").len(), 1);
    assert_eq!(log.with(Level::INFO, "server is primary").len(), 0);
    db.execute("CREATE ROLE app LOGIN").await;
    eventually("it is asked", || async {
        status().await.state == ServerState::Primary
    })
    .await;
    assert_eq!(running(&postmaster).await, 3);
}

#[actix::test]
async fn a_postmaster_that_has_exited_no_longer_looks_at_the_server() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (counted, count) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for peer in listener.incoming() {
            drop(peer);
            if counted.send(()).is_err() {
                return;
            }
        }
    });
    let conninfo = format!("host=127.0.0.1 port={port} user=u sslmode=disable");
    let (postmaster, _stage) = one_of_each_level(&conninfo).await;
    eventually("it looks", || async { count.try_recv().is_ok() }).await;
    postmaster.shut_down(Shutdown::Smart);
    postmaster.exited().await.unwrap();
    while count.try_recv().is_ok() {}
    tokio::time::sleep(Duration::from_millis(2500)).await; // more than two intervals
    assert!(count.try_recv().is_err());
}

#[actix::test]
async fn a_worker_that_meets_a_standby_instead_of_a_primary_comes_back_though_it_never_restarts() {
    let directory = reachable_directory();
    let data_dir = directory.path().join("data");
    let settings = ClusterSettings::kept(&data_dir).option("fsync", "off");
    Cluster::start(settings.clone()).unwrap().stop().unwrap();
    fs::write(data_dir.join("standby.signal"), "").unwrap();
    let cluster = Cluster::start(settings).unwrap();
    let db = TestDatabase::at(&cluster.conninfo()).await;
    let postmaster = db.postmaster();
    // As if the server had become a standby between the look at it and the start of the worker.
    let (_sender, receiver) = tokio::sync::watch::channel(brisk_on_its_own(&table("s", "t")));
    let worker = BackgroundWorker::new("w")
        .start_time(StartTime::ConsistentState)
        .restart_time(RestartTime::Never);
    let worker = postmaster
        .register(worker, bgworker::worker_spi::main(receiver))
        .await
        .unwrap();
    let status = || async { postmaster.worker(worker.id()).await.unwrap() };
    eventually("it met the standby", || async {
        let reason = status().await.expect("it has not ended for good").reason;
        reason.is_some_and(|reason| reason.contains("25006"))
    })
    .await;
    assert!(db.value::<bool>("SELECT pg_promote()").await);
    eventually("it folds", || async {
        status().await.unwrap().report.cycles > 0
    })
    .await;
}

#[actix::test]
async fn a_server_that_is_primary_is_not_looked_at_again() {
    let db = TestDatabase::new().await;
    let (postmaster, _stage) = one_of_each_level(db.conninfo()).await;
    eventually("all run", || async { running(&postmaster).await == 3 }).await;
    let sessions = "SELECT sessions FROM pg_stat_database WHERE datname = current_database()";
    // The server counts sessions, the test's own too, some time after they begin: wait until the counter has settled.
    let before = Cell::new(0);
    eventually("the sessions so far are counted", async || {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let last = before.replace(db.value::<i64>(sessions).await);
        last > 0 && last == before.get()
    })
    .await;
    tokio::time::sleep(Duration::from_millis(2500)).await; // more than two intervals
    assert_eq!(db.value::<i64>(sessions).await, before.get());
}
