//! The tables that a roll-up refuses: each refusal names the statement that mends it, and that statement works.

use crate::support::database::TestDatabase;
use crate::support::eventually;
use crate::support::rollup::Rollup;
use crate::support::statements::mends;

const QUEUE: &str = "CREATE SCHEMA s; CREATE TABLE s.q (k int NOT NULL, v bigint); ";
const TOTALS: &str = "CREATE TABLE s.t (k int PRIMARY KEY, v bigint, n bigint); ";
const KEYS: &str =
    "queue = 's.q'\ntotals = 's.t'\nkeys = ['k']\nsum = ['v']\ncount = 'n'\nnaptime = '10ms'";

/// Statements that make unusable tables, each with a part of the refusal. `{q}`, `{t}` and `{both}` stand for the
/// statements that make the queue, the totals, and both, as they should be.
const REFUSALS: [(&str, &str); 24] = [
    (
        "{q}",
        "s.t does not exist; this makes it: CREATE TABLE \"s\".\"t\" (\"k\" integer NOT NULL, \"v\" bigint NOT NULL DEFAULT 0, ",
    ),
    (
        "CREATE SCHEMA s; {t}",
        "s.q does not exist; this makes it: CREATE TABLE \"s\".\"q\" (\"k\" integer NOT NULL, ",
    ),
    (
        "{both}CREATE RULE r AS ON DELETE TO s.q DO INSTEAD NOTHING",
        "s.q has the rule \"r\", which folding does not support",
    ),
    (
        "{both}CREATE RULE r AS ON INSERT TO s.t DO ALSO NOTIFY x",
        "s.t has the rule \"r\"",
    ),
    (
        "{q}CREATE TABLE s.t (k int PRIMARY KEY, v bigint)",
        "s.t has no column \"n\"; this makes it, and it begins at 0 in totals that exist: ",
    ),
    (
        "{q}CREATE TABLE s.t (k bigint PRIMARY KEY, v bigint, n bigint)",
        "the key \"k\" is integer in the queue and bigint in the totals",
    ),
    (
        "{q}CREATE TABLE s.t (k smallint PRIMARY KEY, v bigint, n bigint)",
        "the key \"k\" is integer in the queue and smallint in the totals",
    ),
    (
        "CREATE SCHEMA s; CREATE TABLE s.q (k varchar(9) NOT NULL, v int); CREATE TABLE s.t (k text PRIMARY KEY, v bigint, n bigint)",
        "is character varying(9) in the queue and text in the totals",
    ),
    (
        "CREATE SCHEMA s; CREATE TABLE s.q (k json NOT NULL, v int); CREATE TABLE s.t (k json, v bigint, n bigint)",
        "the key \"k\" is json, which has no built-in sort order",
    ),
    (
        "CREATE SCHEMA s; CREATE COLLATION s.ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false); CREATE TABLE s.q (k text COLLATE s.ci NOT NULL, v int); CREATE TABLE s.t (k text COLLATE s.ci PRIMARY KEY, v bigint, n bigint)",
        "of the collation s.ci, which treats different texts as equal",
    ),
    (
        "CREATE SCHEMA s; CREATE TABLE s.q (k text COLLATE \"C\" NOT NULL, v int); CREATE TABLE s.t (k text COLLATE \"POSIX\" PRIMARY KEY, v bigint, n bigint)",
        "in the queue, which is another one in the totals",
    ),
    (
        "CREATE SCHEMA s; CREATE TABLE s.q (k int, v bigint); {t}",
        "the key \"k\" of s.q may be NULL; this refuses it: ",
    ),
    (
        "CREATE SCHEMA s; CREATE TABLE s.q (k int NOT NULL, v float8); {t}",
        "\"v\" of the queue is double precision, and not numeric or an integer",
    ),
    (
        "{q}CREATE TABLE s.t (k int PRIMARY KEY, v real, n bigint)",
        "\"v\" of the totals is real, and not numeric or an integer",
    ),
    (
        "CREATE SCHEMA s; CREATE TABLE s.q (k int NOT NULL, v numeric); CREATE TABLE s.t (k int PRIMARY KEY, v numeric(12, 2), n bigint)",
        "its deltas are numeric, and numeric(12,2) would round them",
    ),
    (
        "CREATE SCHEMA s; CREATE TABLE s.q (k int NOT NULL, v numeric(9, 1)); {t}",
        "its deltas are numeric(9,1), and bigint would round them",
    ),
    (
        "{q}CREATE TABLE s.t (k int PRIMARY KEY, v bigint GENERATED ALWAYS AS IDENTITY, n bigint)",
        "the server alone writes the column \"v\" of s.t",
    ),
    (
        "{q}CREATE TABLE s.t (k int PRIMARY KEY, n bigint, v bigint GENERATED ALWAYS AS (n * 2) STORED)",
        "the server alone writes the column \"v\" of s.t",
    ),
    (
        "{q}CREATE TABLE s.t (k int PRIMARY KEY, v bigint, n bigint, x text NOT NULL)",
        "the column \"x\" of s.t must not be NULL, has no default",
    ),
    (
        "{q}CREATE TABLE s.t (k int NOT NULL, v bigint, n bigint)",
        "s.t has no unique index on exactly (\"k\")",
    ),
    (
        "{q}CREATE TABLE s.t (k int NOT NULL, v bigint, n bigint, UNIQUE (k) DEFERRABLE); CREATE UNIQUE INDEX ON s.t (k) WHERE k > 0",
        "the constraint \"t_k_key\" of s.t is deferrable",
    ),
    (
        "{both}CREATE VIEW s.now AS SELECT k, v, n FROM s.t",
        "the view s.now does not read s.q",
    ),
    (
        "{q}CREATE TABLE s.t (k int PRIMARY KEY, v bigint, n numeric); CREATE VIEW s.now AS SELECT k, v, n::bigint AS n \
         FROM (SELECT k, v, n FROM s.t UNION ALL SELECT k, v, 1 FROM s.q) AS u",
        "the view s.now rounds the column \"n\"",
    ),
    (
        "{both}ALTER TABLE s.q ADD COLUMN n int DEFAULT 1; CREATE VIEW s.now AS SELECT k, sum(v) AS v, sum(n)::bigint AS n \
         FROM (SELECT k, v, n FROM s.t UNION ALL SELECT k, v, 1 FROM s.q) AS u GROUP BY k",
        "the view s.now counts the rows of s.q and not its column \"n\"",
    ),
];

