//! The sessions of jobs: what they are set to, what the server says in them, and how long they last.

use bgworker::Postmaster;
use bgworker::database::{self, ConnInfo, Database};
use bgworker::supervision::{Limits, Shutdown};
use tracing::Level;

use crate::support::database::TestDatabase;
use crate::support::eventually;
use crate::support::jobs::{EFFECT, Instance, every, runs, settings_of, stage};
use crate::support::log::Log;
use crate::support::server::TestServer;

async fn effects(db: &TestDatabase) -> i64 {
    db.value("SELECT count(*) FROM effect").await
}

#[actix::test]
async fn a_job_that_prepares_a_statement_can_do_so_in_each_run() {
    let db = stage().await;
    let prepares = format!("PREPARE p1 AS SELECT 1; {EFFECT}");
    let instance = Instance::new(&db, &every("200ms", &prepares)).await;
    eventually("three runs are done", async || effects(&db).await >= 3).await;
    instance.stop(Shutdown::Smart).await;
    assert_eq!(runs(&db, "outcome <> 'done'").await, 0);
}

#[actix::test]
async fn jobs_that_deallocate_what_is_prepared_run_each_tick_once_and_disturb_no_other_job() {
    let db = stage().await;
    let deallocates = "DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$";
    let takes_places = "DO $$ DECLARE one text; BEGIN FOR one IN SELECT name FROM pg_prepared_statements LOOP \
                        EXECUTE format('DEALLOCATE %I', one); END LOOP; EXECUTE 'PREPARE a AS SELECT 1'; \
                        EXECUTE 'PREPARE b AS SELECT 1'; END $$";
    let naps =
        format!("start_time = \"consistent_state\"\nnaptime = \"100ms\"\nsql = \"{deallocates}\"");
    let jobs = [
        every("100ms", &format!("{EFFECT}; {deallocates}")),
        every("100ms", &format!("{EFFECT}; {takes_places}")),
        every("100ms", EFFECT),
        naps,
    ];
    let jobs: Vec<_> = (0..4).map(|n| format!("j{n}")).zip(&jobs).collect();
    let jobs: Vec<_> = jobs
        .iter()
        .map(|(name, keys)| (name.clone(), keys.as_str()))
        .collect();
    // All of them run on one connection.
    let conninfo = ConnInfo::parse(db.conninfo(), |_| None).unwrap();
    let one = Database::new(conninfo, database::Settings::default().jobs(1)).unwrap();
    let postmaster = Postmaster::launch(Limits::default(), Some(one)).unwrap();
    let instance = Instance::register(&postmaster, settings_of(&db, &jobs)).await;
    let often = "SELECT count(*) FROM bgworker.job WHERE runs >= 10";
    eventually("each has run", async || {
        runs(&db, "true").await > 0 && db.value::<i64>(often).await == 3
    })
    .await;
    instance.stop(Shutdown::Smart).await;
    assert_eq!(runs(&db, "outcome <> 'done'").await, 0);
    let done: i64 = db.value("SELECT sum(runs)::bigint FROM bgworker.job").await;
    assert_eq!(effects(&db).await, done);
}

#[actix::test]
async fn a_job_does_not_write_into_a_database_that_was_made_read_only_and_uses_up_no_attempt() {
    let db = stage().await;
    let name: String = db.value("SELECT current_database()::text").await;
    let keys = format!("attempts = 1\n{}", every("200ms", EFFECT));
    let instance = Instance::new(&db, &keys).await;
    eventually("it runs", async || effects(&db).await > 0).await;
    let read_only = format!("ALTER DATABASE {name} SET default_transaction_read_only = on");
    db.execute(&read_only).await;
    db.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    .await;
    eventually("it is said", async || {
        let workers = instance.postmaster.workers().await.unwrap();
        let error = workers.registered[0].report.last_error.clone();
        error.is_some_and(|error| error.contains("the database was made read-only for this role"))
    })
    .await;
    let (before, given_up) = (effects(&db).await, runs(&db, "outcome = 'given up'").await);
    let writable = format!("ALTER DATABASE {name} RESET default_transaction_read_only");
    db.execute(&writable).await;
    eventually("it goes on", async || effects(&db).await > before).await;
    instance.stop(Shutdown::Smart).await;
    // The run that was ended with its session counts, and no other.
    assert!(given_up <= 1, "{given_up}");
    assert_eq!(runs(&db, "outcome = 'given up'").await, given_up);
}

#[actix::test]
async fn the_server_frees_the_lock_of_a_frozen_instance() {
    let db = stage().await;
    let sql = "INSERT INTO effect (by) VALUES (current_setting('idle_session_timeout'))";
    let keys = format!(
        "transaction = false\n{}",
        every("200ms", &format!("{sql}; {sql}"))
    );
    let instance = Instance::new(&db, &keys).await;
    eventually("it runs", async || effects(&db).await >= 2).await;
    instance.stop(Shutdown::Smart).await;
    let unlike = "SELECT count(*) FROM effect WHERE by <> '10s'";
    assert_eq!(db.value::<i64>(unlike).await, 0);
}

