//! Jobs that are invalid or cannot go on: each reports what is wrong, where, and what to do.

use std::time::Duration;

use bgworker::JobState;
use bgworker::config::{self, ConfigFile, Functions, Sources};
use bgworker::supervision::Shutdown;
use tracing::Level;

use crate::support::database::TestDatabase;
use crate::support::jobs::{Instance, every, runs, stage};
use crate::support::log::Log;
use crate::support::{eventually, within};

const SECOND: Duration = Duration::from_secs(1);

/// The mistakes of a job with these keys, one per line.
fn mistakes(keys: &str) -> String {
    let sources = Sources {
        file: Some(ConfigFile {
            path: "b.toml".into(),
            text: format!(
                "[database]\nembedded = true\n[[worker]]\nname = 'j'\nfunction = 'sql'\n{keys}\n"
            ),
        }),
        ..Sources::default()
    };
    match config::read(&sources, &Functions::built_in()) {
        Ok(_) => String::new(),
        Err(problems) => problems.to_string(),
    }
}

#[test]
fn an_invalid_job_is_refused_with_its_line_and_a_hint() {
    for (keys, expected) in [
        (
            "every = '1s'",
            "b.toml:3:1: worker[0].sql: the worker has no \"sql\" and no \"sql_file\" (set one of them)",
        ),
        (
            "sql = 'SELECT 1'",
            "b.toml:3:1: worker[0].every: the worker has no \"every\" and no \"cron\" (set one of them)",
        ),
        (
            "every = '10ms'\nsql = 'SELECT 1'",
            "b.toml:6:1: worker[0].every: it must be at least 50 ms, in whole milliseconds: each tick",
        ),
        (
            "every = '1s'\ncron = '@daily'\nsql = 'SELECT 1'",
            "b.toml:7:1: worker[0].cron: both \"every\" and \"cron\" are set (keep only one of them)",
        ),
        (
            "cron = '0 0 30 2 *'\nsql = 'SELECT 1'",
            "b.toml:6:1: worker[0].cron: it never comes",
        ),
        (
            "cron = '0 25 * * *'\nsql = 'SELECT 1'",
            "b.toml:6:1: worker[0].cron: hour: 25 is not in 0 to 23 (characters 3 to 4)",
        ),
        (
            "cron = '@daily'\ntimezone = 'Berlin'\nsql = 'SELECT 1'",
            "b.toml:7:1: worker[0].timezone: there is no time zone with this name",
        ),
        (
            "every = '1s'\ntimezone = 'UTC'\nsql = 'SELECT 1'",
            "b.toml:7:1: worker[0].timezone: it has no effect without \"cron\"",
        ),
        (
            "every = '1s'\nsql = '-- nothing'",
            "b.toml:7:1: worker[0].sql: there is no statement in it",
        ),
        (
            "every = '1s'\nsql = 'SELECT 1; COMMIT'",
            "b.toml:7:1: worker[0].sql: line 1: COMMIT cannot be run",
        ),
        (
            "every = '1s'\nsql = 'COPY t FROM stdin'",
            "b.toml:7:1: worker[0].sql: line 1: COPY FROM STDIN exchanges rows with the client",
        ),
        (
            "every = '1s'\nsql = 'COMMIT'\ntransaction = false",
            "b.toml:7:1: worker[0].sql: line 1: COMMIT cannot be run: with \"transaction = false\" each statement",
        ),
        (
            "every = '1s'\nsql = 'VACUUM'\ntransaction = false\nisolation = 'serializable'",
            "b.toml:9:1: worker[0].isolation: with \"transaction = false\" each statement is a transaction",
        ),
        (
            "every = '1s'\nsql_file = '/nowhere/x.sql'",
            "b.toml:7:1: worker[0].sql_file: could not read \"/nowhere/x.sql\": No such file",
        ),
        (
            "every = '1s'\nsql_file = 'x.sql'\nsql = 'SELECT 1'",
            "b.toml:7:1: worker[0].sql_file: both \"sql\" and \"sql_file\" are set",
        ),
        (
            "every = '1s'\nsql = 'SELECT 1'\nattempts = 0",
            "b.toml:8:12: worker[0].attempts: it must be at least 1",
        ),
        (
            "every = '1s'\nsql = 'SELECT 1'\nschema = 's'",
            "b.toml:8:1: worker[0].schema: unknown key \"schema\"",
        ),
        (
            "every = '1s'\nsql = 'SELECT 1'\nstart_time = 'consistent_state'",
            "b.toml:6:1: worker[0].every: ticks are recorded in the database, which a standby does not allow: at \
             \"consistent_state\" a job naps (set \"naptime\" instead)",
        ),
        (
            "sql = 'SELECT 1'\nstart_time = 'consistent_state'",
            "b.toml:7:1: worker[0].start_time: ticks are recorded in the database",
        ),
        (
            "naptime = '1s'\nsql = 'SELECT 1'",
            "b.toml:6:1: worker[0].naptime: a job has ticks, so that each is run once: it naps only with start_time",
        ),
    ] {
        let found = mistakes(keys);
        assert!(
            found.starts_with(expected) && found.lines().count() == 1,
            "{keys}:\n{found}"
        );
    }
    assert_eq!(
        mistakes("cron = '15 2 * * *'\ntimezone = 'Europe/Berlin'\nsql = 'SELECT 1'"),
        ""
    );
}

