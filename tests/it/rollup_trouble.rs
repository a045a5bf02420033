//! Deltas that cannot be added, and totals that other clients lock: all others are folded, nothing is lost, and folding
//! resumes by itself once that is mended.

use tracing::Level;

use crate::support::database::TestDatabase;
use crate::support::eventually;
use crate::support::log::Log;
use crate::support::rollup::Rollup;

const TABLES: &str = "CREATE SCHEMA s; CREATE TABLE s.q (k int NOT NULL, v numeric); \
    CREATE TABLE s.t (k int PRIMARY KEY, v numeric CHECK (v >= -100), n bigint); ";
const KEYS: &str =
    "queue = 's.q'\ntotals = 's.t'\nkeys = ['k']\nsum = ['v']\ncount = 'n'\nnaptime = '10ms'";

/// Kinds of poison for the key 7: what prepares the tables, the poisonous delta, what mends it, and the sum afterwards,
/// together with another delta of 5.
const POISON: [(&str, &str, &str, &str); 6] = [
    (
        "",
        "-1000",
        "ALTER TABLE s.t DROP CONSTRAINT t_v_check",
        "-995",
    ),
    (
        "ALTER TABLE s.q ALTER v TYPE bigint; ALTER TABLE s.t ALTER v TYPE int",
        "3000000000",
        "ALTER TABLE s.t ALTER v TYPE bigint",
        "3000000005",
    ),
    ("", "'NaN'", "UPDATE s.q SET v = 0 WHERE v = 'NaN'", "5"),
    (
        "",
        "'Infinity'",
        "UPDATE s.q SET v = 0 WHERE v = 'Infinity'",
        "5",
    ),
    (
        "CREATE FUNCTION s.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF new.k = 7 THEN RAISE ''no''; END IF; RETURN new; END'; \
         CREATE TRIGGER f BEFORE INSERT ON s.t FOR EACH ROW EXECUTE FUNCTION s.f()",
        "1",
        "DROP TRIGGER f ON s.t",
        "6",
    ),
    (
        "CREATE FUNCTION s.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF new.k = 7 THEN RETURN NULL; END IF; RETURN new; END'; \
         CREATE TRIGGER f BEFORE INSERT OR UPDATE ON s.t FOR EACH ROW EXECUTE FUNCTION s.f()",
        "1",
        "DROP TRIGGER f ON s.t",
        "6",
    ),
];

/// Inserts 99 good keys with ten deltas each, and a bad key with two deltas, one of which may be good by itself.
fn deltas(bad: &str) -> String {
    format!(
        "INSERT INTO s.q SELECT g % 100, 1 FROM generate_series(1, 1000) AS g WHERE g % 100 <> 7; \
         INSERT INTO s.q VALUES (7, {bad}), (7, 5)"
    )
}

async fn totals(db: &TestDatabase) -> String {
    let sql = "SELECT concat_ws(' ', count(*), sum(v), sum(n)) FROM s.t WHERE k <> 7";
    db.value(sql).await
}

#[actix::test]
async fn poison_stops_only_its_key_which_goes_on_once_mended() {
    for (make, bad, mend, sum) in POISON {
        let log = Log::capture();
        let db = TestDatabase::new().await;
        db.execute(&format!("{TABLES}{make}")).await;
        let rollup = Rollup::start(&db, KEYS).await;
        db.execute(&deltas(bad)).await;
        eventually("all others are folded", || async {
            totals(&db).await == "99 990 990"
        })
        .await;
        let waiting: i64 = db.value("SELECT count(*) FROM s.q").await;
        assert_eq!(waiting, 2, "{bad}");
        let wait = "the deltas of s.q with the key (7) cannot be added and are waiting: ";
        eventually("it says so", || async {
            rollup
                .last_error()
                .await
                .is_some_and(|error| error.starts_with(wait))
        })
        .await;
        // Other keys go on, and the poison is not reported again.
        db.execute("INSERT INTO s.q VALUES (1, 1)").await;
        eventually("others go on", || async {
            totals(&db).await == "99 991 991"
        })
        .await;
        assert_eq!(log.with(Level::WARN, "(7)").len(), 1, "{bad}");
        db.execute(mend).await;
        let expected = format!("{sum} 2");
        eventually(
            &format!("it goes on after {mend}, to {expected}"),
            || async {
                let total = "SELECT concat_ws(' ', sum(v), sum(n)) FROM s.t WHERE k = 7";
                db.value::<String>(total).await == expected
            },
        )
        .await;
        eventually("it is healthy again", || async {
            rollup.status().await.unwrap().report.consecutive_failures == 0
        })
        .await;
        assert_eq!(totals(&db).await, "99 991 991", "{bad}");
    }
}

