//! Declares what a job does: in a new row, or in the place of what another instance declared.
//!
//! A declaration never touches a run under way. It keeps the attempts of the tick that is due, and moves the last tick only
//! forward. It waits for no lock.

use jiff::Timestamp;

use super::declaration;
use super::job::Job;
use super::mark;
use super::row::{self, NUMBER, timestamptz};
use super::settle::settle_left_out;
use super::tables::{self, Tables};
use crate::database::{DatabaseError, in_full};
use crate::functions::advisory_lock::LockClass;
use crate::functions::quote::literal;
use crate::functions::session::Session;

/// How many declarations are kept that were replaced.
const KEPT: usize = 8;

/// For how long an instance counts as there after it was last seen.
const SEEN_FOR: &str = "'2 minutes'::pg_catalog.interval";

/// A job as an instance declares it.
#[derive(Clone, Copy)]
pub(super) struct Declaring<'d> {
    pub(super) name: &'d str,
    pub(super) job: &'d Job,
    /// The instance.
    pub(super) by: &'d str,
    pub(super) tables: &'d Tables,
}

/// What the row of a job says of its declarations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct OnRecord {
    /// The text of the declaration, if a version that writes one has made it.
    pub(super) declaration: Option<String>,
    /// The last declarations that were replaced, the newest last.
    pub(super) before: Vec<String>,
}

/// Asks what has been declared of a job.
pub(super) async fn ask(
    session: &Session,
    tables: &Tables,
    name: &str,
) -> Result<OnRecord, DatabaseError> {
    if !tables.has_declarations {
        return Ok(OnRecord::default());
    }
    let sql = "SELECT j.declaration, j.declared_before FROM bgworker.job AS j WHERE j.name OPERATOR(pg_catalog.=) $1";
    let rows = session
        .query("look at the declaration", sql, vec![row::text(name)])
        .await?;
    let on_record = rows.first().map(|row| OnRecord {
        declaration: row.get("declaration"),
        before: row.get("declared_before"),
    });
    Ok(on_record.unwrap_or_default())
}

// === impl Declaring ===

