//! Triggers and rules on the table: what is deleted, summed up and added must agree, or the fold is undone.

use std::time::Duration;

use tracing::Level;

use crate::support::database::{TestDatabase, brisk};
use crate::support::eventually;
use crate::support::log::Log;
use crate::support::rollup::Rollup;
use crate::support::stage::Stage;

/// Makes a trigger that deletes, at the end of a transaction that deletes from `s.q`, the rows that belong to the deleted one.
const DEFERRED: &str = "CREATE FUNCTION s.f() RETURNS trigger LANGUAGE plpgsql AS \
    'BEGIN DELETE FROM s.q WHERE of = old.id; RETURN NULL; END'; \
    CREATE CONSTRAINT TRIGGER f AFTER DELETE ON s.q DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION s.f()";

/// What a fold says that this trigger undoes.
const DIFFER: &str = "the deltas added up and the rows deleted differ by 1";

/// A worker on `s.t`, on which a trigger is created afterwards.
struct Triggered {
    log: Log,
    stage: Stage,
}

impl Triggered {
    async fn new(event: &str, body: &str) -> Self {
        let log = Log::capture();
        let stage = Stage::new().await;
        stage
            .execute(&format!(
                "CREATE TABLE s.bin (LIKE s.t); INSERT INTO s.t VALUES ('total', 100); \
             CREATE FUNCTION s.f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; END $$; \
             CREATE TRIGGER f {event} ON s.t FOR EACH ROW EXECUTE FUNCTION s.f()"
            ))
            .await;
        Self { log, stage }
    }

    async fn insert(&self, deltas: &str) {
        let sql = format!("INSERT INTO s.t SELECT 'delta', v FROM ({deltas}) AS d (v)");
        self.stage.execute(&sql).await;
    }

    /// Waits until an error that contains this text is logged.
    async fn told(&self, text: &str) {
        eventually(text, || async {
            !self.log.with(Level::ERROR, text).is_empty()
        })
        .await;
    }

    /// Drops the trigger, and waits until everything is folded.
    async fn mended(&self, total: &str) {
        self.stage.execute("DROP TRIGGER f ON s.t").await;
        self.stage.becomes(&[total]).await;
    }
}

#[actix::test]
async fn a_trigger_that_keeps_the_deltas_is_reported_as_such_and_writes_nothing() {
    let keep = "INSERT INTO s.bin VALUES (old.type, old.value); RETURN NULL";
    let triggered = Triggered::new("BEFORE DELETE", keep).await;
    triggered
        .insert("SELECT 1 FROM generate_series(1, 20000)")
        .await;
    triggered.told("of 20000 deltas 0 could be deleted").await;
    triggered
        .told("a trigger on DELETE keeps deltas in the table")
        .await;
    // After several attempts, less and less frequent: the error was logged once, and each attempt undone.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let told = triggered.log.with(Level::WARN, "");
    assert_eq!(told.len(), 1, "{told:#?}");
    let failures = triggered
        .stage
        .postmaster
        .workers()
        .await
        .unwrap()
        .registered[0]
        .report
        .consecutive_failures;
    assert!(failures < 20, "{failures} attempts");
    let kept: i64 = triggered.stage.value("SELECT count(*) FROM s.bin").await;
    assert_eq!(kept, 0);
    triggered.mended("total|20100").await;
}

#[actix::test]
async fn a_trigger_that_keeps_some_deltas_neither_loses_nor_doubles_any() {
    let body = "IF old.value = 3 THEN RETURN NULL; END IF; RETURN old";
    let triggered = Triggered::new("BEFORE DELETE", body).await;
    triggered.insert("VALUES (1), (2), (3)").await;
    triggered.told("of 3 deltas 2 could be deleted").await;
    let rows = triggered.stage.rows().await;
    assert_eq!(rows, ["delta|1", "delta|2", "delta|3", "total|100"]);
    triggered.mended("total|106").await;
}

#[actix::test]
async fn a_trigger_that_alters_the_total_loses_no_delta() {
    for body in [
        "new.value := old.value; RETURN new",
        "new.value := new.value + 1; RETURN new",
        "new.type := 'other'; RETURN new",
        "RETURN NULL",
    ] {
        let triggered = Triggered::new("BEFORE UPDATE", body).await;
        let sql = "ALTER TABLE s.t DROP CONSTRAINT t_type_check";
        triggered.stage.execute(sql).await;
        triggered.insert("VALUES (5), (-2)").await;
        let why = "a trigger on UPDATE alters or suppresses the total";
        triggered.told(why).await;
        let rows = triggered.stage.rows().await;
        assert_eq!(rows, ["delta|-2", "delta|5", "total|100"], "{body}");
        triggered.mended("total|103").await;
    }
}

