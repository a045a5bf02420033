//! Claims of a tick: what other clients do to the row of a job neither doubles a run nor holds the job up for long.

use std::time::{Duration, Instant};

use bgworker::supervision::Shutdown;

use crate::support::database::{TestDatabase, database};
use crate::support::jobs::{EFFECT, Instance, every, runs, stage};
use crate::support::log::Log;
use crate::support::{eventually, within};

async fn effects(db: &TestDatabase) -> i64 {
    db.value("SELECT count(*) FROM effect").await
}

#[actix::test]
async fn each_claim_that_was_undone_is_left_to_its_instance_for_a_while() {
    let db = stage().await;
    let instance = Instance::new(&db, &every("1s", EFFECT)).await;
    let client = db.connect().await;
    for _ in 0..2 {
        let before = effects(&db).await;
        eventually("it runs", async || effects(&db).await > before).await;
        // As an instance does that claims the tick and dies. Nothing else happens on the server.
        let lock = "BEGIN; SELECT FROM bgworker.job FOR UPDATE";
        client.batch_execute("lock the row", lock).await.unwrap();
        let (begin, before) = (Instant::now(), effects(&db).await);
        client.batch_execute("undo that", "ROLLBACK").await.unwrap();
        eventually("it goes on", async || effects(&db).await > before).await;
        assert!(
            begin.elapsed() > Duration::from_secs(4),
            "{:?}",
            begin.elapsed()
        );
    }
    instance.stop(Shutdown::Smart).await;
}

#[actix::test]
async fn clients_that_lock_the_row_of_a_job_for_moments_hold_no_tick_up() {
    let db = stage().await;
    let keys = format!("history = 1000\n{}", every("200ms", EFFECT));
    let instance = Instance::new(&db, &keys).await;
    eventually("it runs", async || effects(&db).await > 0).await;
    let refers = db.connect().await;
    let locking = actix::spawn(async move {
        loop {
            let lock = "SELECT FROM bgworker.job FOR KEY SHARE";
            refers
                .batch_execute("refer to the job", lock)
                .await
                .unwrap();
        }
    });
    let before = effects(&db).await;
    within(
        Duration::from_secs(15),
        "thirty runs are done",
        async || effects(&db).await >= before + 30,
    )
    .await;
    locking.abort();
    instance.stop(Shutdown::Smart).await;
}

#[actix::test]
async fn a_run_is_not_marked_in_a_table_that_took_the_place_of_the_one_that_claimed_it() {
    let db = stage().await;
    let sql = format!("SELECT pg_sleep(0.5); {EFFECT}");
    let keys = format!("history = 1000\nmissed = \"each\"\n{}", every("1s", &sql));
    let instances = [
        Instance::new(&db, &keys).await,
        Instance::new(&db, &keys).await,
    ];
    eventually("it runs", async || effects(&db).await > 0).await;
    let sleeps = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep')";
    eventually("it is in a run", async || db.value::<bool>(sleeps).await).await;
    db.execute(
        "BEGIN; ALTER SCHEMA bgworker RENAME TO before; CREATE SCHEMA bgworker; \
         CREATE TABLE bgworker.job (LIKE before.job INCLUDING ALL); CREATE TABLE bgworker.job_run (LIKE before.job_run INCLUDING ALL); \
         INSERT INTO bgworker.job SELECT * FROM before.job; INSERT INTO bgworker.job_run SELECT * FROM before.job_run; COMMIT",
    )
    .await;
    let moved = effects(&db).await;
    eventually("they go on", async || effects(&db).await >= moved + 3).await;
    for instance in instances {
        instance.stop(Shutdown::Smart).await;
    }
    let twice = "SELECT count(*) - count(DISTINCT tick) FROM effect";
    assert_eq!(db.value::<i64>(twice).await, 0);
}

#[actix::test]
async fn a_run_outside_of_a_transaction_that_was_interrupted_takes_no_other_tick_along() {
    for missed in ["once", "skip"] {
        let db = stage().await;
        let keys = format!(
            "transaction = false\nattempts = 1\nmissed = \"{missed}\"\nhistory = 1000\n{}",
            every("1s", EFFECT)
        );
        let instance = Instance::new(&db, &keys).await;
        eventually("it runs", async || effects(&db).await > 0).await;
        instance.stop(Shutdown::Smart).await;
        // An instance died in its run of a tick ten seconds ago.
        let died = "WITH j AS (UPDATE bgworker.job SET last_tick = last_tick - interval '20 s', \
                    running_since = last_tick - interval '9.9 s' RETURNING running_since) \
                    SELECT extract(epoch FROM date_trunc('second', running_since))::bigint FROM j";
        let tick: i64 = db.value(died).await;
        db.execute("TRUNCATE bgworker.job_run").await;
        let instance = Instance::new(&db, &keys).await;
        let done = format!("outcome = 'done' AND extract(epoch FROM tick) > {tick}");
        eventually("a later tick is done", async || runs(&db, &done).await > 0).await;
        instance.stop(Shutdown::Smart).await;
        let given_up = "SELECT string_agg(concat_ws(' ', extract(epoch FROM tick)::bigint, \
                        extract(epoch FROM date_trunc('second', started_at))::bigint, message), ', ') \
                        FROM bgworker.job_run WHERE outcome = 'given up'";
        let why = "interrupted: its instance, its session or its server went away while it ran";
        assert_eq!(
            db.value::<String>(given_up).await,
            format!("{tick} {tick} {why}")
        );
    }
}

#[actix::test]
async fn a_run_outside_of_a_transaction_whose_session_was_ended_says_by_what() {
    let db = stage().await;
    let sql = format!("SELECT pg_sleep(3600); {EFFECT}");
    let keys = format!("transaction = false\nattempts = 1\n{}", every("1s", &sql));
    let instance = Instance::new(&db, &keys).await;
    let ends = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                WHERE datname = current_database() AND wait_event = 'PgSleep'";
    eventually("its session is ended", async || {
        db.value::<i64>(ends).await > 0
    })
    .await;
    let why = "outcome = 'given up' AND message LIKE 'interrupted: %administrator command%'";
    eventually("it says so", async || runs(&db, why).await > 0).await;
    instance.stop(Shutdown::Fast).await;
}

#[actix::test]
async fn a_role_that_may_not_use_the_schema_of_the_tables_is_told_the_grant() {
    let log = Log::capture();
    let db = stage().await;
    let instance = Instance::new(&db, &every("1h", EFFECT)).await;
    let made = "SELECT to_regclass('bgworker.job_run') IS NOT NULL";
    eventually("the tables are made", async || db.value::<bool>(made).await).await;
    instance.stop(Shutdown::Smart).await;
    let role: String = db.value("SELECT current_database() || '_role'").await;
    db.execute(&format!("CREATE ROLE {role} LOGIN")).await;
    let as_role = database(&db.conninfo_with("user", &role));
    let instance = Instance::on(as_role, &db, &every("1h", EFFECT)).await;
    let said = format!("GRANT USAGE ON SCHEMA bgworker TO {role}");
    eventually("it names the GRANT", async || log.text().contains(&said)).await;
    instance.stop(Shutdown::Smart).await;
}
