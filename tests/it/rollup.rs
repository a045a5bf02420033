//! Totals by key: folds are exact for each type of key, and the view is exact at every moment.

use crate::support::database::TestDatabase;
use crate::support::rollup::{Rollup, SALES, SALES_TABLES, read};
use crate::support::{eventually, machine};

/// Waits until a query returns this one text.
async fn becomes(db: &TestDatabase, sql: &str, expected: &str) {
    eventually(&format!("{sql}: {expected}"), || async {
        let found: Option<String> = db.value(sql).await;
        found.as_deref() == Some(expected)
    })
    .await;
}

/// Query that returns the totals of sales as one text.
const TOTALS: &str = "SELECT string_agg(concat_ws(' ', shop, day, coalesce(amount::text, 'NULL'), n), ', ' ORDER BY shop, day) FROM s.sale_total";

#[actix::test]
async fn deltas_of_keys_new_and_old_fold_to_exact_totals_and_null_counts_as_nothing() {
    let db = TestDatabase::new().await;
    db.execute(SALES_TABLES).await;
    db.execute(
        "INSERT INTO s.sale_total VALUES (1, '2026-01-01', 100, 10), (2, '2026-01-01', NULL, NULL), (9, '2026-01-01', 5, 1); \
         INSERT INTO s.sale_delta VALUES (1, '2026-01-01', NULL), (1, '2026-01-01', NULL), (1, '2026-01-02', 0.5), \
         (1, '2026-01-02', -2.25), (2, '2026-01-01', 7), (3, '2026-01-01', NULL)",
    )
    .await;
    let rollup = Rollup::start(&db, SALES).await;
    let expected = "1 2026-01-01 100 12, 1 2026-01-02 -1.75 2, 2 2026-01-01 7 1, 3 2026-01-01 0 1, 9 2026-01-01 5 1";
    becomes(&db, TOTALS, expected).await;
    eventually("it is counted, and nothing is pending", || async {
        let report = rollup.status().await.unwrap().report;
        (report.count("rows_folded"), report.count("keys")) == (6, 4)
            && report.level("pending_estimate") == Some(0)
    })
    .await;
    rollup.stop().await;
}

#[actix::test]
async fn a_queue_with_a_count_column_has_its_counts_summed_up() {
    let db = TestDatabase::new().await;
    db.execute(SALES_TABLES).await;
    db.execute(
        "ALTER TABLE s.sale_delta ADD COLUMN n int; \
         INSERT INTO s.sale_delta VALUES (1, '2026-01-01', 1, 5), (1, '2026-01-01', 1, -2)",
    )
    .await;
    let keys = format!("{SALES}\nview = 's.sale_now'");
    let _rollup = Rollup::start(&db, &keys).await;
    becomes(&db, TOTALS, "1 2026-01-01 2 3").await;
    db.execute("INSERT INTO s.sale_delta VALUES (1, '2026-01-01', -2, -3)")
        .await;
    becomes(&db, TOTALS, "1 2026-01-01 0 0").await;
    let now: i64 = db.value("SELECT count(*) FROM s.sale_now").await;
    assert_eq!(now, 0, "a key of which nothing is left is not shown");
}

/// Types of keys, each with an expression that generates some of its values.
const KEYS: [(&str, &str); 13] = [
    ("numeric", "(g % 7) / 4.0"),
    ("bigint", "(g % 7) - 4000000000"),
    ("integer", "g % 7"),
    ("smallint", "g % 7"),
    ("text", "E'a\\'\\\\ ü' || g % 7"),
    ("character varying(20)", "'v' || g % 7"),
    ("boolean", "g % 2 = 0"),
    ("uuid", "md5((g % 7)::text)::uuid"),
    ("date", "date '2026-01-01' + g % 7"),
    (
        "timestamp with time zone",
        "timestamptz '2026-03-29 00:30+00' + (g % 7) * interval '1 h'",
    ),
    ("inet", "('10.0.0.' || g % 7)::inet"),
    ("interval", "(g % 7) * interval '1 h'"),
    ("s.colour", "('{red,green}'::s.colour[])[1 + g % 2]"),
];

