//! The view of a roll-up: it shows what totals and queue are together, is made and replaced as they need it, and keeps its
//! grants.

use tracing::Level;

use crate::support::database::TestDatabase;
use crate::support::eventually;
use crate::support::log::Log;
use crate::support::rollup::Rollup;

const TABLES: &str = "CREATE SCHEMA s; CREATE TABLE s.q (k int NOT NULL, v bigint, note text); \
    CREATE TABLE s.t (k int PRIMARY KEY, v bigint, n bigint); ";
const KEYS: &str = "queue = 's.q'\ntotals = 's.t'\nkeys = ['k']\nsum = ['v']\ncount = 'n'\nview = 's.now'\nnaptime = '10ms'";

/// The view, as an earlier version made it.
const BEFORE: &str = "CREATE VIEW s.now AS SELECT k, coalesce(pg_catalog.sum(v), 0) AS v, \
    coalesce(pg_catalog.sum(n), 0)::pg_catalog.int8 AS n FROM (SELECT k, v, n FROM s.t UNION ALL \
    SELECT q.k, q.v AS v, c.n FROM s.q AS q CROSS JOIN (SELECT 1 AS n) AS one CROSS JOIN LATERAL \
    (SELECT n FROM (SELECT q.*) AS r) AS c) AS rows GROUP BY k HAVING pg_catalog.sum(n) OPERATOR(pg_catalog.<>) 0; \
    GRANT SELECT ON s.now TO PUBLIC; ";

/// The view as `key sum count`, and whether all roles may read it.
async fn now(db: &TestDatabase) -> String {
    db.value(
        "SELECT concat_ws(' ', string_agg(concat_ws(' ', k, v, n), ', ' ORDER BY k), \
         (SELECT 'for all' FROM pg_class WHERE oid = to_regclass('s.now') AND '=r' = ANY (SELECT split_part(acl::text, '/', 1) \
         FROM unnest(relacl) AS acl))) FROM s.now",
    )
    .await
}

async fn shows(db: &TestDatabase, expected: &str) {
    eventually(expected, || async {
        let is_there = "SELECT to_regclass('s.now') IS NOT NULL";
        db.value::<bool>(is_there).await && now(db).await == expected
    })
    .await;
}

/// Waits until the queue is empty.
async fn folded(db: &TestDatabase) {
    eventually("all is folded", || async {
        db.value::<i64>("SELECT count(*) FROM s.q").await == 0
    })
    .await;
}

#[actix::test]
async fn it_shows_each_key_of_which_the_count_or_a_sum_is_not_zero() {
    let db = TestDatabase::new().await;
    db.execute(&format!(
        "{TABLES}INSERT INTO s.t VALUES (1, 15, 0), (2, 0, 1), (3, 0, 0), (4, NULL, NULL); \
         INSERT INTO s.t VALUES (5, -1, -1)"
    ))
    .await;
    let rollup = Rollup::start(&db, KEYS).await;
    shows(&db, "1 15 0, 2 0 1, 5 -1 -1").await;
    db.execute("INSERT INTO s.q VALUES (5, 1)").await;
    shows(&db, "1 15 0, 2 0 1").await;
    // It does not read what it does not show.
    db.execute("ALTER TABLE s.q DROP COLUMN note").await;
    db.execute("INSERT INTO s.q VALUES (2, 2)").await;
    shows(&db, "1 15 0, 2 2 2").await;
    folded(&db).await;
    rollup.stop().await;
}

#[actix::test]
async fn a_count_that_is_numeric_is_not_rounded() {
    let db = TestDatabase::new().await;
    db.execute(&format!(
        "{TABLES}ALTER TABLE s.t ALTER n TYPE numeric; ALTER TABLE s.q ADD COLUMN n numeric; \
         INSERT INTO s.q VALUES (1, 1, '', 0.80)"
    ))
    .await;
    let rollup = Rollup::start(&db, KEYS).await;
    shows(&db, "1 1 0.80").await;
    folded(&db).await;
    shows(&db, "1 1 0.80").await;
    rollup.stop().await;
}

