//! The health of jobs: an instance that gives up a tick is unhealthy until the job is done.

use std::time::Duration;

use bgworker::sql::{self, Once};
use bgworker::supervision::Shutdown;

use crate::http::is_ready;
use crate::jobs::{Instance, every, runs, settings_of, stage};
use crate::support::database::{TestDatabase, database};
use crate::support::within;

const LIMIT: Duration = Duration::from_secs(20);

/// Statement that fails while there is no effect.
const FAILS_AT_FIRST: &str = "SELECT 1 / count(*) FROM effect";

/// Makes a daily job as it was before its last tick.
const BEFORE_TICK: &str = "UPDATE bgworker.job SET last_tick = last_tick - interval '24 h', \
    last_done = last_done - interval '24 h'";

/// Makes the tick that was given up due again.
const DUE_AGAIN: &str = "UPDATE bgworker.job SET last_tick = last_done";

/// An instance with a job that is tried once a day, and fails at first.
async fn daily(db: &TestDatabase) -> (Instance, String) {
    let keys = format!("attempts = 1\n{}", every("24h", FAILS_AT_FIRST));
    // Instances with one handle would share their looks.
    let instance = Instance::on(database(db.conninfo()), db, &keys).await;
    is_ready_soon(&instance).await;
    (instance, keys)
}

async fn is_ready_soon(instance: &Instance) {
    within(LIMIT, "it is healthy", || is_ready(&instance.postmaster)).await;
}

/// Lets the instance look at its job now, and waits until it is unhealthy.
async fn gives_up(instance: &Instance) {
    instance.postmaster.sighup();
    within(LIMIT, "it is unhealthy", || async {
        !is_ready(&instance.postmaster).await
    })
    .await;
}

#[actix::test]
async fn an_instance_that_gives_up_a_tick_is_unhealthy_until_another_has_done_one() {
    let db = stage().await;
    let ((one, _), (other, _)) = (daily(&db).await, daily(&db).await);
    db.execute(BEFORE_TICK).await;
    gives_up(&one).await;
    assert!(is_ready(&other.postmaster).await);
    db.execute(&format!("INSERT INTO effect DEFAULT VALUES; {DUE_AGAIN}"))
        .await;
    other.postmaster.sighup();
    within(LIMIT, "the other does it", || async {
        runs(&db, "outcome = 'done'").await == 1
    })
    .await;
    assert!(!is_ready(&one.postmaster).await, "it has not looked yet");
    one.postmaster.sighup();
    for instance in [one, other] {
        is_ready_soon(&instance).await;
        instance.stop(Shutdown::Smart).await;
    }
}

#[actix::test]
async fn a_run_by_hand_that_succeeds_makes_the_instance_healthy() {
    let db = stage().await;
    let (instance, keys) = daily(&db).await;
    db.execute(BEFORE_TICK).await;
    gives_up(&instance).await;
    let settings = settings_of(&db, &[("j".to_owned(), &keys)]);
    let job = settings.workers[0].function.settings::<sql::Settings>();
    let run = || {
        let never = std::future::pending();
        sql::once(&db.database, "j", job.unwrap(), Once::default(), never)
    };
    let then: String = db.value("SELECT now()::text").await;
    run().await.unwrap_err();
    instance.postmaster.sighup();
    let has_looked = format!(
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle' \
         AND query LIKE '%r.message IS NULL%' AND query_start > '{then}')"
    );
    within(LIMIT, "it has looked", || db.value(&has_looked)).await;
    assert!(!is_ready(&instance.postmaster).await);
    db.execute("INSERT INTO effect DEFAULT VALUES").await;
    run().await.unwrap();
    instance.postmaster.sighup();
    is_ready_soon(&instance).await;
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
    let report = async || {
        instance.postmaster.workers().await.unwrap().registered[0]
            .report
            .clone()
    };
    within(LIMIT, "it fails", || async {
        report().await.last_error.is_some()
    })
    .await;
    let failed = report().await;
    instance.postmaster.sighup();
    within(LIMIT, "it has looked again and naps", || async {
        report().await.napping
    })
    .await;
    let after = report().await;
    assert_eq!(
        (after.cycles, after.consecutive_failures),
        (failed.cycles, 1)
    );
    assert!(is_ready(&instance.postmaster).await, "it is not given up");
    instance.stop(Shutdown::Smart).await;
}
