//! The health of an instance, which is what it cannot do, and the state of its jobs, which is another matter.

use std::time::{Duration, Instant};

use bgworker::http::{JobSnapshot, Snapshot};
use bgworker::supervision::Shutdown;
use bgworker::ticked::{self, Once};
use bgworker::{JobState, Report};

use crate::http::is_ready;
use crate::support::database::{TestDatabase, database};
use crate::support::eventually;
use crate::support::jobs::{EFFECT, EFFECTS, Instance, every, runs, settings_of, stage};
use crate::support::server::TestServer;

/// Statement that fails while there is no effect.
const FAILS_AT_FIRST: &str = "SELECT 1 / count(*) FROM effect";

/// Makes a daily job as it was before its last tick.
const BEFORE_TICK: &str = "UPDATE bgworker.job SET last_tick = last_tick - interval '24 h', \
    last_done = last_done - interval '24 h'";

/// Makes the tick that was given up due again.
const DUE_AGAIN: &str = "UPDATE bgworker.job SET last_tick = last_tick - interval '24 h'";

async fn report(instance: &Instance) -> Report {
    let workers = instance.postmaster.workers().await.unwrap();
    workers.registered[0].report.clone()
}

/// The state of the job that an instance reports, and why.
async fn job(instance: &Instance) -> Option<(JobState, Option<String>)> {
    let job = report(instance).await.job?;
    Some((job.state, job.why.map(|why| why.to_string())))
}

/// Waits until the job is in this state, as the instance reports it.
async fn is_in_state(instance: &Instance, state: JobState) {
    eventually(&format!("the job is {state}"), async || {
        // It need not wait for the end of the minute.
        instance.postmaster.sighup();
        job(instance).await.is_some_and(|(found, _)| found == state)
    })
    .await;
}

/// An instance with a job that is tried once a day, and fails at first.
async fn daily(db: &TestDatabase) -> (Instance, String) {
    let keys = format!("attempts = 1\n{}", every("24h", FAILS_AT_FIRST));
    // Instances with one handle would share their looks.
    let instance = Instance::on(database(db.conninfo()), db, &keys).await;
    is_in_state(&instance, JobState::Idle).await;
    (instance, keys)
}

#[actix::test]
async fn a_tick_that_is_given_up_is_seen_on_each_instance_until_one_is_done_and_all_stay_ready() {
    let db = stage().await;
    let ((one, _), (other, _)) = (daily(&db).await, daily(&db).await);
    assert_eq!(report(&one).await.last_success, None, "a look is none");
    db.execute(BEFORE_TICK).await;
    for instance in [&one, &other] {
        is_in_state(instance, JobState::GivenUp).await;
        let (_, why) = job(instance).await.unwrap();
        assert!(why.unwrap().contains("division by zero"));
        assert!(is_ready(&instance.postmaster).await);
    }
    let counts = [report(&one).await, report(&other).await];
    for name in [ticked::RUNS, ticked::FAILED_RUNS, ticked::GIVEN_UP] {
        let all: u64 = counts.iter().map(|report| report.count(name)).sum();
        assert_eq!(all, 1, "{name}");
    }
    db.execute(&format!("INSERT INTO effect DEFAULT VALUES; {DUE_AGAIN}"))
        .await;
    for instance in [one, other] {
        is_in_state(&instance, JobState::Idle).await;
        let report = report(&instance).await;
        assert!(report.last_success.is_some(), "whichever has done it");
        assert_eq!(report.consecutive_failures, 0);
        instance.stop(Shutdown::Smart).await;
    }
    assert_eq!(runs(&db, "outcome = 'done'").await, 1);
    // A new instance knows when it was done.
    let (instance, _) = daily(&db).await;
    assert!(report(&instance).await.last_success.is_some());
    instance.stop(Shutdown::Smart).await;
}

#[actix::test]
async fn a_tick_that_another_instance_gave_up_is_seen_while_a_later_one_is_tried_again() {
    let db = stage().await;
    let (instance, _) = daily(&db).await;
    for (outcome, attempt, state) in [
        ("given up", 0, JobState::GivenUp),
        ("failed", 1, JobState::GivenUp),
        ("lost", 1, JobState::GivenUp),
        ("done", 0, JobState::Idle),
        ("failed", 1, JobState::Failing),
    ] {
        // What another instance leaves.
        db.execute(&format!(
            "WITH j AS (UPDATE bgworker.job SET runs = runs + 1, attempt = {attempt} RETURNING name, runs) \
             INSERT INTO bgworker.job_run (name, slot, run, tick, started_at, finished_at, outcome, attempt, message) \
             SELECT name, runs % 100, runs, now(), now(), now(), '{outcome}', 1, nullif('{outcome}', 'done') FROM j",
        ))
        .await;
        is_in_state(&instance, state).await;
    }
    instance.stop(Shutdown::Fast).await;
}

