//! Folds are exact, whatever the table contains and whatever other clients hold.

use std::time::Duration;

use bgworker::supervision::WorkerState;
use bgworker::worker_spi::{ConnectionKind, ROWS_FOLDED, TOTAL};
use tracing::Level;

use crate::support::database::{TestDatabase, brisk, cycles, register, shut_down, table};
use crate::support::log::Log;
use crate::support::stage::Stage;
use crate::support::{eventually, within};

const SECOND: Duration = Duration::from_secs(1);

#[actix::test]
async fn of_many_folds_only_the_first_is_a_line_at_info_and_each_is_one_at_debug() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    let postmaster = db.postmaster();
    let counted = table("s", "t");
    db.worker(&postmaster, "w", brisk(&counted)).await;
    db.execute("INSERT INTO s.t VALUES ('total', 0)").await;
    for n in 1..=5 {
        db.execute("INSERT INTO s.t VALUES ('delta', 1)").await;
        db.wait_for_rows(&counted, &[&format!("total|{n}")]).await;
    }
    eventually("each is a line", || async {
        log.with(Level::DEBUG, "count in s.t is now").len() == 5
    })
    .await;
    let lines = log.with(Level::INFO, "count in");
    assert_eq!(lines, ["w: count in s.t is now 1"]);
}

#[actix::test]
async fn deltas_are_folded_exactly_and_reported_once() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    let postmaster = db.postmaster();
    let counted = table("schema1", "counted");
    let worker = db
        .worker(&postmaster, "SPI worker 1", brisk(&counted))
        .await;
    db.execute(
        "INSERT INTO schema1.counted VALUES ('total', 100), ('delta', 5), ('delta', -3), ('delta', 40)",
    )
    .await;
    db.wait_for_rows(&counted, &["total|142"]).await;
    cycles(&postmaster, worker.id, 5).await;
    let lines = log.with(Level::INFO, "count in");
    assert_eq!(lines, ["SPI worker 1: count in schema1.counted is now 142"]);
    let status = postmaster.worker(worker.id).await.unwrap().unwrap();
    let report = status.report;
    assert_eq!(
        (report.count(ROWS_FOLDED), report.level(TOTAL)),
        (3, Some(142))
    );
}

#[actix::test]
async fn without_a_total_deltas_stay_and_one_warning_says_so() {
    let log = Log::capture();
    let stage = Stage::new().await;
    stage
        .execute("INSERT INTO s.t VALUES ('delta', 1), ('delta', 2)")
        .await;
    eventually("the warning", || async {
        !log.with(Level::WARN, "no total").is_empty()
    })
    .await;
    tokio::time::sleep(Duration::from_millis(200)).await; // some ten cycles
    assert_eq!(stage.rows().await, ["delta|1", "delta|2"]);
    assert_eq!(log.with(Level::WARN, "no total").len(), 1);
    let report = || async { stage.status().await.report };
    let waiting = report().await;
    let waits = "s.t has deltas but no total: they wait until one is inserted";
    assert_eq!(waiting.last_error.as_deref(), Some(waits));
    assert!(waiting.consecutive_failures > 1, "{waiting:?}");
    stage.execute("INSERT INTO s.t VALUES ('total', 0)").await;
    stage.becomes(&["total|3"]).await;
    stage.cycles(2).await;
    assert_eq!(report().await.consecutive_failures, 0);
    stage.execute("DELETE FROM s.t").await;
    stage.execute("INSERT INTO s.t VALUES ('delta', 1)").await;
    eventually("a warning for the new state", || async {
        log.with(Level::WARN, "no total").len() == 2
    })
    .await;
}

#[actix::test]
async fn an_overflow_keeps_the_delta_is_reported_once_and_mends_without_a_restart() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    db.execute(
        "CREATE SCHEMA s; CREATE TABLE s.t (type text NOT NULL, value integer NOT NULL); \
         CREATE UNIQUE INDEX ON s.t (type) WHERE type = 'total'; \
         INSERT INTO s.t VALUES ('total', 2147483640), ('delta', 100)",
    )
    .await;
    let postmaster = db.postmaster();
    let counted = table("s", "t");
    let worker = db.worker(&postmaster, "w", brisk(&counted)).await;
    eventually("the failure", || async {
        !log.with(Level::ERROR, "22003").is_empty()
    })
    .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let status = postmaster.worker(worker.id).await.unwrap().unwrap();
    // 10, 20, 40 … ms: no hot loop.
    assert!(
        (2..=7).contains(&status.report.consecutive_failures),
        "{status:?}"
    );
    assert_eq!(status.starts, 1);
    assert_eq!(db.rows(&counted).await, ["delta|100", "total|2147483640"]);
    assert_eq!(log.with(Level::ERROR, "22003").len(), 1);
    db.execute("ALTER TABLE s.t ALTER value TYPE bigint").await;
    db.wait_for_rows(&counted, &["total|2147483740"]).await;
    let status = postmaster.worker(worker.id).await.unwrap().unwrap();
    assert_eq!(status.starts, 1, "the same incarnation goes on");
}

