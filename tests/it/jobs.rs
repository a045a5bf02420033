//! Jobs: each tick runs once, whichever instance runs it; and what becomes of ticks that fail or are missed.

use std::time::Duration;

use bgworker::database::Database;
use bgworker::supervision::{Limits, Shutdown};
use bgworker::{
    Access, BackgroundWorker, JobState, Postmaster, RestartTime, WorkerContext, ticked,
};

use crate::support::database::TestDatabase;
use crate::support::jobs::{
    EFFECT, EFFECTS, Instance, every, has_caught_up, runs, set_back, settings_of, stage,
};
use crate::support::server::TestServer;
use crate::support::ticks::assert_exact;
use crate::support::{eventually, within};

const SECOND: Duration = Duration::from_secs(1);

#[actix::test]
async fn three_instances_run_each_tick_once_and_none_is_left_out() {
    let db = stage().await;
    let mut instances = Vec::new();
    for _ in 0..3 {
        instances.push(Instance::new(&db, &every("1s", EFFECT)).await);
    }
    within(20 * SECOND, "five ticks are done", || async {
        db.value::<i64>("SELECT count(*) FROM effect").await >= 5
    })
    .await;
    for instance in instances {
        instance.stop(Shutdown::Smart).await;
    }
    let twice = "SELECT count(*) - count(DISTINCT tick) FROM effect";
    assert_eq!(db.value::<i64>(twice).await, 0);
    let gaps = "SELECT count(*) FROM (SELECT tick - lag(tick) OVER (ORDER BY tick) AS gap FROM effect) AS g \
                WHERE gap <> '1 s'";
    assert_eq!(db.value::<i64>(gaps).await, 0);
    let unlike = "SELECT count(*) FROM effect AS e FULL JOIN bgworker.job_run AS r USING (tick) \
                  WHERE e.tick IS NULL OR r.tick IS NULL OR r.outcome <> 'done' OR r.rows <> 1";
    assert_eq!(
        db.value::<i64>(unlike).await,
        0,
        "the history says the same"
    );
    let windows = "SELECT count(*) FROM (SELECT previous, lag(tick) OVER (ORDER BY tick) AS before FROM effect) AS w \
                   WHERE previous <> before";
    assert_eq!(db.value::<i64>(windows).await, 0, "windows have no gaps");
}

#[actix::test]
async fn a_failing_statement_is_given_up_after_its_attempts_and_the_next_tick_comes() {
    let db = stage().await;
    let keys = format!(
        "restart_time = \"300ms\"\nattempts = 2\n{}",
        every(
            "3s",
            &format!("{EFFECT};\nSELECT 1 / (count(*) - 1) FROM effect")
        )
    );
    let instances = [
        Instance::new(&db, &keys).await,
        Instance::new(&db, &keys).await,
    ];
    within(20 * SECOND, "two ticks are given up", || async {
        runs(&db, "outcome = 'given up'").await >= 2
    })
    .await;
    for instance in instances {
        instance.stop(Shutdown::Smart).await;
    }
    assert_eq!(
        db.value::<i64>("SELECT count(*) FROM effect").await,
        0,
        "each is undone"
    );
    let attempts = "SELECT string_agg(outcome || ' ' || attempt, ', ' ORDER BY run) FROM bgworker.job_run \
                    WHERE run <= 4";
    let attempts: String = db.value(attempts).await;
    assert_eq!(attempts, "failed 1, given up 2, failed 1, given up 2");
    let message: String = db
        .value("SELECT message FROM bgworker.job_run LIMIT 1")
        .await;
    assert!(
        message.contains("statement 2 (line 2)") && message.contains("division by zero"),
        "{message}"
    );
    assert_eq!(
        db.value::<String>("SELECT sqlstate FROM bgworker.job_run LIMIT 1")
            .await,
        "22012"
    );
}