#[test]
fn a_job_without_a_function_gets_the_hint_to_name_it() {
    let text =
        "[database]\nembedded = true\n[[worker]]\nname = 'j'\nsql = 'SELECT 1'\nevery = '1ms'\n";
    let sources = Sources {
        file: Some(ConfigFile {
            path: "b.toml".into(),
            text: text.to_owned(),
        }),
        ..Sources::default()
    };
    let problems = config::read(&sources, &Functions::built_in()).unwrap_err();
    let problems = problems.to_string();
    let lines: Vec<_> = problems.lines().collect();
    assert_eq!(
        lines[0],
        "b.toml:3:1: worker[0].function: the worker has no \"function\", and so runs \"worker_spi\", which does not \
         know its keys (did you mean function = \"sql\"?)"
    );
    assert!(
        lines[1].starts_with("b.toml:6:1: worker[0].every: it must be at least 50 ms"),
        "{problems}"
    );
    assert_eq!(lines.len(), 2);
}

/// The message recorded for a job whose only attempt fails.
async fn message(db: &TestDatabase, keys: &str) -> String {
    let instance = Instance::new(db, &format!("attempts = 1\n{keys}")).await;
    within(20 * SECOND, "it is given up", async || {
        runs(db, "outcome = 'given up'").await > 0
    })
    .await;
    instance.stop(Shutdown::Smart).await;
    let message = "SELECT message FROM bgworker.job_run WHERE outcome = 'given up' LIMIT 1";
    db.value(message).await
}

#[actix::test]
async fn an_error_names_the_line_and_the_character_of_the_text() {
    let db = stage().await;
    let text = "SELECT 1;\n\nSELECT id,\n       nonsense FROM effect";
    let message = message(&db, &every("1s", text)).await;
    let expected =
        "statement 2 (line 4, character 8): run the job: ERROR: column \"nonsense\" does not exist";
    assert!(message.starts_with(expected), "{message}");
}

#[actix::test]
async fn the_timeout_covers_the_whole_run() {
    let db = stage().await;
    let sleeps = "SELECT pg_sleep(0.7); SELECT pg_sleep(0.7)";
    let message = message(&db, &format!("timeout = '1s'\n{}", every("1s", sleeps))).await;
    let expected =
        "statement 2 (line 1): run the job: ERROR: canceling statement due to statement timeout";
    assert!(message.starts_with(expected), "{message}");
    let why = ": the job's \"timeout\" of 1s was over";
    assert!(message.ends_with(why), "{message}");
}

#[actix::test]
async fn an_index_that_was_left_behind_is_named() {
    let db = stage().await;
    db.execute("INSERT INTO effect (by) VALUES ('twice'), ('twice')")
        .await;
    let index = "CREATE UNIQUE INDEX CONCURRENTLY left_behind ON effect (by)";
    let message = message(&db, &format!("transaction = false\n{}", every("1s", index))).await;
    assert!(
        message.ends_with("; indexes that are not valid: left_behind"),
        "{message}"
    );
}

/// Waits until the job of an instance is overdue, and returns the reason.
async fn trouble(instance: &Instance) -> String {
    let overdue = async || {
        let workers = instance.postmaster.workers().await.unwrap();
        let job = workers.registered[0].report.job.clone()?;
        job.why.filter(|_| job.state == JobState::Overdue)
    };
    within(60 * SECOND, "it is overdue", async || {
        overdue().await.is_some()
    })
    .await;
    overdue().await.unwrap().to_string()
}

