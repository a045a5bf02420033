//! The fold against a real server: exact, whatever others do to the table meanwhile.

use std::time::{Duration, Instant};

use bgworker::database::{self, ConnInfo, Database};
use bgworker::supervision::{Limits, Shutdown, WorkerState};
use bgworker::worker_spi::{ConnectionKind, Fold, ROWS_FOLDED, Settings, TOTAL, Table};
use bgworker::{Postmaster, PostmasterHandle, WorkerId};
use tokio::task::JoinSet;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tracing::Level;

use crate::support::database::{
    TestDatabase, TestWorker, brisk, brisk_on_its_own, register, table,
};
use crate::support::log::Log;
use crate::support::{eventually, within};

const SECOND: Duration = Duration::from_secs(1);

/// Waits until a worker has done so many more cycles.
async fn cycles(postmaster: &PostmasterHandle, worker: WorkerId, more: u64) {
    let done = || async {
        let status = postmaster.worker(worker).await.unwrap();
        status.expect("the worker has ended").report.cycles
    };
    let goal = done().await + more;
    eventually(&format!("{more} more cycles"), || async {
        done().await >= goal
    })
    .await;
}

/// A worker that has had its first cycle, and naps for so long that nothing happens by itself.
async fn napping(
    db: &TestDatabase,
    postmaster: &PostmasterHandle,
    table: &Table,
    connection: ConnectionKind,
) -> TestWorker {
    let mut settings = Settings::new(table.clone());
    settings.connection = connection;
    // The first nap is a random part of it, and is to last even then.
    settings.naptime = Duration::from_secs(86_400);
    let worker = db.worker(postmaster, "w", settings).await;
    eventually("it naps", || async {
        let status = postmaster.worker(worker.id).await.unwrap().unwrap();
        status.report.napping && status.report.cycles == 1
    })
    .await;
    worker
}

/// Wakes it, and lets it nap briskly from now on.
fn wake(postmaster: &PostmasterHandle, worker: &TestWorker) {
    (worker.settings).send_modify(|settings| settings.naptime = Duration::from_millis(10));
    postmaster.sighup();
}

async fn shut_down(postmaster: &PostmasterHandle) {
    postmaster.shut_down(Shutdown::Smart);
    assert!(postmaster.exited().await.unwrap().aborted.is_empty());
}

