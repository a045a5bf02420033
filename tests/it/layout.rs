//! What a fold relies on in its tables is checked in the fold: triggers, rules, children and columns, whenever they come.

use bgworker::worker_spi::Table;
use tracing::Level;

use crate::support::database::{TestDatabase, brisk};
use crate::support::eventually;
use crate::support::log::Log;
use crate::support::rollup::Rollup;
use crate::support::stage::Stage;

/// A roll-up's tables, and a trigger's function that keeps the row it deletes, and says so.
const TABLES: &str = "CREATE SCHEMA s; CREATE TABLE s.t (k int PRIMARY KEY, v numeric, n bigint); \
    CREATE TABLE s.bin (x int); CREATE FUNCTION s.keep() RETURNS trigger LANGUAGE plpgsql \
    AS 'BEGIN INSERT INTO s.bin VALUES (1); RETURN NULL; END'; ";
const QUEUE: &str = "CREATE TABLE s.q (k int NOT NULL, v numeric); ";
const KEYS: &str =
    "queue = 's.q'\ntotals = 's.t'\nkeys = ['k']\nsum = ['v']\ncount = 'n'\nnaptime = '10ms'";
const KEEP: &str = "BEFORE DELETE ON s.q FOR EACH ROW EXECUTE FUNCTION s.keep()";

/// The totals as `key sum count`, then the number of rows that the trigger kept.
async fn totals(db: &TestDatabase) -> String {
    db.value(
        "SELECT concat_ws(' / ', string_agg(concat_ws(' ', k, v, n), ', ' ORDER BY k), \
         (SELECT count(*) FROM s.bin)) FROM s.t",
    )
    .await
}

async fn becomes(db: &TestDatabase, expected: &str) {
    eventually(expected, || async { totals(db).await == expected }).await;
}

async fn says(rollup: &Rollup, text: &str) {
    eventually(text, || async {
        let error = rollup.last_error().await;
        error.is_some_and(|error| error.contains(text))
    })
    .await;
}

#[actix::test]
async fn a_trigger_that_a_partition_has_of_its_parent_lets_no_delta_count_twice() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    db.execute(
        "CREATE SCHEMA s; CREATE TABLE s.p (type text NOT NULL, value bigint NOT NULL) PARTITION BY LIST (type); \
         CREATE TABLE s.t PARTITION OF s.p DEFAULT; CREATE UNIQUE INDEX ON s.t (type) WHERE type = 'total'; \
         CREATE FUNCTION s.keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
         CREATE TRIGGER keep BEFORE DELETE ON s.p FOR EACH ROW EXECUTE FUNCTION s.keep(); \
         INSERT INTO s.t VALUES ('total', 0), ('delta', 7)",
    )
    .await;
    let stage = Stage::on(db, brisk).await;
    eventually("it is told", || async {
        !log.with(Level::ERROR, "of 1 deltas 0 could be deleted")
            .is_empty()
    })
    .await;
    assert_eq!(stage.rows().await, ["delta|7", "total|0"]);
    stage.execute("DROP TRIGGER keep ON s.p").await;
    stage.becomes(&["total|7"]).await;
}

#[actix::test]
async fn a_queue_that_is_a_partition_with_such_a_trigger_is_told_as_a_whole_whatever_poison_does() {
    for on_poison in ["stop", "set_aside"] {
        let db = TestDatabase::new().await;
        db.execute(&format!(
            "{TABLES}CREATE TABLE s.p (k int NOT NULL, v numeric) PARTITION BY RANGE (k); \
             CREATE TABLE s.q PARTITION OF s.p DEFAULT; CREATE TRIGGER keep {}; \
             INSERT INTO s.q SELECT g, 1 FROM generate_series(1, 100) AS g",
            KEEP.replace("s.q", "s.p")
        ))
        .await;
        let rollup = Rollup::start(&db, &format!("{KEYS}\non_poison = '{on_poison}'")).await;
        says(&rollup, "of 100 deltas 0 could be deleted").await;
        assert_eq!(totals(&db).await, "0");
        db.execute("DROP TRIGGER keep ON s.p; DELETE FROM s.q WHERE k > 1")
            .await;
        becomes(&db, "1 1 1 / 0").await;
        rollup.stop().await;
    }
}

