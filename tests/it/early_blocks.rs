//! A look finds the first delta of the table, whatever the table's size and the plan.

use std::time::{Duration, Instant};

use crate::support::database::{
    TestDatabase, TestWorker, brisk, brisk_on_its_own, register, table,
};
use crate::support::server::TestServer;
use crate::support::{busy, eventually};
use bgworker::database::{self, ConnInfo, Connection, Database};
use bgworker::supervision::Limits;
use bgworker::worker_spi::Settings;
use bgworker::{Postmaster, PostmasterHandle};

/// A table of about 40 MB, more than twice the server's shared buffers. Its first row is a delta of one million,
/// inserted by a transaction that has not committed.
async fn large() -> (TestServer, TestDatabase, Connection) {
    let server = TestServer::start_with(&[("shared_buffers", "16MB"), ("autovacuum", "off")]);
    let db = TestDatabase::at(&server.conninfo()).await;
    db.execute(
        "CREATE SCHEMA s; CREATE TABLE s.t (type text NOT NULL, value bigint NOT NULL); \
         CREATE UNIQUE INDEX ON s.t (type) WHERE type = 'total'",
    )
    .await;
    let late = db.connect().await;
    late.batch_execute("late", "BEGIN; INSERT INTO s.t VALUES ('delta', 1000000)")
        .await
        .unwrap();
    db.execute(
        "INSERT INTO s.t VALUES ('total', 0); \
         INSERT INTO s.t SELECT 'other', g FROM generate_series(1, 900000) AS g; ANALYZE s.t",
    )
    .await;
    let size: i64 = db.value("SELECT pg_relation_size('s.t')").await;
    assert!(size > 35 << 20, "{size}");
    (server, db, late)
}

/// Registers a worker on that table.
async fn work(
    server: &TestServer,
    prepare: bool,
    settings: Settings,
) -> (PostmasterHandle, TestWorker) {
    let conninfo = ConnInfo::parse(&server.conninfo(), |_| None).unwrap();
    let settings_of_all = database::Settings::default().prepare(prepare);
    let database = Database::new(conninfo, settings_of_all).unwrap();
    let postmaster = Postmaster::launch(Limits::default(), Some(database)).unwrap();
    let settings = settings
        .naptime(Duration::from_millis(50))
        .vacuum_after(None);
    let worker = register(&postmaster, "w", settings).await;
    (postmaster, worker)
}

#[actix::test]
async fn a_delta_in_an_early_block_of_a_large_table_is_found_under_a_steady_stream() {
    let counted = table("s", "t");
    for (prepare, settings) in [
        (true, brisk(&counted)),
        (true, brisk_on_its_own(&counted)),
        (false, brisk(&counted)),
    ] {
        let (server, stream, late) = large().await;
        let (_postmaster, _worker) = work(&server, prepare, settings).await;
        let total = "SELECT value FROM s.t WHERE type = 'total'";
        let begin = Instant::now();
        let mut committed = None;
        let found = loop {
            stream
                .execute("INSERT INTO s.t SELECT 'delta', 1 FROM generate_series(1, 20)")
                .await;
            if committed.is_none() && begin.elapsed() > Duration::from_millis(500) {
                late.batch_execute("late", "COMMIT").await.unwrap();
                committed = Some(Instant::now());
            }
            match committed {
                Some(at) if stream.value::<i64>(total).await >= 1_000_000 => break at.elapsed(),
                Some(at) => assert!(
                    at.elapsed() < busy(Duration::from_secs(5)),
                    "prepare = {prepare}"
                ),
                None => {}
            }
        };
        println!("folded {found:?} after it was committed, prepare = {prepare}");
    }
}

#[actix::test]
async fn a_look_at_a_large_table_stays_in_one_process() {
    for settings in [brisk, brisk_on_its_own] {
        stays_in_one_process(settings(&table("s", "t"))).await;
    }
}

async fn stays_in_one_process(settings: Settings) {
    let (server, db, _late) = large().await;
    for cheap in [
        "parallel_setup_cost = 0",
        "parallel_tuple_cost = 0",
        "log_min_messages = debug1",
    ] {
        db.execute(&format!("ALTER SYSTEM SET {cheap}")).await;
    }
    db.execute("SELECT pg_reload_conf()").await;
    let (postmaster, worker) = work(&server, true, settings).await;
    eventually("it looks", || async {
        let status = postmaster.worker(worker.id).await.unwrap().unwrap();
        status.report.cycles > 5
    })
    .await;
    let started = || server.log().matches("parallel worker for PID").count();
    assert_eq!(started(), 0);
    // The log does show it when a careless look is parallel.
    eventually("a careless look is parallel", || async {
        db.execute("SELECT ctid FROM s.t WHERE type = 'delta' LIMIT 1")
            .await;
        started() > 0
    })
    .await;
}