#[actix::test]
async fn ticks_that_come_due_during_a_run_become_one_run_none_or_each() {
    for (missed, expected) in [("once", &[4_i64][..]), ("skip", &[5]), ("each", &[1])] {
        let db = stage().await;
        // The first run lasts three and a half periods.
        let slow = format!(
            "SELECT pg_sleep(CASE WHEN count(*) = 0 THEN 3.5 ELSE 0 END) FROM effect;\n{EFFECT}"
        );
        let keys = format!("missed = \"{missed}\"\n{}", every("1s", &slow));
        let instance = Instance::new(&db, &keys).await;
        within(20 * SECOND, "two runs", || async {
            db.value::<i64>("SELECT count(*) FROM effect").await >= 2
        })
        .await;
        instance.stop(Shutdown::Smart).await;
        let second = "SELECT extract(epoch FROM (array_agg(tick ORDER BY id))[2] - (array_agg(tick ORDER BY id))[1])::bigint FROM effect";
        let second: i64 = db.value(second).await;
        assert!(
            expected.contains(&second) || (missed != "each" && expected.contains(&(second + 1))),
            "{missed}: the second run is {second} s after the first"
        );
    }
}

#[actix::test]
async fn what_a_statement_sets_is_not_seen_by_the_next_run() {
    let db = stage().await;
    let sql = "INSERT INTO effect (by) SELECT current_setting('search_path') || current_setting('role') || \
               (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid());\n\
               SET search_path = pg_temp; SET ROLE pg_monitor; SELECT pg_advisory_lock(1); CREATE TEMP TABLE t ()";
    let instance = Instance::new(&db, &every("1s", sql)).await;
    within(20 * SECOND, "three runs", || async {
        db.value::<i64>("SELECT count(*) FROM effect").await >= 3
    })
    .await;
    instance.stop(Shutdown::Smart).await;
    assert_eq!(
        db.value::<i64>("SELECT count(DISTINCT by) FROM effect")
            .await,
        1
    );
    let failed = "SELECT count(*) FROM bgworker.job_run WHERE outcome <> 'done'";
    assert_eq!(db.value::<i64>(failed).await, 0);
}

#[actix::test]
async fn a_procedure_that_commits_is_an_error_and_nothing_is_done_twice() {
    let db = stage().await;
    db.execute("CREATE PROCEDURE commits() LANGUAGE plpgsql AS 'BEGIN INSERT INTO effect (by) VALUES (1); COMMIT; END'")
        .await;
    let keys = format!("attempts = 1\n{}", every("1s", "CALL commits()"));
    let instance = Instance::new(&db, &keys).await;
    within(20 * SECOND, "it is recorded", || async {
        runs(&db, "outcome = 'given up'").await > 0
    })
    .await;
    instance.stop(Shutdown::Smart).await;
    let message: Option<String> = db
        .value("SELECT message FROM bgworker.job_run LIMIT 1")
        .await;
    assert!(message.unwrap().contains("invalid transaction termination"));
    assert_eq!(db.value::<i64>("SELECT count(*) FROM effect").await, 0);
}

#[actix::test]
async fn a_sigterm_lets_a_run_commit_and_a_sigint_leaves_its_tick_due() {
    for (mode, effects, done) in [(Shutdown::Smart, 1, 1), (Shutdown::Fast, 0, 0)] {
        let db = stage().await;
        let sql = format!("{EFFECT};\nSELECT pg_sleep(2)");
        let instance = Instance::new(&db, &every("1s", &sql)).await;
        eventually("it runs", || async {
            let sleeps = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() \
                          AND application_name = 'j' AND wait_event = 'PgSleep')";
            db.value::<bool>(sleeps).await
        })
        .await;
        instance.stop(mode).await;
        assert_eq!(
            db.value::<i64>("SELECT count(*) FROM effect").await,
            effects
        );
        let runs = "SELECT count(*) FROM bgworker.job_run";
        assert_eq!(db.value::<i64>(runs).await, done, "{mode:?}");
        assert_eq!(db.value::<i32>("SELECT attempt FROM bgworker.job").await, 0);
    }
}

