//! A worker stopped in the middle of its work: what has begun commits as a whole, or is cancelled on the server.

use std::time::Duration;

use bgworker::Postmaster;
use bgworker::supervision::{Limits, Shutdown};
use bgworker::worker_spi::{ConnectionKind, Settings};

use crate::support::database::{TestDatabase, napping, shut_down, table, wake};
use crate::support::stage::{Stage, fold_slowly, is_folding, waits};
use crate::support::{busy, eventually, within};

const SECOND: Duration = Duration::from_secs(1);

#[actix::test]
async fn a_sigterm_inside_a_cycle_lets_it_commit_whole() {
    let stage = Stage::napping(ConnectionKind::Home).await;
    fold_slowly(&stage.db, 0.5).await;
    stage.postmaster.sighup();
    is_folding(&stage.db, "w").await;
    stage.execute("INSERT INTO s.t VALUES ('delta', 4)").await;
    shut_down(&stage.postmaster).await;
    let rows = stage.rows().await;
    assert_eq!(rows, ["delta|4", "total|1"], "and no further cycle");
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
    let stage = Stage::napping(connection).await;
    fold_slowly(&stage.db, 50.0).await;
    stage.postmaster.sighup();
    is_folding(&stage.db, "w").await;
    let begin = tokio::time::Instant::now();
    stage.postmaster.shut_down(Shutdown::Fast);
    assert!(stage.postmaster.exited().await.unwrap().aborted.is_empty());
    assert!(begin.elapsed() < busy(2 * SECOND), "{:?}", begin.elapsed());
    assert!(!waits(&stage.db, "w", "Timeout").await);
    assert_eq!(stage.rows().await, ["delta|1", "total|0"]);
}

/// Stops a worker with its own connection and no lock timeout that waits for a delta which a client holds. Returns how
/// long that took.
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
    eventually("it waits", || waits(&db, "w", "Lock")).await;
    tokio::time::sleep(SECOND / 2).await; // more than the lock timeout that others have
    assert!(waits(&db, "w", "Lock").await);
    let begin = tokio::time::Instant::now();
    postmaster.shut_down(mode);
    assert!(postmaster.exited().await.unwrap().aborted.is_empty());
    let took = begin.elapsed();
    assert!(!waits(&db, "w", "Lock").await, "it was cancelled");
    client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(db.rows(&counted).await, ["delta|1", "total|0"]);
    took
}

#[actix::test]
async fn without_a_lock_timeout_a_sigint_ends_it_and_a_sigterm_after_its_deadline() {
    let took = blocked_without_lock_timeout(Shutdown::Fast).await;
    assert!(took < busy(2 * SECOND), "{took:?}");
    let took = blocked_without_lock_timeout(Shutdown::Smart).await;
    assert!((SECOND..busy(3 * SECOND)).contains(&took), "{took:?}");
}

#[actix::test]
async fn ten_idle_workers_end_within_a_second_and_leave_no_connection() {
    let db = TestDatabase::new().await;
    let postmaster = db.postmaster();
    for n in 0..10 {
        db.worker(
            &postmaster,
            &format!("idle {n}"),
            Settings::new(table("s", &format!("t{n}"))).naptime(60 * SECOND),
        )
        .await;
    }
    let begin = tokio::time::Instant::now();
    shut_down(&postmaster).await;
    assert!(begin.elapsed() < busy(SECOND), "{:?}", begin.elapsed());
    // A backend ends a moment after its socket closes.
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
