//! Which job a worker runs: its row in the database, who declared it, and what becomes of an instance whose row is gone.

use bgworker::database::{ConnInfo, Database, Settings};
use bgworker::supervision::Shutdown;
use bgworker::{JobReport, JobState, ticked};
use tracing::Level;

use crate::http::is_ready;
use crate::support::database::{TestDatabase, database};
use crate::support::eventually;
use crate::support::jobs::{EFFECT, Instance, every, runs, stage};
use crate::support::log::Log;

/// Drops what jobs are recorded in.
const DROP: &str = "DROP SCHEMA bgworker CASCADE";

async fn job(instance: &Instance) -> Option<JobReport> {
    let workers = instance.postmaster.workers().await.unwrap();
    workers.registered[0].report.job.clone()
}

/// Waits until an instance says this of its job.
async fn says(instance: &Instance, what: &str) {
    eventually(&format!("it says {what:?}"), async || {
        // It need not wait for the end of the minute.
        instance.postmaster.sighup();
        let why = job(instance).await.and_then(|job| job.why);
        why.is_some_and(|why| why.contains(what))
    })
    .await;
}

async fn has_run(db: &TestDatabase) {
    eventually("it runs", async || runs(db, "outcome = 'done'").await > 0).await;
}

#[actix::test]
async fn instances_that_share_a_job_in_different_schemas_say_so_and_a_namespace_keeps_them_apart() {
    let log = Log::capture();
    let db = stage().await;
    let tenant = |path: &str, settings: Settings| {
        let conninfo = db.conninfo_with("options", &format!("-c search_path={path}"));
        Database::new(ConnInfo::parse(&conninfo, |_| None).unwrap(), settings).unwrap()
    };
    let keys = every("1h", "SELECT 1");
    let one = Instance::on(tenant("one", Settings::default()), &db, &keys).await;
    eventually("it has looked", async || job(&one).await.is_some()).await;
    let two = Instance::on(tenant("two", Settings::default()), &db, &keys).await;
    says(&one, "namespace").await;
    let told = log.with(Level::WARN, "another instance");
    assert!(
        told.iter().any(|line| line.contains("search_path one")),
        "{told:?}"
    );
    assert!(
        told.iter().any(|line| line.contains("search_path two")),
        "{told:?}"
    );
    assert!(is_ready(&one.postmaster).await && is_ready(&two.postmaster).await);
    let apart = Settings::default().namespace("three");
    let three = Instance::on(tenant("three", apart), &db, &keys).await;
    eventually("it has looked", async || job(&three).await.is_some()).await;
    let rows = "SELECT string_agg(name, ' ' ORDER BY name COLLATE \"C\") FROM bgworker.job";
    assert_eq!(db.value::<String>(rows).await, "j three/j");
    db.execute("UPDATE bgworker.job SET last_tick = last_tick - interval '1 h'")
        .await;
    three.postmaster.sighup();
    has_run(&db).await;
    let settings = crate::support::jobs::settings_of(&db, &[("j".to_owned(), &keys)]);
    let when = settings.workers[0].function.when().unwrap();
    let never = std::future::pending();
    let apart = tenant("three", Settings::default().namespace("three"));
    ticked::once(&apart, "j", &when, ticked::Once::default(), never)
        .await
        .unwrap();
    assert_eq!(runs(&db, "name = 'three/j' AND outcome = 'once'").await, 1);
    assert_eq!(job(&three).await.unwrap().why, None);
    for instance in [one, two, three] {
        instance.stop(Shutdown::Smart).await;
    }
}