#[actix::test]
async fn if_two_files_declare_a_job_differently_the_newer_one_wins_and_the_other_stands_by() {
    let db = stage().await;
    let older = Instance::new(&db, &every("1s", EFFECT)).await;
    within(20 * SECOND, "the older one runs", || async {
        db.value::<i64>("SELECT count(*) FROM effect").await >= 1
    })
    .await;
    let newer = Instance::new(&db, &every("1s", &format!("{EFFECT} || ' newer'"))).await;
    eventually("the older one stands by", || async {
        let workers = older.postmaster.workers().await.unwrap().registered;
        let job = workers[0].report.job.clone();
        job.is_some_and(|job| job.state == JobState::DeclaredDifferently)
    })
    .await;
    let before: i64 = db
        .value("SELECT count(*) FROM effect WHERE by LIKE '% newer'")
        .await;
    within(20 * SECOND, "the newer one goes on", || async {
        db.value::<i64>("SELECT count(*) FROM effect WHERE by LIKE '% newer'")
            .await
            > before
    })
    .await;
    older.stop(Shutdown::Smart).await;
    newer.stop(Shutdown::Smart).await;
    let twice = "SELECT count(*) - count(DISTINCT tick) FROM effect";
    assert_eq!(db.value::<i64>(twice).await, 0);
}

#[actix::test]
async fn a_new_job_does_not_run_for_the_past_and_a_changed_schedule_begins_with_its_next_tick() {
    let db = stage().await;
    let mut instance = Instance::new(&db, &every("1h", EFFECT)).await;
    let reports = |name| {
        let postmaster = instance.postmaster.clone();
        async move {
            postmaster.workers().await.unwrap().registered[0]
                .report
                .level(name)
        }
    };
    eventually("it has looked", || async {
        reports(ticked::NEXT_TICK).await.is_some()
    })
    .await;
    assert_eq!(db.value::<i64>("SELECT count(*) FROM effect").await, 0);
    let last: i64 = db
        .value("SELECT extract(epoch FROM last_tick)::bigint FROM bgworker.job")
        .await;
    assert_eq!(last % 3600, 0);
    let weekly = format!("cron = \"@weekly\"\nsql = \"\"\"{EFFECT}\"\"\"");
    instance
        .reload(settings_of(&db, &[("j".to_owned(), &*weekly)]))
        .await;
    eventually("it is declared again", || async {
        db.value::<i64>("SELECT count(DISTINCT declared) FROM bgworker.job WHERE declared_by <> ''")
            .await
            == 1
            && db
                .value::<i64>("SELECT extract(epoch FROM last_tick)::bigint FROM bgworker.job")
                .await
                == last
    })
    .await;
    assert_eq!(db.value::<i64>("SELECT count(*) FROM effect").await, 0);
    instance.stop(Shutdown::Smart).await;
}

#[actix::test]
async fn a_serialization_failure_is_run_again_at_once_and_costs_no_attempt() {
    let db = stage().await;
    db.execute(
        "CREATE SEQUENCE calls; CREATE FUNCTION flaky() RETURNS void LANGUAGE plpgsql AS $$ BEGIN \
         IF nextval('calls') <= 3 THEN RAISE EXCEPTION 'met another' USING ERRCODE = '40001'; END IF; END $$",
    )
    .await;
    let keys = every("1s", &format!("{EFFECT};\nSELECT flaky()"));
    let instance = Instance::new(&db, &keys).await;
    within(20 * SECOND, "a tick is done", || async {
        runs(&db, "outcome = 'done'").await > 0
    })
    .await;
    instance.stop(Shutdown::Smart).await;
    assert_eq!(runs(&db, "outcome <> 'done' OR attempt <> 1").await, 0);
    assert_exact(&db).await;
}

