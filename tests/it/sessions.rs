//! Settings that are fixed when a session begins, and faults that a worker survives without ending.

use std::time::{Duration, Instant};

use bgworker::PostmasterHandle;
use bgworker::worker_spi::{Settings, Table};
use tracing::Level;

use crate::support::database::{
    TestDatabase, TestWorker, brisk, brisk_on_its_own, register, table,
};
use crate::support::log::Log;
use crate::support::server::TestServer;
use crate::support::stage::{Stage, fold_slowly, is_folding};
use crate::support::{busy, eventually};

/// Waits until a worker's last error contains this text.
async fn fails_with(postmaster: &PostmasterHandle, worker: &TestWorker, text: &str) {
    eventually(text, || async {
        let status = postmaster.worker(worker.id).await.unwrap();
        let error = status.expect("the worker has ended").report.last_error;
        error.is_some_and(|error| error.contains(text))
    })
    .await;
}

async fn starts(postmaster: &PostmasterHandle, worker: &TestWorker) -> u64 {
    let status = postmaster.worker(worker.id).await.unwrap();
    status.expect("the worker has ended").starts
}

#[actix::test]
async fn a_read_only_session_is_replaced_once_sessions_can_write_again() {
    for settings in [brisk, brisk_on_its_own] {
        let db = TestDatabase::new().await;
        let name: String = db.value("SELECT current_database()::text").await;
        let postmaster = db.postmaster();
        let worker = db
            .worker(&postmaster, "w", settings(&table("s", "t")))
            .await;
        db.execute("INSERT INTO s.t VALUES ('total', 0)").await;
        db.execute(&format!(
            "ALTER DATABASE {name} SET default_transaction_read_only = on"
        ))
        .await;
        // Sessions that begin now can only read.
        db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        .await;
        db.execute("INSERT INTO s.t VALUES ('delta', 4)").await;
        fails_with(&postmaster, &worker, "25006").await;
        db.execute(&format!(
            "ALTER DATABASE {name} RESET default_transaction_read_only"
        ))
        .await;
        db.wait_for_rows(&table("s", "t"), &["total|4"]).await;
    }
}

#[actix::test]
async fn a_fault_that_an_operator_can_mend_ends_no_worker_and_is_reported_once() {
    for (broken, mended, sqlstate) in [
        (
            "ALTER TABLE s.t ADD CONSTRAINT c CHECK (value < 100)",
            "ALTER TABLE s.t DROP CONSTRAINT c",
            "23514",
        ),
        (
            "ALTER TABLE s.t REPLICA IDENTITY DEFAULT; CREATE PUBLICATION p FOR TABLE s.t",
            "DROP PUBLICATION p",
            "55000",
        ),
        (
            "CREATE FUNCTION s.f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not today'; END $$; \
             CREATE TRIGGER f BEFORE UPDATE ON s.t FOR EACH ROW EXECUTE FUNCTION s.f()",
            "DROP TRIGGER f ON s.t",
            "P0001",
        ),
        (
            "ALTER TABLE s.t RENAME TO elsewhere; CREATE VIEW s.t AS SELECT * FROM s.elsewhere",
            "DROP VIEW s.t; ALTER TABLE s.elsewhere RENAME TO t",
            "",
        ),
        (
            "ALTER TABLE s.t RENAME COLUMN value TO amount",
            "ALTER TABLE s.t RENAME COLUMN amount TO value",
            "",
        ),
    ] {
        for settings in [brisk, brisk_on_its_own] {
            let log = Log::capture();
            let stage = Stage::with(settings).await;
            stage.execute("INSERT INTO s.t VALUES ('total', 90)").await;
            stage.execute(broken).await;
            if !sqlstate.is_empty() {
                stage.execute("INSERT INTO s.t VALUES ('delta', 20)").await;
            }
            eventually(broken, || async { !log.with(Level::ERROR, "").is_empty() }).await;
            tokio::time::sleep(Duration::from_millis(300)).await; // several attempts
            let told = log.with(Level::ERROR, "");
            // If the table changed, the server's error comes first, then what is wrong with the table.
            let most = if sqlstate.is_empty() { 2 } else { 1 };
            assert!(told.len() <= most, "{broken}: {told:#?}");
            assert!(told[0].contains(sqlstate), "{broken}: {told:#?}");
            stage.execute(mended).await;
            if sqlstate.is_empty() {
                stage.execute("INSERT INTO s.t VALUES ('delta', 20)").await;
            }
            stage.becomes(&["total|110"]).await;
            assert_eq!(
                starts(&stage.postmaster, &stage.worker).await,
                1,
                "{broken}"
            );
        }
    }
}

#[actix::test]
async fn a_publication_of_all_tables_has_a_table_that_a_worker_made() {
    let db = TestDatabase::new().await;
    db.execute("CREATE PUBLICATION everything FOR ALL TABLES")
        .await;
    let postmaster = db.postmaster();
    let settings = brisk(&table("s", "t")).initial_total(0);
    db.worker(&postmaster, "w", settings).await;
    db.execute("INSERT INTO s.t VALUES ('delta', 3)").await;
    db.wait_for_rows(&table("s", "t"), &["total|3"]).await;
}

/// Inserts a delta of 2, and waits until the table has only this total.
async fn has_total_again(db: &TestDatabase, counted: &Table, total: &str) {
    db.execute("INSERT INTO s.t VALUES ('delta', 2)").await;
    db.wait_for_rows(counted, &[total]).await;
}

