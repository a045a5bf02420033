//! Declarations: which instance is right about what a job does, what a declaration leaves alone, and who takes a job over
//! that no instance runs.

use std::time::Duration;

use bgworker::supervision::Shutdown;
use bgworker::ticked::{self, Redeclared};
use bgworker::{JobReport, JobState};
use tracing::Level;

use crate::support::database::{TestDatabase, database};
use crate::support::jobs::{EFFECT, Instance, every, runs, settings_of, stage};
use crate::support::log::Log;
use crate::support::{eventually, within};

const SECOND: Duration = Duration::from_secs(1);

/// The tables as the first versions made them.
const FIRST_TABLES: &str = "CREATE SCHEMA bgworker; \
    CREATE TABLE bgworker.job (name text PRIMARY KEY, declared text NOT NULL, declared_by text NOT NULL, \
    last_tick timestamptz NOT NULL, last_done timestamptz NOT NULL, runs bigint NOT NULL DEFAULT 0, \
    attempt int NOT NULL DEFAULT 0, attempt_tick timestamptz, retry_at timestamptz, running_since timestamptz); \
    CREATE TABLE bgworker.job_run (name text, slot int, run bigint NOT NULL, tick timestamptz NOT NULL, \
    started_at timestamptz NOT NULL, finished_at timestamptz NOT NULL, outcome text NOT NULL, attempt int NOT NULL, \
    rows bigint, sqlstate text, message text, PRIMARY KEY (name, slot))";

/// What an instance of the first versions runs to declare a job: another schedule, whose newest tick is now.
const FIRST_DECLARES: &str = "UPDATE bgworker.job SET declared = 'first-version', declared_by = 'first', attempt = 0, \
    retry_at = NULL, running_since = NULL, last_tick = now()";

/// A job that sleeps in the middle, outside of a transaction.
const SLEEPS: &str = "transaction = false\nattempts = 1";

/// An instance in a process of its own, as far as others can tell.
async fn instance(db: &TestDatabase, keys: &str) -> Instance {
    Instance::on(database(db.conninfo()), db, keys).await
}

async fn job(instance: &Instance) -> Option<JobReport> {
    let workers = instance.postmaster.workers().await.unwrap();
    workers.registered[0].report.job.clone()
}

async fn is_in_state(instance: &Instance, state: JobState) {
    within(
        20 * SECOND,
        &format!("it is in the state {state}"),
        async || {
            instance.postmaster.sighup();
            job(instance).await.is_some_and(|job| job.state == state)
        },
    )
    .await;
}

async fn declared(db: &TestDatabase) -> String {
    db.value("SELECT declared FROM bgworker.job").await
}

async fn effects(db: &TestDatabase) -> i64 {
    db.value("SELECT count(*) FROM effect").await
}

/// Makes a job's tick due that comes once a day.
async fn set_back(db: &TestDatabase, instance: &Instance) {
    db.execute("UPDATE bgworker.job SET last_tick = last_tick - interval '24 h'")
        .await;
    instance.postmaster.sighup();
}

/// Waits until a statement of a job sleeps.
async fn sleeps(db: &TestDatabase) {
    eventually("it sleeps", async || {
        let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
            AND application_name = 'j' AND wait_event = 'PgSleep'";
        db.value::<i64>(sleeping).await == 1
    })
    .await;
}

/// Ends the session in which a statement of a job sleeps.
async fn end(db: &TestDatabase) {
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() \
        AND application_name = 'j' AND wait_event = 'PgSleep'";
    assert_eq!(db.value::<i64>(end).await, 1);
}

#[actix::test]
async fn a_declaration_waits_for_a_run_outside_of_a_transaction_whose_tick_is_not_run_again() {
    let db = stage().await;
    let sql = format!("{EFFECT};\nSELECT pg_sleep(60)");
    let one = instance(&db, &format!("{SLEEPS}\n{}", every("24h", &sql))).await;
    is_in_state(&one, JobState::Idle).await;
    set_back(&db, &one).await;
    sleeps(&db).await;
    let before = declared(&db).await;
    let another = format!("{sql};\nSELECT 1");
    let other = instance(&db, &format!("{SLEEPS}\n{}", every("24h", &another))).await;
    is_in_state(&other, JobState::Waiting).await;
    let why = job(&other).await.unwrap().why.unwrap();
    assert!(why.contains("declares it once that run is over"), "{why}");
    assert_eq!(declared(&db).await, before);
    one.postmaster.shut_down(Shutdown::Immediate);
    end(&db).await;
    eventually("its end is recorded", async || {
        runs(&db, "outcome = 'given up' AND message LIKE 'interrupted%'").await == 1
    })
    .await;
    is_in_state(&other, JobState::GivenUp).await;
    assert_ne!(declared(&db).await, before);
    assert_eq!((effects(&db).await, runs(&db, "true").await), (1, 1));
    other.stop(Shutdown::Smart).await;
}

