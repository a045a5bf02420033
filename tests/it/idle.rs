//! An idle worker writes nothing, neither to a table nor to the log.

use bgworker::embedded::{Cluster, ClusterSettings};
use tracing::Level;

use crate::support::database::{TestDatabase, brisk, cycles, table};
use crate::support::eventually;
use crate::support::log::Log;

#[actix::test]
async fn an_idle_cycle_writes_no_row_version_no_wal_and_no_line() {
    let log = Log::capture();
    // A server of its own, in which no other client writes.
    let settings = ClusterSettings::temporary()
        .option("fsync", "off")
        .option("autovacuum", "off")
        .option("wal_level", "minimal")
        .option("max_wal_senders", "0");
    let cluster = Cluster::start(settings).unwrap();
    let db = TestDatabase::at(&cluster.conninfo()).await;
    let postmaster = db.postmaster();
    let counted = table("s", "t");
    let worker = db.worker(&postmaster, "w", brisk(&counted)).await;
    db.execute("INSERT INTO s.t VALUES ('total', 0), ('delta', 1)")
        .await;
    db.wait_for_rows(&counted, &["total|1"]).await;
    let cycles = || async {
        let status = postmaster.worker(worker.id).await.unwrap();
        status.unwrap().report.cycles
    };
    // One cycle after the fold makes PostgreSQL prune the page.
    let folded = cycles().await;
    eventually("two more cycles", || async { cycles().await >= folded + 2 }).await;
    let written = "SELECT concat_ws(' ', xmin, ctid, pg_current_wal_insert_lsn()) FROM s.t";
    let before: String = db.value(written).await;
    let lines = log.lines().len();
    let idle = cycles().await;
    eventually("ten idle cycles", || async { cycles().await >= idle + 10 }).await;
    assert_eq!(before, db.value::<String>(written).await);
    assert_eq!(log.lines().len(), lines);
}

#[actix::test]
async fn idle_workers_log_one_line_at_their_start_and_none_per_cycle() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    let postmaster = db.postmaster();
    let mut workers = Vec::new();
    for n in 0..10 {
        let settings = brisk(&table("s", &format!("t{n}")));
        workers.push(db.worker(&postmaster, &format!("w{n}"), settings).await);
    }
    let after_start = log.with(Level::INFO, "").len();
    assert_eq!(
        log.with(Level::INFO, "starting background worker").len(),
        10
    );
    assert_eq!(log.with(Level::INFO, "initialized with").len(), 10);
    for worker in &workers {
        cycles(&postmaster, worker.id, 20).await;
    }
    assert_eq!(log.with(Level::INFO, "").len(), after_start);
    assert_eq!(
        log.lines().len(),
        log.with(Level::DEBUG, "").len(),
        "nothing at trace either"
    );
}
