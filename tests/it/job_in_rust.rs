//! Jobs in Rust: what holds for statements holds for any work.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bgworker::schedule::Schedule;
use bgworker::supervision::{Limits, Shutdown};
use bgworker::ticked::{self, Failure, Isolation, Job, Tick, Work};
use bgworker::{BackgroundWorker, Postmaster, PostmasterHandle, RestartTime};

use crate::support::database::TestDatabase;
use crate::support::eventually;
use crate::support::jobs::{EFFECT, runs, stage};
use crate::support::ticks::assert_exact;

const SECOND: Duration = Duration::from_secs(1);

fn each_second() -> Schedule {
    Schedule::every(SECOND).unwrap()
}

fn in_transaction(work: impl Work) -> Job {
    Job::in_transaction(each_second(), Isolation::ReadCommitted, "v1", work)
}

/// An instance that has this job, under the name `j`.
async fn instance(db: &TestDatabase, job: Job) -> PostmasterHandle {
    let database = crate::support::database::database(db.conninfo());
    let postmaster = Postmaster::launch(Limits::default(), Some(database)).unwrap();
    let worker = BackgroundWorker::new("j");
    let registered = postmaster.register(worker, ticked::main(job));
    registered.await.unwrap();
    postmaster
}

async fn stop(postmaster: PostmasterHandle) {
    postmaster.shut_down(Shutdown::Fast);
    postmaster.exited().await.unwrap();
}

async fn insert(tick: &Tick<'_>) -> Result<u64, Failure> {
    tick.connection().batch_execute("record", EFFECT).await?;
    Ok(1)
}

#[actix::test]
async fn three_instances_do_each_tick_once() {
    let db = stage().await;
    let mut instances = Vec::new();
    for _ in 0..3 {
        instances.push(instance(&db, in_transaction(insert)).await);
    }
    eventually("five ticks are done", async || {
        runs(&db, "outcome = 'done'").await >= 5
    })
    .await;
    for instance in instances {
        stop(instance).await;
    }
    assert_exact(&db).await;
}

#[actix::test]
async fn work_that_fails_is_undone_and_tried_again() {
    let db = stage().await;
    let attempts = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&attempts);
    let work = async move |tick: &Tick<'_>| {
        insert(tick).await?;
        seen.fetch_max(tick.attempt(), Ordering::Relaxed);
        if tick.attempt() < 3 {
            return Err(Failure::from("the other service said no"));
        }
        Ok(1)
    };
    let wait = RestartTime::After(Duration::from_millis(50));
    let instance = instance(&db, in_transaction(work).attempts(3, wait)).await;
    eventually("a tick is done", async || {
        runs(&db, "outcome = 'done'").await > 0
    })
    .await;
    stop(instance).await;
    assert_eq!(attempts.load(Ordering::Relaxed), 3);
    let why = "message = 'the other service said no'";
    assert!(runs(&db, &format!("outcome = 'failed' AND {why}")).await >= 2);
    let undone = "SELECT count(*) FROM effect";
    let done = runs(&db, "outcome = 'done'").await;
    assert_eq!(db.value::<i64>(undone).await, done);
}

#[actix::test]
async fn a_constraint_that_was_deferred_fails_the_work() {
    let db = stage().await;
    db.execute("ALTER TABLE effect ADD UNIQUE (by) DEFERRABLE INITIALLY DEFERRED")
        .await;
    let instance = instance(&db, in_transaction(insert)).await;
    eventually("the second one fails", async || {
        runs(&db, "outcome = 'failed' AND sqlstate = '23505'").await > 0
    })
    .await;
    stop(instance).await;
    assert_eq!(runs(&db, "outcome = 'done'").await, 1);
}

#[actix::test]
async fn the_time_of_a_run_is_over_also_while_a_constraint_is_checked_that_was_deferred() {
    let db = stage().await;
    db.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(60); RETURN NULL; END'; \
         CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON effect DEFERRABLE INITIALLY DEFERRED \
         FOR EACH ROW EXECUTE FUNCTION slow()",
    )
    .await;
    let job = in_transaction(insert).timeout(Duration::from_millis(200));
    let instance = instance(&db, job).await;
    let why = "sqlstate = '57014' AND message LIKE '%: the job''s \"timeout\" of 200ms was over'";
    eventually("it fails", async || runs(&db, why).await > 0).await;
    stop(instance).await;
    assert_eq!(runs(&db, "outcome = 'done'").await, 0);
}

#[actix::test]
async fn work_that_ends_its_transaction_is_not_marked_as_done() {
    let db = stage().await;
    for ends in ["COMMIT", "COMMIT; BEGIN", "COMMIT; BEGIN; SAVEPOINT run"] {
        let work = async move |tick: &Tick<'_>| {
            insert(tick).await?;
            tick.connection().batch_execute("end it", ends).await?;
            Ok(1)
        };
        let instance = instance(&db, in_transaction(work)).await;
        eventually("it is said", async || {
            let workers = instance.workers().await.unwrap();
            let error = workers.registered[0].report.last_error.clone();
            error.is_some_and(|error| error.contains("a statement ended that transaction"))
        })
        .await;
        stop(instance).await;
        assert_eq!(runs(&db, "true").await, 0, "{ends}");
    }
}

#[actix::test]
async fn work_that_takes_longer_than_its_timeout_fails() {
    let db = stage().await;
    let forever = async |tick: &Tick<'_>| {
        insert(tick).await?;
        std::future::pending().await
    };
    let job = in_transaction(forever).timeout(Duration::from_millis(200));
    let instance = instance(&db, job).await;
    let why = "message = 'the job''s \"timeout\" of 200ms was over'";
    eventually("it fails", async || runs(&db, why).await > 0).await;
    stop(instance).await;
    assert_eq!(db.value::<i64>("SELECT count(*) FROM effect").await, 0);
}

#[actix::test]
async fn work_that_sends_nothing_for_longer_than_a_frozen_instance_may_commits() {
    let (db, slowly) = (stage().await, Duration::from_secs(12));
    let slow = async move |tick: &Tick<'_>| {
        insert(tick).await?;
        tokio::time::sleep(slowly).await;
        insert(tick).await?;
        Ok(2)
    };
    let outside = Job::outside(each_second(), "v1", slow);
    for job in [in_transaction(slow), outside] {
        db.execute("TRUNCATE effect; DROP SCHEMA IF EXISTS bgworker CASCADE")
            .await;
        let instance = instance(&db, job).await;
        eventually("it is done", async || {
            runs(&db, "outcome = 'done' AND rows = 2").await > 0
        })
        .await;
        stop(instance).await;
        assert_eq!(runs(&db, "outcome <> 'done'").await, 0);
    }
}

#[actix::test]
async fn a_panic_ends_the_worker_and_undoes_its_run() {
    let db = stage().await;
    let panics = async |tick: &Tick<'_>| {
        insert(tick).await?;
        panic!("on purpose");
    };
    let database = crate::support::database::database(db.conninfo());
    let postmaster = Postmaster::launch(Limits::default(), Some(database)).unwrap();
    let worker = BackgroundWorker::new("j").restart_time(RestartTime::Never);
    let job = postmaster.register(worker, ticked::main(in_transaction(panics)));
    let job = job.await.unwrap();
    job.stopped().await.unwrap();
    stop(postmaster).await;
    assert_eq!(db.value::<i64>("SELECT count(*) FROM effect").await, 0);
    assert_eq!(runs(&db, "outcome = 'done'").await, 0);
}