/// Starts a roll-up and runs the statements of each refusal until there is none. Returns the roll-up and the refusals.
pub(crate) async fn mended(
    db: &TestDatabase,
    of: &TestDatabase,
    keys: &str,
) -> (Rollup, Vec<String>) {
    let mut said = Vec::new();
    loop {
        let rollup = Rollup::start(of, keys).await;
        eventually("it is ready, or refused", || async {
            let status = rollup.status().await;
            status.is_none_or(|status| status.report.cycles > 0)
        })
        .await;
        if rollup.status().await.is_some() {
            return (rollup, said);
        }
        let refusal = rollup.refusal().await;
        let mends = mends(&refusal);
        assert!(!mends.is_empty(), "no statement: {refusal}");
        for mend in mends {
            db.execute(&mend).await;
        }
        said.push(refusal);
        assert!(said.len() < 9, "{said:?}");
    }
}

/// Asserts that the roll-up folds, and stops it.
pub(crate) async fn folds(db: &TestDatabase, rollup: Rollup) {
    db.execute("INSERT INTO s.q (k, v) VALUES ('1', 1)").await;
    eventually("it is folded, or fails", || async {
        let failed = rollup.last_error().await;
        assert!(failed.is_none(), "{failed:?}");
        let folded = "SELECT EXISTS (SELECT FROM s.t) AND NOT EXISTS (SELECT FROM s.q)";
        db.value::<bool>(folded).await
    })
    .await;
    rollup.stop().await;
}

#[actix::test]
async fn each_refusal_names_the_statement_that_mends_it_and_that_works() {
    for (tables, expected) in REFUSALS {
        let needs_icu = tables.contains("icu");
        let db = TestDatabase::new().await;
        let tables = tables.replace("{both}", &format!("{QUEUE}{TOTALS}"));
        let tables = tables.replace("{q}", QUEUE).replace("{t}", TOTALS);
        if let Err(error) = db.client.batch_execute("make tables", &tables).await {
            // Not every build of PostgreSQL has ICU.
            assert!(
                needs_icu && error.to_string().contains("ICU"),
                "{tables}: {error}"
            );
            continue;
        }
        let keys = if tables.contains("VIEW") {
            format!("{KEYS}\nview = 's.now'")
        } else {
            KEYS.to_owned()
        };
        let (rollup, said) = mended(&db, &db, &keys).await;
        assert!(said[0].contains(expected), "{said:?}");
        folds(&db, rollup).await;
    }
}

#[actix::test]
async fn a_relation_of_another_kind_or_without_the_column_is_refused_naming_what_exists() {
    for (tables, expected) in [
        (
            "CREATE SCHEMA s; CREATE TABLE s.q (k int NOT NULL, v int) PARTITION BY LIST (k); {t}",
            "s.q is a partitioned table: it must be an ordinary table",
        ),
        (
            "{both}CREATE TABLE s.child () INHERITS (s.q)",
            "s.q is a table with children: it must be an ordinary table; this corrects it: ALTER TABLE s.child NO INHERIT s.q",
        ),
        (
            "{q}CREATE VIEW s.t AS SELECT 1 AS k, 1 AS v, 1 AS n",
            "s.t is a view: it must be a table",
        ),
        (
            "CREATE SCHEMA s; CREATE TABLE s.q (key int NOT NULL, v int); {t}",
            "RENAME COLUMN \"key\" TO \"k\"; its columns are \"key\", \"v\"",
        ),
    ] {
        let db = TestDatabase::new().await;
        let tables = tables.replace("{both}", &format!("{QUEUE}{TOTALS}"));
        db.execute(&tables.replace("{q}", QUEUE).replace("{t}", TOTALS))
            .await;
        let refusal = Rollup::start(&db, KEYS).await.refusal().await;
        assert!(refusal.contains(expected), "{refusal}");
    }
}

