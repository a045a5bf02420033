//! Poison is what the delta is guilty of: whatever keys are refused for, all others go on, and what other clients do or
//! what the table is moves no delta away.

use std::time::{Duration, Instant};

use bgworker::database::{self, ConnInfo, Connection, Database};
use bgworker::supervision::Limits;
use bgworker::{Postmaster, PostmasterHandle};
use tracing::Level;

use crate::support::database::TestDatabase;
use crate::support::log::Log;
use crate::support::rollup::Rollup;
use crate::support::server::TestServer;
use crate::support::{busy, eventually, machine, within};

const TABLES: &str = "CREATE SCHEMA s; CREATE TABLE s.q (k int NOT NULL, v bigint NOT NULL); \
    CREATE TABLE s.t (k int PRIMARY KEY, v bigint NOT NULL DEFAULT 0); CREATE TABLE s.q_rejected (LIKE s.q); CREATE TABLE s.bin (x int); \
    CREATE FUNCTION s.keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO s.bin VALUES (1); RETURN NULL; END'; ";
const KEYS: &str = "queue = 's.q'\ntotals = 's.t'\nkeys = ['k']\nsum = ['v']\nnaptime = '10ms'";
const SET_ASIDE: &str = "queue = 's.q'\ntotals = 's.t'\nkeys = ['k']\nsum = ['v']\nnaptime = '10ms'\n\
    on_poison = 'set_aside'";

/// A Postmaster whose statements may take this long.
fn hasty(db: &TestDatabase, statement_timeout: Duration, prepare: bool) -> PostmasterHandle {
    let conninfo = ConnInfo::parse(db.conninfo(), |_| None).unwrap();
    let settings = database::Settings::default()
        .statement_timeout(statement_timeout)
        .prepare(prepare);
    let database = Database::new(conninfo, settings).unwrap();
    Postmaster::launch(Limits::default(), Some(database)).unwrap()
}

/// A roll-up in a hurry, with two deltas to fold, beside a session that takes a lock first, and the PID of that session.
async fn beside_a_lock(lock: &str) -> (TestDatabase, Connection, i32, Rollup) {
    let db = TestDatabase::new().await;
    db.execute(TABLES).await;
    let other = db.connect().await;
    let pid = other.query("ask who", "SELECT pg_backend_pid()", &[]);
    let pid = pid.await.unwrap()[0].get(0);
    other.batch_execute("lock", lock).await.unwrap();
    db.execute("INSERT INTO s.q VALUES (1, 1), (2, 1)").await;
    let postmaster = hasty(&db, Duration::from_secs(1), true);
    let rollup = Rollup::registered(&postmaster, &db, KEYS).await;
    (db, other, pid, rollup)
}

async fn says(rollup: &Rollup, part: &str) {
    eventually(&format!("it says {part}"), || async {
        let error = rollup.last_error().await;
        error.is_some_and(|error| error.contains(part))
    })
    .await;
}

async fn becomes(db: &TestDatabase, sql: &str, expected: &str) {
    eventually(&format!("{sql} is {expected}"), || async {
        db.value::<String>(sql).await == expected
    })
    .await;
}

/// The rows that wait, those that were moved away, and the sum of all totals.
const ALL: &str = "SELECT concat_ws(' ', (SELECT count(*) FROM s.q), (SELECT count(*) FROM s.q_rejected), \
    (SELECT coalesce(sum(v), 0) FROM s.t))";

/// The rows that wait, and the sum of all totals.
const WAITING: &str =
    "SELECT concat_ws(' ', (SELECT count(*) FROM s.q), (SELECT coalesce(sum(v), 0) FROM s.t))";