#[actix::test]
async fn an_earlier_version_that_declares_a_job_during_a_run_turns_no_tick_back_and_makes_none_run_again()
 {
    let db = stage().await;
    let sql = format!("{EFFECT};\nSELECT pg_sleep(3)");
    let one = instance(&db, &format!("{SLEEPS}\n{}", every("24h", &sql))).await;
    is_in_state(&one, JobState::Idle).await;
    set_back(&db, &one).await;
    sleeps(&db).await;
    let ours = declared(&db).await;
    db.execute(FIRST_DECLARES).await;
    is_in_state(&one, JobState::DeclaredDifferently).await;
    let row = "SELECT last_tick > now() - interval '1 min' AND running_tick IS NOT NULL AND runs = 0 FROM bgworker.job";
    assert!(db.value::<bool>(row).await);
    // Its instance is gone, and with it what it had declared.
    let back = format!(
        "UPDATE bgworker.job SET declared = '{ours}', last_tick = last_tick - interval '24 h'"
    );
    db.execute(&back).await;
    eventually("the run is recorded", async || {
        one.postmaster.sighup();
        runs(&db, "outcome = 'given up' AND message LIKE 'interrupted%'").await == 1
    })
    .await;
    let row = "SELECT running_tick IS NULL AND running_since IS NULL FROM bgworker.job";
    assert!(db.value::<bool>(row).await);
    assert_eq!(effects(&db).await, 1);
    one.stop(Shutdown::Smart).await;
}

#[actix::test]
async fn what_an_earlier_version_declares_again_and_again_is_kept_once() {
    let db = stage().await;
    for _ in 0..3 {
        let one = instance(&db, &every("1h", "SELECT 1")).await;
        is_in_state(&one, JobState::Idle).await;
        one.stop(Shutdown::Smart).await;
        db.execute(FIRST_DECLARES).await;
    }
    let before = "SELECT declared_before::text FROM bgworker.job";
    assert_eq!(db.value::<String>(before).await, "{first-version}");
}

#[actix::test]
async fn a_run_whose_lock_was_given_away_is_recorded_once() {
    let db = stage().await;
    let sql = format!("{EFFECT};\nSELECT pg_advisory_unlock_all();\nSELECT pg_sleep(3)");
    let keys = format!("{SLEEPS}\n{}", every("24h", &sql));
    let instances = [instance(&db, &keys).await, instance(&db, &keys).await];
    is_in_state(&instances[0], JobState::Idle).await;
    set_back(&db, &instances[0]).await;
    sleeps(&db).await;
    for instance in &instances {
        instance.postmaster.sighup();
    }
    eventually("it is recorded", async || runs(&db, "true").await > 0).await;
    eventually("nothing sleeps", async || {
        let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()";
        db.value::<i64>(sleeping).await == 0
    })
    .await;
    for instance in instances {
        instance.stop(Shutdown::Smart).await;
    }
    assert_eq!((runs(&db, "true").await, effects(&db).await), (1, 1));
}

#[actix::test]
async fn a_declaration_keeps_the_attempts_of_the_tick_that_is_due() {
    let db = stage().await;
    let fails = |sql: &str| format!("attempts = 3\nrestart_time = \"1h\"\n{}", every("24h", sql));
    let one = instance(&db, &fails("SELECT 1/0")).await;
    is_in_state(&one, JobState::Idle).await;
    set_back(&db, &one).await;
    is_in_state(&one, JobState::Failing).await;
    let other = instance(&db, &fails("SELECT 2/0")).await;
    // It is tried at once, since what is declared may be what mends it.
    eventually("it is tried again", async || runs(&db, "true").await == 2).await;
    let attempts = "SELECT string_agg(attempt::text, ' ' ORDER BY run) FROM bgworker.job_run";
    assert_eq!(db.value::<String>(attempts).await, "1 2");
    for instance in [one, other] {
        instance.stop(Shutdown::Smart).await;
    }
}