#[actix::test]
async fn poison_is_set_aside_in_a_table_and_the_rest_of_its_key_is_folded() {
    for (make, bad, ..) in POISON {
        let db = TestDatabase::new().await;
        db.execute(&format!("{TABLES}{make}")).await;
        let rollup = Rollup::start(&db, &format!("{KEYS}\non_poison = 'set_aside'")).await;
        db.execute(&deltas(bad)).await;
        eventually("nothing waits", || async {
            db.value::<i64>("SELECT count(*) FROM s.q").await == 0
                && totals(&db).await == "99 990 990"
        })
        .await;
        // A trigger refuses every row of the key; a bad value affects only its own row.
        let (rejected, folded) = if make.contains("TRIGGER") {
            (2, 0)
        } else {
            (1, 1)
        };
        let there: i64 = db.value("SELECT count(*) FROM s.q_rejected").await;
        let counted: i64 = db
            .value("SELECT coalesce(sum(n), 0)::bigint FROM s.t WHERE k = 7")
            .await;
        assert_eq!((there, counted), (rejected, folded), "{bad}");
        let report = rollup.status().await.unwrap().report;
        assert_eq!(
            report.count("rows_rejected"),
            rejected.unsigned_abs(),
            "{bad}"
        );
        rollup.stop().await;
    }
}

#[actix::test]
async fn a_trigger_that_alters_every_total_loses_nothing() {
    let db = TestDatabase::new().await;
    db.execute(&format!(
        "{TABLES}CREATE FUNCTION s.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN new.v := old.v; RETURN new; END'; \
         CREATE TRIGGER f BEFORE UPDATE ON s.t FOR EACH ROW EXECUTE FUNCTION s.f(); \
         INSERT INTO s.t SELECT g, 100, 0 FROM generate_series(1, 300) AS g; \
         INSERT INTO s.q SELECT g, 1 FROM generate_series(1, 300) AS g"
    ))
    .await;
    let rollup = Rollup::start(&db, KEYS).await;
    eventually("it says so", || async {
        let error = rollup.last_error().await;
        error.is_some_and(|error| error.contains("a trigger alters or suppresses totals"))
    })
    .await;
    let left: String = db
        .value("SELECT concat_ws(' ', (SELECT count(*) FROM s.q), (SELECT sum(v) FROM s.t))")
        .await;
    assert_eq!(left, "300 30000");
    db.execute("DROP TRIGGER f ON s.t").await;
    eventually("all is folded", || async {
        db.value::<String>(
            "SELECT concat_ws(' ', (SELECT count(*) FROM s.q), (SELECT sum(v) FROM s.t))",
        )
        .await
            == "0 30300"
    })
    .await;
}

#[actix::test]
async fn a_total_locked_by_a_client_holds_up_none_of_a_thousand_others() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    db.execute(&format!(
        "{TABLES}INSERT INTO s.t SELECT g, 0, 0 FROM generate_series(1, 1000) AS g"
    ))
    .await;
    let rollup = Rollup::start(&db, KEYS).await;
    let holder = db.connect().await;
    holder
        .batch_execute("hold", "BEGIN; UPDATE s.t SET v = v + 1000 WHERE k = 500")
        .await
        .unwrap();
    db.execute("INSERT INTO s.q SELECT 1 + g % 1000, 1 FROM generate_series(0, 19999) AS g")
        .await;
    let folded = "SELECT sum(n)::bigint FROM s.t";
    eventually("all others are folded", || async {
        db.value::<i64>(folded).await == 19_980
    })
    .await;
    // New keys, and further deltas of old ones, are folded as well.
    db.execute("INSERT INTO s.q VALUES (2000, 1), (1, 1), (500, 1)")
        .await;
    eventually("they go on", || async {
        db.value::<i64>(folded).await == 19_982
    })
    .await;
    let said = "other clients hold some totals of s.t";
    eventually("it says so", || async {
        rollup
            .last_error()
            .await
            .is_some_and(|error| error.starts_with(said))
    })
    .await;
    holder.batch_execute("let go", "COMMIT").await.unwrap();
    eventually("it goes on", || async {
        db.value::<i64>(folded).await == 20_003
    })
    .await;
    let held: String = db
        .value("SELECT concat_ws(' ', v, n) FROM s.t WHERE k = 500")
        .await;
    assert_eq!(held, "1021 21");
    assert_eq!(log.with(Level::WARN, said).len(), 1);
}