/// A roll-up whose queue gets a thousand pages that are too long for the index among others, and how long all others wait.
async fn a_thousand_bad_pages() -> (TestServer, TestDatabase, Rollup, Duration) {
    let server = TestServer::start();
    let db = TestDatabase::at(&server.conninfo()).await;
    db.execute(
        "CREATE TABLE page_view_delta (page text NOT NULL, day date NOT NULL); \
         CREATE TABLE page_view_total (page text, day date, views bigint NOT NULL DEFAULT 0, PRIMARY KEY (page, day)) \
         WITH (fillfactor = 50)",
    )
    .await;
    let keys = "queue = 'public.page_view_delta'\ntotals = 'public.page_view_total'\n\
                keys = ['page', 'day']\ncount = 'views'\nview = 'public.page_view'\nnaptime = '1s'";
    let rollup = Rollup::start(&db, keys).await;
    db.execute(
        "INSERT INTO page_view_delta SELECT '/' || g % 1000, '2027-01-01' FROM generate_series(1, 17400) AS g; \
         INSERT INTO page_view_delta SELECT (SELECT string_agg(md5(g || '/' || n), '') FROM generate_series(1, 125) AS n), \
         '2027-01-01' FROM generate_series(1, 1000) AS g",
    )
    .await;
    let begin = Instant::now();
    becomes(&db, FOLDED_VIEWS, "17400").await;
    (server, db, rollup, begin.elapsed())
}

/// The number of views in the totals.
const FOLDED_VIEWS: &str = "SELECT coalesce(sum(views), 0)::text FROM page_view_total";

#[actix::test]
async fn a_thousand_pages_too_long_for_the_index_hold_up_no_other_and_hardly_fill_the_servers_log()
{
    let _machine = machine();
    // The tests beside this one may take the time of one attempt, and hardly that of three.
    let mut attempts = 0;
    let (server, db, rollup) = loop {
        let (server, db, rollup, took) = a_thousand_bad_pages().await;
        attempts += 1;
        // Two naptimes, and a second.
        if took <= busy(Duration::from_secs(3)) {
            break (server, db, rollup);
        }
        assert!(attempts < 3, "{took:?}");
    };
    says(&rollup, "; so do those of 999 other keys").await;
    // Another bad page, and views of good ones, are one more look.
    db.execute(
        "INSERT INTO page_view_delta SELECT (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 125) AS n), '2027-01-01'; \
         INSERT INTO page_view_delta VALUES ('/', '2027-01-01')",
    )
    .await;
    becomes(&db, FOLDED_VIEWS, "17401").await;
    let pending = || async {
        rollup
            .status()
            .await
            .unwrap()
            .report
            .level("pending_estimate")
    };
    eventually("they are counted", || async {
        pending().await == Some(1_001)
    })
    .await;
    let log = server.log();
    assert!(log.len() < 200_000, "{} bytes", log.len());
    db.execute("DELETE FROM page_view_delta").await;
    eventually("nothing waits", || async {
        pending().await == Some(0)
            && rollup.status().await.unwrap().report.consecutive_failures == 0
    })
    .await;
}

#[actix::test]
async fn keys_that_take_long_to_read_leave_time_to_find_each_other_and_to_fold_the_rest() {
    let db = TestDatabase::new().await;
    db.execute(
        "CREATE SCHEMA s; CREATE TABLE s.q (k text NOT NULL, d date NOT NULL); \
         CREATE TABLE s.t (k text, d date, v bigint NOT NULL DEFAULT 0, PRIMARY KEY (k, d)); \
         INSERT INTO s.q SELECT repeat('x', 1000000) || g, '2027-01-01' FROM generate_series(1, 60) AS g; \
         INSERT INTO s.q SELECT g % 200, '2027-01-01' FROM generate_series(1, 2000) AS g",
    )
    .await;
    let keys = "queue = 's.q'\ntotals = 's.t'\nkeys = ['k', 'd']\ncount = 'v'\nnaptime = '100ms'";
    let rollup = Rollup::start(&db, keys).await;
    becomes(&db, WAITING, "60 2000").await;
    says(&rollup, "; so do those of 59 other keys").await;
}

#[actix::test]
async fn three_thousand_deltas_of_one_key_are_moved_away_and_counted() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    db.execute(&format!("{TABLES}ALTER TABLE s.t ADD CHECK (v < 100)"))
        .await;
    let rollup = Rollup::start(&db, SET_ASIDE).await;
    db.execute(
        "INSERT INTO s.q SELECT 7, 1000 FROM generate_series(1, 3000); INSERT INTO s.q VALUES (7, 5); \
         INSERT INTO s.q SELECT 100 + g, 1 FROM generate_series(1, 199) AS g",
    )
    .await;
    becomes(&db, ALL, "0 3000 204").await;
    rollup.stop().await;
    let moved = log.with(Level::WARN, "were moved to s.q_rejected");
    let moved = moved.iter().map(|line| {
        let (_, moved) = line.split_once("r: ").unwrap();
        let (moved, _) = moved
            .split_once(" deltas of s.q with the key (7) cannot")
            .unwrap();
        moved.parse::<u32>().unwrap()
    });
    assert_eq!(moved.sum::<u32>(), 3_000);
}

