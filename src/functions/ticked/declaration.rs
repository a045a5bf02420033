//! Declarations: what a job does, as the instance says that declared it last.

use jiff::Timestamp;

use super::job::Job;
use super::row::{self, timestamptz};
use super::tables;
use crate::database::DatabaseError;
use crate::functions::quote::literal;
use crate::functions::session::Session;

/// What a declaration changes in the row of a job that has one. A new job was last done at the moment of its declaration. If its
/// schedule has changed (`declared` begins with the schedule's digest), the job begins with the tick that follows the newest one
/// of the new schedule.
const UNLESS_DECLARED: &str = "\
    ON CONFLICT (name) DO UPDATE SET declared = excluded.declared, declared_by = excluded.declared_by, \
    attempt = 0, retry_at = NULL, running_since = NULL, last_tick = CASE \
    WHEN pg_catalog.split_part(j.declared, '-', 1) OPERATOR(pg_catalog.=) pg_catalog.split_part(excluded.declared, '-', 1) \
    OR j.last_tick OPERATOR(pg_catalog.>) excluded.last_tick THEN j.last_tick ELSE excluded.last_tick END \
    WHERE j.declared OPERATOR(pg_catalog.<>) excluded.declared";

/// Declares what a job does, unless it is already declared that way: then its row is not even locked, since a run may have
/// it, or have left in it that it was undone.
pub(super) async fn declare(
    session: &Session,
    seal: &str,
    (name, job, declared_by): (&str, &Job, &str),
    now: Timestamp,
) -> Result<(), DatabaseError> {
    let (name, declared) = (literal(name), literal(&job.declared));
    // A new job begins with its next tick.
    let newest = job.schedule.newest(now).unwrap_or(now);
    let sql = format!(
        "INSERT INTO bgworker.job AS j (name, declared, declared_by, last_tick, last_done) \
         SELECT {name}, {declared}, {}, {}, {} WHERE NOT EXISTS (SELECT FROM bgworker.job AS k \
         WHERE k.name OPERATOR(pg_catalog.=) {name} AND k.declared OPERATOR(pg_catalog.=) {declared}) {UNLESS_DECLARED}",
        literal(declared_by),
        timestamptz(newest),
        timestamptz(now)
    );
    let sql = tables::write(seal, &sql);
    session.batch_execute("declare the job", &sql).await
}

/// Writes which instance has declared a job, if it is declared this way.
pub(super) async fn sign(
    session: &Session,
    seal: &str,
    (name, job, declared_by): (&str, &Job, &str),
) -> Result<(), DatabaseError> {
    let sql = format!(
        "UPDATE bgworker.job AS j SET declared_by = {} WHERE j.name OPERATOR(pg_catalog.=) {} \
         AND j.declared OPERATOR(pg_catalog.=) {}",
        literal(declared_by),
        literal(name),
        literal(&job.declared)
    );
    let sql = tables::write(seal, &sql);
    session.batch_execute("declare the job", &sql).await
}

/// Finds other jobs that have run and are declared to do the same, and when each was last done; the newest first.
pub(super) async fn alike(
    session: &Session,
    name: &str,
    declared: &str,
) -> Result<Vec<(String, Timestamp)>, DatabaseError> {
    let sql = "SELECT j.name, j.last_done FROM bgworker.job AS j WHERE j.name OPERATOR(pg_catalog.<>) $1 \
        AND j.declared OPERATOR(pg_catalog.=) $2 AND j.runs OPERATOR(pg_catalog.>) 0 ORDER BY j.last_done DESC";
    let parameters = vec![row::text(name), row::text(declared)];
    let rows = session
        .query("look for the same job", sql, parameters)
        .await?;
    Ok(rows
        .iter()
        .map(|found| (found.get("name"), row::timestamp(found, "last_done")))
        .collect())
}