#[actix::test]
async fn a_job_whose_row_is_deleted_is_declared_again_and_begins_with_its_next_tick() {
    let db = stage().await;
    let keys = format!("history = 0\n{}", every("1h", EFFECT));
    let instance = Instance::new(&db, &keys).await;
    let declared = async || {
        let has_table = "SELECT to_regclass('bgworker.job') IS NOT NULL";
        db.value::<bool>(has_table).await
            && db.value::<i64>("SELECT count(*) FROM bgworker.job").await == 1
    };
    eventually("it is declared", &declared).await;
    db.execute("UPDATE bgworker.job SET last_tick = last_tick - '2 h'::interval")
        .await;
    instance.postmaster.sighup();
    eventually("it has run", async || {
        db.value::<i64>("SELECT count(*) FROM effect").await == 1
    })
    .await;
    assert_eq!(runs(&db, "true").await, 0, "no history is kept");
    db.execute("DELETE FROM bgworker.job").await;
    instance.postmaster.sighup();
    eventually("it is declared again", &declared).await;
    instance.stop(Shutdown::Smart).await;
    assert_eq!(db.value::<i64>("SELECT count(*) FROM effect").await, 1);
}

#[actix::test]
async fn only_the_newest_runs_are_kept() {
    let db = stage().await;
    let keys = format!("history = 2\n{}", every("1s", EFFECT));
    let instance = Instance::new(&db, &keys).await;
    within(20 * SECOND, "four runs", || async {
        db.value::<i64>("SELECT count(*) FROM effect").await >= 4
    })
    .await;
    instance.stop(Shutdown::Smart).await;
    assert_eq!(
        db.value::<i64>("SELECT count(*) FROM bgworker.job_run")
            .await,
        2
    );
}

#[actix::test]
async fn a_procedure_that_commits_and_vacuum_need_transaction_false_and_the_error_says_so() {
    let db = stage().await;
    db.execute("CREATE PROCEDURE commits() LANGUAGE plpgsql AS 'BEGIN COMMIT; END'")
        .await;
    let vacuum = "CALL commits();\nVACUUM effect;\n\
                  INSERT INTO effect (tick) SELECT current_setting('bgworker.tick')::timestamptz";
    let keys = format!("attempts = 1\n{}", every("1s", "CALL commits()"));
    let instance = Instance::new(&db, &keys).await;
    within(20 * SECOND, "it is given up", || async {
        let told = "outcome = 'given up' AND message LIKE '%transaction termination%set \"transaction = false\"'";
        runs(&db, told).await > 0
    })
    .await;
    instance.stop(Shutdown::Smart).await;
    let keys = format!("transaction = false\n{}", every("1s", vacuum));
    let instances = [
        Instance::new(&db, &keys).await,
        Instance::new(&db, &keys).await,
    ];
    within(20 * SECOND, "three ticks are done", || async {
        runs(&db, "outcome = 'done' AND rows = 1").await >= 3
    })
    .await;
    for instance in instances {
        instance.stop(Shutdown::Smart).await;
    }
    assert_exact(&db).await;
}

#[actix::test]
async fn outside_of_a_transaction_one_attempt_is_at_most_once_and_more_are_at_least_once() {
    for (attempts, again) in [(1, 0), (2, 1)] {
        let db = stage().await;
        let sql = format!(
            "{EFFECT};\nSELECT pg_sleep(CASE WHEN count(*) < 2 THEN 60 ELSE 0 END) FROM effect"
        );
        let keys = format!(
            "transaction = false\nattempts = {attempts}\nrestart_time = \"100ms\"\n{}",
            every("1h", &sql)
        );
        let instance = Instance::new(&db, &keys).await;
        eventually("it is declared", || async {
            let has_table = "SELECT to_regclass('bgworker.job_run') IS NOT NULL";
            db.value::<bool>(has_table).await
                && db.value::<i64>("SELECT count(*) FROM bgworker.job").await == 1
        })
        .await;
        db.execute("UPDATE bgworker.job SET last_tick = last_tick - '1 h'::interval")
            .await;
        instance.postmaster.sighup();
        eventually("it is ended in the middle", || async {
            let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                       WHERE datname = current_database() AND application_name = 'j' AND wait_event = 'PgSleep'";
            db.value::<i64>(end).await == 1
        })
        .await;
        eventually("the outcome of the tick is recorded", || async {
            let outcome = if attempts == 1 {
                "outcome = 'given up'"
            } else {
                "outcome = 'done'"
            };
            runs(&db, outcome).await == 1
        })
        .await;
        instance.stop(Shutdown::Smart).await;
        assert_eq!(
            db.value::<i64>("SELECT count(*) FROM effect").await,
            1 + again
        );
        assert_eq!(runs(&db, "message LIKE 'interrupted%'").await, 1);
    }
}