#[actix::test]
async fn a_job_that_was_given_up_stays_so_while_another_session_has_its_row() {
    let db = stage().await;
    let (instance, _) = daily(&db).await;
    db.execute(BEFORE_TICK).await;
    is_in_state(&instance, JobState::GivenUp).await;
    let other = db.connect().await;
    // It keeps claims away, and not this change.
    let lock = "BEGIN; SELECT FROM bgworker.job FOR KEY SHARE";
    other.batch_execute("run", lock).await.unwrap();
    db.execute(DUE_AGAIN).await;
    for _ in 0..20 {
        instance.postmaster.sighup();
        tokio::time::sleep(Duration::from_millis(100)).await; // several looks, of which nothing must be seen
        assert_eq!(job(&instance).await.unwrap().0, JobState::GivenUp);
    }
    other.close().await;
    instance.stop(Shutdown::Smart).await;
}

#[actix::test]
async fn a_run_by_hand_that_succeeds_makes_a_tick_good_that_was_given_up() {
    let db = stage().await;
    let (instance, keys) = daily(&db).await;
    db.execute(BEFORE_TICK).await;
    is_in_state(&instance, JobState::GivenUp).await;
    let settings = settings_of(&db, &[("j".to_owned(), &keys)]);
    let when = settings.workers[0].function.when().unwrap();
    let run = || {
        let never = std::future::pending();
        ticked::once(&db.database, "j", &when, Once::default(), never)
    };
    run().await.unwrap_err();
    let asked = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle' \
                 AND query LIKE '%r.message IS NULL%' AND query_start > \
                 (SELECT finished_at FROM bgworker.job_run WHERE outcome = 'once'))";
    eventually("it has looked at the history", async || {
        instance.postmaster.sighup();
        db.value(asked).await
    })
    .await;
    let state = report(&instance).await.job.unwrap().state;
    assert_eq!(state, JobState::GivenUp);
    db.execute("INSERT INTO effect DEFAULT VALUES").await;
    run().await.unwrap();
    is_in_state(&instance, JobState::Idle).await;
    instance.stop(Shutdown::Smart).await;
}

#[actix::test]
async fn a_tick_that_is_still_to_be_tried_again_is_no_success() {
    let db = stage().await;
    let keys = format!(
        "restart_time = \"1h\"\nattempts = 2\n{}",
        every("1s", FAILS_AT_FIRST)
    );
    let instance = Instance::new(&db, &keys).await;
    eventually("it fails", async || {
        report(&instance).await.last_error.is_some()
    })
    .await;
    let failed = report(&instance).await;
    instance.postmaster.sighup();
    eventually("it has looked again and naps", async || {
        let report = report(&instance).await;
        report.napping && report.last_cycle > failed.last_cycle
    })
    .await;
    let after = report(&instance).await;
    assert_eq!(after.job.unwrap().state, JobState::Failing);
    assert_eq!(
        (after.cycles, after.consecutive_failures),
        (failed.cycles, 1)
    );
    assert!(is_ready(&instance.postmaster).await);
    instance.stop(Shutdown::Smart).await;
}

#[actix::test]
async fn an_instance_that_cannot_run_what_is_due_for_an_error_of_its_own_is_not_able_to() {
    for lost in ["UPDATE ON bgworker.job", "INSERT ON bgworker.job_run"] {
        let db = stage().await;
        let name: String = db.value("SELECT current_database()::text").await;
        let role = format!("{name}_role");
        db.execute(&format!(
            "CREATE ROLE {role} LOGIN; GRANT CREATE ON DATABASE {name} TO {role}"
        ))
        .await;
        let as_role = database(&db.conninfo_with("user", &role));
        let instance = Instance::on(as_role, &db, &every("1s", "SELECT 1")).await;
        eventually("it runs", async || runs(&db, "true").await > 0).await;
        assert_eq!(
            report(&instance).await.success_within,
            Some(Duration::from_secs(120))
        );
        db.execute(&format!("REVOKE {lost} FROM {role}")).await;
        // Its looks, each second, succeed nevertheless.
        eventually(&format!("without {lost}, it is unable"), async || {
            instance.postmaster.sighup();
            let report = report(&instance).await;
            let silence = report.last_cycle.unwrap().elapsed();
            silence > Duration::from_secs(2) && report.consecutive_failures > 2
        })
        .await;
        eventually("it says how to grant it, once", async || {
            instance.postmaster.sighup();
            let error = report(&instance).await.last_error;
            let error = error.map(|error| error.to_string()).unwrap_or_default();
            error
                .matches("GRANT SELECT, INSERT, UPDATE ON bgworker.job")
                .count()
                == 1
        })
        .await;
        instance.stop(Shutdown::Smart).await;
        db.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))
            .await;
    }
}

