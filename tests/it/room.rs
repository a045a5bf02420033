//! A server without room for another connection is not away, and workers that have a connection keep it.

use std::time::Duration;

use bgworker::database::{self, ConnInfo, Database, ServerState};
use bgworker::supervision::{Limits, Shutdown, WorkerState};
use bgworker::{Postmaster, PostmasterHandle};
use tracing::Level;

use crate::support::database::{TestDatabase, brisk, brisk_on_its_own, register, table};
use crate::support::jobs::{Instance, every, runs, settings_of};
use crate::support::log::Log;
use crate::support::server::TestServer;
use crate::support::{busy, eventually, within};

const SECOND: Duration = Duration::from_secs(1);

/// Launches a Postmaster whose role may have this many connections.
async fn limited_to(
    db: &TestDatabase,
    server: &TestServer,
    connections: usize,
) -> PostmasterHandle {
    db.execute(&format!(
        "CREATE ROLE app LOGIN CONNECTION LIMIT {connections}; GRANT CREATE ON DATABASE postgres TO app"
    ))
    .await;
    let app = server.conninfo().replace("user=postgres", "user=app");
    let conninfo = ConnInfo::parse(&app, |_| None).unwrap();
    let settings = database::Settings::default().connections(1);
    let database = Database::new(conninfo, settings).unwrap();
    Postmaster::launch(Limits::default(), Some(database)).unwrap()
}

/// Number of running workers, and of all starts together.
async fn running(postmaster: &PostmasterHandle) -> (usize, u64) {
    let workers = postmaster.workers().await.unwrap().registered;
    let run = |state| matches!(state, WorkerState::Running);
    let running = workers.iter().filter(|worker| run(worker.state)).count();
    (running, workers.iter().map(|worker| worker.starts).sum())
}

#[actix::test]
async fn workers_that_have_a_connection_keep_it_and_the_rest_wait_their_turn() {
    let log = Log::capture();
    let server = TestServer::start();
    let db = TestDatabase::at(&server.conninfo()).await;
    let postmaster = limited_to(&db, &server, 6).await;
    let mut workers = Vec::new();
    for number in 0..10 {
        let name = format!("w{number}");
        let settings = brisk_on_its_own(&table("s", &name)).initial_total(0);
        workers.push(register(&postmaster, &name, settings.naptime(SECOND / 10)).await);
    }
    eventually("six run", || async { running(&postmaster).await.0 == 6 }).await;
    tokio::time::sleep(5 * SECOND).await; // the crowd
    assert_eq!(
        running(&postmaster).await,
        (6, 10),
        "no worker was restarted"
    );
    let status = postmaster.status().await.unwrap();
    assert_eq!(status.server.unwrap().state, ServerState::Primary);
    assert_eq!(status.counts.parked, 0);
    let told = log.with(Level::WARN, "");
    let waits = log.with(Level::WARN, "waits for room for its connection");
    assert!(waits.len() == 4 && told.len() <= 6, "{told:#?}");

    // A worker that ends makes room for one that waits; without the limit, all others run.
    let running_now = postmaster.workers().await.unwrap().registered;
    let first = running_now
        .iter()
        .find(|worker| worker.state == WorkerState::Running);
    postmaster.terminate(first.unwrap().id).await.unwrap();
    eventually("another one runs", || async {
        let workers = postmaster.workers().await.unwrap().registered;
        workers.len() == 9 && running(&postmaster).await.0 == 6
    })
    .await;
    db.execute("ALTER ROLE app CONNECTION LIMIT -1").await;
    eventually("all run", || async { running(&postmaster).await.0 == 9 }).await;
}

#[actix::test]
async fn a_worker_that_waits_for_room_ends_when_it_is_asked_to() {
    let server = TestServer::start();
    let db = TestDatabase::at(&server.conninfo()).await;
    let postmaster = limited_to(&db, &server, 0).await;
    let own = register(&postmaster, "own", brisk_on_its_own(&table("s", "own"))).await;
    let home = register(&postmaster, "home", brisk(&table("s", "home"))).await;
    for worker in [&own, &home] {
        eventually("it says what it lacks", || async {
            let status = postmaster.worker(worker.id).await.unwrap().unwrap();
            let error = status.report.last_error;
            error.is_some_and(|error| error.contains("53300"))
        })
        .await;
    }
    let begin = std::time::Instant::now();
    postmaster.shut_down(Shutdown::Smart);
    let exit = postmaster.exited().await.unwrap();
    assert!(exit.aborted.is_empty() && begin.elapsed() < busy(SECOND));
}

#[actix::test]
async fn workers_at_home_do_not_notice_a_full_server() {
    let log = Log::capture();
    let server = TestServer::start();
    let db = TestDatabase::at(&server.conninfo()).await;
    let postmaster = limited_to(&db, &server, 2).await;
    let settings = brisk(&table("s", "home"))
        .initial_total(0)
        .vacuum_after(None);
    let home = db.worker(&postmaster, "home", settings).await;
    for name in ["a", "b", "c"] {
        register(&postmaster, name, brisk_on_its_own(&table("s", name))).await;
    }
    eventually("two wait", || async {
        log.with(Level::WARN, "waits for room").len() == 2
    })
    .await;
    for round in 1..=20 {
        db.execute("INSERT INTO s.home VALUES ('delta', 1)").await;
        let total = format!("total|{round}");
        db.wait_for_rows(&table("s", "home"), &[&total]).await;
    }
    let status = postmaster.worker(home.id).await.unwrap().unwrap();
    assert_eq!((status.starts, status.report.consecutive_failures), (1, 0));
}

#[actix::test]
async fn jobs_that_share_too_few_connections_take_turns_and_that_is_said_once() {
    let log = Log::capture();
    let server = TestServer::start();
    let db = TestDatabase::at(&server.conninfo()).await;
    let postmaster = limited_to(&db, &server, 3).await;
    let keys = every("100ms", "SELECT pg_sleep(0.3)");
    let jobs: Vec<_> = (0..6).map(|n| (format!("j{n}"), keys.as_str())).collect();
    let instance = Instance::register(&postmaster, settings_of(&db, &jobs)).await;
    eventually("one has run", || async { runs(&db, "true").await > 0 }).await;
    within(60 * SECOND, "each has run ten times", || async {
        let least = "SELECT count(*) = 6 AND min(runs) >= 10 FROM bgworker.job";
        db.value::<bool>(least).await
    })
    .await;
    instance.stop(Shutdown::Smart).await;
    let full = log.with(Level::WARN, "53300");
    assert!((1..=2).contains(&full.len()), "{full:#?}");
}
