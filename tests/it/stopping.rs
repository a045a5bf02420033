//! The end of a worker in the middle of its work: what has begun commits whole, or is cancelled on the server.

use std::time::Duration;

use bgworker::Postmaster;
use bgworker::supervision::{Limits, Shutdown};
use bgworker::worker_spi::{ConnectionKind, Settings};

use crate::support::database::{TestDatabase, napping, shut_down, table, wake};
use crate::support::{eventually, within};

const SECOND: Duration = Duration::from_secs(1);

#[actix::test]
async fn a_sigterm_inside_a_cycle_lets_it_commit_whole() {
    let db = TestDatabase::new().await;
    let counted = table("s", "t");
    let postmaster = db.postmaster();
    let mut settings = Settings::new(counted.clone());
    settings.naptime = Duration::from_secs(600);
    db.worker(&postmaster, "w", settings).await;
    // A fold that lasts: its update waits in a trigger.
    db.execute(
        "CREATE FUNCTION s.slow() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN PERFORM pg_sleep(0.5); RETURN NEW; END'; \
         CREATE TRIGGER slow BEFORE UPDATE ON s.t FOR EACH ROW EXECUTE FUNCTION s.slow(); \
         INSERT INTO s.t VALUES ('total', 0), ('delta', 1), ('delta', 2)",
    )
    .await;
    postmaster.sighup();
    eventually("the fold is under way", || async {
        db.value::<bool>(
            "SELECT EXISTS (SELECT FROM pg_stat_activity \
             WHERE datname = current_database() AND query LIKE '%bgworker: w %' AND wait_event = 'PgSleep')",
        )
        .await
    })
    .await;
    db.execute("INSERT INTO s.t VALUES ('delta', 4)").await;
    shut_down(&postmaster).await;
    assert_eq!(
        db.rows(&counted).await,
        ["delta|4", "total|3"],
        "and no further cycle"
    );
}

#[actix::test]
async fn a_sigint_cancels_what_runs_on_the_server_and_keeps_the_deltas() {
    cancelled_on(ConnectionKind::Own).await;
}

#[actix::test]
async fn a_sigint_cancels_what_runs_on_a_home_connection_too() {
    cancelled_on(ConnectionKind::Home).await;
}

async fn cancelled_on(connection: ConnectionKind) {
    let db = TestDatabase::new().await;
    let counted = table("s", "t");
    let postmaster = db.postmaster();
    let mut settings = Settings::new(counted.clone());
    settings.connection = Some(connection);
    settings.naptime = Duration::from_secs(600);
    db.worker(&postmaster, "w", settings).await;
    db.execute(
        "CREATE FUNCTION s.slow() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN PERFORM pg_sleep(50); RETURN NEW; END'; \
         CREATE TRIGGER slow BEFORE UPDATE ON s.t FOR EACH ROW EXECUTE FUNCTION s.slow(); \
         INSERT INTO s.t VALUES ('total', 0), ('delta', 1)",
    )
    .await;
    postmaster.sighup();
    let sleeps = "SELECT EXISTS (SELECT FROM pg_stat_activity \
                  WHERE datname = current_database() AND query LIKE '%bgworker: w %' AND wait_event = 'PgSleep')";
    eventually("the fold is under way", || async {
        db.value::<bool>(sleeps).await
    })
    .await;
    let begin = tokio::time::Instant::now();
    postmaster.shut_down(Shutdown::Fast);
    assert!(postmaster.exited().await.unwrap().aborted.is_empty());
    assert!(begin.elapsed() < 2 * SECOND, "{:?}", begin.elapsed());
    assert!(!db.value::<bool>(sleeps).await);
    assert_eq!(db.rows(&counted).await, ["delta|1", "total|0"]);
}

/// A worker with a connection of its own and no lock timeout waits for a delta that a client holds.
async fn blocked_without_lock_timeout(mode: Shutdown) -> Duration {
    let db = TestDatabase::new().await;
    let counted = table("s", "t");
    let endless = db.conninfo_with("options", "-c lock_timeout=0");
    let limits = Limits::default().shutdown_timeout(SECOND);
    let database = crate::support::database::database(&endless);
    let postmaster = Postmaster::launch(limits, Some(database)).unwrap();
    let worker = napping(&db, &postmaster, &counted, ConnectionKind::Own).await;
    db.execute("INSERT INTO s.t VALUES ('total', 0), ('delta', 1)")
        .await;
    let client = db.connect_plainly().await;
    client
        .batch_execute("BEGIN; SELECT FROM s.t WHERE type = 'delta' FOR UPDATE")
        .await
        .unwrap();
    wake(&postmaster, &worker);
    let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity \
                 WHERE datname = current_database() AND query LIKE '%bgworker: w %' AND wait_event_type = 'Lock')";
    eventually("it waits", || async { db.value::<bool>(waits).await }).await;
    tokio::time::sleep(SECOND / 2).await; // more than the lock timeout that others have
    assert!(db.value::<bool>(waits).await);
    let begin = tokio::time::Instant::now();
    postmaster.shut_down(mode);
    assert!(postmaster.exited().await.unwrap().aborted.is_empty());
    let took = begin.elapsed();
    assert!(!db.value::<bool>(waits).await, "it was cancelled");
    client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(db.rows(&counted).await, ["delta|1", "total|0"]);
    took
}

#[actix::test]
async fn without_a_lock_timeout_a_sigint_ends_it_and_a_sigterm_after_its_deadline() {
    let took = blocked_without_lock_timeout(Shutdown::Fast).await;
    assert!(took < 2 * SECOND, "{took:?}");
    let took = blocked_without_lock_timeout(Shutdown::Smart).await;
    assert!((SECOND..3 * SECOND).contains(&took), "{took:?}");
}

#[actix::test]
async fn ten_idle_workers_end_within_a_second_and_leave_no_connection() {
    let db = TestDatabase::new().await;
    let postmaster = db.postmaster();
    for n in 0..10 {
        db.worker(
            &postmaster,
            &format!("idle {n}"),
            Settings::new(table("s", &format!("t{n}"))),
        )
        .await;
    }
    let begin = tokio::time::Instant::now();
    shut_down(&postmaster).await;
    assert!(begin.elapsed() < SECOND, "{:?}", begin.elapsed());
    // A backend is gone a moment after its socket.
    within(SECOND, "no connection is left", || async {
        db.value::<i64>(
            "SELECT count(*) FROM pg_stat_activity \
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        .await
            == 0
    })
    .await;
}