#[actix::test]
async fn a_delta_whose_deletion_takes_another_along_is_not_moved_away_before_it() {
    let db = TestDatabase::new().await;
    db.execute(&format!(
        "{TABLES}ALTER TABLE s.t ADD CHECK (v < 100); \
         ALTER TABLE s.q ADD id int UNIQUE, ADD of int REFERENCES s.q (id) ON DELETE CASCADE; \
         ALTER TABLE s.q_rejected ADD id int, ADD of int; \
         INSERT INTO s.q VALUES (1, 500, 1, NULL), (1, 600, 2, 1), (2, 1, 3, NULL)"
    ))
    .await;
    let _rollup = Rollup::start(&db, SET_ASIDE).await;
    becomes(&db, ALL, "0 2 1").await;
}

#[actix::test]
async fn what_cannot_be_moved_away_unchanged_waits_with_the_reason() {
    for (make, why, mend) in [
        (
            "CREATE TRIGGER k BEFORE INSERT ON s.q_rejected FOR EACH ROW EXECUTE FUNCTION s.keep()",
            "it has a trigger",
            "DROP TRIGGER k ON s.q_rejected",
        ),
        (
            "CREATE RULE r AS ON INSERT TO s.q_rejected DO INSTEAD NOTHING",
            "it has a rule",
            "DROP RULE r ON s.q_rejected",
        ),
        (
            "ALTER TABLE s.q_rejected DROP v",
            "it has no column v of the type bigint",
            "ALTER TABLE s.q_rejected ADD v bigint",
        ),
        (
            "ALTER TABLE s.q_rejected ALTER v TYPE int",
            "it has no column v of the type bigint",
            "ALTER TABLE s.q_rejected ALTER v TYPE bigint",
        ),
        (
            "ALTER TABLE s.q_rejected ADD CHECK (v < 7)",
            "violates check constraint",
            "ALTER TABLE s.q_rejected DROP CONSTRAINT q_rejected_v_check",
        ),
        (
            "ALTER TABLE s.q_rejected OWNER TO pg_monitor",
            "it belongs to a role that is not trusted",
            "ALTER TABLE s.q_rejected OWNER TO CURRENT_USER",
        ),
    ] {
        let log = Log::capture();
        let db = TestDatabase::new().await;
        db.execute(&format!("{TABLES}ALTER TABLE s.t ADD CHECK (v < 100)"))
            .await;
        let rollup = Rollup::start(&db, SET_ASIDE).await;
        // It has looked at its tables before they change.
        eventually("it naps", || async {
            rollup.status().await.unwrap().report.cycles > 0
        })
        .await;
        db.execute(&format!(
            "{make}; INSERT INTO s.q VALUES (1, 5), (1, 500), (2, 1)"
        ))
        .await;
        says(&rollup, why).await;
        becomes(&db, ALL, "1 0 6").await;
        assert_eq!(log.with(Level::WARN, "were moved").len(), 0);
        assert_eq!(db.value::<i64>("SELECT count(*) FROM s.bin").await, 0);
        db.execute(mend).await;
        becomes(&db, ALL, "0 1 6").await;
        // Its line must not be taken for one of the next table.
        eventually("it says that it moved the delta", || async {
            !log.with(Level::WARN, "were moved").is_empty()
        })
        .await;
    }
}

#[actix::test]
async fn a_trigger_that_keeps_deltas_is_nothing_to_move_them_away_for() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    db.execute(&format!(
        "{TABLES}CREATE TRIGGER k BEFORE DELETE ON s.q FOR EACH ROW EXECUTE FUNCTION s.keep(); \
         INSERT INTO s.q SELECT g % 3, 1 FROM generate_series(1, 20) AS g"
    ))
    .await;
    let rollup = Rollup::start(&db, SET_ASIDE).await;
    says(&rollup, "a trigger on DELETE keeps deltas in the queue").await;
    assert_eq!(db.value::<String>(ALL).await, "20 0 0");
    assert_eq!(db.value::<i64>("SELECT count(*) FROM s.bin").await, 0);
    db.execute("DROP TRIGGER k ON s.q").await;
    becomes(&db, ALL, "0 0 20").await;
    assert_eq!(log.with(Level::WARN, "were moved").len(), 0);
}

