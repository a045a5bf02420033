//! Runs whose session ends: what is a job's own doing counts as an attempt, and what a restart does does not.

use std::time::Duration;

use bgworker::supervision::{Shutdown, WorkerState};
use tracing::Level;

use crate::support::database::{TestDatabase, database};
use crate::support::eventually;
use crate::support::jobs::{EFFECT, EFFECTS, Instance, every, runs, stage};
use crate::support::log::Log;
use crate::support::server::TestServer;

/// A value of the first row of a query, once the server answers.
async fn answer(conninfo: &str, sql: &str) -> Option<String> {
    let connection = database(conninfo).connect("tests", None).await.ok()?;
    let rows = connection.query("test", sql, &[]).await.ok()?;
    rows.first()?.get(0)
}

/// An instance whose daily job is due from now on.
async fn due_now(db: &TestDatabase, keys: &str) -> Instance {
    let instance = Instance::on(database(db.conninfo()), db, keys).await;
    let has_row = async || {
        db.value::<Option<String>>("SELECT to_regclass('bgworker.job')::text")
            .await
    };
    eventually("it is declared", async || {
        has_row().await.is_some() && db.value::<i64>("SELECT count(*) FROM bgworker.job").await == 1
    })
    .await;
    db.execute("UPDATE bgworker.job SET last_tick = last_tick - interval '24 h'")
        .await;
    instance.postmaster.sighup();
    instance
}

#[actix::test]
async fn a_job_that_terminates_its_own_session_is_given_up_after_its_attempts() {
    let db = stage().await;
    let ends = "SELECT pg_terminate_backend(pg_backend_pid()); SELECT pg_sleep(60)";
    let keys = format!(
        "attempts = 2\nrestart_time = \"1ms\"\n{}",
        every("24h", ends)
    );
    let instance = due_now(&db, &keys).await;
    eventually("it is given up", async || {
        runs(&db, "outcome = 'given up'").await > 0
    })
    .await;
    instance.stop(Shutdown::Smart).await;
    let recorded = "SELECT string_agg(concat_ws(' ', outcome, attempt, sqlstate), ', ' ORDER BY run) FROM bgworker.job_run";
    assert_eq!(
        db.value::<String>(recorded).await,
        "failed 1 57P01, given up 2 57P01"
    );
    let row = "SELECT attempt FROM bgworker.job";
    assert_eq!(db.value::<i32>(row).await, 0);
}

#[actix::test]
async fn an_error_of_the_job_is_an_attempt_even_if_it_looks_like_a_lost_connection() {
    let db = stage().await;
    let fails = "DO 'BEGIN RAISE SQLSTATE ''08006''; END'";
    let keys = format!("attempts = 1\n{}", every("24h", fails));
    let instance = due_now(&db, &keys).await;
    eventually("it is recorded", async || runs(&db, "true").await > 0).await;
    instance.stop(Shutdown::Smart).await;
    let recorded =
        "SELECT string_agg(concat_ws(' ', outcome, attempt, sqlstate), ', ') FROM bgworker.job_run";
    assert_eq!(db.value::<String>(recorded).await, "given up 1 08006");
}

#[actix::test]
async fn a_job_that_kills_its_server_process_crashes_the_server_once_for_each_attempt() {
    let server = TestServer::start();
    let db = TestDatabase::at(&server.conninfo()).await;
    let kills = "COPY (SELECT 1) TO PROGRAM 'kill -9 $PPID'";
    let keys = format!("attempts = 1\n{}", every("24h", kills));
    let instance = due_now(&db, &keys).await;
    let recorded =
        "SELECT string_agg(outcome || ' ' || attempt, ', ' ORDER BY run) FROM bgworker.job_run";
    eventually("it is recorded", async || {
        answer(&server.conninfo(), recorded).await.is_some()
    })
    .await;
    let recorded = answer(&server.conninfo(), recorded).await;
    assert_eq!(recorded.as_deref(), Some("given up 1"));
    instance.stop(Shutdown::Smart).await;
    let crashes = server.log().matches("was terminated by signal 9").count();
    assert_eq!(crashes, 1);
}