impl Declaring<'_> {
    /// Declares a job that has no row. It was last done now, and begins with its next tick.
    fn insert(&self, now: Timestamp) -> String {
        let Self { name, job, by, .. } = self;
        let (column, text) = match self.text() {
            Some(text) => (", declaration", format!(", {text}")),
            None => ("", String::new()),
        };
        format!(
            "INSERT INTO bgworker.job (name, declared, declared_by, last_tick, last_done{column}) \
             VALUES ({}, {}, {}, {}, {}{text}) ON CONFLICT (name) DO NOTHING",
            literal(name),
            literal(&job.declared),
            literal(by),
            timestamptz(self.newest(now)),
            timestamptz(now)
        )
    }

    /// Replaces what was declared in rows `j`, if no run is under way and this holds for the row `k`.
    ///
    /// If the schedule changes (`declared` begins with its digest), the job begins with the tick that follows the newest one of
    /// the new schedule.
    fn replace(&self, now: Timestamp, counts: &str, condition: &str) -> String {
        let declared = literal(&self.job.declared);
        let keep = match self.text() {
            Some(text) => format!(
                ", declaration = {text}, declared_before = (SELECT pg_catalog.array_agg(l.d ORDER BY l.n) FROM (\
                 SELECT u.d, u.n FROM pg_catalog.unnest(pg_catalog.array_append(pg_catalog.array_remove(\
                 pg_catalog.array_remove(j.declared_before, {declared}), j.declared), j.declared)) \
                 WITH ORDINALITY AS u (d, n) ORDER BY u.n DESC LIMIT {KEPT}) AS l)"
            ),
            None => String::new(),
        };
        let digest = |declared: &str| format!("pg_catalog.split_part({declared}, '-', 1)");
        format!(
            "UPDATE bgworker.job AS j SET declared = {declared}, declared_by = {}, retry_at = NULL, \
             last_tick = CASE WHEN {} OPERATOR(pg_catalog.=) {} THEN j.last_tick ELSE greatest(j.last_tick, {}) END{keep}{counts} \
             WHERE j.name OPERATOR(pg_catalog.=) (SELECT k.name FROM bgworker.job AS k \
             WHERE k.name OPERATOR(pg_catalog.=) {} AND CASE WHEN {condition} \
             THEN pg_catalog.pg_try_advisory_xact_lock({}) ELSE false END FOR UPDATE SKIP LOCKED)",
            literal(self.by),
            digest("j.declared"),
            digest(&declared),
            timestamptz(self.newest(now)),
            literal(self.name),
            LockClass::Job.keys(&NUMBER.replace("$1", "k.name"))
        )
    }

    /// The newest tick.
    fn newest(&self, now: Timestamp) -> Timestamp {
        self.job.schedule.newest(now).unwrap_or(now)
    }

    /// The text of the declaration in SQL, if the row has a place for it.
    fn text(&self) -> Option<String> {
        let text = || literal(&declaration::of(self.job));
        self.tables.has_declarations.then(text)
    }

    /// Declares the job, unless it is already declared that way: then its row is not even locked, since a run may have
    /// it, or have left in it that it was undone. What was replaced before stays so unless `again`. Nothing is replaced while a
    /// run is under way.
    pub(super) async fn declare(
        &self,
        session: &Session,
        now: Timestamp,
        again: bool,
    ) -> Result<(), DatabaseError> {
        let declared = literal(&self.job.declared);
        let mut condition = format!("k.declared OPERATOR(pg_catalog.<>) {declared}");
        if !again && self.tables.has_declarations {
            condition +=
                &format!(" AND {declared} OPERATOR(pg_catalog.<>) ALL (k.declared_before)");
        }
        let (insert, replace) = (self.insert(now), self.replace(now, "", &condition));
        let sql = format!("{insert}; {replace}{}", self.complete());
        let sql = tables::write(&self.tables.seal, &sql);
        session.batch_execute("declare the job", &sql).await
    }

    /// Adds the text to what an instance of a version that writes none has declared this way, unless a run is under way.
    fn complete(&self) -> String {
        let Some(text) = self.text() else {
            return String::new();
        };
        format!(
            "; UPDATE bgworker.job AS j SET declaration = {text} WHERE j.name OPERATOR(pg_catalog.=) (\
             SELECT k.name FROM bgworker.job AS k WHERE k.name OPERATOR(pg_catalog.=) {} \
             AND k.declared OPERATOR(pg_catalog.=) {} AND coalesce(k.declaration, '') OPERATOR(pg_catalog.<>) {text} \
             FOR UPDATE SKIP LOCKED)",
            literal(self.name),
            literal(&self.job.declared)
        )
    }

    /// Writes which instance has declared a job, if it is declared this way.
    pub(super) async fn sign(&self, session: &Session) -> Result<(), DatabaseError> {
        let sql = format!(
            "UPDATE bgworker.job AS j SET declared_by = {} WHERE j.name OPERATOR(pg_catalog.=) {} \
             AND j.declared OPERATOR(pg_catalog.=) {}",
            literal(self.by),
            literal(self.name),
            literal(&self.job.declared)
        );
        let sql = tables::write(&self.tables.seal, &sql);
        session.batch_execute("declare the job", &sql).await
    }

    /// Takes over a job that no instance runs: whose row is still this one, and whose declaration no instance has that was seen
    /// of late. If its tick was due by another schedule, it is recorded as given up. Returns `false` if another instance was
    /// faster, or has the declaration.
    pub(super) async fn take_over(
        &self,
        session: &Session,
        (row, now): (&row::JobRow, Timestamp),
        due: Option<Timestamp>,
    ) -> Result<bool, DatabaseError> {
        let theirs = literal(&row.declared);
        let condition = format!(
            "k.declared OPERATOR(pg_catalog.=) {theirs} AND k.last_tick OPERATOR(pg_catalog.=) {} \
             AND NOT EXISTS (SELECT FROM bgworker.job_instance AS i WHERE i.jobs OPERATOR(pg_catalog.->>) k.name \
             OPERATOR(pg_catalog.=) {theirs} AND i.seen_at OPERATOR(pg_catalog.>) \
             (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) {SEEN_FOR}))",
            timestamptz(row.last_tick)
        );
        let sql = match due {
            Some(tick) => {
                let counts = ", runs = j.runs OPERATOR(pg_catalog.+) 1";
                let update = self.replace(now, counts, &condition);
                let mark = settle_left_out(row, tick);
                let taken = "EXISTS (SELECT FROM job) AS was_taken";
                let arguments = mark::arguments(self.name, self.job.history, &mark);
                mark::with_entry(&update, &in_full(&mark::entry(taken), &arguments))
            }
            None => self.replace(now, "", &condition) + " RETURNING true AS was_taken",
        };
        let sql = tables::write(&self.tables.seal, &sql);
        let rows = session.simple_query("take the job over", &sql).await?;
        Ok(rows
            .iter()
            .any(|row| row.try_get("was_taken").ok().flatten() == Some("t")))
    }
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