#[actix::test]
async fn tables_that_are_dropped_under_an_instance_are_made_again_and_it_says_what_is_lost() {
    for drop in [
        DROP,
        "DROP TABLE bgworker.job",
        "DROP TABLE bgworker.job_run",
        "DELETE FROM bgworker.job",
    ] {
        let log = Log::capture();
        let db = stage().await;
        let instance = Instance::new(&db, &every("1s", EFFECT)).await;
        has_run(&db).await;
        db.execute(&format!("{drop}; TRUNCATE effect")).await;
        eventually(&format!("after {drop}, it runs"), async || {
            // What failed is tried again at once.
            instance.postmaster.sighup();
            let has_tables = "SELECT to_regclass('bgworker.job') IS NOT NULL";
            db.value::<bool>(has_tables).await
                && runs(&db, "true").await > 0
                && db.value::<i64>("SELECT count(*) FROM effect").await > 0
        })
        .await;
        let lost = log
            .with(Level::WARN, "the row of the job in bgworker.job is gone")
            .len();
        let made = log.with(Level::INFO, "made the tables of jobs").len();
        let is_row = !drop.ends_with("job_run");
        let is_table = drop.starts_with("DROP");
        assert_eq!(
            (lost, made),
            (is_row.into(), 1 + usize::from(is_table)),
            "{drop}"
        );
        instance.stop(Shutdown::Smart).await;
    }
}

#[actix::test]
async fn an_instance_that_may_not_make_dropped_tables_again_names_the_statement() {
    let db = stage().await;
    let name: String = db.value("SELECT current_database()::text").await;
    let role = format!("{name}_role");
    let may_create = format!("CREATE ON DATABASE {name}");
    db.execute(&format!(
        "CREATE ROLE {role} LOGIN; GRANT {may_create} TO {role}"
    ))
    .await;
    let as_role = database(&db.conninfo_with("user", &role));
    let instance = Instance::on(as_role, &db, &every("1s", "SELECT 1")).await;
    has_run(&db).await;
    db.execute(&format!("REVOKE {may_create} FROM {role}; {DROP}"))
        .await;
    let error = async || {
        let workers = instance.postmaster.workers().await.unwrap();
        let error = workers.registered[0].report.last_error.clone();
        error.map(|error| error.to_string()).unwrap_or_default()
    };
    eventually("it names it", async || {
        error().await.contains("GRANT CREATE")
    })
    .await;
    let mend = error().await;
    db.execute(&mend[mend.find("GRANT CREATE").unwrap()..])
        .await;
    eventually("it runs again", async || {
        instance.postmaster.sighup();
        runs(&db, "true").await > 0
    })
    .await;
    instance.stop(Shutdown::Smart).await;
    db.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))
        .await;
}

#[actix::test]
async fn the_first_window_of_a_job_begins_at_the_moment_of_its_declaration() {
    let db = stage().await;
    let before: f64 = db.value("SELECT extract(epoch FROM now())::float8").await;
    let instance = Instance::new(&db, &every("1h", EFFECT)).await;
    eventually("it has looked", async || job(&instance).await.is_some()).await;
    db.execute("UPDATE bgworker.job SET last_tick = last_tick - interval '1 h'")
        .await;
    instance.postmaster.sighup();
    has_run(&db).await;
    let previous = "SELECT extract(epoch FROM previous)::float8 FROM effect";
    let previous: f64 = db.value(previous).await;
    assert!(previous >= before, "{previous} is before {before}");
    instance.stop(Shutdown::Smart).await;
}

#[actix::test]
async fn an_instance_that_loses_its_run_says_so() {
    let log = Log::capture();
    let db = stage().await;
    let instance = Instance::new(&db, &every("1s", "SELECT pg_sleep(60)")).await;
    eventually("its session is ended in the middle", async || {
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                   WHERE datname = current_database() AND application_name = 'j' AND wait_event = 'PgSleep'";
        db.value::<i64>(end).await == 1
    })
    .await;
    eventually("it is recorded, and said", async || {
        !log.with(Level::WARN, "j: failed: ").is_empty()
    })
    .await;
    assert_ne!(
        job(&instance).await.map(|job| job.state),
        Some(JobState::GivenUp)
    );
    instance.stop(Shutdown::Fast).await;
    let said = log.with(Level::WARN, "terminating connection");
    assert_eq!(said.len(), 1, "one line for one event: {}", log.text());
}
