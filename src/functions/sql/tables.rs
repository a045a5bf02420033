//! The tables of jobs, in each database that has jobs.

use tokio::time::Instant;

use crate::database::{DatabaseError, is_made_already};
use crate::functions::quote::identifier;
use crate::functions::session::Session;

/// Finds out whether the tables exist.
const HAS_TABLES: &str = "SELECT pg_catalog.to_regclass('bgworker.job_run') IS NOT NULL";

/// Creates the tables. Columns are only ever added, with defaults, so that instances of two versions can work together.
const CREATE: &str = "\
    CREATE SCHEMA IF NOT EXISTS bgworker; \
    CREATE TABLE IF NOT EXISTS bgworker.job (name pg_catalog.text PRIMARY KEY, declared pg_catalog.text NOT NULL, declared_by pg_catalog.text NOT NULL, \
    last_tick pg_catalog.timestamptz NOT NULL, last_done pg_catalog.timestamptz NOT NULL, runs bigint NOT NULL DEFAULT 0, \
    attempt int NOT NULL DEFAULT 0, attempt_tick pg_catalog.timestamptz, retry_at pg_catalog.timestamptz, running_since pg_catalog.timestamptz) WITH (fillfactor = 50); \
    CREATE TABLE IF NOT EXISTS bgworker.job_run (name pg_catalog.text, slot int, run bigint NOT NULL, tick pg_catalog.timestamptz NOT NULL, \
    started_at pg_catalog.timestamptz NOT NULL, finished_at pg_catalog.timestamptz NOT NULL, outcome pg_catalog.text NOT NULL, attempt int NOT NULL, \
    rows bigint, sqlstate pg_catalog.text, message pg_catalog.text, PRIMARY KEY (name, slot)) WITH (fillfactor = 50)";

/// Creates the tables, unless they exist. Looks again if another session created them at the same time.
pub(super) async fn make(session: &Session) -> Result<(), DatabaseError> {
    while !has_tables(session).await? {
        let making = session.batch_execute("make the tables of jobs", CREATE);
        match making.await {
            Err(error) if !error.sqlstate().is_some_and(is_made_already) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The statements that create the tables, and let a role run jobs.
pub(super) fn objects(role: &str) -> Vec<String> {
    let role = identifier(role);
    let mut statements: Vec<_> = CREATE.split("; ").map(str::to_owned).collect();
    statements.push(format!("GRANT USAGE ON SCHEMA bgworker TO {role}"));
    statements.push(format!(
        "GRANT SELECT, INSERT, UPDATE ON bgworker.job, bgworker.job_run TO {role}"
    ));
    statements
}

/// `true` if the tables exist.
async fn has_tables(session: &Session) -> Result<bool, DatabaseError> {
    let looking = session.query_together("look for the tables of jobs", HAS_TABLES, Instant::now());
    Ok(looking.await?.rows.first().is_some_and(|row| row.get(0)))
}
