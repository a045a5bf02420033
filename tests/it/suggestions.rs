//! Statements that errors about the tables of a roll-up suggest: each is run as it stands, in the situation in which it is
//! suggested, and the worker runs afterwards.

use crate::rollup_refusals::{folds, mended};
use crate::support::database::TestDatabase;
use crate::support::rollup::Rollup;
use crate::support::statements::{after, mends};

const KEYS: &str =
    "queue = 's.q'\ntotals = 's.t'\nkeys = ['k']\nsum = ['v']\ncount = 'n'\nnaptime = '10ms'";
const QUEUE: &str = "CREATE SCHEMA s; CREATE TABLE s.q (k int NOT NULL, v bigint); ";
const TOTALS: &str = "CREATE TABLE s.t (k int PRIMARY KEY, v bigint, n bigint); ";

struct Case {
    tables: &'static str,
    /// What the error tells.
    expected: &'static str,
    /// What the error asks a person to do first.
    first: &'static str,
    /// The words before the statement.
    words: &'static str,
    /// A condition that holds afterwards.
    holds: &'static str,
}

const CASES: [Case; 12] = [
    Case {
        tables: "{q}CREATE TABLE s.t (k int, v bigint, n bigint); \
                 INSERT INTO s.t VALUES (1, 1, 1), (1, 2, 1), (2, 5, 1), (NULL, 1, 1), (NULL, 2, 1)",
        expected: "some keys may have several totals",
        first: "",
        words: "this adds them up and makes the index: ",
        holds: "(SELECT count(*) = 4 AND sum(v) = 12 AND max(n) = 3 FROM s.t)",
    },
    Case {
        tables: "{q}CREATE TABLE s.t (k int, v bigint, n bigint, x text); INSERT INTO s.t VALUES (1, 1, 1, 'a'), (1, 2, 1, 'b')",
        expected: "make each of them one first",
        first: "DELETE FROM s.t WHERE x = 'b'",
        words: "this makes one: ",
        holds: "true",
    },
    Case {
        tables: "CREATE SCHEMA s; CREATE TABLE s.q (k int, v bigint); INSERT INTO s.q VALUES (NULL, 5), (1, 1); {t}",
        expected: "is in some rows, which belong to no total",
        first: "",
        words: "moves them to another table: ",
        holds: "(SELECT sum(v) = 5 FROM s.q_null)",
    },
    Case {
        tables: "{q}CREATE TABLE s.t (k int, x int, v bigint, n bigint, PRIMARY KEY (k, x))",
        expected: "it identifies the rows: give it a default",
        first: "ALTER TABLE s.t ALTER COLUMN x SET DEFAULT 0",
        words: "this makes one: ",
        holds: "true",
    },
    Case {
        tables: "{q}CREATE TABLE s.t (k int PRIMARY KEY, v bigint, n bigint, created_at timestamptz NOT NULL)",
        expected: "must not be NULL",
        first: "",
        words: "this gives it a default: ",
        holds: "true",
    },
    Case {
        tables: "{q}CREATE TABLE s.t (k int PRIMARY KEY, v bigint, n bigint, updated_at timestamp NOT NULL)",
        expected: "must not be NULL",
        first: "",
        words: "or this lets it be NULL: ",
        holds: "true",
    },
    Case {
        tables: "{q}CREATE TABLE s.t (k smallint PRIMARY KEY, v bigint, n bigint); CREATE VIEW s.report AS SELECT k FROM s.t",
        expected: "first drop what depends on it (view s.report)",
        first: "DROP VIEW s.report",
        words: "this corrects it: ",
        holds: "true",
    },
    Case {
        tables: "{q}CREATE TABLE s.t (k smallint PRIMARY KEY, v bigint, n bigint); \
                 CREATE FUNCTION s.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; \
                 CREATE TRIGGER g BEFORE UPDATE OF k ON s.t FOR EACH ROW EXECUTE FUNCTION s.f()",
        expected: "first drop what depends on it (trigger g on table s.t)",
        first: "DROP TRIGGER g ON s.t",
        words: "this corrects it: ",
        holds: "true",
    },
    Case {
        tables: "{q}{t}CREATE VIEW s.now AS SELECT v, k, n FROM s.t; CREATE VIEW s.report AS SELECT * FROM s.now",
        expected: "first drop what depends on it (view s.report)",
        first: "DROP VIEW s.report",
        words: "this recreates it, without its grants: ",
        holds: "true",
    },
    Case {
        tables: "{q}CREATE TABLE s.t (k int PRIMARY KEY, v bigint, events bigint); INSERT INTO s.t VALUES (1, 1, 7)",
        expected: "it begins at 0 in totals that exist",
        first: "",
        words: "if \"events\" is this column under another name, this renames it: ",
        holds: "(SELECT n >= 7 FROM s.t WHERE k = 1)",
    },
    Case {
        tables: "CREATE SCHEMA s; CREATE TABLE s.q (key int NOT NULL, v bigint); {t}",
        expected: "s.q has no column \"k\"",
        first: "",
        words: "if \"key\" is this column under another name, this renames it: ",
        holds: "true",
    },
    Case {
        tables: "",
        expected: "s.q does not exist; this makes it, once",
        first: "",
        words: "where these are others: ",
        holds: "true",
    },
];