#[actix::test]
async fn a_child_that_the_queue_gets_while_it_is_folded_makes_the_roll_up_wait_and_say_so() {
    let db = TestDatabase::new().await;
    db.execute(&format!("{TABLES}{QUEUE}")).await;
    let rollup = Rollup::start(&db, KEYS).await;
    db.execute("INSERT INTO s.q VALUES (1, 1)").await;
    becomes(&db, "1 1 1 / 0").await;
    db.execute(&format!(
        "CREATE TABLE s.kid () INHERITS (s.q); CREATE TRIGGER keep {}; INSERT INTO s.kid VALUES (1, 1)",
        KEEP.replace("s.q", "s.kid")
    ))
    .await;
    says(&rollup, "s.q is a table with children").await;
    assert_eq!(totals(&db).await, "1 1 1 / 0");
    db.execute("ALTER TABLE s.kid NO INHERIT s.q; INSERT INTO s.q VALUES (1, 5)")
        .await;
    becomes(&db, "1 6 2 / 0").await;
}

#[actix::test]
async fn deltas_of_a_child_that_is_larger_than_a_large_parent_are_all_folded() {
    let db = TestDatabase::new().await;
    db.execute(
        "CREATE SCHEMA s; CREATE TABLE s.t (type text, value bigint); \
         CREATE UNIQUE INDEX ON s.t (type) WHERE type = 'total'; CREATE TABLE s.child () INHERITS (s.t); \
         INSERT INTO s.t SELECT 'other', g FROM generate_series(1, 60000) AS g; \
         INSERT INTO s.child SELECT 'delta', 1 FROM generate_series(1, 120000); \
         INSERT INTO s.t VALUES ('total', 0)",
    )
    .await;
    let stage = Stage::on(db, |table: &Table| brisk(table).batch(10_000)).await;
    let total = "SELECT value FROM ONLY s.t WHERE type = 'total'";
    eventually("all are folded", || async {
        stage.value::<i64>(total).await == 120_000
    })
    .await;
    // At its end as well, beyond the parent's.
    stage
        .execute("INSERT INTO s.child VALUES ('delta', 5)")
        .await;
    eventually("what comes later too", || async {
        stage.value::<i64>(total).await == 120_005
    })
    .await;
}

#[actix::test]
async fn a_total_in_a_child_is_left_alone() {
    let stage = Stage::new().await;
    stage
        .execute(
            "INSERT INTO s.t VALUES ('total', 100); CREATE TABLE s.child () INHERITS (s.t); \
             INSERT INTO s.child VALUES ('total', 1000), ('delta', 1); INSERT INTO s.t VALUES ('delta', 2)",
        )
        .await;
    stage.becomes(&["total|1000", "total|103"]).await;
}

#[actix::test]
async fn a_rule_that_only_pretends_to_delete_lets_no_delta_count() {
    let log = Log::capture();
    let stage = Stage::new().await;
    stage
        .execute(
            "CREATE TABLE s.bin (type text, value bigint); INSERT INTO s.bin VALUES ('delta', 0); \
             INSERT INTO s.t VALUES ('total', 100); CREATE RULE keep AS ON DELETE TO s.t \
             DO INSTEAD UPDATE s.bin SET value = 0 RETURNING type, 5::bigint; INSERT INTO s.t VALUES ('delta', 5)",
        )
        .await;
    eventually("it is told", || async {
        !log.with(Level::ERROR, "rule").is_empty()
    })
    .await;
    assert_eq!(stage.rows().await, ["delta|5", "total|100"]);
    stage.execute("DROP RULE keep ON s.t").await;
    stage.becomes(&["total|105"]).await;
}

#[actix::test]
async fn a_deletion_that_takes_other_deltas_along_is_undone() {
    let db = TestDatabase::new().await;
    db.execute(&format!(
        "{TABLES}CREATE TABLE s.q (k int NOT NULL, v numeric, id int PRIMARY KEY, \
         of int REFERENCES s.q ON DELETE CASCADE); \
         INSERT INTO s.q VALUES (7, 'NaN', 2, NULL)"
    ))
    .await;
    let rollup = Rollup::start(&db, KEYS).await;
    says(&rollup, "the key (7) cannot be added").await;
    db.execute(
        "BEGIN; INSERT INTO s.q VALUES (1, 1, 1, NULL); UPDATE s.q SET of = 1 WHERE id = 2; COMMIT",
    )
    .await;
    says(
        &rollup,
        "the deltas added up and the rows deleted differ by 1",
    )
    .await;
    assert_eq!(db.value::<i64>("SELECT count(*) FROM s.q").await, 2);
    db.execute("UPDATE s.q SET of = NULL").await;
    becomes(&db, "1 1 1 / 0").await;
}