#[actix::test]
async fn a_column_that_is_misspelt_in_the_configuration_is_told_for_both_tables_before_it_is_renamed()
 {
    let db = TestDatabase::new().await;
    db.execute(&format!(
        "{QUEUE}{TOTALS}; ALTER TABLE s.q RENAME v TO amount; ALTER TABLE s.t RENAME v TO amount"
    ))
    .await;
    let keys = KEYS.replace("'v'", "'ammount'");
    let refusal = Rollup::start(&db, &keys).await.refusal().await;
    for table in ["s.q", "s.t"] {
        let expected = format!(
            "{table} has no column \"ammount\" (did you mean \"amount\"? Then correct the configuration); if \"amount\" is"
        );
        assert!(refusal.contains(&expected), "{refusal}");
    }
}

#[actix::test]
async fn a_name_that_is_wrong_in_the_configuration_is_all_that_is_told_and_no_statement_follows_from_it()
 {
    let db = TestDatabase::new().await;
    db.execute(
        "CREATE SCHEMA s; CREATE TABLE s.q (page text NOT NULL, day date NOT NULL); \
         CREATE TABLE s.t (page text, day date, n bigint NOT NULL DEFAULT 0, PRIMARY KEY (page, day)); \
         CREATE VIEW s.now AS SELECT page, day, n FROM s.t",
    )
    .await;
    for (keys, expected) in [
        (
            "keys = ['page', 'dya']\ncount = 'n'",
            "(did you mean \"day\"? Then correct the configuration)",
        ),
        (
            "keys = ['page', 'day']\ncount = 'nn'",
            "s.t has no column \"nn\"",
        ),
    ] {
        let keys = format!("queue = 's.q'\ntotals = 's.t'\nview = 's.now'\n{keys}");
        let refusal = Rollup::start(&db, &keys).await.refusal().await;
        assert!(refusal.contains(expected), "{refusal}");
        for harmful in ["DROP VIEW", "CREATE UNIQUE INDEX", "SET DEFAULT"] {
            assert!(!refusal.contains(harmful), "{refusal}");
        }
    }
}

#[actix::test]
async fn a_table_whose_name_is_misspelt_is_named_before_it_is_made() {
    let db = TestDatabase::new().await;
    db.execute(&format!(
        "{QUEUE}{TOTALS}; ALTER TABLE s.q RENAME TO sale_delta"
    ))
    .await;
    let keys = KEYS.replace("'s.q'", "'s.sale_detla'");
    let refusal = Rollup::start(&db, &keys).await.refusal().await;
    let expected = "s.sale_detla does not exist (did you mean \"s.sale_delta\"? Then correct the configuration); this makes it";
    assert!(refusal.contains(expected), "{refusal}");
}

#[actix::test]
async fn a_role_that_lacks_rights_gets_the_statements_and_needs_nothing_else() {
    let db = TestDatabase::new().await;
    db.execute(&format!("{QUEUE}{TOTALS}")).await;
    let name: String = db.value("SELECT current_database()::text").await;
    let role = format!("{name}_role");
    db.execute(&format!("CREATE ROLE {role} LOGIN")).await;
    let restricted = TestDatabase::at(&db.conninfo_with("user", &role)).await;
    let keys = format!("{KEYS}\nview = 's.now'\non_poison = 'set_aside'");
    let (rollup, said) = mended(&db, &restricted, &keys).await;
    assert!(
        said[0].contains("the role may not use the schema of, SELECT from, DELETE from s.q"),
        "{said:?}"
    );
    assert!(
        said.iter()
            .any(|one| one.contains("the role may not create s.now")),
        "{said:?}"
    );
    folds(&db, rollup).await;
}

#[actix::test]
async fn rows_hidden_by_row_security_are_never_left_behind_silently() {
    let db = TestDatabase::new().await;
    db.execute(&format!("{QUEUE}{TOTALS}")).await;
    let name: String = db.value("SELECT current_database()::text").await;
    let role = format!("{name}_role");
    db.execute(&format!(
        "CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA s TO {role}; GRANT ALL ON s.q, s.t TO {role}; \
         ALTER TABLE s.q ENABLE ROW LEVEL SECURITY; INSERT INTO s.q VALUES (1, 1)"
    ))
    .await;
    let restricted = TestDatabase::at(&db.conninfo_with("user", &role)).await;
    let (rollup, said) = mended(&db, &restricted, KEYS).await;
    let expected = "s.q has row security that applies to the role";
    assert!(said[0].contains(expected), "{said:?}");
    folds(&db, rollup).await;
}