#[actix::test]
async fn what_a_statement_makes_the_server_say_is_cut_in_the_history_and_in_the_log() {
    let log = Log::capture();
    let db = stage().await;
    let says = "DO $$ BEGIN FOR n IN 1..30 LOOP RAISE NOTICE 'note % %', n, repeat('x', 100000); END LOOP; \
                RAISE WARNING 'mind this'; RAISE EXCEPTION '%', repeat('é', 500000); END $$";
    let keys = format!("attempts = 1\n{}", every("1s", says));
    let warns = "DO $$ BEGIN RAISE WARNING 'mind this'; END $$";
    let instance = Instance::new(&db, &keys).await;
    eventually("it is given up", async || {
        runs(&db, "outcome = 'given up'").await > 0
    })
    .await;
    instance.stop(Shutdown::Smart).await;
    let message: String = db
        .value("SELECT message FROM bgworker.job_run LIMIT 1")
        .await;
    assert!(message.len() < 5_000, "{}", message.len());
    assert!(message.contains("é… (cut, of 1000000 bytes)"), "{message}");
    assert!(log.text().len() < 500_000, "{}", log.text().len());
    let notes = log.with(Level::INFO, "j: NOTICE: note 2 x");
    assert!(!notes.is_empty() && notes[0].contains("(cut, of 100007 bytes)"));
    assert!(
        log.with(Level::INFO, "note 21 ").is_empty(),
        "a run has a limit"
    );
    let instance = Instance::new(&db, &every("200ms", warns)).await;
    eventually("it is warned", async || {
        !log.with(Level::WARN, "j: WARNING: mind this").is_empty()
    })
    .await;
    instance.stop(Shutdown::Smart).await;
}

#[actix::test]
async fn after_a_reload_a_job_runs_in_a_session_with_the_settings_of_now() {
    let db = stage().await;
    let name: String = db.value("SELECT current_database()::text").await;
    let sql = "INSERT INTO effect (by) VALUES (current_setting('application_name') || current_setting('work_mem'))";
    let instance = Instance::new(&db, &every("200ms", sql)).await;
    eventually("it runs", async || effects(&db).await > 0).await;
    db.execute(&format!("ALTER DATABASE {name} SET work_mem = '5MB'"))
        .await;
    instance.postmaster.sighup();
    eventually("it has the new setting", async || {
        let seen = "SELECT count(*) FROM effect WHERE by = 'j5MB'";
        db.value::<i64>(seen).await > 0
    })
    .await;
    instance.stop(Shutdown::Smart).await;
}

#[actix::test]
async fn a_run_that_waits_for_a_connection_says_so_and_keeps_its_place() {
    let db = stage().await;
    let conninfo = ConnInfo::parse(db.conninfo(), |_| None).unwrap();
    let settings = database::Settings::default().jobs(1);
    let narrow = Database::new(conninfo, settings).unwrap();
    let postmaster = Postmaster::launch(Limits::default(), Some(narrow)).unwrap();
    let long = every("200ms", "SELECT pg_sleep(3)");
    let short = every("200ms", EFFECT);
    let jobs = [
        ("long".to_owned(), long.as_str()),
        ("short".to_owned(), &short),
    ];
    let instance = Instance::register(&postmaster, settings_of(&db, &jobs)).await;
    let waits_for = async || {
        let workers = postmaster.workers().await.unwrap().registered;
        let short = workers
            .iter()
            .find(|worker| &*worker.worker.name == "short");
        short.unwrap().report.job.clone().and_then(|job| job.why)
    };
    eventually("it says that it waits", async || {
        let waits_for = waits_for().await;
        waits_for.is_some_and(|why| why.contains("waits for a connection, place 1 in the queue"))
    })
    .await;
    let done = effects(&db).await;
    eventually("its turn comes", async || effects(&db).await > done).await;
    instance.stop(Shutdown::Smart).await;
}

#[actix::test]
async fn the_statements_that_bound_a_run_are_the_same_in_each_run() {
    let server = TestServer::start_with(&[("log_statement", "all")]);
    let db = TestDatabase::at(&server.conninfo()).await;
    let keys = every("100ms", "SELECT pg_sleep(0.01); SELECT 1");
    let instance = Instance::new(&db, &keys).await;
    eventually("four runs are done", async || runs(&db, "true").await >= 4).await;
    instance.stop(Shutdown::Smart).await;
    let log = server.log();
    let bounds = log.lines().filter_map(|line| {
        let (_, sql) = line.split_once(": SELECT pg_catalog.set_config('statement_timeout'")?;
        Some(sql)
    });
    let bounds: Vec<_> = bounds.collect();
    assert!(bounds.len() >= 4, "{log}");
    let first = bounds[0];
    assert!(bounds.iter().all(|sql| *sql == first), "{bounds:#?}");
    // The whole time of a run, as its settings have it.
    let set = log.matches("SET LOCAL statement_timeout = ").count();
    let whole = log
        .matches("SET LOCAL statement_timeout = 3600000;")
        .count();
    assert_eq!(set, whole, "{log}");
}
