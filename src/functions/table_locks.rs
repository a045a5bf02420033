//! Which sessions have locked a table, so that a worker cannot work on it.

use super::advisory_lock::IN_THIS_DATABASE;
use super::folding::comment;
use super::quote::literal;
use super::relation::Relation;
use super::remedy::RETRIES_UNTIL_WARNING;
use super::session::Session;
use crate::context::WorkerContext;
use crate::database::{DatabaseError, is_locked};

/// The modes of table locks that keep others from writing (`pg_locks.mode`).
const MODES: &str = "'{ShareLock,ShareRowExclusiveLock,ExclusiveLock,AccessExclusiveLock}'";

/// Which sessions have locked a table of a worker, while a lock is in its way. They are looked for when that is told, and
/// again after as many more attempts.
#[derive(Debug, Default)]
pub(super) struct TableLocks(String);

// === impl TableLocks ===

impl TableLocks {
    /// What there is to add to the error with which an attempt has failed: `: other sessions have locked s.t (PID 7)`; empty
    /// if no lock was in the way, or none was looked for yet.
    pub(super) async fn after(
        &mut self,
        error: &DatabaseError,
        attempt: u32,
        session: &Session,
        context: &WorkerContext,
        tables: &[Relation],
    ) -> &str {
        if attempt == 1 || !error.sqlstate().is_some_and(is_locked) {
            self.0.clear();
        } else if attempt.is_multiple_of(RETRIES_UNTIL_WARNING) {
            self.0 = tokio::select! {
                biased;
                () = context.latch().stop_requested() => String::new(),
                // If that fails too, the error that is told is the one that kept the worker from its work.
                locked = look(session, context.name(), tables) => locked.unwrap_or_default(),
            };
        }
        &self.0
    }
}

/// Looks for the first of these tables that other sessions have locked, or are waiting to lock, against writing; and for the
/// processes of up to five of these sessions.
async fn look(
    session: &Session,
    worker: &str,
    tables: &[Relation],
) -> Result<String, DatabaseError> {
    let sql = statement(worker, tables);
    let rows = session.query("look for who has locked its tables", &sql, Vec::new());
    let rows = rows.await?;
    let locked = rows.first().and_then(|row| {
        let n = usize::try_from(row.get::<_, i64>(0)).ok()?;
        let (table, pids) = (tables.get(n.checked_sub(1)?)?, row.get::<_, &str>(1));
        Some(format!(": other sessions have locked {table} (PID {pids})"))
    });
    Ok(locked.unwrap_or_default())
}

/// Finds the first of these tables that is locked, as its number, and the processes.
fn statement(worker: &str, tables: &[Relation]) -> String {
    let tables = tables
        .iter()
        .map(|table| format!("pg_catalog.to_regclass({})", literal(&table.sql())));
    let tables = tables.collect::<Vec<_>>().join(", ");
    format!(
        "{} SELECT t.n, l.pids FROM pg_catalog.unnest(ARRAY[{tables}]::pg_catalog.oid[]) WITH ORDINALITY AS t (oid, n), \
         LATERAL (SELECT pg_catalog.string_agg(p.pid::pg_catalog.text, ', ' ORDER BY p.pid) AS pids FROM ( \
             SELECT DISTINCT pid FROM pg_catalog.pg_locks WHERE locktype OPERATOR(pg_catalog.=) 'relation' \
             AND {IN_THIS_DATABASE} AND relation OPERATOR(pg_catalog.=) t.oid \
             AND mode OPERATOR(pg_catalog.=) ANY ({MODES}::pg_catalog.text[]) \
             AND pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid() ORDER BY pid LIMIT 5) AS p) AS l \
         WHERE l.pids IS NOT NULL ORDER BY t.n LIMIT 1",
        comment(worker),
    )
}