#[actix::test]
async fn a_job_that_no_instance_runs_is_taken_over_by_one_that_stands_by() {
    let log = Log::capture();
    let db = stage().await;
    let newer_keys = every("1s", &format!("{EFFECT} || ' newer'"));
    let older = instance(&db, &every("1s", EFFECT)).await;
    is_in_state(&older, JobState::Idle).await;
    let newer = instance(&db, &newer_keys).await;
    is_in_state(&older, JobState::DeclaredDifferently).await;
    eventually("the newer one runs", async || {
        db.value::<bool>("SELECT EXISTS (SELECT FROM effect WHERE by LIKE '% newer')")
            .await
    })
    .await;
    newer.stop(Shutdown::Smart).await;
    db.execute("UPDATE bgworker.job SET last_tick = last_tick - interval '5 min'; TRUNCATE effect")
        .await;
    is_in_state(&older, JobState::Overdue).await;
    // It was seen a moment ago, and may only be hindered.
    let seen = "SELECT EXISTS (SELECT FROM bgworker.job_instance AS i, bgworker.job AS j WHERE i.jobs ->> j.name = j.declared)";
    assert!(db.value::<bool>(seen).await);
    assert_eq!(effects(&db).await, 0);
    db.execute("UPDATE bgworker.job_instance SET seen_at = seen_at - interval '3 min'")
        .await;
    within(40 * SECOND, "the older one takes it over", async || {
        older.postmaster.sighup();
        effects(&db).await > 1
    })
    .await;
    let said = log.with(Level::WARN, "takes over the job");
    assert_eq!(said.len(), 1, "{said:?}");
    let newer = instance(&db, &newer_keys).await;
    is_in_state(&newer, JobState::DeclaredDifferently).await;
    for instance in [older, newer] {
        instance.stop(Shutdown::Smart).await;
    }
    let twice = "SELECT count(*) - count(DISTINCT tick) FROM effect";
    assert_eq!(db.value::<i64>(twice).await, 0);
}

#[actix::test]
async fn a_tick_of_the_schedule_that_is_replaced_when_a_job_is_taken_over_is_given_up() {
    let db = stage().await;
    let older = instance(&db, &every("12h", EFFECT)).await;
    is_in_state(&older, JobState::Idle).await;
    let newer = instance(&db, &every("24h", EFFECT)).await;
    is_in_state(&older, JobState::DeclaredDifferently).await;
    newer.stop(Shutdown::Smart).await;
    db.execute(
        "UPDATE bgworker.job SET last_tick = last_tick - interval '48 h'; \
         UPDATE bgworker.job_instance SET seen_at = seen_at - interval '3 min'",
    )
    .await;
    within(40 * SECOND, "it is given up", async || {
        older.postmaster.sighup();
        runs(
            &db,
            "outcome = 'given up' AND message LIKE 'no instance ran it%'",
        )
        .await
            == 1
    })
    .await;
    is_in_state(&older, JobState::GivenUp).await;
    older.stop(Shutdown::Smart).await;
    assert_eq!((runs(&db, "true").await, effects(&db).await), (1, 0));
}

#[actix::test]
async fn a_start_does_not_bring_back_what_was_replaced_and_a_reload_and_declare_do() {
    let db = stage().await;
    let [first, second] = ["SELECT 1", "SELECT 2"].map(|sql| every("1h", sql));
    let one = instance(&db, &first).await;
    is_in_state(&one, JobState::Idle).await;
    let first_declared = declared(&db).await;
    let mut two = instance(&db, &second).await;
    is_in_state(&one, JobState::DeclaredDifferently).await;
    let second_declared = declared(&db).await;
    let recorded = "SELECT concat_ws(' ', substr(declaration, length(declared) + 5), declared_before) FROM bgworker.job";
    assert_eq!(
        db.value::<String>(recorded).await,
        format!("every=\"3600s\" transaction=true {{{first_declared}}}")
    );
    one.stop(Shutdown::Smart).await;

    let one = instance(&db, &first).await;
    is_in_state(&one, JobState::DeclaredDifferently).await;
    assert_eq!(declared(&db).await, second_declared);

    let settings = settings_of(&db, &[("j".to_owned(), &*first)]);
    let when = settings.workers[0].function.when().unwrap();
    let redeclared = ticked::redeclare(&db.database, "j", &when).await.unwrap();
    assert!(
        matches!(redeclared, Redeclared::InPlaceOf(_)),
        "{redeclared:?}"
    );
    assert_eq!(declared(&db).await, first_declared);
    is_in_state(&one, JobState::Idle).await;
    is_in_state(&two, JobState::DeclaredDifferently).await;
    let redeclared = ticked::redeclare(&db.database, "j", &when).await.unwrap();
    assert_eq!(redeclared, Redeclared::Unchanged);

    for keys in [&first, &second] {
        let settings = settings_of(&db, &[("j".to_owned(), keys)]);
        two.reload(settings).await;
        is_in_state(&two, JobState::Idle).await;
    }
    assert_eq!(declared(&db).await, second_declared);
    for instance in [one, two] {
        instance.stop(Shutdown::Smart).await;
    }
}