#[actix::test]
async fn it_counts_as_the_folds_do_once_the_queue_has_a_column_that_counts_and_keeps_its_grants() {
    let db = TestDatabase::new().await;
    db.execute(TABLES).await;
    let first = Rollup::start(&db, KEYS).await;
    db.execute("INSERT INTO s.q VALUES (1, 1)").await;
    folded(&db).await;
    db.execute(
        "GRANT SELECT ON s.now TO PUBLIC; ALTER TABLE s.q ADD COLUMN n int NOT NULL DEFAULT 1",
    )
    .await;
    let second = Rollup::start(&db, KEYS).await;
    for _ in 0..20 {
        db.execute("INSERT INTO s.q VALUES (1, 1, '', 5)").await;
    }
    shows(&db, "1 21 101 for all").await;
    folded(&db).await;
    shows(&db, "1 21 101 for all").await;
    let waiting = "BEGIN; INSERT INTO s.q VALUES (1, 1, '', 7)";
    let client = db.connect().await;
    client.batch_execute("insert", waiting).await.unwrap();
    let seen = client.query("look", "SELECT n FROM s.now", &[]).await;
    assert_eq!(seen.unwrap()[0].get::<_, i64>(0), 108);
    client.close().await;
    first.stop().await;
    second.stop().await;
}

#[actix::test]
async fn one_that_an_earlier_version_made_is_replaced_and_keeps_its_grants() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    db.execute(&format!(
        "{TABLES}{BEFORE}INSERT INTO s.t VALUES (1, 15, 0), (2, 3, 1)"
    ))
    .await;
    assert_eq!(now(&db).await, "2 3 1 for all");
    let rollup = Rollup::start(&db, KEYS).await;
    shows(&db, "1 15 0, 2 3 1 for all").await;
    assert_eq!(log.with(Level::WARN, "s.now"), [""; 0]);
    rollup.stop().await;
}

#[actix::test]
async fn one_of_another_owner_is_left_and_the_statement_that_replaces_it_is_told() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    let name: String = db.value("SELECT current_database()::text").await;
    db.execute(&format!(
        "{TABLES}{BEFORE}CREATE ROLE {name}_role LOGIN; GRANT USAGE ON SCHEMA s TO {name}_role; \
         GRANT ALL ON s.q, s.t TO {name}_role; INSERT INTO s.t VALUES (1, 15, 0)"
    ))
    .await;
    let as_role = TestDatabase::at(&db.conninfo_with("user", &format!("{name}_role"))).await;
    let rollup = Rollup::start(&as_role, KEYS).await;
    db.execute("INSERT INTO s.q VALUES (2, 1)").await;
    folded(&db).await;
    let told = log.with(
        Level::WARN,
        "this replaces it, and its grants stay: CREATE OR REPLACE",
    );
    let (_, mend) = told[0].split_once("its grants stay: ").unwrap();
    db.execute(mend).await;
    assert_eq!(now(&db).await, "1 15 0, 2 1 1 for all");
    rollup.stop().await;
}

#[actix::test]
async fn one_that_a_user_has_made_is_left_as_it_is() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    db.execute(&format!(
        "{TABLES}CREATE VIEW s.now AS SELECT k, sum(v) AS v, sum(n) AS n, 'mine' AS whose \
         FROM (SELECT k, v, n FROM s.t UNION ALL SELECT k, v, 1 FROM s.q) AS u GROUP BY k; \
         INSERT INTO s.q VALUES (2, 1)"
    ))
    .await;
    let rollup = Rollup::start(&db, KEYS).await;
    folded(&db).await;
    assert_eq!(db.value::<String>("SELECT whose FROM s.now").await, "mine");
    assert_eq!(log.with(Level::WARN, "s.now"), [""; 0]);
    rollup.stop().await;
}

#[actix::test]
async fn one_that_is_dropped_is_made_again_by_the_next_fold_and_that_is_told() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    db.execute(TABLES).await;
    let rollup = Rollup::start(&db, KEYS).await;
    db.execute("INSERT INTO s.q VALUES (1, 1)").await;
    folded(&db).await;
    db.execute("DROP VIEW s.now; INSERT INTO s.q VALUES (1, 1)")
        .await;
    shows(&db, "1 2 2").await;
    assert_eq!(log.with(Level::INFO, "made the view s.now").len(), 2);
    assert_eq!(rollup.last_error().await, None);
    rollup.stop().await;
}