#[actix::test]
async fn a_column_that_the_queue_gets_is_moved_along_once_both_tables_have_it() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    db.execute(&format!("{TABLES}ALTER TABLE s.t ADD CHECK (v < 100)"))
        .await;
    let rollup = Rollup::start(&db, SET_ASIDE).await;
    db.execute(
        "ALTER TABLE s.q DROP v; ALTER TABLE s.q ADD note text DEFAULT 'x', ADD place int, ADD v bigint NOT NULL DEFAULT 1; \
         INSERT INTO s.q (k, v) SELECT g, 1 FROM generate_series(1, 50) AS g; INSERT INTO s.q (k, v) VALUES (51, 500)",
    )
    .await;
    let lacks = |columns| {
        format!(
            "waiting: they could not be moved to s.q_rejected either: it has no column {columns}"
        )
    };
    let both = lacks("note of the type text, no column place of the type integer");
    says(&rollup, &both).await;
    becomes(&db, ALL, "1 0 50").await;
    // What is told follows what is so now, in the log once.
    db.execute("ALTER TABLE s.q_rejected ADD place int").await;
    let one = lacks("note of the type text (");
    says(&rollup, &one).await;
    db.execute("ALTER TABLE s.q_rejected ADD note text").await;
    becomes(&db, ALL, "0 1 50").await;
    becomes(
        &db,
        "SELECT concat_ws(' ', k, v, note) FROM s.q_rejected",
        "51 500 x",
    )
    .await;
    for lacks in [&both, &one] {
        assert_eq!(log.with(Level::WARN, lacks).len(), 1);
    }
}

#[actix::test]
async fn a_total_that_another_client_replaces_again_and_again_is_no_poison() {
    let db = TestDatabase::new().await;
    db.execute(&format!("{TABLES}INSERT INTO s.t VALUES (1, 0)"))
        .await;
    let rollup = Rollup::start(&db, SET_ASIDE).await;
    let other = db.connect().await;
    for n in 0..100 {
        db.execute(&format!("INSERT INTO s.q VALUES (1, 1), ({}, 1)", n + 2))
            .await;
        other
            .batch_execute(
                "replace",
                "BEGIN; CREATE TEMP TABLE r ON COMMIT DROP AS SELECT * FROM s.t WHERE k = 1 FOR UPDATE; \
                 DELETE FROM s.t WHERE k = 1; SELECT pg_sleep(0.015); INSERT INTO s.t SELECT * FROM r; COMMIT",
            )
            .await
            .unwrap();
    }
    becomes(&db, ALL, "0 0 200").await;
    rollup.stop().await;
}

#[actix::test]
async fn a_new_total_that_another_client_has_not_committed_holds_up_its_own_key_only() {
    for prepare in [true, false] {
        let db = TestDatabase::new().await;
        db.execute(TABLES).await;
        let postmaster = hasty(&db, Duration::from_secs(30), prepare);
        let rollup = Rollup::registered(&postmaster, &db, SET_ASIDE).await;
        let other = db.connect().await;
        let begin = "BEGIN; INSERT INTO s.t VALUES (7, 100)";
        other.batch_execute("hold", begin).await.unwrap();
        db.execute("INSERT INTO s.q SELECT g, 1 FROM generate_series(1, 21) AS g")
            .await;
        becomes(&db, ALL, "1 0 20").await;
        let pid: i32 = other
            .query("who", "SELECT pg_backend_pid()", &[])
            .await
            .unwrap()[0]
            .get(0);
        says(
            &rollup,
            &format!("other clients hold some totals of s.t (PID {pid})"),
        )
        .await;
        db.execute("INSERT INTO s.q SELECT g, 1 FROM generate_series(1, 30) AS g")
            .await;
        becomes(&db, ALL, "2 0 49").await;
        other.batch_execute("let go", "COMMIT").await.unwrap();
        becomes(&db, ALL, "0 0 151").await;
        eventually("it is healthy again", || async {
            rollup.status().await.unwrap().report.consecutive_failures == 0
        })
        .await;
    }
}