#[actix::test]
async fn each_type_of_key_folds_into_the_totals_that_bgworker_itself_suggests() {
    for (kind, values) in KEYS {
        let db = TestDatabase::new().await;
        db.execute(&format!(
            "CREATE SCHEMA s; CREATE TYPE s.colour AS ENUM ('red', 'green'); \
             CREATE TABLE s.q (k {kind} NOT NULL, v int); \
             INSERT INTO s.q SELECT k::{kind}, g % 3 - 1 FROM \
             (SELECT g, {values} AS k FROM generate_series(1, 100) AS g) AS some_rows; \
             CREATE TABLE s.expected AS SELECT k, coalesce(sum(v), 0)::bigint AS v, count(*) AS n FROM s.q GROUP BY k"
        ))
        .await;
        let keys = "queue = 's.q'\ntotals = 's.t'\nkeys = ['k']\nsum = ['v']\ncount = 'n'\nnaptime = '10ms'";
        let refusal = Rollup::start(&db, keys).await.refusal().await;
        let (_, mend) = refusal
            .split_once("s.t does not exist; this makes it: ")
            .unwrap();
        db.execute(mend).await;
        let _rollup = Rollup::start(&db, keys).await;
        let left = "SELECT count(*)::text FROM s.q";
        becomes(&db, left, "0").await;
        let wrong: i64 = db
            .value("SELECT count(*) FROM (TABLE s.expected EXCEPT TABLE s.t) AS missing")
            .await;
        let more: i64 = db
            .value("SELECT (SELECT count(*) FROM s.t) - (SELECT count(*) FROM s.expected)")
            .await;
        assert_eq!((wrong, more), (0, 0), "{kind}");
    }
}

#[actix::test]
async fn a_key_has_up_to_eight_columns_and_names_are_taken_literally() {
    let db = TestDatabase::new().await;
    let mut columns: Vec<_> = (1..8).map(|n| format!("k{n}")).collect();
    columns.push("weird \"key\"; --".to_owned());
    let quoted: Vec<_> = columns
        .iter()
        .map(|name| format!("\"{}\"", name.replace('"', "\"\"")))
        .collect();
    let declared: Vec<_> = quoted
        .iter()
        .map(|name| format!("{name} int NOT NULL"))
        .collect();
    let (list, declared) = (quoted.join(", "), declared.join(", "));
    let relation = "\"a \"\"b\"\".c\"";
    db.execute(&format!(
        "CREATE SCHEMA {relation}; CREATE TABLE {relation}.\"Q\" ({declared}, \"Delta\" bigint); \
         CREATE TABLE {relation}.\"T\" ({declared}, \"the sum\" bigint, PRIMARY KEY ({list})); \
         INSERT INTO {relation}.\"Q\" SELECT 1, 2, 3, 4, 5, 6, 7, g % 2, g FROM generate_series(1, 10) AS g"
    ))
    .await;
    let names: Vec<_> = columns.iter().map(|name| format!("'{name}'")).collect();
    let keys = format!(
        "queue = '{relation}.\"Q\"'\ntotals = '{relation}.\"T\"'\nview = '{relation}.\"V\"'\nkeys = [{}]\n\
         sum = {{ 'the sum' = 'Delta' }}\nnaptime = '10ms'",
        names.join(", ")
    );
    let _rollup = Rollup::start(&db, &keys).await;
    let sums = format!(
        "SELECT string_agg(\"the sum\"::text, ' ' ORDER BY {}) FROM {relation}.\"T\"",
        quoted[7]
    );
    becomes(&db, &sums, "30 25").await;
    becomes(&db, &sums.replace("\"T\"", "\"V\""), "30 25").await;
}

#[actix::test]
async fn tables_and_columns_may_have_names_that_sql_reserves() {
    let db = TestDatabase::new().await;
    db.execute(
        "CREATE SCHEMA \"select\"; CREATE TABLE \"select\".\"order\" (\"user\" int NOT NULL, \"limit\" int); \
         CREATE TABLE \"select\".\"table\" (\"user\" int PRIMARY KEY, \"limit\" bigint, \"all\" bigint)",
    )
    .await;
    let keys = "queue = 'select.order'\ntotals = 'select.table'\nkeys = ['user']\nsum = ['limit']\n\
                count = 'all'\nview = 'select.from'\nnaptime = '10ms'";
    let _rollup = Rollup::start(&db, keys).await;
    db.execute("INSERT INTO \"select\".\"order\" VALUES (1, 2), (1, 3)")
        .await;
    let totals = "SELECT concat_ws(' ', \"limit\", \"all\") FROM \"select\".\"table\"";
    eventually("it is folded", || async {
        db.value::<Option<String>>(&format!("SELECT ({totals})"))
            .await
            .as_deref()
            == Some("5 2")
    })
    .await;
}