#[actix::test]
async fn a_job_that_releases_its_lock_is_an_error() {
    let db = stage().await;
    let keys = format!(
        "transaction = false\nattempts = 1\n{}",
        every("1s", "SELECT pg_advisory_unlock_all()")
    );
    let instance = Instance::new(&db, &keys).await;
    within(20 * SECOND, "it is reported", || async {
        runs(
            &db,
            "outcome = 'given up' AND message LIKE '%gave the lock away%'",
        )
        .await
            > 0
    })
    .await;
    instance.stop(Shutdown::Smart).await;
}

#[actix::test]
async fn a_job_on_a_standby_naps_and_records_nothing() {
    let primary = TestServer::start();
    let standby = primary.standby().await;
    let db = TestDatabase::at(&standby.conninfo()).await;
    let keys =
        "start_time = 'consistent_state'\nnaptime = '50ms'\nsql = 'SELECT pg_is_in_recovery()'";
    let instance = Instance::new(&db, keys).await;
    let report = async || {
        let workers = instance.postmaster.workers().await.unwrap();
        workers.registered[0].report.clone()
    };
    eventually("it runs", async || report().await.count(ticked::RUNS) > 3).await;
    assert!(report().await.last_error.is_none());
    let untouched = "SELECT to_regnamespace('bgworker') IS NULL";
    assert!(db.value::<bool>(untouched).await);
    instance.stop(Shutdown::Smart).await;
}

#[actix::test]
async fn a_job_with_its_own_connection_takes_no_turn_from_the_others() {
    let db = stage().await;
    let settings = bgworker::database::Settings::default().jobs(1);
    let conninfo = bgworker::database::ConnInfo::parse(db.conninfo(), |_| None).unwrap();
    let database = Database::new(conninfo, settings).unwrap();
    let postmaster = Postmaster::launch(Limits::default(), Some(database)).unwrap();
    let long = every("1s", "SELECT pg_sleep(3)") + "\nconnection = \"own\"";
    let short = every("1s", EFFECT);
    let jobs = [("long".to_owned(), &*long), ("j".to_owned(), &*short)];
    let instance = Instance::register(&postmaster, settings_of(&db, &jobs)).await;
    let sleeps = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'long' \
                  AND datname = current_database() AND wait_event = 'PgSleep')";
    eventually("the long one runs", || async {
        db.value::<bool>(sleeps).await
    })
    .await;
    let done: i64 = db.value("SELECT count(*) FROM effect").await;
    let both = format!(
        "SELECT (SELECT count(*) FROM effect) > {done} AND EXISTS (SELECT FROM pg_stat_activity \
         WHERE application_name = 'long' AND datname = current_database() AND wait_event = 'PgSleep')"
    );
    eventually("the short one runs beside it", || async {
        db.value::<bool>(&both).await
    })
    .await;
    instance.stop(Shutdown::Fast).await;
}

