//! `fold = "truncate"` on a real server: truncation where that is safe, deletion where it is not.

use std::time::Duration;

use bgworker::PostmasterHandle;
use bgworker::supervision::Shutdown;
use bgworker::worker_spi::{Fold, ROWS_FOLDED, Settings};
use tracing::Level;

use crate::support::database::{TestDatabase, TestWorker, brisk, table};
use crate::support::eventually;
use crate::support::log::Log;

/// A naptime of a day, so that nothing happens by itself.
const HOURS: Duration = Duration::from_secs(86_400);

fn truncating() -> Settings {
    let mut settings = brisk(&table("s", "t"));
    settings.fold = Fold::Truncate;
    settings.batch = 1_000;
    settings.vacuum_after = None;
    settings.naptime = HOURS;
    settings
}

/// Registers a truncating worker, and waits until it naps.
async fn napping(db: &TestDatabase, postmaster: &PostmasterHandle) -> TestWorker {
    let worker = db.worker(postmaster, "w", truncating()).await;
    eventually("it naps", || async {
        let status = postmaster.worker(worker.id).await.unwrap().unwrap();
        status.report.napping
    })
    .await;
    worker
}

async fn insert(db: &TestDatabase, deltas: u32) {
    db.execute(&format!(
        "INSERT INTO s.t SELECT 'delta', 1 FROM generate_series(1, {deltas})"
    ))
    .await;
}

/// Identifies the file of the table, which changes with a truncation.
async fn file(db: &TestDatabase) -> u32 {
    db.value("SELECT pg_relation_filenode('s.t')").await
}

#[actix::test]
async fn a_backlog_beyond_a_batch_is_truncated_and_the_total_put_back() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    let postmaster = db.postmaster();
    napping(&db, &postmaster).await;
    db.execute("INSERT INTO s.t VALUES ('total', 100)").await;
    insert(&db, 20_000).await;
    let made = file(&db).await;
    postmaster.sighup();
    db.wait_for_rows(&table("s", "t"), &["total|20100"]).await;
    assert_ne!(file(&db).await, made);
    let size: i64 = db.value("SELECT pg_relation_size('s.t')").await;
    assert_eq!(size, 8192);
    eventually("it says so", || async {
        let lines = log.with(Level::INFO, "count in s.t is now 20100");
        lines.len() == 1
    })
    .await;
    // The table is in order afterwards: prepared statements still run, and there is only one total.
    db.execute("INSERT INTO s.t VALUES ('delta', 1)").await;
    postmaster.sighup();
    db.wait_for_rows(&table("s", "t"), &["total|20101"]).await;
    assert_eq!(log.with(Level::WARN, ""), [""; 0]);
}

#[actix::test]
async fn a_backlog_within_a_batch_is_deleted() {
    let db = TestDatabase::new().await;
    let postmaster = db.postmaster();
    napping(&db, &postmaster).await;
    db.execute("INSERT INTO s.t VALUES ('total', 0)").await;
    insert(&db, 500).await;
    let made = file(&db).await;
    postmaster.sighup();
    db.wait_for_rows(&table("s", "t"), &["total|500"]).await;
    assert_eq!(file(&db).await, made);
}

#[actix::test]
async fn while_a_client_uses_the_table_deltas_are_deleted_and_the_clients_are_kept() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    let postmaster = db.postmaster();
    napping(&db, &postmaster).await;
    db.execute("INSERT INTO s.t VALUES ('total', 0)").await;
    insert(&db, 5_000).await;
    let made = file(&db).await;
    let client = db.connect_plainly().await;
    let begin = "BEGIN; INSERT INTO s.t VALUES ('delta', 7)";
    client.batch_execute(begin).await.unwrap();
    postmaster.sighup();
    db.wait_for_rows(&table("s", "t"), &["total|5000"]).await;
    assert_eq!(file(&db).await, made);
    client.batch_execute("COMMIT").await.unwrap();
    postmaster.sighup();
    db.wait_for_rows(&table("s", "t"), &["total|5007"]).await;
    assert_eq!(log.with(Level::WARN, ""), [""; 0]);
}

/// Asserts that the worker folds by deleting, logs the reason once, and keeps deleting.
async fn is_deleted_where(hindrance: &str, rows: &[&str]) {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    db.execute(
        "CREATE SCHEMA s; CREATE TABLE s.t (type text, value bigint); \
         CREATE UNIQUE INDEX ON s.t (type) WHERE type = 'total'",
    )
    .await;
    db.execute("INSERT INTO s.t VALUES ('total', 0)").await;
    db.execute(hindrance).await;
    let postmaster = db.postmaster();
    napping(&db, &postmaster).await;
    let made = file(&db).await;
    for round in 1..=2 {
        insert(&db, 5_000).await;
        postmaster.sighup();
        let total = format!("total|{}", round * 5_000);
        let rows: Vec<&str> = rows.iter().copied().chain([&*total]).collect();
        db.wait_for_rows(&table("s", "t"), &rows).await;
    }
    assert_eq!(file(&db).await, made, "{hindrance}");
    let told = log.with(Level::WARN, "s.t cannot be truncated").len();
    assert_eq!(told, 1, "{hindrance}: {}", log.text());
}

#[actix::test]
async fn a_table_that_may_hold_anything_else_is_never_truncated() {
    for (hindrance, rows) in [
        ("ALTER TABLE s.t ADD note text", &[] as &[_]),
        ("INSERT INTO s.t VALUES ('other', 3)", &["other|3"]),
        ("INSERT INTO s.t VALUES (NULL, 3)", &["3"]),
        ("INSERT INTO s.t VALUES ('delta', NULL)", &["delta|NULL"]),
    ] {
        is_deleted_where(hindrance, rows).await;
    }
}