#[actix::test]
async fn the_view_is_exact_at_a_thousand_moments_under_load() {
    let _machine = machine();
    let db = TestDatabase::new().await;
    db.execute(SALES_TABLES).await;
    db.execute("CREATE TABLE s.sale (shop int, day date, amount numeric)")
        .await;
    let rollup = Rollup::start(&db, &format!("{SALES}\nview = 's.sale_now'\nbatch = 100")).await;
    becomes(&db, "SELECT to_regclass('s.sale_now')::text", "s.sale_now").await;
    let selling = writers(&db).await;
    let reader = db.connect().await;
    let compare = "SELECT (SELECT coalesce(sum(n), 0) FROM s.sale_now)::bigint, (SELECT count(*) FROM s.sale), \
        (SELECT count(*) FROM (SELECT shop, day, sum(amount) FROM s.sale GROUP BY 1, 2 \
        EXCEPT SELECT shop, day, amount FROM s.sale_now) AS wrong)";
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..1_000 {
        let rows = reader.query("compare", compare, &[]).await.unwrap();
        let (counted, inserted, wrong): (i64, i64, i64) =
            (rows[0].get(0), rows[0].get(1), rows[0].get(2));
        assert_eq!((counted, wrong), (inserted, 0));
        seen.insert(counted);
    }
    for writer in selling {
        writer.abort();
    }
    assert!(seen.len() > 100, "{} moments differed", seen.len());
    assert!(rollup.status().await.unwrap().report.count("rows_folded") > 100);
}

/// Starts clients that insert a sale together with its delta, without a pause.
async fn writers(db: &TestDatabase) -> Vec<actix_rt::task::JoinHandle<()>> {
    let mut writers = Vec::new();
    for n in 0..4 {
        let client = db.connect().await;
        let sql = format!(
            "WITH sale AS (INSERT INTO s.sale SELECT (random() * 5)::int, '2026-01-0{}', (random() * 100)::numeric(5, 2) - 50 \
             RETURNING *) INSERT INTO s.sale_delta SELECT * FROM sale",
            n + 1
        );
        writers.push(actix_rt::spawn(async move {
            loop {
                client.batch_execute("sell", &sql).await.unwrap();
            }
        }));
    }
    writers
}

#[actix::test]
async fn a_mistake_in_the_configuration_is_reported_with_its_line() {
    let db = TestDatabase::new().await;
    for (keys, expected) in [
        (
            "queue = 'sale'\ntotals = 's.t'\nkeys = ['k']\ncount = 'n'",
            "b.toml:7:9: worker[0].queue: it must be a schema and a name, such as public.sale",
        ),
        (
            "queue = 's.q'\ntotals = 's.q'\nkeys = ['k']\ncount = 'n'",
            "b.toml:8:1: worker[0].totals: it is the queue: totals need a table of their own",
        ),
        (
            "queue = 's.q'\ntotals = 's.t'\nkeys = []\ncount = 'n'",
            "b.toml:9:1: worker[0].keys: there must be 1 to 32 columns (for one total without a key, set function = \"worker_spi\")",
        ),
        (
            "queue = 's.q'\ntotals = 's.t'\nkeys = ['k']",
            "worker[0].sum: there is nothing to add up (name columns of numbers here, or set \"count\")",
        ),
        (
            "queue = 's.q'\ntotals = 's.t'\nkeys = ['k']\nsum = ['n']\ncount = 'n'",
            "b.toml:11:1: worker[0].count: column \"n\" of the totals is named twice",
        ),
        (
            "queue = 's.q'\ntotals = 's.t'\nkey = ['k']\nkeys = ['k']\ncount = 'n'",
            "unknown key \"key\" (did you mean \"keys\"?)",
        ),
    ] {
        let problems = read(&db, keys).unwrap_err().to_string();
        assert!(problems.contains(expected), "{problems}");
    }
}

#[actix::test]
async fn two_workers_that_would_take_each_others_rows_are_reported() {
    let db = TestDatabase::new().await;
    let one = "queue = 's.q'\ntotals = 's.t'\nkeys = ['k']\ncount = 'n'";
    for (second, expected) in [
        (
            format!("name = 'x'\nfunction = 'rollup'\n{one}"),
            Some(
                "worker[1].queue: worker[0] names it as well: it takes its rows too, and each would get a part of them",
            ),
        ),
        (
            "name = 'x'\nschema = 's'\ntable = 'q'".to_owned(),
            Some("worker[1].table: worker[0] names it as well: it takes its rows too"),
        ),
        (
            format!(
                "name = 'x'\nfunction = 'rollup'\n{}\nview = 's.v'",
                one.replace("s.q", "s.p")
            ),
            Some(
                "worker[1].totals: worker[0] names it as well: it adds to them too, and a view that knows one queue would not be exact",
            ),
        ),
        (
            format!(
                "name = 'x'\nfunction = 'rollup'\n{}",
                one.replace("s.q", "s.p")
            ),
            None,
        ),
        (
            format!("name = 'x'\nfunction = 'rollup'\ndatabase = 'other'\n{one}"),
            None,
        ),
    ] {
        let problems = read(&db, &format!("{one}\n[[worker]]\n{second}"));
        let problems = problems.err().map(|problems| problems.to_string());
        match (problems, expected) {
            (None, None) => {}
            (Some(problems), Some(expected)) => assert!(problems.contains(expected), "{problems}"),
            (found, expected) => panic!("{found:?} and not {expected:?}"),
        }
    }
}
