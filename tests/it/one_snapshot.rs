//! A fold adds up and deletes the rows of one snapshot: what other clients and the table itself do to them meanwhile.

use bgworker::worker_spi::ConnectionKind;
use tracing::Level;

use crate::support::database::TestDatabase;
use crate::support::eventually;
use crate::support::log::Log;
use crate::support::rollup::{Rollup, SALES, SALES_TABLES};
use crate::support::stage::{Stage, waits};

/// Commits what another client does to a delta, as soon as the fold of worker `w` waits for it.
async fn commits_while_the_fold_waits(sql: &str, expected: &str) {
    let stage = Stage::napping(ConnectionKind::Own).await;
    stage
        .execute("INSERT INTO s.t VALUES ('total', 0), ('delta', 5), ('delta', 1)")
        .await;
    let client = stage.db.connect().await;
    let begin = format!("BEGIN; {sql}");
    client.batch_execute("begin", &begin).await.unwrap();
    stage.wake();
    eventually("the fold waits", || waits(&stage.db, "w", "Lock")).await;
    client.batch_execute("commit", "COMMIT").await.unwrap();
    stage.becomes(&[expected]).await;
}

#[actix::test]
async fn a_delta_that_a_client_changes_meanwhile_counts_as_it_was_committed() {
    commits_while_the_fold_waits("UPDATE s.t SET value = 70 WHERE value = 5", "total|71").await;
}

#[actix::test]
async fn a_delta_that_a_client_deletes_meanwhile_does_not_count() {
    commits_while_the_fold_waits("DELETE FROM s.t WHERE value = 5", "total|1").await;
}

#[actix::test]
async fn a_delta_of_a_roll_up_that_a_client_changes_meanwhile_counts_as_it_was_committed() {
    let db = TestDatabase::new().await;
    db.execute(SALES_TABLES).await;
    db.execute("INSERT INTO s.sale_delta VALUES (1, '2026-01-01', 5), (1, '2026-01-01', 1)")
        .await;
    let client = db.connect().await;
    let change = "BEGIN; UPDATE s.sale_delta SET amount = 70 WHERE amount = 5";
    client.batch_execute("change", change).await.unwrap();
    let rollup = Rollup::start(&db, SALES).await;
    eventually("the fold waits", || waits(&db, "r", "Lock")).await;
    client.batch_execute("commit", "COMMIT").await.unwrap();
    eventually("both are folded", || async {
        let total = "SELECT (SELECT amount FROM s.sale_total)::text WHERE NOT EXISTS (SELECT FROM s.sale_delta) \
                     UNION ALL SELECT 'not yet' LIMIT 1";
        db.value::<Option<String>>(total).await.as_deref() == Some("71")
    })
    .await;
    rollup.stop().await;
}

#[actix::test]
async fn a_rule_that_keeps_deltas_lets_none_count_twice() {
    let log = Log::capture();
    let stage = Stage::new().await;
    stage
        .execute(
            "CREATE TABLE s.bin (value bigint); INSERT INTO s.t VALUES ('total', 100); \
             CREATE RULE keep AS ON DELETE TO s.t DO INSTEAD UPDATE s.bin SET value = 0; \
             INSERT INTO s.t VALUES ('delta', 5)",
        )
        .await;
    eventually("it is told", || async {
        !log.with(Level::ERROR, "s.t").is_empty()
    })
    .await;
    assert_eq!(stage.rows().await, ["delta|5", "total|100"]);
    stage.execute("DROP RULE keep ON s.t").await;
    stage.becomes(&["total|105"]).await;
}

#[actix::test]
async fn a_trigger_of_a_child_that_keeps_its_deltas_is_told_and_lets_none_count_twice() {
    let log = Log::capture();
    let stage = Stage::new().await;
    stage
        .execute(
            "INSERT INTO s.t VALUES ('total', 100); CREATE TABLE s.child () INHERITS (s.t); \
             CREATE FUNCTION s.keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
             CREATE TRIGGER keep BEFORE DELETE ON s.child FOR EACH ROW EXECUTE FUNCTION s.keep(); \
             INSERT INTO s.child VALUES ('delta', 5); INSERT INTO s.t VALUES ('delta', 1)",
        )
        .await;
    eventually("it is told", || async {
        let told = "a trigger on DELETE keeps deltas in the table or in a child";
        !log.with(Level::ERROR, told).is_empty()
    })
    .await;
    assert_eq!(stage.rows().await, ["delta|1", "delta|5", "total|100"]);
    stage.execute("DROP TRIGGER keep ON s.child").await;
    stage.becomes(&["total|106"]).await;
}

#[actix::test]
async fn the_deletion_counts_towards_the_length_of_a_fold() {
    let db = TestDatabase::new().await;
    db.execute(SALES_TABLES).await;
    let rows = 600_000_i64;
    db.execute(&format!(
        "INSERT INTO s.sale_delta SELECT 1, '2026-01-01', 1 FROM generate_series(1, {rows})"
    ))
    .await;
    let keys = format!("{SALES}\nbatch = 1000000\nconnection = 'own'");
    let rollup = Rollup::start(&db, &keys).await;
    let folded = || async { rollup.status().await.unwrap().report };
    eventually("all are folded", || async {
        folded().await.count("rows_folded") == rows.unsigned_abs()
    })
    .await;
    // One key: each fold counts one.
    let folds = folded().await.count("keys");
    assert!(folds > 3, "{folds} folds");
    rollup.stop().await;
}

/// Folds one delta of a queue of this kind, and returns what a trigger on the totals finds this expression to be.
async fn found_by_a_trigger(kind: &str, expression: &str) -> String {
    let db = TestDatabase::new().await;
    db.execute(SALES_TABLES).await;
    db.execute(&format!(
        "ALTER TABLE s.sale_delta SET {kind}; CREATE TABLE s.seen (value text); \
         CREATE FUNCTION s.look() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN INSERT INTO s.seen SELECT {expression}; RETURN NEW; END $$; \
         CREATE TRIGGER look BEFORE INSERT ON s.sale_total FOR EACH ROW EXECUTE FUNCTION s.look(); \
         INSERT INTO s.sale_delta VALUES (1, '2026-01-01', 5)",
    ))
    .await;
    let rollup = Rollup::start(&db, SALES).await;
    eventually("it is folded", || async {
        db.value::<i64>("SELECT count(*) FROM s.sale_total").await == 1
    })
    .await;
    rollup.stop().await;
    db.value("SELECT value FROM s.seen").await
}

#[actix::test]
async fn a_trigger_on_the_totals_finds_the_deltas_gone() {
    let deltas = "(SELECT count(*) FROM s.sale_delta)";
    assert_eq!(found_by_a_trigger("LOGGED", deltas).await, "0");
}

#[actix::test]
async fn only_the_commit_of_an_unlogged_queue_is_waited_for() {
    let waits = "current_setting('synchronous_commit')";
    assert_eq!(found_by_a_trigger("LOGGED", waits).await, "off");
    assert_eq!(found_by_a_trigger("UNLOGGED", waits).await, "on");
}
