//! Names in bgworker's statements: nothing that another role plants in the search path is ever run.

use std::collections::BTreeSet;

use bgworker::database::{self, ConnInfo, Database};
use bgworker::supervision::{Limits, Shutdown};
use bgworker::worker_spi::{Fold, Settings};
use bgworker::{Postmaster, PostmasterHandle};

use crate::support::database::{TestDatabase, brisk, brisk_on_its_own, register, table};
use crate::support::eventually;
use crate::support::jobs::{Instance, every};
use crate::support::rollup::Rollup;
use crate::support::server::TestServer;

/// The types for which a name is planted.
const TYPES: [&str; 12] = [
    "text", "varchar", "int8", "int4", "int2", "numeric", "oid", "regclass", "name", "bool",
    "\"char\"", "tid",
];

/// Keys of a roll-up that meets poison.
const ROLLUP: &str = "queue = 'roll.q'\ntotals = 'roll.t'\nkeys = ['k', 'day']\nsum = ['v', 'w']\ncount = 'n'\n\
    view = 'roll.now'\non_poison = 'set_aside'\nnaptime = '10ms'";

/// Launches a Postmaster that connects as the role whose search path is planted.
fn postmaster(server: &TestServer, dbname: &str, prepare: bool) -> PostmasterHandle {
    let conninfo = server.conninfo().replace(
        "user=postgres dbname=postgres",
        &format!("user=victim dbname={dbname}"),
    );
    let conninfo = ConnInfo::parse(&conninfo, |_| None).unwrap();
    let settings = database::Settings::default().prepare(prepare);
    let database = Database::new(conninfo, settings).unwrap();
    Postmaster::launch(Limits::default(), Some(database)).unwrap()
}

/// Makes workers do everything they can do, so that each of their statements runs.
async fn do_everything(server: &TestServer, db: &TestDatabase, dbname: &str) {
    for (schema, kinds) in [("s1", "varchar, value int"), ("s2", "text, value smallint")] {
        db.execute(&format!(
            "CREATE SCHEMA {schema}; CREATE TABLE {schema}.t (type {kinds}); \
             CREATE UNIQUE INDEX ON {schema}.t (type) WHERE type = 'total'"
        ))
        .await;
    }
    db.execute(
        "CREATE SCHEMA odd; CREATE TABLE odd.several (type text, value int); \
         INSERT INTO odd.several VALUES ('total', 1), ('total', 2); \
         CREATE TABLE odd.fraction (type text, value numeric); \
         CREATE TABLE s1.seen (path text); \
         CREATE FUNCTION s1.see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         INSERT INTO s1.seen VALUES (pg_catalog.current_setting('search_path')); RETURN new; END $$; \
         CREATE TRIGGER see BEFORE UPDATE ON s1.t FOR EACH ROW EXECUTE FUNCTION s1.see(); \
         CREATE SCHEMA roll; CREATE TABLE roll.q (k text NOT NULL, day date NOT NULL, v bigint, w numeric); \
         CREATE TABLE roll.t (k text, day date, v int CHECK (v < 100), w numeric, n bigint, PRIMARY KEY (k, day)); \
         CREATE FUNCTION roll.f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN old; END $$; \
         CREATE TRIGGER f BEFORE DELETE ON roll.q FOR EACH ROW EXECUTE FUNCTION roll.f()",
    )
    .await;
    let vacuums = |settings: Settings| settings.vacuum_after(Some(1)).initial_total(0);
    for prepare in [true, false] {
        let postmaster = postmaster(server, dbname, prepare);
        for refused in ["several", "fraction"] {
            register(&postmaster, refused, brisk(&table("odd", refused))).await;
        }
        for schema in ["made", "s1", "s2"] {
            let settings = vacuums(brisk(&table(schema, "t")));
            register(&postmaster, schema, settings).await;
        }
        let settings = vacuums(brisk_on_its_own(&table("cut", "t")));
        register(&postmaster, "cut", settings.fold(Fold::Truncate).batch(1)).await;
        let job = Instance::registered(&postmaster, db, &every("1s", "SELECT")).await;
        eventually("a job has run", || async {
            let runs = "SELECT runs FROM bgworker.job";
            let has_table = "SELECT to_regclass('bgworker.job') IS NOT NULL";
            db.value::<bool>(has_table).await
                && db
                    .client
                    .query("look", runs, &[])
                    .await
                    .unwrap()
                    .first()
                    .is_some_and(|row| row.get::<_, i64>(0) > 0)
        })
        .await;
        for schema in ["made", "s1", "s2", "cut"] {
            let sql = format!("SELECT to_regclass('{schema}.t') IS NOT NULL");
            eventually("the table is there", || async {
                db.value::<bool>(&sql).await
            })
            .await;
            db.execute(&format!(
                "INSERT INTO {schema}.t (type, value) SELECT 'delta', 1 FROM generate_series(1, 1000)"
            ))
            .await;
            let sql = format!("SELECT count(*) FROM {schema}.t WHERE type = 'delta'");
            let folded = || async { db.value::<i64>(&sql).await == 0 };
            eventually(&format!("{schema}.t is folded"), folded).await;
        }
        let rollup = Rollup::registered(&postmaster, db, ROLLUP).await;
        db.execute(
            "INSERT INTO roll.q SELECT g % 9, '2026-01-01', 1, 0.5 FROM generate_series(1, 80) AS g; \
             INSERT INTO roll.q VALUES ('1', '2026-01-01', 1000, 1), ('2', '2026-01-01', 1, 'NaN')",
        )
        .await;
        eventually("the queue is empty", || async {
            db.value::<i64>("SELECT count(*) FROM roll.q").await == 0
        })
        .await;
        drop(rollup);
        eventually("two tables are refused", || async {
            postmaster.workers().await.unwrap().ended.len() == 2
        })
        .await;
        let status = postmaster.status().await.unwrap();
        assert!(status.server.unwrap().reason.is_none());
        postmaster.shut_down(Shutdown::Smart);
        postmaster.exited().await.unwrap();
        drop(job);
    }
}