#[actix::test]
async fn a_restart_of_the_server_under_a_run_is_recorded_and_is_no_attempt() {
    let mut server = TestServer::start();
    let db = TestDatabase::at(&server.conninfo()).await;
    db.execute(EFFECTS).await;
    // The second run need not sleep.
    let sleeps = "SELECT pg_sleep(CASE WHEN count(*) = 0 THEN 60 ELSE 0 END) FROM bgworker.job_run";
    let keys = format!("attempts = 1\n{}", every("24h", sleeps));
    let instance = due_now(&db, &keys).await;
    let runs_now = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep')";
    eventually("it runs", async || db.value::<bool>(runs_now).await).await;
    server.stop_immediately();
    server.start_again();
    let recorded =
        "SELECT string_agg(outcome || ' ' || attempt, ', ' ORDER BY run) FROM bgworker.job_run";
    eventually("it is done", async || {
        answer(&server.conninfo(), recorded).await.as_deref() == Some("lost 1, done 1")
    })
    .await;
    instance.stop(Shutdown::Smart).await;
}

#[actix::test]
async fn a_job_that_never_ends_though_it_is_cancelled_is_given_up() {
    let db = stage().await;
    // The server waits for a program without looking at the clock.
    let hangs = "COPY (SELECT 1) TO PROGRAM 'sleep 4'";
    let keys = format!("attempts = 1\ntimeout = \"500ms\"\n{}", every("24h", hangs));
    let instance = due_now(&db, &keys).await;
    eventually("it is given up", async || {
        runs(&db, "outcome = 'given up'").await > 0
    })
    .await;
    instance.stop(Shutdown::Smart).await;
    assert_eq!(runs(&db, "true").await, 1);
}

#[actix::test]
async fn a_limit_of_the_server_on_transactions_does_not_end_a_run() {
    let db = stage().await;
    let name: String = db.value("SELECT current_database()::text").await;
    if !db
        .value::<bool>("SELECT current_setting('server_version_num')::int >= 170000")
        .await
    {
        return;
    }
    db.execute(&format!(
        "ALTER DATABASE {name} SET transaction_timeout = '100ms'"
    ))
    .await;
    for keys in ["", "transaction = false\n"] {
        let sleeps = every("24h", "SELECT pg_sleep(0.5)");
        let instance = due_now(&db, &format!("attempts = 1\n{keys}{sleeps}")).await;
        eventually("it is recorded", async || runs(&db, "true").await > 0).await;
        instance.stop(Shutdown::Smart).await;
        assert_eq!(runs(&db, "outcome <> 'done'").await, 0, "{keys}");
        db.execute("DROP SCHEMA bgworker CASCADE").await;
    }
}

#[actix::test]
async fn a_run_with_one_snapshot_that_conflicts_is_run_again_and_one_that_always_does_is_given_up()
{
    for (isolation, always, expected) in [
        ("repeatable read", false, "done 1"),
        ("serializable", false, "done 1"),
        ("repeatable read", true, "given up 1 40001"),
    ] {
        let db = stage().await;
        db.execute("CREATE TABLE total (n int); INSERT INTO total VALUES (0)")
            .await;
        let sql = "SELECT pg_sleep(0.3); UPDATE total SET n = n + 10";
        let keys = format!(
            "isolation = \"{isolation}\"\nattempts = 1\n{}",
            every("24h", sql)
        );
        let instance = due_now(&db, &keys).await;
        let sleeps = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() \
                      AND wait_event = 'PgSleep')";
        eventually("it runs", async || db.value::<bool>(sleeps).await).await;
        db.execute("UPDATE total SET n = n + 1").await;
        eventually("it is recorded", async || {
            if always {
                db.execute("UPDATE total SET n = n + 1").await;
            }
            runs(&db, "true").await > 0
        })
        .await;
        instance.stop(Shutdown::Smart).await;
        let recorded = "SELECT concat_ws(' ', outcome, attempt, sqlstate) FROM bgworker.job_run";
        let recorded: String = db.value(recorded).await;
        assert_eq!(recorded, expected, "{isolation}");
    }
}