#[actix::test]
async fn a_trigger_that_keeps_deltas_in_the_queue_is_reported_as_such() {
    let db = TestDatabase::new().await;
    db.execute(&format!(
        "{TABLES}CREATE FUNCTION s.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
         CREATE TRIGGER f BEFORE DELETE ON s.q FOR EACH ROW EXECUTE FUNCTION s.f(); INSERT INTO s.q VALUES (1, 1)"
    ))
    .await;
    let rollup = Rollup::start(&db, KEYS).await;
    eventually("it says so", || async {
        let error = rollup.last_error().await;
        error.is_some_and(|error| error.contains("of 1 deltas 0 could be deleted"))
    })
    .await;
    let totals: i64 = db.value("SELECT count(*) FROM s.t").await;
    assert_eq!(totals, 0);
    db.execute("DROP TRIGGER f ON s.q").await;
    eventually("it goes on", || async {
        db.value::<i64>("SELECT count(*) FROM s.t").await == 1
    })
    .await;
}

/// Waits until a roll-up has looked at its queue several times more.
async fn looks_again(db: &TestDatabase) {
    for _ in 0..5 {
        let now: String = db.value("SELECT clock_timestamp()::text").await;
        let looked = format!(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() \
             AND query LIKE '%\"q\"%' AND query_start > '{now}')"
        );
        eventually("it looks again", || db.value::<bool>(&looked)).await;
    }
}

#[actix::test]
async fn to_give_way_to_a_session_that_folds_is_a_success_and_to_one_that_does_not_is_none() {
    let db = TestDatabase::new().await;
    db.execute(TABLES).await;
    let rollup = Rollup::start(&db, KEYS).await;
    let success = async || rollup.status().await.unwrap().report.last_success;
    let first = db.connect().await;
    let lock = "SELECT pg_advisory_lock(1651994418, 's.q'::regclass::oid::int)";
    first.batch_execute("fold", lock).await.unwrap();
    db.execute("INSERT INTO s.q VALUES (1, 1)").await;
    looks_again(&db).await;
    let before = success().await;
    looks_again(&db).await;
    assert_eq!(success().await, before, "nothing was folded");
    assert_eq!(rollup.last_error().await, None);
    assert_eq!(db.value::<i64>("SELECT count(*) FROM s.q").await, 1);
    let fold = "DELETE FROM s.q; INSERT INTO s.q VALUES (2, 1)";
    first.batch_execute("fold", fold).await.unwrap();
    eventually("the other one folds", || async { success().await > before }).await;
    first.close().await;
    eventually("it folds", || async {
        db.value::<i64>("SELECT count(*) FROM s.q").await == 0
    })
    .await;
}

#[actix::test]
async fn while_a_client_holds_the_total_none_of_two_instances_succeeds_by_giving_way() {
    let db = TestDatabase::new().await;
    db.execute(TABLES).await;
    db.execute("INSERT INTO s.t VALUES (1, 0, 0)").await;
    let other = db.connect().await;
    let hold = "BEGIN; SELECT FROM s.t WHERE k = 1 FOR UPDATE";
    other.batch_execute("hold", hold).await.unwrap();
    let instances = [
        Rollup::start(&db, KEYS).await,
        Rollup::start(&db, KEYS).await,
    ];
    db.execute("INSERT INTO s.q VALUES (1, 1)").await;
    let successes = async || {
        let mut of_each = Vec::new();
        for instance in &instances {
            of_each.push(instance.status().await.unwrap().report.last_success);
        }
        of_each
    };
    for instance in &instances {
        eventually("it says so", async || {
            let error = instance.last_error().await;
            error.is_some_and(|error| error.contains("other clients hold some totals"))
        })
        .await;
    }
    // The first time that one gives way it cannot know.
    eventually("neither succeeds", async || {
        let before = successes().await;
        looks_again(&db).await;
        looks_again(&db).await;
        successes().await == before
    })
    .await;
    let before = successes().await;
    for _ in 0..5 {
        looks_again(&db).await;
    }
    assert_eq!(successes().await, before);
    other.close().await;
    eventually("they fold", async || {
        db.value::<i64>("SELECT count(*) FROM s.q").await == 0
    })
    .await;
}

#[actix::test]
async fn each_piece_of_a_backlog_is_a_success_long_before_the_last_one() {
    let db = TestDatabase::new().await;
    db.execute(TABLES).await;
    db.execute(
        "CREATE FUNCTION s.sleep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.1); RETURN new; END'; \
         CREATE TRIGGER sleep BEFORE INSERT OR UPDATE ON s.t FOR EACH ROW EXECUTE FUNCTION s.sleep(); \
         INSERT INTO s.q SELECT 1, 1 FROM generate_series(1, 20000)",
    )
    .await;
    let rollup = Rollup::start(&db, &format!("{KEYS}\nbatch = 1")).await;
    eventually("it has succeeded, and is in its first cycle", async || {
        let report = rollup.status().await.unwrap().report;
        report.last_success.is_some() && report.cycles == 0
    })
    .await;
    assert!(db.value::<i64>("SELECT count(*) FROM s.q").await > 0);
}