#[actix::test]
async fn totals_in_a_table_made_by_bgworker_may_exceed_31_bits() {
    let stage = Stage::new().await;
    stage
        .execute("INSERT INTO s.t VALUES ('total', 2147483640), ('delta', 100)")
        .await;
    stage.becomes(&["total|2147483740"]).await;
}

#[actix::test]
async fn after_the_delta_is_deleted_folding_goes_on() {
    let stage = Stage::new().await;
    let most = i64::MAX;
    stage
        .execute(&format!(
            "INSERT INTO s.t VALUES ('total', {most}), ('delta', 1)"
        ))
        .await;
    eventually("the failure", || async {
        let status = stage.status().await;
        status
            .report
            .last_error
            .is_some_and(|error| error.contains("22003"))
    })
    .await;
    stage
        .execute("DELETE FROM s.t WHERE type = 'delta'; INSERT INTO s.t VALUES ('delta', -1)")
        .await;
    stage.becomes(&[&format!("total|{}", most - 1)]).await;
}

#[actix::test]
async fn only_what_is_missing_is_made_and_rows_that_exist_stay() {
    let db = TestDatabase::new().await;
    db.execute("CREATE SCHEMA s").await;
    let counted = table("s", "t");
    let postmaster = db.postmaster();
    db.worker(&postmaster, "w", brisk(&counted)).await;
    db.execute("INSERT INTO s.t VALUES ('total', 7)").await;
    shut_down(&postmaster).await;
    let row = "SELECT xmin::text || ctid::text FROM s.t";
    let before: String = db.value(row).await;
    let postmaster = db.postmaster();
    let worker = db.worker(&postmaster, "w", brisk(&counted)).await;
    cycles(&postmaster, worker.id, 3).await;
    assert_eq!(before, db.value::<String>(row).await);
}

#[actix::test]
async fn an_initial_total_is_inserted_once_and_never_over_another() {
    let db = TestDatabase::new().await;
    let counted = table("s", "t");
    for _ in 0..2 {
        let postmaster = db.postmaster();
        let mut settings = brisk(&counted);
        settings.initial_total = Some(40);
        db.worker(&postmaster, "w", settings).await;
        db.execute("INSERT INTO s.t VALUES ('delta', 1)").await;
        eventually("the delta is folded", || async {
            db.rows(&counted).await.len() == 1
        })
        .await;
        shut_down(&postmaster).await;
    }
    assert_eq!(db.rows(&counted).await, ["total|42"]);
}

#[actix::test]
async fn eight_workers_at_once_on_one_new_schema_are_all_ready() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    let counted = table("our schema2", "counted rows");
    let postmaster = db.postmaster();
    let mut workers = Vec::new();
    for n in 0..8 {
        workers.push(register(&postmaster, &format!("w{n}"), brisk(&counted)).await);
    }
    eventually("all are ready", || async {
        postmaster.status().await.unwrap().counts.ready == 8
    })
    .await;
    assert_eq!(log.with(Level::WARN, ""), Vec::<String>::new());
    let tables: i64 = db
        .value("SELECT count(*) FROM pg_tables WHERE schemaname = 'our schema2'")
        .await;
    assert_eq!(tables, 1);
}

#[actix::test]
async fn a_locked_total_is_left_alone_and_folded_when_it_is_free() {
    let stage = Stage::new().await;
    stage.execute("INSERT INTO s.t VALUES ('total', 0)").await;
    let client = stage.db.connect().await;
    client
        .batch_execute(
            "hold",
            "BEGIN; SELECT FROM s.t WHERE type = 'total' FOR UPDATE",
        )
        .await
        .unwrap();
    stage.execute("INSERT INTO s.t VALUES ('delta', 1)").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(stage.rows().await, ["delta|1", "total|0"]);
    client.batch_execute("let go", "COMMIT").await.unwrap();
    within(SECOND, "the delta is folded", || async {
        stage.rows().await == ["total|1"]
    })
    .await;
    let status = stage.status().await;
    assert_eq!(
        status.report.last_error, None,
        "a locked total is no failure"
    );
}

#[actix::test]
async fn a_lock_on_a_delta_is_waited_for_briefly_and_tried_again() {
    let log = Log::capture();
    let stage = Stage::napping(ConnectionKind::Home).await;
    stage
        .execute("INSERT INTO s.t VALUES ('total', 0), ('delta', 1)")
        .await;
    let client = stage.db.connect().await;
    let hold = "BEGIN; SELECT FROM s.t WHERE type = 'delta' FOR UPDATE";
    client.batch_execute("hold", hold).await.unwrap();
    stage.wake();
    eventually("it gave up waiting", || async {
        let status = stage.status().await;
        status
            .report
            .last_error
            .is_some_and(|error| error.contains("55P03"))
    })
    .await;
    client.batch_execute("let go", "COMMIT").await.unwrap();
    stage.becomes(&["total|1"]).await;
    assert_eq!(log.with(Level::ERROR, ""), Vec::<String>::new());
    let status = stage.status().await;
    assert_eq!((status.starts, status.state), (1, WorkerState::Running));
}

