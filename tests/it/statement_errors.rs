//! Errors that the server may report for a statement: the deltas are kept, and the worker goes on.

use std::time::Duration;

use bgworker::Postmaster;
use bgworker::database::{self, ConnInfo, Database};
use bgworker::supervision::Limits;
use bgworker::worker_spi::ConnectionKind;
use tracing::Level;

use crate::support::database::{TestDatabase, brisk, brisk_on_its_own, cycles, table};
use crate::support::log::Log;
use crate::support::stage::{Stage, fold_slowly};
use crate::support::{eventually, within};

const SECOND: Duration = Duration::from_secs(1);

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
    let stage = Stage::new().await;
    stage
        .execute(
            "INSERT INTO s.t VALUES ('total', 100); ALTER TABLE s.t ALTER value DROP NOT NULL; \
         INSERT INTO s.t VALUES ('delta', NULL), ('delta', 1)",
        )
        .await;
    stage.becomes(&["delta|NULL", "total|101"]).await;
    stage.cycles(3).await;
    assert_eq!(stage.rows().await, ["delta|NULL", "total|101"]);
}

#[actix::test]
async fn an_update_that_a_trigger_suppresses_undoes_the_whole_fold() {
    let log = Log::capture();
    let stage = Stage::new().await;
    stage
        .execute(
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
    assert_eq!(stage.rows().await, ["delta|5", "total|0"]);
    stage.execute("DROP TRIGGER suppress ON s.t").await;
    stage.becomes(&["total|5"]).await;
}

#[actix::test]
async fn a_fold_that_takes_too_long_is_reported_as_such_and_backs_off() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    let counted = table("s", "t");
    let conninfo = ConnInfo::parse(db.conninfo(), |_| None).unwrap();
    let settings = database::Settings::default().statement_timeout(Duration::from_millis(100));
    let impatient = Database::new(conninfo, settings).unwrap();
    let postmaster = Postmaster::launch(Limits::default(), Some(impatient)).unwrap();
    let worker = db.worker(&postmaster, "w", brisk(&counted)).await;
    fold_slowly(&db, 0.3).await;
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
async fn a_terminated_backend_is_replaced_at_once_even_with_never() {
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
    // One restart for each backend that was terminated in a cycle; none for one terminated in a nap.
    assert!(status.starts <= 4, "{}", status.starts);
}

#[actix::test]
async fn an_error_of_the_server_in_a_fold_keeps_the_deltas_and_never_ends_the_worker() {
    for connection in [ConnectionKind::Home, ConnectionKind::Own] {
        let stage = Stage::with(|table| brisk(table).connection(connection)).await;
        stage
            .execute(
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
            stage
                .execute(&format!("INSERT INTO s.says VALUES ('{code}')"))
                .await;
            stage.execute("INSERT INTO s.t VALUES ('delta', 1)").await;
            eventually("it is met", || async {
                let status = stage.status().await;
                let error = status.report.last_error;
                error.is_some_and(|error| error.contains(code))
            })
            .await;
            assert_eq!(stage.rows().await, ["delta|1", &format!("total|{folded}")]);
            stage.execute("DELETE FROM s.says").await;
            within(SECOND, "it is folded", || async {
                stage.rows().await == [format!("total|{}", folded + 1)]
            })
            .await;
        }
        let status = stage.status().await;
        assert_eq!(status.starts, 1);
    }
}