#[actix::test]
async fn a_table_with_triggers_rules_or_children_is_never_truncated() {
    for hindrance in [
        "CREATE FUNCTION s.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
         CREATE TRIGGER f AFTER DELETE ON s.t FOR EACH STATEMENT EXECUTE FUNCTION s.f()",
        "CREATE RULE r AS ON INSERT TO s.t WHERE new.value = 77 DO INSTEAD NOTHING",
        "CREATE TABLE s.child () INHERITS (s.t)",
    ] {
        is_deleted_where(hindrance, &[]).await;
    }
}

#[actix::test]
async fn values_that_have_come_to_have_fractions_are_never_truncated() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    let postmaster = db.postmaster();
    napping(&db, &postmaster).await;
    db.execute(
        "ALTER TABLE s.t ALTER value TYPE numeric; INSERT INTO s.t VALUES ('total', 0); \
         INSERT INTO s.t SELECT 'delta', 0.25 FROM generate_series(1, 20001)",
    )
    .await;
    postmaster.sighup();
    eventually("it is refused", || async {
        !log.with(Level::ERROR, "numeric").is_empty()
    })
    .await;
    assert_eq!(
        db.value::<i64>("SELECT count(*) FROM s.t").await,
        20_002,
        "each is still there"
    );
}

#[actix::test]
async fn rows_hidden_by_row_security_are_never_truncated() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    let role = format!("r{}", fastrand::u32(..));
    db.execute(&format!(
        "CREATE ROLE {role}; CREATE SCHEMA s AUTHORIZATION {role}; SET ROLE {role}; \
         CREATE TABLE s.t (type text, value bigint); \
         CREATE UNIQUE INDEX ON s.t (type) WHERE type = 'total'; \
         CREATE POLICY p ON s.t USING (value IS DISTINCT FROM 3); \
         ALTER TABLE s.t ENABLE ROW LEVEL SECURITY; \
         RESET ROLE; INSERT INTO s.t VALUES ('total', 0)"
    ))
    .await;
    let as_role = db.conninfo_with("options", &format!("-c role={role}"));
    let postmaster = bgworker::Postmaster::launch(
        bgworker::supervision::Limits::default(),
        Some(crate::support::database::database(&as_role)),
    )
    .unwrap();
    napping(&db, &postmaster).await;
    db.execute("ALTER TABLE s.t FORCE ROW LEVEL SECURITY").await;
    db.execute("INSERT INTO s.t VALUES ('delta', 3)").await;
    insert(&db, 5_000).await;
    postmaster.sighup();
    eventually("it is reported", || async {
        !log.with(Level::ERROR, "row-level security").is_empty()
    })
    .await;
    assert_eq!(db.rows(&table("s", "t")).await.len(), 5_002);
    db.execute("ALTER TABLE s.t NO FORCE ROW LEVEL SECURITY")
        .await;
    postmaster.sighup();
    db.wait_for_rows(&table("s", "t"), &["total|5003"]).await;
    postmaster.shut_down(Shutdown::Smart);
    postmaster.exited().await.unwrap();
    db.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))
        .await;
}

#[actix::test]
async fn a_truncation_that_is_cut_short_changes_nothing() {
    const DELTAS: u32 = 400_000;
    let db = TestDatabase::new().await;
    let postmaster = db.postmaster();
    let worker = napping(&db, &postmaster).await;
    db.execute("INSERT INTO s.t VALUES ('total', 0)").await;
    insert(&db, DELTAS).await;
    let made = file(&db).await;
    let enemy = db.connect().await;
    postmaster.sighup();
    // The backend is terminated while it sums up the table, which it has locked.
    eventually("its backend is terminated", || async {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'active' \
                   AND query LIKE '/* bgworker: w */ SELECT (SELECT relkind%' \
                   AND datname = current_database()";
        !enemy.query("terminate", sql, &[]).await.unwrap().is_empty()
    })
    .await;
    // The test does not look at the table meanwhile: that would prevent a truncation.
    eventually("the deltas are folded after all", || async {
        let status = postmaster.worker(worker.id).await.unwrap().unwrap();
        status.report.count(ROWS_FOLDED) == u64::from(DELTAS)
    })
    .await;
    let total = format!("total|{DELTAS}");
    assert_eq!(db.rows(&table("s", "t")).await, [total]);
    // The next attempt had the table for itself.
    assert_ne!(file(&db).await, made);
}

#[actix::test]
async fn a_sigint_while_it_waits_for_the_table_ends_the_worker_and_deletes_nothing() {
    let db = TestDatabase::new().await;
    let postmaster = db.postmaster();
    napping(&db, &postmaster).await;
    db.execute("INSERT INTO s.t VALUES ('total', 0)").await;
    insert(&db, 5_000).await;
    let client = db.connect_plainly().await;
    let hold = "BEGIN; LOCK TABLE s.t IN ROW SHARE MODE";
    client.batch_execute(hold).await.unwrap();
    postmaster.sighup();
    let waiting = "SELECT count(*) FROM pg_locks WHERE relation = 's.t'::regclass AND NOT granted";
    let enemy = db.connect().await;
    eventually("it waits", || async {
        let rows = enemy.query("look", waiting, &[]).await.unwrap();
        rows[0].get::<_, i64>(0) == 1
    })
    .await;
    postmaster.shut_down(Shutdown::Fast);
    assert!(postmaster.exited().await.unwrap().aborted.is_empty());
    client.batch_execute("COMMIT").await.unwrap();
    let kept = db.sum(&table("s", "t")).await;
    let deltas: i64 = db
        .value("SELECT count(*) FROM s.t WHERE type = 'delta'")
        .await;
    assert_eq!((kept, deltas), (5_000, 5_000));
}
