//! A backlog of many keys where folds may take long: each total is written once, and nothing is lost whatever else happens.

use crate::support::database::TestDatabase;
use crate::support::eventually;
use crate::support::rollup::{Rollup, SALES, SALES_TABLES};

/// The keys of a roll-up whose folds may take long enough for ranges.
fn patient() -> String {
    format!("{SALES}\nfold_time = '200ms'")
}

/// A backlog of 120,000 deltas of 30,000 keys, in no order, and a table that has the sums.
const BACKLOG: &str = "CREATE TABLE s.sale AS SELECT (i * 7919) % 30000 AS shop, '2026-01-01'::date AS day, i::numeric AS amount \
    FROM generate_series(1, 120000) AS i; INSERT INTO s.sale_delta SELECT * FROM s.sale";

/// How many totals are not what they should be.
const WRONG: &str = "SELECT count(*) FROM (SELECT shop, day, sum(amount) AS amount, count(*) AS n FROM s.sale GROUP BY 1, 2) AS sale \
    FULL JOIN s.sale_total AS t USING (shop, day) WHERE (sale.amount, sale.n) IS DISTINCT FROM (t.amount, t.n)";

async fn stage() -> TestDatabase {
    let db = TestDatabase::new().await;
    db.execute(SALES_TABLES).await;
    db.execute(BACKLOG).await;
    db
}

async fn is_folded(db: &TestDatabase, which: &str) {
    let left = format!("SELECT count(*) FROM s.sale_delta WHERE {which}");
    eventually("the backlog is folded", || async {
        db.value::<i64>(&left).await == 0
    })
    .await;
}

#[actix::test]
async fn each_total_of_a_backlog_of_many_keys_is_written_once() {
    let db = stage().await;
    let rollup = Rollup::start(&db, &patient()).await;
    is_folded(&db, "true").await;
    eventually("each key is folded once", || async {
        let report = rollup.status().await.unwrap().report;
        (report.count("rows_folded"), report.count("keys")) == (120_000, 30_000)
    })
    .await;
    rollup.stop().await;
    assert_eq!(db.value::<i64>(WRONG).await, 0);
}

#[actix::test]
async fn a_delta_that_cannot_be_added_keeps_only_its_key_from_being_folded() {
    let db = stage().await;
    db.execute("INSERT INTO s.sale_delta VALUES (17, '2026-01-01', 'NaN')")
        .await;
    let rollup = Rollup::start(&db, &patient()).await;
    is_folded(&db, "shop <> 17").await;
    rollup.stop().await;
    let left: i64 = db.value("SELECT count(*) FROM s.sale_delta").await;
    assert!((1..=5).contains(&left), "{left}");
    let wrong = format!("{WRONG} AND shop <> 17");
    assert_eq!(db.value::<i64>(&wrong).await, 0);
}

#[actix::test]
async fn clients_that_add_deltas_meanwhile_and_a_second_instance_leave_the_totals_exact() {
    let db = stage().await;
    let other = db.connect().await;
    let adding = actix_rt::spawn(async move {
        for n in 0..100 {
            let sql = format!(
                "WITH sale AS (INSERT INTO s.sale SELECT (random() * 40000)::int, '2026-01-01', {n} \
                 FROM generate_series(1, 100) RETURNING *) INSERT INTO s.sale_delta SELECT * FROM sale"
            );
            other.batch_execute("sell", &sql).await.unwrap();
        }
    });
    let (one, two) = (
        Rollup::start(&db, &patient()).await,
        Rollup::start(&db, &patient()).await,
    );
    adding.await.unwrap();
    is_folded(&db, "true").await;
    one.stop().await;
    two.stop().await;
    assert_eq!(db.value::<i64>(WRONG).await, 0);
}

#[actix::test]
async fn keys_of_each_type_are_parted_by_their_own_order() {
    let db = TestDatabase::new().await;
    let keys = "queue = 's.q'\ntotals = 's.t'\nkeys = ['tenant', 'k']\ncount = 'n'\nnaptime = '10ms'\nfold_time = '200ms'";
    for (kind, value) in [
        ("text COLLATE \"C\"", "'it''s \\ $1 \"' || i"),
        ("varchar(40)", "chr(64 + i % 60) || i"),
        (
            "timestamptz",
            "'2026-01-01'::timestamptz + i * '1 s'::interval",
        ),
        ("float8", "CASE i % 3 WHEN 0 THEN -i ELSE i / 7.0 END"),
        ("numeric", "i / 3.0"),
        ("uuid", "md5(i::text)::uuid"),
        ("bytea", "decode(md5(i::text), 'hex')"),
    ] {
        db.execute(&format!(
            "DROP SCHEMA IF EXISTS s CASCADE; CREATE SCHEMA s; CREATE TYPE s.tenant AS ENUM ('b', 'a'); \
             CREATE TABLE s.q (tenant s.tenant NOT NULL, k {kind} NOT NULL); \
             CREATE TABLE s.t (tenant s.tenant NOT NULL, k {kind} NOT NULL, n bigint, PRIMARY KEY (tenant, k)); \
             INSERT INTO s.q SELECT CASE i % 2 WHEN 0 THEN 'a' ELSE 'b' END::s.tenant, {value} \
             FROM (SELECT j % 45000 AS i FROM generate_series(1, 90000) AS j) AS i"
        ))
        .await;
        let rollup = Rollup::start(&db, keys).await;
        let rows = "SELECT count(*) FROM s.q";
        eventually(kind, || async { db.value::<i64>(rows).await == 0 }).await;
        eventually("each is written once", || async {
            rollup.status().await.unwrap().report.count("keys") == 45_000
        })
        .await;
        rollup.stop().await;
        let totals: i64 = db.value("SELECT count(*) FROM s.t WHERE n = 2").await;
        assert_eq!(totals, 45_000, "{kind}");
    }
}