#[actix::test]
async fn a_key_that_is_left_out_costs_no_failed_statement_until_it_is_tried_again() {
    let db = TestDatabase::new().await;
    db.execute(TABLES).await;
    let rollup = Rollup::start(&db, KEYS).await;
    db.execute("INSERT INTO s.q VALUES (7, -1000)").await;
    eventually("it is left out", || async {
        rollup.last_error().await.is_some()
    })
    .await;
    let sql = "SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()";
    let mut failed = Vec::new();
    for n in 1..=50 {
        db.execute(&format!("INSERT INTO s.q VALUES ({}, 1)", 100 + n))
            .await;
        eventually("others are folded", || async {
            db.value::<i64>("SELECT count(*) FROM s.q").await == 1
        })
        .await;
        failed.push(db.value::<i64>(sql).await);
    }
    let failed = failed.last().unwrap() - failed[0];
    assert!(failed < 25, "{failed} statements failed in 50 folds");
}

#[actix::test]
async fn a_fold_locks_totals_in_the_order_of_their_keys_as_clients_can_too() {
    let db = TestDatabase::new().await;
    db.execute(&format!(
        "{TABLES}INSERT INTO s.t SELECT g * 4 % 11, 0, 0 FROM generate_series(1, 10) AS g"
    ))
    .await;
    let _rollup = Rollup::start(&db, KEYS).await;
    let holder = db.connect().await;
    holder
        .batch_execute("hold", "BEGIN; UPDATE s.t SET v = v WHERE k = 6")
        .await
        .unwrap();
    db.execute("INSERT INTO s.q SELECT g, 1 FROM generate_series(10, 1, -1) AS g")
        .await;
    let free = "SELECT string_agg(k::text, ' ' ORDER BY k) FROM \
                (SELECT k FROM s.t FOR UPDATE SKIP LOCKED) AS free";
    eventually("it has those below, and waits", || async {
        let free: Option<String> = db.value(free).await;
        free.as_deref() == Some("7 8 9 10")
    })
    .await;
}

#[actix::test]
async fn folds_of_several_queues_into_the_same_totals_take_turns() {
    let db = TestDatabase::new().await;
    db.execute(TABLES).await;
    let _rollup = Rollup::start(&db, KEYS).await;
    let other = db.connect().await;
    let lock = "SELECT pg_advisory_lock(1651994419, 's.t'::regclass::oid::int)";
    other.batch_execute("fold", lock).await.unwrap();
    db.execute("INSERT INTO s.q VALUES (1, 1)").await;
    eventually("it waits for its turn", || async {
        let waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = 1651994419 AND NOT granted \
                     AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))";
        db.value::<bool>(waits).await
    })
    .await;
    assert_eq!(db.value::<i64>("SELECT count(*) FROM s.q").await, 1);
    other.close().await;
    eventually("it folds", || async {
        db.value::<i64>("SELECT count(*) FROM s.q").await == 0
    })
    .await;
}

#[actix::test]
async fn a_key_whose_deltas_were_taken_away_is_forgotten_while_others_go_on() {
    let db = TestDatabase::new().await;
    db.execute(TABLES).await;
    // The queue has several pieces, and the last of them has the poison.
    let rollup = Rollup::start(&db, &format!("{KEYS}\nbatch = 167")).await;
    db.execute("INSERT INTO s.q SELECT 1, 1 FROM generate_series(1, 2000); INSERT INTO s.q VALUES (7, -1000)")
        .await;
    eventually("it waits", || async { rollup.last_error().await.is_some() }).await;
    // From now on, each cycle finds deltas.
    let client = db.connect().await;
    let writer = actix_rt::spawn(async move {
        loop {
            let insert = "INSERT INTO s.q VALUES (1, 1)";
            client.batch_execute("insert", insert).await.unwrap();
        }
    });
    db.execute("DELETE FROM s.q WHERE k = 7").await;
    eventually("it is healthy again", || async {
        rollup.status().await.unwrap().report.consecutive_failures == 0
    })
    .await;
    writer.abort();
}

#[actix::test]
async fn poison_is_told_once_however_many_keys_follow_and_a_long_key_is_cut() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    let tables = TABLES.replace("k int", "k text");
    db.execute(&tables).await;
    let rollup = Rollup::start(&db, KEYS).await;
    let key = format!("({}…)", "x".repeat(99));
    for (bad, end) in [
        ("repeat('x', 200)", ""),
        ("'2'", "; so do those of another key"),
        ("'3'", "; so do those of 2 other keys"),
    ] {
        db.execute(&format!("INSERT INTO s.q VALUES ({bad}, -1000)"))
            .await;
        eventually(&format!("{bad} is shown"), || async {
            let error = rollup.last_error().await;
            error.is_some_and(|error| error.contains(&key) && error.ends_with(end))
        })
        .await;
    }
    let told = log.with(Level::WARN, "cannot be added");
    assert_eq!(told.len(), 1, "{}", log.text());
}