#[actix::test]
async fn a_table_made_by_bgworker_cannot_hold_null() {
    let stage = Stage::new().await;
    for row in ["('delta', NULL)", "(NULL, 1)", "('other', 1)"] {
        let sql = format!("INSERT INTO s.t VALUES {row}");
        let error = stage
            .db
            .client
            .batch_execute("insert", &sql)
            .await
            .unwrap_err();
        assert!(
            matches!(error.sqlstate(), Some("23502" | "23514")),
            "{row}: {error}"
        );
    }
}

#[actix::test]
async fn null_in_a_foreign_table_is_left_alone_with_one_warning() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    db.execute(
        "CREATE SCHEMA s; CREATE TABLE s.t (type text, value integer); \
         CREATE UNIQUE INDEX ON s.t (type) WHERE type = 'total'; \
         INSERT INTO s.t VALUES ('total', 1), ('delta', NULL), ('delta', 2), (NULL, 5), ('x', 6)",
    )
    .await;
    let postmaster = db.postmaster();
    let counted = table("s", "t");
    let worker = db.worker(&postmaster, "w", brisk(&counted)).await;
    let rows = ["delta|NULL", "total|3", "x|6", "|5"];
    eventually("the delta with a value is folded", || async {
        let mut found = db.rows(&counted).await;
        found.iter_mut().for_each(|row| {
            if row == "5" {
                *row = "|5".to_owned();
            }
        });
        found.sort();
        let mut rows = rows;
        rows.sort_unstable();
        found == rows
    })
    .await;
    cycles(&postmaster, worker.id, 3).await;
    assert_eq!(log.with(Level::WARN, "NULL").len(), 1);

    db.execute("UPDATE s.t SET value = NULL WHERE type = 'total'")
        .await;
    db.execute("INSERT INTO s.t VALUES ('delta', 4)").await;
    eventually("it waits for a total", || async {
        !log.with(Level::WARN, "no total").is_empty()
    })
    .await;
    assert_eq!(
        db.value::<i64>("SELECT sum(value) FROM s.t WHERE type = 'delta'")
            .await,
        4
    );
}

#[actix::test]
async fn the_session_that_holds_the_total_is_named() {
    let log = Log::capture();
    let stage = Stage::new().await;
    stage.execute("INSERT INTO s.t VALUES ('total', 0)").await;
    let other = stage.db.connect().await;
    let hold = "BEGIN; SELECT FROM s.t WHERE type = 'total' FOR UPDATE";
    other.batch_execute("hold it", hold).await.unwrap();
    let holder = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'";
    let pid: i32 = stage.value(holder).await;
    stage.execute("INSERT INTO s.t VALUES ('delta', 1)").await;
    let held = format!("other sessions hold its total (PID {pid})");
    let waits = |attempts| format!("the deltas of s.t wait, after {attempts} attempts: {held}");
    let is_told = async |attempts| {
        let line = waits(attempts);
        eventually(&line, || async { !log.with(Level::WARN, &line).is_empty() }).await;
    };
    is_told(8).await;
    let last_error = async || stage.status().await.report.last_error;
    eventually("status names it too", || async {
        last_error().await.as_deref() == Some(&*held)
    })
    .await;
    other.batch_execute("let go", "COMMIT").await.unwrap();
    stage.becomes(&["total|1"]).await;
    // A second time within minutes is not told at once, but it is if it lasts.
    other.batch_execute("hold it", hold).await.unwrap();
    stage.execute("INSERT INTO s.t VALUES ('delta', 1)").await;
    is_told(64).await;
    assert_eq!(log.with(Level::WARN, &waits(8)).len(), 1);
    other.batch_execute("let go", "COMMIT").await.unwrap();
    stage.becomes(&["total|2"]).await;
}

#[actix::test]
async fn a_session_that_has_locked_the_table_is_named() {
    let log = Log::capture();
    let stage = Stage::new().await;
    stage.execute("INSERT INTO s.t VALUES ('total', 0)").await;
    let other = stage.db.connect().await;
    other
        .batch_execute("lock it", "BEGIN; LOCK TABLE s.t")
        .await
        .unwrap();
    let locker = "SELECT pid FROM pg_locks WHERE relation = 's.t'::regclass AND mode = 'AccessExclusiveLock'";
    let pid: i32 = stage.value(locker).await;
    let locked = format!("other sessions have locked s.t (PID {pid})");
    let is_told = || !log.with(Level::WARN, &locked).is_empty();
    eventually("the log names it", || async { is_told() }).await;
    let error = stage.status().await.report.last_error;
    let error = error.unwrap_or_default();
    assert!(error.contains(&locked), "status names it too: {error}");
    other.batch_execute("let go", "COMMIT").await.unwrap();
    stage.becomes(&["total|0"]).await;
    eventually("all is well", || async {
        stage.status().await.report.consecutive_failures == 0
    })
    .await;
}