#[actix::test]
async fn ticks_that_came_due_without_an_instance_become_one_run_the_newest_or_each() {
    for (missed, most) in [("once", 3_i64), ("skip", 3), ("each", 14)] {
        let db = stage().await;
        let keys = format!("missed = \"{missed}\"\n{}", every("1s", EFFECT));
        let instance = Instance::new(&db, &keys).await;
        let before = set_back(&db, 0).await;
        eventually("a tick is done", || async {
            has_caught_up(&db, before).await
        })
        .await;
        instance.stop(Shutdown::Smart).await;
        // As if the last ten ticks had come due without an instance.
        db.execute(
            "TRUNCATE effect; UPDATE bgworker.job SET last_tick = last_tick - '10 s'::interval",
        )
        .await;
        let instance = Instance::new(&db, &keys).await;
        let stopped: i64 = db.value("SELECT extract(epoch FROM now())::bigint").await;
        eventually("it has caught up", || async {
            has_caught_up(&db, stopped).await
        })
        .await;
        instance.stop(Shutdown::Smart).await;
        let runs: i64 = db.value("SELECT count(*) FROM effect").await;
        let least = if missed == "each" { 10 } else { 1 };
        assert!((least..=most).contains(&runs), "{missed}: {runs} runs");
        if missed == "each" {
            assert_exact(&db).await;
        }
    }
}

#[actix::test]
async fn a_server_restart_in_the_middle_of_a_run_costs_no_attempt() {
    let mut server = TestServer::start();
    let db = TestDatabase::at(&server.conninfo()).await;
    db.execute(EFFECTS).await;
    let slow = format!("{EFFECT}; SELECT pg_sleep(0.7)");
    let keys = format!("attempts = 1\nmissed = \"each\"\n{}", every("1s", &slow));
    let instance = Instance::new(&db, &keys).await;
    eventually("it runs", async || runs(&db, "true").await > 0).await;
    let sleeps = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'j' AND wait_event = 'PgSleep')";
    eventually("it is in the middle", || async {
        db.value::<bool>(sleeps).await
    })
    .await;
    server.stop_immediately();
    server.start_again();
    let db = TestDatabase::at(&server.conninfo()).await;
    let done = runs(&db, "true").await;
    within(20 * SECOND, "it goes on", async || {
        runs(&db, "true").await > done + 2
    })
    .await;
    instance.stop(Shutdown::Smart).await;
    assert_eq!(runs(&db, "outcome = 'lost'").await, 1);
    let others = "outcome NOT IN ('done', 'lost') OR attempt <> 1";
    assert_eq!(runs(&db, others).await, 0);
    assert_exact(&db).await;
}

#[actix::test]
async fn max_restarts_ends_no_job_however_often_it_fails() {
    let db = stage().await;
    let keys = format!(
        "max_restarts = {{ restarts = 1, within = \"1h\" }}\nattempts = 1\n{}",
        every("100ms", "SELECT 1 / 0")
    );
    let instance = Instance::new(&db, &keys).await;
    eventually("ten ticks are given up", async || {
        runs(&db, "outcome = 'given up'").await >= 10
    })
    .await;
    instance.stop(Shutdown::Smart).await;
}

#[actix::test]
async fn a_worker_that_crashes_resets_the_others_and_no_job() {
    let db = stage().await;
    let postmaster = db.postmaster();
    let slow = format!("SELECT pg_sleep(1.5); {EFFECT}");
    let instance = Instance::registered(&postmaster, &db, &every("2s", &slow)).await;
    let sleeps = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'j' \
                  AND datname = current_database() AND wait_event = 'PgSleep')";
    eventually("it runs", || async { db.value::<bool>(sleeps).await }).await;
    let crashes = BackgroundWorker::new("crashes").access(Access::Shared);
    let crashes = crashes.restart_time(RestartTime::Never);
    let main = async |_: WorkerContext| panic!("as it is meant to");
    postmaster.register(crashes, main).await.unwrap();
    eventually("the run ends well", || async {
        runs(&db, "outcome = 'done'").await == 1
    })
    .await;
    let job = &postmaster.workers().await.unwrap().registered[0];
    assert_eq!(job.starts, 1);
    instance.stop(Shutdown::Smart).await;
}