#[actix::test]
async fn a_row_that_is_held_for_longer_than_a_run_may_take_is_reported() {
    let db = stage().await;
    let instance =
        Instance::new(&db, &format!("timeout = '1s'\n{}", every("1s", "SELECT 1"))).await;
    within(20 * SECOND, "it runs", async || runs(&db, "true").await > 0).await;
    let holder = db.connect().await;
    let hold = "BEGIN; SELECT FROM bgworker.job FOR UPDATE";
    holder.batch_execute("hold", hold).await.unwrap();
    let pid = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query = '";
    let pid: i32 = db.value(&format!("{pid}{hold}'")).await;
    let trouble = trouble(&instance).await;
    let expected = format!("another session, pid {pid}, has had the row of the job");
    assert!(trouble.contains(&expected), "{trouble}");
    let done = runs(&db, "true").await;
    holder.batch_execute("let go", "COMMIT").await.unwrap();
    within(20 * SECOND, "it goes on", async || {
        runs(&db, "true").await > done
    })
    .await;
    instance.stop(Shutdown::Smart).await;
}

#[actix::test]
async fn a_session_that_has_locked_the_tables_of_jobs_is_named() {
    let db = stage().await;
    let instance = Instance::new(&db, &every("1s", "SELECT 1")).await;
    within(20 * SECOND, "it runs", async || runs(&db, "true").await > 0).await;
    let holder = db.connect().await;
    let lock = "BEGIN; LOCK TABLE bgworker.job";
    holder.batch_execute("lock", lock).await.unwrap();
    let pid = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query = '";
    let pid: i32 = db.value(&format!("{pid}{lock}'")).await;
    let locked = format!("other sessions have locked bgworker.job (PID {pid})");
    within(20 * SECOND, "it is named", async || {
        let workers = instance.postmaster.workers().await.unwrap();
        let error = workers.registered[0].report.last_error.clone();
        error.is_some_and(|error| error.contains(&locked))
    })
    .await;
    holder.batch_execute("let go", "COMMIT").await.unwrap();
    instance.stop(Shutdown::Smart).await;
}

#[actix::test]
async fn the_session_that_holds_the_lock_of_a_job_outside_of_a_transaction_is_named() {
    let db = stage().await;
    let holder = db.connect().await;
    let hold = "SELECT pg_advisory_lock(1651994417, hashtext('j')), pg_backend_pid()";
    let pid: i32 = holder.query("hold", hold, &[]).await.unwrap()[0].get(1);
    let keys = format!(
        "transaction = false\ntimeout = '1s'\n{}",
        every("1s", "SELECT 1")
    );
    let instance = Instance::new(&db, &keys).await;
    let trouble = trouble(&instance).await;
    let expected = format!("another session, pid {pid}, has had the advisory lock of the job");
    assert!(trouble.contains(&expected), "{trouble}");
    instance.stop(Shutdown::Smart).await;
}

#[actix::test]
async fn a_job_whose_server_was_a_year_ahead_names_the_statement_that_mends_it() {
    let db = stage().await;
    let instance = Instance::new(&db, &every("1s", "SELECT 1")).await;
    within(20 * SECOND, "it runs", async || runs(&db, "true").await > 0).await;
    db.execute(
        "UPDATE bgworker.job SET last_tick = last_tick + '1 year'::interval, \
         last_done = last_done + '1 year'::interval",
    )
    .await;
    let trouble = trouble(&instance).await;
    let (_, mend) = trouble
        .split_once("if the server's clock was wrong, ")
        .unwrap();
    db.execute(mend).await;
    let ahead = "SELECT last_done > now() FROM bgworker.job";
    assert!(!db.value::<bool>(ahead).await, "the next window is whole");
    let done = runs(&db, "true").await;
    within(20 * SECOND, "it goes on", async || {
        runs(&db, "true").await > done
    })
    .await;
    instance.stop(Shutdown::Smart).await;
}

#[actix::test]
async fn a_job_that_cannot_keep_up_with_its_schedule_says_so_once() {
    let (db, log) = (stage().await, Log::capture());
    let instance = Instance::new(&db, &every("100ms", "SELECT pg_sleep(0.3)")).await;
    eventually("it has run again and again", async || {
        runs(&db, "outcome = 'done'").await >= 3
    })
    .await;
    instance.stop(Shutdown::Smart).await;
    let said = "longer than until the next tick: the ticks that came due meanwhile are one run";
    let told = log.with(Level::WARN, said);
    assert_eq!(told.len(), 1, "{}", log.text());
}