#[actix::test]
async fn a_deletion_that_takes_along_deltas_of_a_table_with_children_is_undone() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    // Each delta has a block, and so a fold, of its own.
    db.execute(
        "CREATE SCHEMA s; CREATE TABLE s.t (type text, value bigint, id int UNIQUE, \
         of int REFERENCES s.t (id) ON DELETE CASCADE, filler text); ALTER TABLE s.t ALTER filler SET STORAGE PLAIN; \
         CREATE UNIQUE INDEX ON s.t (type) WHERE type = 'total'; CREATE TABLE s.child () INHERITS (s.t); \
         INSERT INTO s.t VALUES ('total', 0); \
         INSERT INTO s.t VALUES ('delta', 1, 1, NULL, repeat('x', 6000)), ('delta', 10, 2, 1, repeat('x', 6000))",
    )
    .await;
    let one_by_one = |table: &Table| {
        let mut settings = brisk(table);
        settings.batch = 1;
        settings
    };
    let stage = Stage::on(db, one_by_one).await;
    eventually("it is told", || async {
        let told = "the deltas added up and the rows deleted differ by 1";
        !log.with(Level::ERROR, told).is_empty()
    })
    .await;
    assert_eq!(stage.rows().await, ["delta|1", "delta|10", "total|0"]);
    stage.execute("UPDATE s.t SET of = NULL").await;
    stage.becomes(&["total|11"]).await;
}

#[actix::test]
async fn a_column_that_comes_to_count_counts_from_the_next_fold_on() {
    let db = TestDatabase::new().await;
    db.execute(&format!("{TABLES}{QUEUE}")).await;
    let rollup = Rollup::start(&db, KEYS).await;
    db.execute("INSERT INTO s.q VALUES (1, 1)").await;
    becomes(&db, "1 1 1 / 0").await;
    for (change, n) in [
        ("ALTER TABLE s.q ADD COLUMN n bigint NOT NULL DEFAULT 1", 11),
        ("ALTER TABLE s.q RENAME COLUMN n TO x", 12),
        ("ALTER TABLE s.q RENAME COLUMN x TO n", 22),
    ] {
        db.execute(change).await;
        db.execute("INSERT INTO s.q VALUES (1, 0, 10)").await;
        becomes(&db, &format!("1 1 {n} / 0")).await;
    }
    assert_eq!(rollup.last_error().await, None);
}

#[actix::test]
async fn a_sum_whose_type_is_changed_is_refused_as_at_the_start() {
    for (change, told, mend) in [
        (
            "ALTER TABLE s.q ALTER v TYPE float8",
            "is double precision, and not numeric or an integer",
            "ALTER TABLE s.q ALTER v TYPE numeric",
        ),
        (
            "ALTER TABLE s.t ALTER v TYPE numeric(10, 1)",
            "its deltas are numeric, and numeric(10,1) would round them",
            "ALTER TABLE s.t ALTER v TYPE numeric",
        ),
        (
            "CREATE TABLE s.kid () INHERITS (s.t); INSERT INTO s.kid VALUES (1, 1, 1)",
            "s.t is a table with children",
            "ALTER TABLE s.kid NO INHERIT s.t",
        ),
    ] {
        let db = TestDatabase::new().await;
        db.execute(&format!("{TABLES}{QUEUE}INSERT INTO s.q VALUES (1, 1)"))
            .await;
        let rollup = Rollup::start(&db, KEYS).await;
        becomes(&db, "1 1 1 / 0").await;
        db.execute(change).await;
        db.execute("INSERT INTO s.q VALUES (1, 0.25)").await;
        says(&rollup, told).await;
        db.execute(mend).await;
        becomes(&db, "1 1.25 2 / 0").await;
    }
}

#[actix::test]
async fn a_table_that_takes_the_place_of_the_queue_is_looked_at_though_both_were_made_at_once() {
    let db = TestDatabase::new().await;
    db.execute(&format!(
        "{TABLES}CREATE TABLE s.q (k int NOT NULL, v numeric, x bigint); \
         CREATE TABLE s.q_new (k int NOT NULL, v numeric, n bigint)"
    ))
    .await;
    let rollup = Rollup::start(&db, KEYS).await;
    db.execute("INSERT INTO s.q VALUES (1, 1, 10)").await;
    becomes(&db, "1 1 1 / 0").await;
    db.execute(
        "INSERT INTO s.q_new VALUES (1, 1, 10); \
         ALTER TABLE s.q RENAME TO q_old; ALTER TABLE s.q_new RENAME TO q",
    )
    .await;
    becomes(&db, "1 2 11 / 0").await;
    // Back to the first one.
    db.execute(
        "INSERT INTO s.q_old VALUES (1, 1, 10); \
         ALTER TABLE s.q RENAME TO q_new; ALTER TABLE s.q_old RENAME TO q",
    )
    .await;
    becomes(&db, "1 3 12 / 0").await;
    assert_eq!(rollup.last_error().await, None);
}