#[actix::test]
async fn a_sighup_folds_what_a_long_naptime_would_leave() {
    let db = TestDatabase::new().await;
    let postmaster = db.postmaster();
    let counted = table("schema4", "counted");
    napping(&db, &postmaster, &counted, ConnectionKind::Home).await;
    db.execute("INSERT INTO schema4.counted VALUES ('total', 0), ('delta', 1)")
        .await;
    postmaster.sighup();
    within(2 * SECOND, "the delta is folded", || async {
        db.rows(&counted).await == ["total|1"]
    })
    .await;
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
    let db = TestDatabase::new().await;
    let postmaster = db.postmaster();
    let counted = table("s", "t");
    let worker = db.worker(&postmaster, "w", brisk(&counted)).await;
    db.execute("INSERT INTO s.t VALUES ('delta', 1), ('delta', 2)")
        .await;
    eventually("the warning", || async {
        !log.with(Level::WARN, "no total").is_empty()
    })
    .await;
    tokio::time::sleep(Duration::from_millis(200)).await; // some ten cycles
    assert_eq!(db.rows(&counted).await, ["delta|1", "delta|2"]);
    assert_eq!(log.with(Level::WARN, "no total").len(), 1);
    let report = || async { postmaster.worker(worker.id).await.unwrap().unwrap().report };
    let waiting = report().await;
    let waits = "s.t has deltas but no total: they wait until one is inserted";
    assert_eq!(waiting.last_error.as_deref(), Some(waits));
    assert!(waiting.consecutive_failures > 1, "{waiting:?}");
    db.execute("INSERT INTO s.t VALUES ('total', 0)").await;
    db.wait_for_rows(&counted, &["total|3"]).await;
    cycles(&postmaster, worker.id, 2).await;
    assert_eq!(report().await.consecutive_failures, 0);
    db.execute("DELETE FROM s.t").await;
    db.execute("INSERT INTO s.t VALUES ('delta', 1)").await;
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
async fn in_the_projects_own_table_31_bits_are_no_limit() {
    let db = TestDatabase::new().await;
    let postmaster = db.postmaster();
    let counted = table("s", "t");
    db.worker(&postmaster, "w", brisk(&counted)).await;
    db.execute("INSERT INTO s.t VALUES ('total', 2147483640), ('delta', 100)")
        .await;
    db.wait_for_rows(&counted, &["total|2147483740"]).await;
}

#[actix::test]
async fn after_the_delta_is_deleted_folding_goes_on() {
    let db = TestDatabase::new().await;
    let postmaster = db.postmaster();
    let counted = table("s", "t");
    let worker = db.worker(&postmaster, "w", brisk(&counted)).await;
    let most = i64::MAX;
    db.execute(&format!(
        "INSERT INTO s.t VALUES ('total', {most}), ('delta', 1)"
    ))
    .await;
    eventually("the failure", || async {
        let status = postmaster.worker(worker.id).await.unwrap().unwrap();
        status
            .report
            .last_error
            .is_some_and(|error| error.contains("22003"))
    })
    .await;
    db.execute("DELETE FROM s.t WHERE type = 'delta'; INSERT INTO s.t VALUES ('delta', -1)")
        .await;
    db.wait_for_rows(&counted, &[&format!("total|{}", most - 1)])
        .await;
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

/// Four workers fold while four clients insert 10,000 ones, one client adds 1 to the total 100
/// times, and one deletes the total and inserts it again with the value it got back, 100 times.
async fn nothing_is_lost_under(isolation: &str, fold: Fold) {
    let db = TestDatabase::new().await;
    let name: String = db.value("SELECT current_database()::text").await;
    db.execute(&format!(
        "ALTER DATABASE {name} SET default_transaction_isolation = '{isolation}'"
    ))
    .await;
    let counted = table("s", "t");
    let mut settings = brisk(&counted);
    settings.fold = fold;
    // For one that truncates, a batch so small that there is mostly more.
    let (batch, rows) = match fold {
        Fold::Delete => (settings.batch, 1),
        Fold::Truncate => (1, 100),
    };
    settings.batch = batch;
    let log = Log::capture();
    let postmaster = db.postmaster();
    db.worker(&postmaster, "w0", settings.clone()).await;
    db.execute("INSERT INTO s.t VALUES ('total', 0)").await;
    let made: u32 = db.value("SELECT pg_relation_filenode('s.t')").await;
    for n in 1..4 {
        db.worker(&postmaster, &format!("w{n}"), settings.clone())
            .await;
    }
    let mut clients = JoinSet::new();
    for _ in 0..4 {
        clients.spawn_local(insert_ones(db.connect_plainly().await, 2_500 / rows, rows));
    }
    clients.spawn_local(add_to_total(db.connect_plainly().await, 100));
    clients.spawn_local(replace_total(db.connect_plainly().await, 100));
    let added: i64 = clients.join_all().await.into_iter().sum();
    db.wait_for_rows(&counted, &[&format!("total|{added}")])
        .await;
    assert!((10_000..=10_100).contains(&added), "{added}");
    let is_truncated = made != db.value::<u32>("SELECT pg_relation_filenode('s.t')").await;
    assert_eq!(is_truncated, fold == Fold::Truncate, "{}", log.text());
}

/// Whether a client of such an isolation must do it again. Others' failures are the test's.
fn again<T>(done: Result<T, tokio_postgres::Error>) -> Option<T> {
    match done {
        Ok(done) => Some(done),
        Err(error) => match error.code().map(SqlState::code) {
            Some("40001" | "40P01") => None,
            _ => panic!("{error:?}"),
        },
    }
}

/// Each client returns by how much it changed the sum.
async fn insert_ones(client: Client, times: i64, rows: i64) -> i64 {
    let insert = "INSERT INTO s.t SELECT 'delta', 1 FROM generate_series(1, $1::bigint)";
    let insert = client.prepare(insert).await.unwrap();
    for _ in 0..times {
        while again(client.execute(&insert, &[&rows]).await).is_none() {}
    }
    times * rows
}

/// Now and then there is no total to add to: then nothing is added.
async fn add_to_total(client: Client, times: i64) -> i64 {
    let mut added = 0;
    for _ in 0..times {
        let add = "UPDATE s.t SET value = value + 1 WHERE type = 'total'";
        let rows = loop {
            if let Some(rows) = again(client.execute(add, &[]).await) {
                break rows;
            }
        };
        added += i64::try_from(rows).unwrap();
    }
    added
}

/// Takes the total away and puts it back as it was, in one transaction each time.
async fn replace_total(client: Client, times: i64) -> i64 {
    for _ in 0..times {
        while again(replace_total_once(&client).await).is_none() {
            client.batch_execute("ROLLBACK").await.unwrap();
        }
    }
    0
}

async fn replace_total_once(client: &Client) -> Result<(), tokio_postgres::Error> {
    client.batch_execute("BEGIN").await?;
    let take = "DELETE FROM s.t WHERE type = 'total' RETURNING value";
    for row in client.query(take, &[]).await? {
        let total: i64 = row.get(0);
        let put_back = "INSERT INTO s.t VALUES ('total', $1)";
        client.execute(put_back, &[&total]).await?;
    }
    client.batch_execute("COMMIT").await
}

#[actix::test]
async fn nothing_is_lost_where_read_committed_is_the_default() {
    nothing_is_lost_under("read committed", Fold::Delete).await;
}

#[actix::test]
async fn nothing_is_lost_where_repeatable_read_is_the_default() {
    nothing_is_lost_under("repeatable read", Fold::Delete).await;
}

#[actix::test]
async fn nothing_is_lost_where_serializable_is_the_default() {
    nothing_is_lost_under("serializable", Fold::Delete).await;
}

#[actix::test]
async fn nothing_is_lost_by_truncation_where_read_committed_is_the_default() {
    nothing_is_lost_under("read committed", Fold::Truncate).await;
}

#[actix::test]
async fn nothing_is_lost_by_truncation_where_serializable_is_the_default() {
    nothing_is_lost_under("serializable", Fold::Truncate).await;
}

#[actix::test]
async fn a_locked_total_is_left_alone_and_folded_when_it_is_free() {
    let db = TestDatabase::new().await;
    let counted = table("s", "t");
    let postmaster = db.postmaster();
    let worker = db.worker(&postmaster, "w", brisk(&counted)).await;
    db.execute("INSERT INTO s.t VALUES ('total', 0)").await;
    let client = db.connect().await;
    client
        .batch_execute(
            "hold",
            "BEGIN; SELECT FROM s.t WHERE type = 'total' FOR UPDATE",
        )
        .await
        .unwrap();
    db.execute("INSERT INTO s.t VALUES ('delta', 1)").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(db.rows(&counted).await, ["delta|1", "total|0"]);
    client.batch_execute("let go", "COMMIT").await.unwrap();
    within(SECOND, "the delta is folded", || async {
        db.rows(&counted).await == ["total|1"]
    })
    .await;
    let status = postmaster.worker(worker.id).await.unwrap().unwrap();
    assert_eq!(
        status.report.last_error, None,
        "a locked total is no failure"
    );
}

#[actix::test]
async fn a_lock_on_a_delta_is_waited_for_shortly_and_tried_again() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    let counted = table("s", "t");
    let postmaster = db.postmaster();
    let worker = napping(&db, &postmaster, &counted, ConnectionKind::Home).await;
    db.execute("INSERT INTO s.t VALUES ('total', 0), ('delta', 1)")
        .await;
    let client = db.connect().await;
    let hold = "BEGIN; SELECT FROM s.t WHERE type = 'delta' FOR UPDATE";
    client.batch_execute("hold", hold).await.unwrap();
    wake(&postmaster, &worker);
    eventually("it gave up waiting", || async {
        let status = postmaster.worker(worker.id).await.unwrap().unwrap();
        status
            .report
            .last_error
            .is_some_and(|error| error.contains("55P03"))
    })
    .await;
    client.batch_execute("let go", "COMMIT").await.unwrap();
    db.wait_for_rows(&counted, &["total|1"]).await;
    assert_eq!(log.with(Level::ERROR, ""), Vec::<String>::new());
    let status = postmaster.worker(worker.id).await.unwrap().unwrap();
    assert_eq!((status.starts, status.state), (1, WorkerState::Running));
}

#[actix::test]
async fn null_cannot_be_in_our_own_table() {
    let db = TestDatabase::new().await;
    let postmaster = db.postmaster();
    db.worker(&postmaster, "w", brisk(&table("s", "t"))).await;
    for row in ["('delta', NULL)", "(NULL, 1)", "('other', 1)"] {
        let sql = format!("INSERT INTO s.t VALUES {row}");
        let error = db.client.batch_execute("insert", &sql).await.unwrap_err();
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
async fn a_changed_column_type_is_folded_without_a_restart() {
    let db = TestDatabase::new().await;
    db.execute(
        "CREATE SCHEMA s; CREATE TABLE s.t (type text NOT NULL, value integer NOT NULL); \
         CREATE UNIQUE INDEX ON s.t (type) WHERE type = 'total'; \
         INSERT INTO s.t VALUES ('total', 0)",
    )
    .await;
    let postmaster = db.postmaster();
    let counted = table("s", "t");
    let worker = db.worker(&postmaster, "w", brisk(&counted)).await;
    cycles(&postmaster, worker.id, 2).await;
    db.execute("ALTER TABLE s.t ALTER value TYPE bigint").await;
    db.execute("INSERT INTO s.t VALUES ('delta', 5000000000)")
        .await;
    db.wait_for_rows(&counted, &["total|5000000000"]).await;
    let status = postmaster.worker(worker.id).await.unwrap().unwrap();
    assert_eq!(status.starts, 1);
}

#[actix::test]
async fn a_statement_that_the_server_forgot_is_prepared_again() {
    let db = TestDatabase::new().await;
    let counted = table("s", "t");
    let postmaster = db.postmaster();
    db.execute(
        "CREATE SCHEMA s; CREATE TABLE s.t (type text, value bigint); \
         CREATE UNIQUE INDEX ON s.t (type) WHERE type = 'total'; \
         CREATE FUNCTION s.forget() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN DEALLOCATE ALL; RETURN NEW; END'; \
         CREATE TRIGGER forget AFTER UPDATE ON s.t FOR EACH STATEMENT EXECUTE FUNCTION s.forget(); \
         INSERT INTO s.t VALUES ('total', 0)",
    )
    .await;
    let worker = db.worker(&postmaster, "w", brisk(&counted)).await;
    for round in 1..=3 {
        db.execute("INSERT INTO s.t VALUES ('delta', 1)").await;
        db.wait_for_rows(&counted, &[&format!("total|{round}")])
            .await;
        cycles(&postmaster, worker.id, 2).await;
    }
    let status = postmaster.worker(worker.id).await.unwrap().unwrap();
    assert_eq!(status.starts, 1);
    assert!(
        status
            .report
            .last_error
            .is_some_and(|error| error.contains("26000"))
    );
}

#[actix::test]
async fn a_column_that_loses_its_not_null_loses_no_delta() {
    let db = TestDatabase::new().await;
    let counted = table("s", "t");
    let postmaster = db.postmaster();
    let worker = db.worker(&postmaster, "w", brisk(&counted)).await;
    db.execute(
        "INSERT INTO s.t VALUES ('total', 100); ALTER TABLE s.t ALTER value DROP NOT NULL; \
         INSERT INTO s.t VALUES ('delta', NULL), ('delta', 1)",
    )
    .await;
    db.wait_for_rows(&counted, &["delta|NULL", "total|101"])
        .await;
    cycles(&postmaster, worker.id, 3).await;
    assert_eq!(db.rows(&counted).await, ["delta|NULL", "total|101"]);
}

#[actix::test]
async fn an_update_that_a_trigger_suppresses_undoes_the_whole_fold() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    let counted = table("s", "t");
    let postmaster = db.postmaster();
    db.worker(&postmaster, "w", brisk(&counted)).await;
    db.execute(
        "CREATE FUNCTION s.suppress() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN RETURN NULL; END'; \
         CREATE TRIGGER suppress BEFORE UPDATE ON s.t FOR EACH ROW EXECUTE FUNCTION s.suppress(); \
         INSERT INTO s.t VALUES ('total', 0), ('delta', 5)",
    )
    .await;
    eventually("it is reported", || async {
        !log.with(
            Level::ERROR,
            "a trigger on UPDATE alters or suppresses the total",
        )
        .is_empty()
    })
    .await;
    assert_eq!(db.rows(&counted).await, ["delta|5", "total|0"]);
    db.execute("DROP TRIGGER suppress ON s.t").await;
    db.wait_for_rows(&counted, &["total|5"]).await;
}

#[actix::test]
async fn a_fold_that_takes_too_long_is_reported_for_what_it_is_and_backs_off() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    let counted = table("s", "t");
    let conninfo = ConnInfo::parse(db.conninfo(), |_| None).unwrap();
    let settings = database::Settings::default().statement_timeout(Duration::from_millis(100));
    let impatient = Database::new(conninfo, settings).unwrap();
    let postmaster = Postmaster::launch(Limits::default(), Some(impatient)).unwrap();
    let worker = db.worker(&postmaster, "w", brisk(&counted)).await;
    db.execute(
        "CREATE FUNCTION s.slow() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN PERFORM pg_sleep(0.3); RETURN NEW; END'; \
         CREATE TRIGGER slow BEFORE UPDATE ON s.t FOR EACH ROW EXECUTE FUNCTION s.slow(); \
         INSERT INTO s.t VALUES ('total', 0), ('delta', 1)",
    )
    .await;
    let why = "give it a longer statement_timeout";
    eventually("it is reported", || async {
        !log.with(Level::ERROR, why).is_empty()
    })
    .await;
    tokio::time::sleep(SECOND).await;
    assert_eq!(log.with(Level::WARN, "").len(), 1, "{}", log.text());
    let status = postmaster.worker(worker.id).await.unwrap().unwrap();
    assert!(
        status.report.consecutive_failures < 7,
        "10, 20, 40 … ms apart"
    );
    db.execute("DROP TRIGGER slow ON s.t").await;
    db.wait_for_rows(&counted, &["total|1"]).await;
}

#[actix::test]
async fn a_terminated_backend_is_replaced_at_once_also_with_never() {
    let db = TestDatabase::new().await;
    let counted = table("s", "t");
    let postmaster = db.postmaster();
    let worker = db
        .worker(&postmaster, "victim", brisk_on_its_own(&counted))
        .await;
    db.execute("INSERT INTO s.t VALUES ('total', 0)").await;
    for round in 1..=3 {
        let killed: i64 = db
            .value(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                 WHERE application_name = 'victim'",
            )
            .await;
        assert_eq!(killed, 1);
        db.execute("INSERT INTO s.t VALUES ('delta', 1)").await;
        within(SECOND, "it folds again", || async {
            db.rows(&counted).await == [format!("total|{round}")]
        })
        .await;
    }
    let status = postmaster.worker(worker.id).await.unwrap().unwrap();
    // Once for each that was terminated in a cycle, and not in a nap.
    assert!(status.starts <= 4, "{}", status.starts);
}

#[actix::test]
async fn a_sighup_uses_the_new_naptime() {
    let db = TestDatabase::new().await;
    let counted = table("s", "t");
    let postmaster = db.postmaster();
    let mut settings = Settings::new(counted.clone());
    settings.naptime = Duration::from_secs(600);
    let worker = db.worker(&postmaster, "w", settings).await;
    db.execute("INSERT INTO s.t VALUES ('total', 0), ('delta', 1)")
        .await;
    worker
        .settings
        .send_modify(|settings| settings.naptime = Duration::from_millis(20));
    postmaster.sighup();
    within(SECOND, "the sighup folds", || async {
        db.rows(&counted).await == ["total|1"]
    })
    .await;
    db.execute("INSERT INTO s.t VALUES ('delta', 1)").await;
    within(SECOND, "the next nap is short", || async {
        db.rows(&counted).await == ["total|2"]
    })
    .await;
}

#[actix::test]
async fn a_thousand_sighups_in_100_ms_are_merged_and_the_postmaster_answers_meanwhile() {
    let db = TestDatabase::new().await;
    let postmaster = db.postmaster();
    let mut settings = Settings::new(table("s", "t"));
    settings.naptime = Duration::from_secs(86_400);
    let worker = db.worker(&postmaster, "w", settings).await;
    cycles(&postmaster, worker.id, 0).await;
    db.execute("INSERT INTO s.t VALUES ('total', 0), ('delta', 1)")
        .await;
    let before = (postmaster.worker(worker.id).await.unwrap().unwrap()).report;
    let mut interval = tokio::time::interval(Duration::from_millis(1));
    for _ in 0..100 {
        interval.tick().await;
        (0..10).for_each(|_| postmaster.sighup());
        let asked = Instant::now();
        postmaster.status().await.unwrap();
        assert!(asked.elapsed() < Duration::from_millis(50));
    }
    eventually("it naps again", || async {
        let status = postmaster.worker(worker.id).await.unwrap().unwrap();
        status.report.napping && status.report.count(ROWS_FOLDED) == 1
    })
    .await;
    let after = (postmaster.worker(worker.id).await.unwrap().unwrap()).report;
    // Ten at once are one, or two where the first was told in between.
    let extra = after.cycles - before.cycles;
    assert!((1..=200).contains(&extra), "{extra}");
}

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
    settings.connection = connection;
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
async fn what_the_server_may_say_about_a_fold_keeps_the_deltas_and_never_ends_the_worker() {
    for connection in [ConnectionKind::Home, ConnectionKind::Own] {
        let db = TestDatabase::new().await;
        let counted = table("s", "t");
        let postmaster = db.postmaster();
        let mut settings = brisk(&counted);
        settings.connection = connection;
        let worker = db.worker(&postmaster, "w", settings).await;
        db.execute(
            "INSERT INTO s.t VALUES ('total', 0); CREATE TABLE s.says (code text); \
             CREATE FUNCTION s.say() RETURNS trigger LANGUAGE plpgsql AS $$ \
             DECLARE it text := (SELECT code FROM s.says); BEGIN \
             IF it IS NOT NULL THEN RAISE EXCEPTION 'so says a test' USING ERRCODE = it; END IF; \
             RETURN NEW; END $$; \
             CREATE TRIGGER say BEFORE UPDATE ON s.t FOR EACH ROW EXECUTE FUNCTION s.say()",
        )
        .await;
        let codes = [
            "40001", "40P01", "55P03", "57014", "22003", "53100", "53200",
        ];
        for (folded, code) in codes.into_iter().enumerate() {
            db.execute(&format!("INSERT INTO s.says VALUES ('{code}')"))
                .await;
            db.execute("INSERT INTO s.t VALUES ('delta', 1)").await;
            eventually("it is met", || async {
                let status = postmaster.worker(worker.id).await.unwrap().unwrap();
                let error = status.report.last_error;
                error.is_some_and(|error| error.contains(code))
            })
            .await;
            assert_eq!(
                db.rows(&counted).await,
                ["delta|1", &format!("total|{folded}")]
            );
            db.execute("DELETE FROM s.says").await;
            within(SECOND, "it is folded", || async {
                db.rows(&counted).await == [format!("total|{}", folded + 1)]
            })
            .await;
        }
        let status = postmaster.worker(worker.id).await.unwrap().unwrap();
        assert_eq!(status.starts, 1);
    }
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

#[actix::test]
async fn the_server_shows_who_is_who_and_who_naps_is_idle() {
    let db = TestDatabase::new().await;
    let postmaster = db.postmaster();
    for (name, connection) in [
        ("SPI worker 1", ConnectionKind::Own),
        ("*/ drop", ConnectionKind::Own),
        ("at home", ConnectionKind::Home),
    ] {
        let mut settings = Settings::new(table("s", "t"));
        settings.connection = connection;
        settings.naptime = Duration::from_secs(600);
        let worker = db.worker(&postmaster, name, settings).await;
        cycles(&postmaster, worker.id, 0).await;
    }
    let shown = "SELECT string_agg(application_name || ': ' || state || ': ' || \
                 substring(query for 27), ', ' ORDER BY application_name COLLATE \"C\" DESC) \
                 FROM pg_stat_activity WHERE datname = current_database() \
                 AND pid <> pg_backend_pid()";
    eventually("all nap", || async {
        db.value::<String>(shown).await
            == "bgworker: idle: /* bgworker: at home */ SEL, \
                SPI worker 1: idle: /* bgworker: SPI worker 1 *, \
                */ drop: idle: /* bgworker: %2A%2F drop */"
    })
    .await;
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

/// The table after one fold, for names that would break careless SQL.
async fn fold_with_names(schema: &str, name: &str, worker: &str) {
    let db = TestDatabase::new().await;
    let postmaster = db.postmaster();
    let counted = Table::new(schema, name).unwrap();
    db.worker(&postmaster, worker, brisk(&counted)).await;
    db.execute(&format!(
        "INSERT INTO {} VALUES ('total', 100), ('delta', 5), ('delta', -3), ('delta', 40)",
        counted.sql()
    ))
    .await;
    db.wait_for_rows(&counted, &["total|142"]).await;
}

#[actix::test]
async fn names_of_any_kind_are_taken_as_they_are() {
    let longest = "x".repeat(50);
    for name in [
        "our schema2",
        "we\"ird",
        "o'brien",
        "Ünï",
        "select",
        "\"; drop table x; --",
        "*/ drop",
        "a.b",
        "$1",
        &longest,
    ] {
        fold_with_names(name, name, name).await;
    }
}

#[actix::test]
async fn a_big_fold_is_followed_by_a_vacuum_that_gives_the_room_back() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    let postmaster = db.postmaster();
    let counted = table("s", "t");
    let mut settings = brisk(&counted);
    settings.vacuum_after = Some(10_000);
    settings.batch = 1_000;
    let worker = db.worker(&postmaster, "w", settings).await;
    db.execute("INSERT INTO s.t VALUES ('total', 0)").await;
    // Whoever looks at the table at the wrong moment holds a vacuum back: then the next one does it.
    for round in 1..=10 {
        db.execute("INSERT INTO s.t SELECT 'delta', 1 FROM generate_series(1, 20000)")
            .await;
        eventually("all is folded and vacuumed", || async {
            let status = postmaster.worker(worker.id).await.unwrap().unwrap();
            let vacuums = log.with(Level::DEBUG, "vacuumed its table").len();
            status.report.count(ROWS_FOLDED) == round * 20_000 && vacuums as u64 >= round
        })
        .await;
        db.wait_for_rows(&counted, &[&format!("total|{}", round * 20_000)])
            .await;
        if db.value::<i64>("SELECT pg_relation_size('s.t')").await == 8192 {
            return;
        }
    }
    panic!("the room was not given back: {}", log.text());
}