#[actix::test]
async fn a_sum_of_zero_is_folded_though_a_trigger_suppresses_updates_that_change_nothing() {
    let triggered = Triggered::new("BEFORE INSERT", "RETURN new").await;
    triggered
        .stage
        .execute(
            "CREATE TRIGGER z BEFORE UPDATE ON s.t FOR EACH ROW \
             EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        )
        .await;
    triggered.insert("VALUES (5), (-5)").await;
    let rows = ["total|100"];
    triggered.stage.becomes(&rows).await;
    assert_eq!(triggered.log.with(Level::WARN, ""), [""; 0]);
}

#[actix::test]
async fn an_audit_trigger_that_keeps_out_of_the_way_is_no_hindrance() {
    let audit = "INSERT INTO s.bin VALUES (old.type, old.value); RETURN old";
    let triggered = Triggered::new("BEFORE DELETE", audit).await;
    triggered.insert("VALUES (1), (2)").await;
    let rows = ["total|103"];
    triggered.stage.becomes(&rows).await;
    let audited: i64 = triggered.stage.value("SELECT count(*) FROM s.bin").await;
    assert_eq!(audited, 2);
}

#[actix::test]
async fn a_rule_that_comes_later_is_reported_once_and_causes_no_hot_loop() {
    let triggered = Triggered::new("BEFORE INSERT", "RETURN new").await;
    let rule = "CREATE RULE r AS ON DELETE TO s.t DO INSTEAD NOTHING";
    triggered.stage.execute(rule).await;
    triggered.insert("VALUES (1)").await;
    triggered.told("rule").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let told = triggered.log.with(Level::WARN, "");
    assert!(told.len() <= 2, "{told:#?}");
    triggered.stage.execute("DROP RULE r ON s.t").await;
    triggered.mended("total|101").await;
}

#[actix::test]
async fn a_deferred_trigger_that_deletes_other_deltas_undoes_a_fold() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    // Each delta has a block, and so a fold, of its own.
    db.execute(&format!(
        "CREATE SCHEMA s; CREATE TABLE s.t (type text, value bigint, id int, of int, filler text); \
         ALTER TABLE s.t ALTER filler SET STORAGE PLAIN; CREATE UNIQUE INDEX ON s.t (type) WHERE type = 'total'; \
         {}; INSERT INTO s.t VALUES ('total', 0); \
         INSERT INTO s.t VALUES ('delta', 1, 1, NULL, repeat('x', 6000)), ('delta', 10, 2, 1, repeat('x', 6000))",
        DEFERRED.replace("s.q", "s.t")
    ))
    .await;
    let stage = Stage::on(db, |table| brisk(table).batch(1)).await;
    eventually("it is told", || async {
        !log.with(Level::ERROR, DIFFER).is_empty()
    })
    .await;
    assert_eq!(stage.rows().await, ["delta|1", "delta|10", "total|0"]);
    stage.execute("DROP TRIGGER f ON s.t").await;
    stage.becomes(&["total|11"]).await;
}

#[actix::test]
async fn a_deferred_trigger_that_deletes_other_deltas_undoes_the_fold_of_a_roll_up() {
    let db = TestDatabase::new().await;
    db.execute(&format!(
        "CREATE SCHEMA s; CREATE TABLE s.q (k int NOT NULL, v bigint, id int, of int, filler text); \
         ALTER TABLE s.q ALTER filler SET STORAGE PLAIN; CREATE TABLE s.t (k int PRIMARY KEY, v bigint); {DEFERRED}; \
         INSERT INTO s.q VALUES (7, 1, 1, NULL, repeat('x', 6000)), (7, 10, 2, 1, repeat('x', 6000))"
    ))
    .await;
    let keys =
        "queue = 's.q'\ntotals = 's.t'\nkeys = ['k']\nsum = ['v']\nnaptime = '10ms'\nbatch = 1";
    let rollup = Rollup::start(&db, keys).await;
    let sums = "SELECT concat_ws(' ', (SELECT sum(v) FROM s.q), (SELECT sum(v) FROM s.t))";
    eventually("it is told", || async {
        let error = rollup.last_error().await;
        error.is_some_and(|error| error.contains(DIFFER))
    })
    .await;
    assert_eq!(db.value::<String>(sums).await, "11");
    db.execute("DROP TRIGGER f ON s.q").await;
    eventually("all is added", async || {
        db.value::<String>(sums).await == "11"
            && db
                .value::<bool>("SELECT NOT EXISTS (SELECT FROM s.q)")
                .await
    })
    .await;
    rollup.stop().await;
}