#[actix::test]
async fn a_job_that_stands_by_is_no_failure_and_says_what_to_do_and_whether_it_runs_anywhere() {
    let db = stage().await;
    let older = Instance::on(database(db.conninfo()), &db, &every("1h", EFFECT)).await;
    is_in_state(&older, JobState::Idle).await;
    let newer = Instance::on(database(db.conninfo()), &db, &every("2h", EFFECT)).await;
    is_in_state(&newer, JobState::Idle).await;
    is_in_state(&older, JobState::DeclaredDifferently).await;
    assert_eq!(report(&older).await.level(ticked::NEXT_TICK), None);
    let (_, why) = job(&older).await.unwrap();
    let why = why.unwrap();
    assert!(
        why.contains("this instance stands by") && why.contains("bgworker declare"),
        "{why}"
    );
    let before = report(&older).await;
    eventually("it has looked again", async || {
        older.postmaster.sighup();
        report(&older).await.last_cycle > before.last_cycle
    })
    .await;
    assert_eq!(report(&older).await.consecutive_failures, 0);
    assert!(is_ready(&older.postmaster).await);
    // The other one goes away, and no instance runs the job.
    newer.stop(Shutdown::Smart).await;
    db.execute("UPDATE bgworker.job SET last_tick = last_tick - interval '24 h'")
        .await;
    is_in_state(&older, JobState::Overdue).await;
    let (_, why) = job(&older).await.unwrap();
    assert!(
        why.unwrap()
            .contains("No instance has run it since its tick")
    );
    older.stop(Shutdown::Smart).await;
}

#[actix::test]
async fn a_row_that_is_made_again_is_no_success_and_makes_no_failure_good() {
    let db = stage().await;
    let keys = format!(
        "restart_time = \"1h\"\nattempts = 2\nhistory = 0\n{}",
        every("24h", FAILS_AT_FIRST)
    );
    let instance = Instance::on(database(db.conninfo()), &db, &keys).await;
    is_in_state(&instance, JobState::Idle).await;
    db.execute(BEFORE_TICK).await;
    is_in_state(&instance, JobState::Failing).await;
    for gone in ["DELETE FROM bgworker.job", "DROP SCHEMA bgworker CASCADE"] {
        let before = report(&instance).await.last_cycle;
        db.execute(gone).await;
        eventually("it is declared again, and looked at", async || {
            instance.postmaster.sighup();
            db.value::<bool>("SELECT to_regclass('bgworker.job') IS NOT NULL")
                .await
                && db.value::<i64>("SELECT count(*) FROM bgworker.job").await == 1
                && report(&instance).await.last_cycle > before
        })
        .await;
        is_in_state(&instance, JobState::Idle).await;
        let report = report(&instance).await;
        assert_eq!(report.last_success, None, "{gone}");
        assert_eq!(report.consecutive_failures, 1, "{gone}");
    }
    instance.stop(Shutdown::Smart).await;
}

/// The job as the page shows it, and its next tick.
async fn shown(instance: &Instance) -> (Option<JobSnapshot>, Option<i64>) {
    let snapshot = Snapshot::take(&instance.postmaster).await.unwrap();
    let worker = snapshot.workers.into_iter().next().unwrap();
    let next = worker.figures.get(ticked::NEXT_TICK).copied();
    (worker.job, next)
}

/// Waits until a job whose rows nothing can be learnt of is shown to wait, since its tick and not for longer.
async fn waits_since_its_tick(instance: &Instance, since: Instant) {
    eventually("a tick is due", async || {
        let job = shown(instance).await.0.unwrap();
        job.state == "waiting" && job.state_seconds <= since.elapsed().as_secs_f64()
    })
    .await;
    eventually("no next tick that has passed is shown", async || {
        shown(instance).await.1.is_none()
    })
    .await;
}

#[actix::test]
async fn a_job_beside_a_frozen_server_is_not_idle_once_its_tick_is_due() {
    let server = TestServer::start();
    let db = TestDatabase::at(&server.conninfo()).await;
    db.execute(EFFECTS).await;
    let instance = Instance::on(database(db.conninfo()), &db, &every("2s", EFFECT)).await;
    eventually("it has run", async || runs(&db, "true").await > 0).await;
    let before = Instant::now();
    let frozen = server.freeze();
    waits_since_its_tick(&instance, before).await;
    drop(frozen);
    instance.stop(Shutdown::Fast).await;
}

#[actix::test]
async fn a_job_whose_tables_are_gone_is_not_idle_once_its_tick_is_due() {
    let db = stage().await;
    let name: String = db.value("SELECT current_database()::text").await;
    let role = format!("{name}_role");
    db.execute(&format!(
        "CREATE ROLE {role} LOGIN; GRANT CREATE ON DATABASE {name} TO {role}"
    ))
    .await;
    let as_role = database(&db.conninfo_with("user", &role));
    let instance = Instance::on(as_role, &db, &every("2s", "SELECT 1")).await;
    eventually("it has run", async || runs(&db, "true").await > 0).await;
    let before = Instant::now();
    db.execute(&format!(
        "REVOKE CREATE ON DATABASE {name} FROM {role}; DROP SCHEMA bgworker CASCADE"
    ))
    .await;
    waits_since_its_tick(&instance, before).await;
    instance.stop(Shutdown::Fast).await;
    db.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))
        .await;
}
