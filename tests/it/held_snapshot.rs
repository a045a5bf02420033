//! While another client holds a snapshot, folded rows stay in the table, and looks stay cheap nevertheless.

use bgworker::worker_spi::ROWS_FOLDED;
use tracing::Level;

use crate::support::database::{TestDatabase, brisk};
use crate::support::eventually;
use crate::support::log::Log;
use crate::support::server::TestServer;
use crate::support::stage::Stage;

/// Number of deltas folded while the snapshot is held: 40 MB of dead rows.
const DELTAS: u64 = 900_000;

/// Blocks of the table that were read, or found in shared buffers, so far.
async fn blocks_read(stage: &Stage) -> i64 {
    let sql = "SELECT (heap_blks_read + heap_blks_hit)::bigint FROM pg_statio_user_tables WHERE relname = 't'";
    stage.value(sql).await
}

#[actix::test]
async fn a_look_reads_a_part_of_the_table_and_what_commits_late_is_found() {
    let log = Log::capture();
    let server = TestServer::start_with(&[("autovacuum", "off")]);
    let db = TestDatabase::at(&server.conninfo()).await;
    let stage = Stage::on(db, |table| brisk(table).vacuum_after(Some(100_000))).await;
    stage.execute("INSERT INTO s.t VALUES ('total', 0)").await;
    let [holder, late] = [stage.db.connect().await, stage.db.connect().await];
    let hold = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM s.t";
    holder.batch_execute("hold", hold).await.unwrap();
    let begin = "BEGIN; INSERT INTO s.t VALUES ('delta', 1000000)";
    late.batch_execute("begin", begin).await.unwrap();
    let deltas = DELTAS / 9;
    for round in 1..=9 {
        let insert = format!("INSERT INTO s.t SELECT 'delta', 1 FROM generate_series(1, {deltas})");
        stage.execute(&insert).await;
        eventually("all is folded", async || {
            stage.status().await.report.count(ROWS_FOLDED) == round * deltas
        })
        .await;
    }
    let size: i64 = stage.value("SELECT pg_relation_size('s.t') / 8192").await;
    assert!(size > 4_000, "{size}");

    // The session that looks reports its reads at most once a second.
    stage.cycles(150).await;
    let (before, cycles) = (
        blocks_read(&stage).await,
        stage.status().await.report.cycles,
    );
    stage.cycles(300).await;
    let (after, more) = (
        blocks_read(&stage).await,
        stage.status().await.report.cycles,
    );
    let per_cycle = (after - before) / i64::try_from(more - cycles).unwrap();
    assert!(
        (1..size / 4).contains(&per_cycle),
        "{per_cycle} blocks of {size}"
    );

    late.batch_execute("commit", "COMMIT").await.unwrap();
    let total = i64::try_from(DELTAS).unwrap() + 1_000_000;
    stage.becomes(&[&format!("total|{total}")]).await;

    // The statement that gives the room back is logged once.
    let said = || log.with(Level::WARN, "afterwards VACUUM FULL s.t reclaims all of it");
    eventually("it says so", async || !said().is_empty()).await;
    holder.batch_execute("let go", "COMMIT").await.unwrap();
    stage.execute("VACUUM FULL s.t").await;
    stage.execute("INSERT INTO s.t VALUES ('delta', 1)").await;
    stage.becomes(&[&format!("total|{}", total + 1)]).await;
    let size: i64 = stage.value("SELECT pg_relation_size('s.t') / 8192").await;
    assert_eq!((size, said().len()), (1, 1));
}