#[actix::test]
async fn whatever_sqlstate_a_trigger_raises_for_one_key_all_others_go_on() {
    for raise in [
        "RAISE SQLSTATE ''PT402''",
        "RAISE insufficient_privilege",
        "RAISE undefined_table",
        "RAISE connection_exception",
        "RAISE internal_error",
        "RAISE too_many_connections",
        "ASSERT false",
    ] {
        for (keys, left, moved) in [(KEYS, 1, 0), (SET_ASIDE, 0, 1)] {
            let db = TestDatabase::new().await;
            db.execute(&format!(
                "{TABLES}CREATE FUNCTION s.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF new.k = 7 THEN {raise}; END IF; RETURN new; END'; \
                 CREATE TRIGGER f BEFORE INSERT ON s.t FOR EACH ROW EXECUTE FUNCTION s.f(); \
                 INSERT INTO s.q SELECT g, 1 FROM generate_series(1, 100) AS g"
            ))
            .await;
            let rollup = Rollup::start(&db, keys).await;
            becomes(&db, ALL, &format!("{left} {moved} 99")).await;
            rollup.stop().await;
        }
    }
}

#[actix::test]
async fn what_a_delta_refers_to_and_what_a_table_lacks_moves_no_delta_away() {
    let parents = "CREATE TABLE s.p (k int PRIMARY KEY); INSERT INTO s.p SELECT g FROM generate_series(1, 20) AS g WHERE g <> 7; \
                   ALTER TABLE s.t ADD FOREIGN KEY (k) REFERENCES s.p";
    let by_parts = "DROP TABLE s.t; CREATE TABLE s.t (k int PRIMARY KEY, v bigint NOT NULL DEFAULT 0) PARTITION BY LIST (k); \
                    CREATE TABLE s.t1 PARTITION OF s.t FOR VALUES IN (1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20)";
    for (make, mend) in [
        (parents.to_owned(), "INSERT INTO s.p VALUES (7)"),
        (
            format!("{parents} DEFERRABLE INITIALLY DEFERRED"),
            "INSERT INTO s.p VALUES (7)",
        ),
        (
            by_parts.to_owned(),
            "CREATE TABLE s.t2 PARTITION OF s.t DEFAULT",
        ),
    ] {
        let db = TestDatabase::new().await;
        db.execute(&format!(
            "{TABLES}{make}; INSERT INTO s.q SELECT g, 1 FROM generate_series(1, 20) AS g"
        ))
        .await;
        let rollup = Rollup::start(&db, SET_ASIDE).await;
        says(&rollup, "with the key (7) cannot be added and are waiting").await;
        becomes(&db, ALL, "1 0 19").await;
        db.execute(mend).await;
        becomes(&db, ALL, "0 0 20").await;
        rollup.stop().await;
    }
    // The parent is there, and another client holds it.
    let db = TestDatabase::new().await;
    db.execute(&format!("{TABLES}{parents}; INSERT INTO s.p VALUES (7)"))
        .await;
    let other = db.connect().await;
    let hold = "BEGIN; SELECT FROM s.p WHERE k = 7 FOR UPDATE";
    other.batch_execute("hold", hold).await.unwrap();
    db.execute("INSERT INTO s.q SELECT g, 1 FROM generate_series(1, 20) AS g")
        .await;
    let rollup = Rollup::start(&db, SET_ASIDE).await;
    becomes(&db, ALL, "1 0 19").await;
    says(&rollup, "other clients hold some totals of s.t").await;
    other.batch_execute("let go", "COMMIT").await.unwrap();
    becomes(&db, ALL, "0 0 20").await;
}