/// The words, and the sequences of operator characters, in all statements that the server has logged for the role.
fn said(log: &str) -> (BTreeSet<&str>, BTreeSet<&str>) {
    let statements = || log.lines().filter(|line| line.starts_with("victim|"));
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let is_operator = |c: char| "+-*/<>=~!@#%^&|`?".contains(c);
    let words = statements().flatmap_split(move |c| !is_word(c));
    let operators = statements().flatmap_split(move |c| !is_operator(c));
    (words, operators)
}

/// Splits lines into parts, and keeps each part once.
trait Split<'t> {
    fn flatmap_split(self, is_between: impl Fn(char) -> bool + Copy) -> BTreeSet<&'t str>;
}

impl<'t, L: Iterator<Item = &'t str>> Split<'t> for L {
    fn flatmap_split(self, is_between: impl Fn(char) -> bool + Copy) -> BTreeSet<&'t str> {
        let parts = self.flat_map(|line| line.split(is_between));
        parts.filter(|part| !part.is_empty()).collect()
    }
}

/// Plants a function, an operator or a type for each of these names, for every combination of types, before
/// everything else in the role's search path. Each leaves a trace when it runs.
async fn plant(db: &TestDatabase, words: &BTreeSet<&str>, operators: &BTreeSet<&str>) -> i64 {
    let array = |names: &BTreeSet<&str>| {
        let names: Vec<_> = names.iter().map(|name| format!("'{name}'")).collect();
        format!("ARRAY[{}]::text[]", names.join(","))
    };
    let types: Vec<_> = TYPES
        .iter()
        .map(|kind| format!("'pg_catalog.{kind}'"))
        .collect();
    let types = format!("ARRAY[{}]", types.join(","));
    db.execute(&format!(
        r#"
        CREATE SCHEMA planted; CREATE SEQUENCE planted.trace; CREATE SEQUENCE planted.made;
        CREATE FUNCTION planted.ran() RETURNS pg_catalog.bool LANGUAGE sql VOLATILE AS
            $$ SELECT pg_catalog.nextval('planted.trace') OPERATOR(pg_catalog.>) 0 $$;
        GRANT ALL ON SCHEMA planted TO PUBLIC; GRANT ALL ON ALL SEQUENCES IN SCHEMA planted TO PUBLIC;
        DO $do$
        DECLARE kinds text[] := {types}; word text; l text; r text; args text[]; arg text; returns text;
        BEGIN
            FOR word IN SELECT DISTINCT proname FROM pg_catalog.pg_proc
                WHERE pronamespace = 'pg_catalog'::regnamespace AND proname = ANY ({words}) LOOP
                SELECT pg_catalog.format_type(prorettype, NULL) INTO returns FROM pg_catalog.pg_proc
                    WHERE proname = word AND pronamespace = 'pg_catalog'::regnamespace LIMIT 1;
                args := ARRAY['']  || kinds || (SELECT array_agg(a || ',' || b) FROM unnest(kinds) a, unnest(kinds) b)
                    || (SELECT array_agg('pg_catalog.text,' || a || ',' || b) FROM unnest(kinds) a, unnest(kinds) b);
                FOREACH arg IN ARRAY args LOOP
                    BEGIN
                        EXECUTE format('CREATE FUNCTION planted.%I(%s) RETURNS %s LANGUAGE plpgsql AS '
                            '$f$ BEGIN PERFORM planted.ran(); RETURN NULL; END $f$', word, arg, returns);
                        PERFORM nextval('planted.made');
                    EXCEPTION WHEN OTHERS THEN NULL; END;
                END LOOP;
            END LOOP;
            FOREACH word IN ARRAY {operators} LOOP
                FOREACH l IN ARRAY kinds LOOP FOREACH r IN ARRAY kinds LOOP
                    BEGIN
                        EXECUTE format('CREATE FUNCTION planted.%I(%s, %s) RETURNS bool LANGUAGE plpgsql AS '
                            '$f$ BEGIN PERFORM planted.ran(); RETURN NULL; END $f$', 'op ' || word, l, r);
                        EXECUTE format('CREATE OPERATOR planted.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = planted.%I)',
                            word, l, r, 'op ' || word);
                        PERFORM nextval('planted.made');
                    EXCEPTION WHEN OTHERS THEN NULL; END;
                END LOOP; END LOOP;
            END LOOP;
            FOR word IN SELECT typname FROM pg_catalog.pg_type WHERE typnamespace = 'pg_catalog'::regnamespace
                AND typtype = 'b' AND typname = ANY ({words}) LOOP
                EXECUTE format('CREATE DOMAIN planted.%I AS pg_catalog.%I CHECK (planted.ran())', word, word);
                PERFORM nextval('planted.made');
            END LOOP;
        END $do$;
        ALTER ROLE victim SET search_path = planted, pg_catalog, public
        "#,
        words = array(words),
        operators = array(operators),
    ))
    .await;
    db.value("SELECT last_value FROM planted.made").await
}