#[actix::test]
async fn tables_of_an_earlier_version_are_used_as_they_are_and_added_to_when_that_need_not_wait() {
    let db = stage().await;
    db.execute(FIRST_TABLES).await;
    // A run of an hour would have such a lock.
    let client = TestDatabase::at(db.conninfo()).await;
    client
        .execute("BEGIN; LOCK TABLE bgworker.job IN ROW EXCLUSIVE MODE")
        .await;
    let one = instance(&db, &every("1s", EFFECT)).await;
    eventually("it runs", async || runs(&db, "outcome = 'done'").await > 1).await;
    let columns = "SELECT count(*) FROM pg_attribute WHERE attrelid = 'bgworker.job'::regclass AND attnum > 10";
    assert_eq!(db.value::<i64>(columns).await, 0);
    client.execute("COMMIT").await;
    let two = instance(&db, &every("1s", EFFECT)).await;
    eventually("the columns are added", async || {
        db.value::<i64>(columns).await == 3
    })
    .await;
    eventually("both run", async || {
        let seen = "SELECT count(*) FROM bgworker.job_instance AS i, bgworker.job AS j \
            WHERE i.jobs ->> j.name = j.declared AND j.declaration LIKE '% every=%'";
        one.postmaster.sighup();
        db.value::<i64>(seen).await == 2
    })
    .await;
    for instance in [one, two] {
        instance.stop(Shutdown::Smart).await;
    }
    let twice = "SELECT count(*) - count(DISTINCT tick) FROM effect";
    assert_eq!(db.value::<i64>(twice).await, 0);
}

#[actix::test]
async fn a_role_that_may_not_add_to_the_tables_runs_its_jobs_and_says_once_what_is_missing() {
    let log = Log::capture();
    let db = stage().await;
    let name: String = db.value("SELECT current_database()::text").await;
    let role = format!("{name}_role");
    db.execute(&format!(
        "{FIRST_TABLES}; CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA bgworker TO {role}; \
         GRANT SELECT, INSERT, UPDATE ON bgworker.job, bgworker.job_run TO {role}"
    ))
    .await;
    let settings: Vec<_> = (0..3)
        .map(|n| (format!("j{n}"), "every = \"1s\"\nsql = \"SELECT 1\""))
        .collect();
    let database = database(&db.conninfo_with("user", &role));
    let postmaster =
        bgworker::Postmaster::launch(bgworker::supervision::Limits::default(), Some(database));
    let settings = settings_of(&db, &settings);
    let instance = Instance::register(&postmaster.unwrap(), settings).await;
    eventually("they run", async || {
        let each = "SELECT count(DISTINCT name) FROM bgworker.job_run WHERE outcome = 'done'";
        db.value::<i64>(each).await == 3
    })
    .await;
    let said = log.with(Level::WARN, "was made by an earlier version");
    assert_eq!(said.len(), 1, "{said:?}");
    for statement in [
        "ALTER TABLE bgworker.job",
        "CREATE TABLE IF NOT EXISTS bgworker.job_instance",
    ] {
        assert!(said[0].contains(statement), "{said:?}");
    }
    instance.stop(Shutdown::Smart).await;
    db.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))
        .await;
}

#[actix::test]
async fn a_table_of_instances_with_another_roles_code_is_not_written_to() {
    let db = stage().await;
    let name: String = db.value("SELECT current_database()::text").await;
    let role = format!("{name}_role");
    db.execute(&format!(
        "{FIRST_TABLES}; CREATE ROLE {role}; CREATE TABLE bgworker.job_instance (instance text PRIMARY KEY, \
         seen_at timestamptz NOT NULL, jobs jsonb NOT NULL); \
         CREATE FUNCTION takes_over() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''taken over''; END'; \
         CREATE TRIGGER t BEFORE INSERT ON bgworker.job_instance FOR EACH ROW EXECUTE FUNCTION takes_over(); \
         ALTER TABLE bgworker.job_instance OWNER TO {role}"
    ))
    .await;
    let log = Log::capture();
    let instance = instance(&db, &every("1s", "SELECT 1")).await;
    eventually("it runs", async || runs(&db, "outcome = 'done'").await > 1).await;
    instance.stop(Shutdown::Smart).await;
    let text = log.text();
    assert!(text.contains("has the trigger t"), "{text}");
    assert!(!text.contains("taken over"), "{text}");
    db.execute(&format!(
        "DROP TABLE bgworker.job_instance; DROP ROLE {role}"
    ))
    .await;
}