#[actix::test]
async fn a_trigger_that_refuses_every_key_moves_none_away() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    db.execute(&format!(
        "{TABLES}CREATE FUNCTION s.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''no''; END'; \
         CREATE TRIGGER f BEFORE INSERT ON s.t FOR EACH ROW EXECUTE FUNCTION s.f(); \
         INSERT INTO s.q SELECT g, 1 FROM generate_series(1, 50) AS g"
    ))
    .await;
    let rollup = Rollup::start(&db, SET_ASIDE).await;
    says(&rollup, "; so do those of 49 other keys").await;
    db.execute("DROP TRIGGER f ON s.t").await;
    becomes(&db, ALL, "0 0 50").await;
    assert_eq!(log.with(Level::WARN, "were moved").len(), 0);
}

#[actix::test]
async fn a_fold_that_cannot_end_in_time_takes_less() {
    let db = TestDatabase::new().await;
    db.execute(&format!(
        "{TABLES}CREATE FUNCTION s.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.002); RETURN new; END'; \
         CREATE TRIGGER f BEFORE INSERT ON s.t FOR EACH ROW EXECUTE FUNCTION s.f(); \
         INSERT INTO s.q SELECT g, 1 FROM generate_series(1, 600) AS g"
    ))
    .await;
    let postmaster = hasty(&db, Duration::from_millis(300), true);
    let _rollup = Rollup::registered(&postmaster, &db, KEYS).await;
    becomes(&db, WAITING, "0 600").await;
}

#[actix::test]
async fn a_session_that_has_the_queue_for_too_long_is_named() {
    let lock = "SELECT pg_advisory_lock(1651994418, 's.q'::regclass::oid::int)";
    let (db, other, pid, rollup) = beside_a_lock(lock).await;
    says(&rollup, &format!("SELECT pg_terminate_backend({pid})")).await;
    let pending = rollup
        .status()
        .await
        .unwrap()
        .report
        .level("pending_estimate");
    assert_eq!(pending, Some(2));
    other.close().await;
    becomes(&db, WAITING, "0 2").await;
    eventually("it is healthy again, and nothing waits", || async {
        let report = rollup.status().await.unwrap().report;
        report.consecutive_failures == 0 && report.level("pending_estimate") == Some(0)
    })
    .await;
}

#[actix::test]
async fn a_session_that_has_the_turn_at_the_totals_is_named_by_each_of_two_instances() {
    let lock = "SELECT pg_advisory_lock(1651994419, 's.t'::regclass::oid::int)";
    let (db, other, pid, rollup) = beside_a_lock(lock).await;
    let second = hasty(&db, Duration::from_secs(1), true);
    let second = Rollup::registered(&second, &db, KEYS).await;
    // They take the queue in turn, and neither counts that as a success of the other.
    for rollup in [&rollup, &second] {
        says(rollup, &format!("(PID {pid})")).await;
    }
    let successes = async || {
        let of = async |rollup: &Rollup| rollup.status().await.unwrap().report.last_success;
        (of(&rollup).await, of(&second).await)
    };
    let before = successes().await;
    for rollup in [&rollup, &second] {
        says(rollup, &format!("(PID {pid})")).await;
    }
    assert_eq!(successes().await, before);
    other.close().await;
    becomes(&db, WAITING, "0 2").await;
}

#[actix::test]
async fn a_client_that_has_locked_the_totals_for_too_long_is_named() {
    let lock = "BEGIN; LOCK TABLE s.t IN SHARE MODE";
    let (db, other, pid, rollup) = beside_a_lock(lock).await;
    says(&rollup, &format!("(PID {pid})")).await;
    other.batch_execute("let go", "COMMIT").await.unwrap();
    becomes(&db, WAITING, "0 2").await;
}

#[actix::test]
async fn a_key_whose_total_never_ends_is_left_out_and_all_others_are_folded() {
    let db = TestDatabase::new().await;
    db.execute(TABLES).await;
    db.execute(
        "CREATE FUNCTION s.sleep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(3600); RETURN NEW; END'; \
         CREATE TRIGGER sleep BEFORE INSERT OR UPDATE ON s.t FOR EACH ROW WHEN (NEW.k = 7) EXECUTE FUNCTION s.sleep(); \
         INSERT INTO s.q SELECT n % 50, 1 FROM generate_series(1, 500) AS n",
    )
    .await;
    let postmaster = hasty(&db, Duration::from_secs(1), true);
    let rollup = Rollup::registered(&postmaster, &db, KEYS).await;
    becomes(&db, "SELECT coalesce(sum(v), 0)::text FROM s.t", "490").await;
    says(&rollup, "with the key (7) cannot be added and are waiting").await;
    eventually("its deltas are counted", || async {
        let status = rollup.status().await.unwrap();
        status.report.level("pending_estimate") == Some(10)
    })
    .await;
    db.execute("INSERT INTO s.q VALUES (1, 1)").await;
    becomes(&db, "SELECT coalesce(sum(v), 0)::text FROM s.t", "491").await;
    db.execute("DROP TRIGGER sleep ON s.t").await;
    becomes(&db, "SELECT sum(v)::text FROM s.t", "501").await;
}