#[actix::test]
async fn what_another_role_plants_in_the_search_path_is_never_run() {
    let server = TestServer::start_with(&[("log_statement", "all"), ("log_line_prefix", "%u|")]);
    let db = TestDatabase::at(&server.conninfo()).await;
    db.execute("CREATE ROLE victim LOGIN SUPERUSER").await;
    do_everything(&server, &db, "postgres").await;
    let log = server.log();
    let (words, operators) = said(&log);
    for known in [
        "format_type",
        "sum",
        "row_security_active",
        "text",
        "TRUNCATE",
        "VACUUM",
        "hashtextextended",
        "q_rejected",
    ] {
        assert!(words.contains(known), "{known} was not run");
    }
    assert!(
        operators.contains("<=") && operators.contains("+"),
        "{operators:?}"
    );
    // IN, BETWEEN, CASE and IS DISTINCT FROM use these operators without naming them.
    let mut operators = operators;
    operators.extend(["=", "<>", "<", ">", "<=", ">="]);

    db.execute("CREATE DATABASE trap").await;
    let trap = server.conninfo().replace("dbname=postgres", "dbname=trap");
    let trap = TestDatabase::at(&trap).await;
    let planted = plant(&trap, &words, &operators).await;
    assert!(planted > 1_000, "{planted}");
    do_everything(&server, &trap, "trap").await;
    let trace = "SELECT is_called FROM planted.trace";
    assert!(
        !trap.value::<bool>(trace).await,
        "something that was planted has run"
    );
    let path: String = trap.value("SELECT DISTINCT path FROM s1.seen").await;
    assert_eq!(
        path, "planted, pg_catalog, public",
        "a user's trigger keeps its own"
    );

    // The trap works: careless statements leave a trace.
    for careless in [
        "SELECT format_type(23::oid, NULL::int)",
        "SELECT 'a'::varchar = 'b'::varchar",
        "SELECT 1::bigint IN (2::bigint)",
        "SELECT 'x'::text",
    ] {
        trap.execute("ALTER SEQUENCE planted.trace RESTART").await;
        let victim = server
            .conninfo()
            .replace("user=postgres dbname=postgres", "user=victim dbname=trap");
        let victim = TestDatabase::at(&victim).await;
        victim.execute(careless).await;
        assert!(trap.value::<bool>(trace).await, "{careless}");
    }
}