#[actix::test]
async fn a_run_that_is_done_at_last_leaves_no_trace_of_its_attempts_in_the_row() {
    let db = stage().await;
    let ends = "SELECT pg_terminate_backend(pg_backend_pid()) FROM (SELECT count(*) AS n FROM bgworker.job_run) AS r WHERE n = 0";
    let keys = format!("restart_time = \"1ms\"\n{}", every("24h", ends));
    let instance = due_now(&db, &keys).await;
    eventually("it is done", async || {
        runs(&db, "outcome = 'done'").await > 0
    })
    .await;
    instance.stop(Shutdown::Smart).await;
    let row = "SELECT format('%s %s %s', attempt, retry_at IS NULL, last_tick = last_done) FROM bgworker.job";
    assert_eq!(db.value::<String>(row).await, "0 t t");
}

#[actix::test]
async fn instances_share_the_attempts_of_a_job_that_ends_its_own_session() {
    let db = stage().await;
    db.execute("CREATE SEQUENCE tries").await;
    let ends = "SELECT nextval('tries'); SELECT pg_sleep(0.3); SELECT pg_terminate_backend(pg_backend_pid()); SELECT pg_sleep(60)";
    let keys = format!(
        "attempts = 2\nrestart_time = \"1ms\"\n{}",
        every("24h", ends)
    );
    let mut instances = vec![due_now(&db, &keys).await];
    for _ in 0..3 {
        instances.push(Instance::on(database(db.conninfo()), &db, &keys).await);
    }
    eventually("it is given up", async || {
        runs(&db, "outcome = 'given up'").await > 0
    })
    .await;
    for instance in instances {
        instance.stop(Shutdown::Smart).await;
    }
    assert_eq!(db.value::<i64>("SELECT last_value FROM tries").await, 2);
    assert_eq!(runs(&db, "true").await, 2);
}

#[actix::test]
async fn a_run_whose_session_ends_while_its_worker_is_asked_to_stop_is_named_once() {
    const OF_RUN: &str =
        "FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";
    for keys in ["", "transaction = false\n"] {
        let log = Log::capture();
        let db = stage().await;
        let keys = format!("{keys}{}", every("24h", "SELECT pg_sleep(3600)"));
        let instance = due_now(&db, &keys).await;
        let runs_now = format!("SELECT EXISTS (SELECT {OF_RUN})");
        eventually("it runs", || db.value::<bool>(&runs_now)).await;
        instance.postmaster.shut_down(Shutdown::Smart);
        eventually("it is asked to stop", async || {
            let workers = instance.postmaster.workers().await.unwrap().registered;
            workers[0].state == WorkerState::Stopping
        })
        .await;
        db.execute(&format!("SELECT pg_terminate_backend(pid) {OF_RUN}"))
            .await;
        instance.postmaster.exited().await.unwrap();
        let told = log.with(Level::WARN, "j: lost its run of the tick ");
        assert_eq!(told.len(), 1, "{}", log.text());
    }
}

#[actix::test]
async fn clients_that_lock_the_row_of_a_job_and_roll_back_again_and_again_do_not_keep_it_from_running()
 {
    let db = stage().await;
    let instance = Instance::new(&db, &every("1s", EFFECT)).await;
    eventually("it runs", async || runs(&db, "true").await > 0).await;
    let client = db.connect_plainly().await;
    let locking = async {
        loop {
            let lock = "BEGIN; SELECT FROM bgworker.job FOR KEY SHARE; ROLLBACK";
            client.batch_execute(lock).await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let before = runs(&db, "true").await;
    tokio::select! {
        () = locking => {}
        () = eventually("it goes on", async || runs(&db, "true").await > before + 1) => {}
    }
    instance.stop(Shutdown::Smart).await;
}