#[actix::test]
async fn each_statement_works_where_it_is_suggested_and_the_worker_runs() {
    for case in CASES {
        let db = TestDatabase::new().await;
        let tables = case.tables.replace("{q}", QUEUE).replace("{t}", TOTALS);
        db.execute(&tables).await;
        let keys = match tables.contains("s.now") {
            true => format!("{KEYS}\nview = 's.now'"),
            false => KEYS.to_owned(),
        };
        let refusal = Rollup::start(&db, &keys).await.refusal().await;
        assert!(refusal.contains(case.expected), "{tables}: {refusal}");
        db.execute(case.first).await;
        db.execute(&after(&refusal, case.words)).await;
        let (rollup, _) = mended(&db, &db, &keys).await;
        folds(&db, rollup).await;
        let holds = format!("SELECT {}", case.holds);
        assert!(db.value::<bool>(&holds).await, "{tables}: {holds}");
    }
}

#[actix::test]
async fn all_that_is_wrong_with_the_tables_is_told_at_once_and_mended_at_once() {
    let db = TestDatabase::new().await;
    db.execute(
        "CREATE SCHEMA s; CREATE TABLE s.q (k int, v float8); CREATE RULE r AS ON DELETE TO s.q DO INSTEAD NOTHING; \
         CREATE TABLE s.t (k bigint, v int, created_at timestamptz NOT NULL, note text NOT NULL)",
    )
    .await;
    let refusal = Rollup::start(&db, KEYS).await.refusal().await;
    assert!(
        refusal.starts_with("8 things are to be mended"),
        "{refusal}"
    );
    for mend in mends(&refusal) {
        db.execute(&mend).await;
    }
    // The type of the sum follows from that of the deltas, which is another one now.
    let (rollup, said) = mended(&db, &db, KEYS).await;
    assert!(said.len() < 2, "{said:?}");
    folds(&db, rollup).await;
}

#[actix::test]
async fn a_column_that_identifies_rows_or_is_a_partitions_gets_no_statement_that_fails() {
    for (tables, never) in [
        (
            "{q}CREATE TABLE s.t (k int, x int, v bigint, n bigint, PRIMARY KEY (k, x))",
            "DROP NOT NULL",
        ),
        (
            "{q}CREATE TABLE s.p (k int, v bigint) PARTITION BY LIST (k); CREATE TABLE s.t PARTITION OF s.p DEFAULT; \
             CREATE UNIQUE INDEX ON s.t (k)",
            "ADD COLUMN",
        ),
        (
            "{q}CREATE TABLE s.t (k int NOT NULL, x int, v bigint, n bigint) PARTITION BY LIST (x)",
            "CREATE UNIQUE",
        ),
    ] {
        let db = TestDatabase::new().await;
        db.execute(&tables.replace("{q}", QUEUE)).await;
        let refusal = Rollup::start(&db, KEYS).await.refusal().await;
        assert!(!refusal.contains(never), "{refusal}");
    }
}