#[actix::test]
async fn an_initial_total_that_is_gone_is_inserted_again() {
    let mut server = TestServer::start();
    let db = TestDatabase::at(&server.conninfo()).await;
    let postmaster = db.postmaster();
    let counted = table("s", "t");
    db.worker(&postmaster, "w", brisk(&counted).initial_total(0))
        .await;
    has_total_again(&db, &counted, "total|2").await;
    db.execute("DELETE FROM s.t").await;
    has_total_again(&db, &counted, "total|2").await;
    db.execute("TRUNCATE s.t").await;
    has_total_again(&db, &counted, "total|2").await;
    db.execute("ALTER TABLE s.t SET UNLOGGED").await;
    drop(db);
    server.stop_immediately();
    server.start_again();
    let db = TestDatabase::at(&server.conninfo()).await;
    assert_eq!(db.rows(&counted).await, [""; 0]);
    has_total_again(&db, &counted, "total|2").await;
}

#[actix::test]
async fn the_initial_total_does_not_preempt_a_total_that_a_client_replaces() {
    let stage = Stage::with(|table| {
        brisk(table)
            .initial_total(0)
            .naptime(Duration::from_secs(3_600))
    })
    .await;
    for round in 1..=5 {
        eventually("it naps", || async { stage.status().await.report.napping }).await;
        // Two transactions, and one cycle between them.
        let sql = "INSERT INTO s.t VALUES ('delta', 1)";
        stage.execute(sql).await;
        let total: i64 = stage
            .value("DELETE FROM s.t WHERE type = 'total' RETURNING value")
            .await;
        stage.postmaster.sighup();
        eventually("the worker finds no total", || async {
            stage.status().await.report.consecutive_failures == 1
        })
        .await;
        let sql = format!("INSERT INTO s.t VALUES ('total', {total})");
        stage.execute(&sql).await;
        stage.postmaster.sighup();
        stage.becomes(&[&format!("total|{round}")]).await;
    }
}

#[actix::test]
async fn idle_session_timeouts_of_a_database_neither_end_a_session_nor_fill_the_log() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    let name: String = db.value("SELECT current_database()::text").await;
    db.execute(&format!(
        "ALTER DATABASE {name} SET idle_session_timeout = '100ms'"
    ))
    .await;
    let postmaster = db.postmaster();
    let slow = |mut settings: Settings| {
        settings.naptime = Duration::from_millis(400);
        settings
    };
    let home = register(&postmaster, "home", slow(brisk(&table("s", "home")))).await;
    let own = register(
        &postmaster,
        "own",
        slow(brisk_on_its_own(&table("s", "own"))),
    )
    .await;
    let cycles = |worker: &TestWorker| {
        let (postmaster, id) = (postmaster.clone(), worker.id);
        async move { postmaster.worker(id).await.unwrap().unwrap().report.cycles }
    };
    for worker in [&home, &own] {
        eventually("it has cycled five times", || async {
            cycles(worker).await >= 5
        })
        .await;
        assert_eq!(starts(&postmaster, worker).await, 1);
    }
    assert_eq!(log.with(Level::WARN, ""), [""; 0]);
}

#[actix::test]
async fn an_own_connection_that_is_cut_while_its_worker_naps_is_opened_again_in_place() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    let postmaster = db.postmaster();
    let counted = table("s", "t");
    let mut settings = brisk_on_its_own(&counted);
    settings.naptime = Duration::from_secs(600);
    let worker = db.worker(&postmaster, "napper", settings).await;
    db.execute("INSERT INTO s.t VALUES ('total', 0)").await;
    // Between two statements of its first cycle, its connection is idle, too.
    eventually("it naps", || async {
        let status = postmaster.worker(worker.id).await.unwrap().unwrap();
        status.report.cycles == 1
    })
    .await;
    let cut: bool = db
        .value(
            "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity \
             WHERE application_name = 'napper'",
        )
        .await;
    assert!(cut);
    db.execute("INSERT INTO s.t VALUES ('delta', 1)").await;
    let begin = Instant::now();
    postmaster.sighup();
    db.wait_for_rows(&counted, &["total|1"]).await;
    assert!(begin.elapsed() < busy(Duration::from_secs(1)));
    assert_eq!(starts(&postmaster, &worker).await, 1);
    assert_eq!(log.with(Level::WARN, ""), [""; 0]);
}

#[actix::test]
async fn a_worker_whose_database_is_dropped_within_a_cycle_waits_for_another_of_that_name() {
    let (db, other) = (TestDatabase::new().await, TestDatabase::new().await);
    let name: String = other.value("SELECT current_database()::text").await;
    let counted = table("s", "t");
    let mut settings = brisk_on_its_own(&counted);
    settings.database = Some(name.clone());
    let postmaster = db.postmaster();
    let worker = db.worker(&postmaster, "w", settings).await;
    fold_slowly(&other, 60.0).await;
    is_folding(&other, "w").await;
    db.execute(&format!("DROP DATABASE {name} WITH (FORCE)"))
        .await;
    fails_with(&postmaster, &worker, "does not exist").await;
    db.execute(&format!("CREATE DATABASE {name}")).await;
    let other = TestDatabase::at(other.conninfo()).await;
    eventually("it makes its table", || {
        other.value::<bool>("SELECT to_regclass('s.t') IS NOT NULL")
    })
    .await;
    other
        .execute("INSERT INTO s.t VALUES ('total', 0), ('delta', 3)")
        .await;
    other.wait_for_rows(&counted, &["total|3"]).await;
    assert_eq!(starts(&postmaster, &worker).await, 1);
}