#[actix::test]
async fn no_column_takes_the_place_of_a_variable_of_the_block_that_finds_poison() {
    let block = include_str!("../../src/functions/rollup/halving.sql");
    let (_, block) = block.split_once("DECLARE").unwrap();
    let (variables, _) = block.split_once("BEGIN").unwrap();
    let variables = variables.lines().filter_map(|line| {
        let (name, _) = line.trim().split_once(" pg_catalog.")?;
        (!name.starts_with("--")).then_some(name)
    });
    // Of types that no variable has; and the block's own name.
    let columns: Vec<_> = variables.chain(["bgworker", "one"]).collect();
    assert!(
        columns.contains(&"part") && columns.len() > 30,
        "{columns:?}"
    );
    let db = TestDatabase::new().await;
    db.execute(&format!(
        "{TABLES}ALTER TABLE s.t ADD CHECK (v < 100); {}",
        ["q", "q_rejected", "t"]
            .map(|table| format!(
                "ALTER TABLE s.{table} ADD \"{}\" money",
                columns.join("\" money, ADD \"")
            ))
            .join("; ")
    ))
    .await;
    for key in ["k", "part"] {
        db.execute("TRUNCATE s.q, s.q_rejected, s.t").await;
        let keys = SET_ASIDE.replace("['k']", &format!("['{key}']"));
        db.execute(
            "INSERT INTO s.q (k, part, v) VALUES (1, 1, 5), (1, 1, 500), (2, 2, 1), (2, 2, -1)",
        )
        .await;
        let rollup = Rollup::start(&db, &keys).await;
        becomes(&db, ALL, "0 1 5").await;
        rollup.stop().await;
        db.execute(
            "ALTER TABLE s.q ALTER part SET NOT NULL; ALTER TABLE s.t DROP CONSTRAINT t_pkey, ALTER k DROP NOT NULL; \
             TRUNCATE s.t; ALTER TABLE s.t ADD PRIMARY KEY (part)",
        )
        .await;
    }
}

#[actix::test]
async fn instances_that_take_the_queue_in_turn_fold_good_keys_behind_much_poison() {
    let db = TestDatabase::new().await;
    db.execute(
        "CREATE SCHEMA s; CREATE TABLE s.q (k text NOT NULL); \
         CREATE TABLE s.t (k text PRIMARY KEY CHECK (k NOT LIKE 'bad%'), n bigint NOT NULL DEFAULT 0); \
         INSERT INTO s.q SELECT 'bad' || (i % 450) FROM generate_series(1, 60000) AS i",
    )
    .await;
    let keys =
        "queue = 's.q'\ntotals = 's.t'\nkeys = ['k']\ncount = 'n'\nnaptime = '100ms'\nbatch = 2000";
    let rollups = [
        Rollup::start(&db, keys).await,
        Rollup::start(&db, keys).await,
        Rollup::start(&db, keys).await,
    ];
    for rollup in &rollups {
        within(Duration::from_secs(60), "each knows the poison", || async {
            let error = rollup.last_error().await;
            error.is_some_and(|error| error.contains("449 other keys"))
        })
        .await;
    }
    db.execute("INSERT INTO s.q SELECT 'k' || (i % 60) FROM generate_series(1, 6000) AS i")
        .await;
    within(
        Duration::from_secs(20),
        "the good keys are folded",
        || async {
            let sum = "SELECT coalesce(sum(n), 0)::bigint FROM s.t";
            db.value::<i64>(sum).await == 6_000
        },
    )
    .await;
    for rollup in rollups {
        rollup.stop().await;
    }
}
