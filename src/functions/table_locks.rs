//! Which sessions have locked a table, so that a worker cannot work on it. One statement, and what it returns in words.

use super::folding::comment;
use super::quote::literal;
use super::relation::Relation;
use super::session::Session;
use crate::database::DatabaseError;

/// The condition for a lock on something in this database.
pub(super) const IN_THIS_DATABASE: &str = "database OPERATOR(pg_catalog.=) (SELECT oid FROM pg_catalog.pg_database \
    WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database())";

/// The modes of table locks that keep others from writing (`pg_locks.mode`).
const MODES: &str = "'{ShareLock,ShareRowExclusiveLock,ExclusiveLock,AccessExclusiveLock}'";

/// Says which of these tables other sessions have locked, or are waiting to lock, against writing, and the processes of up to
/// five of these sessions. `None` if there are none.
///
/// # Errors
///
/// If the server cannot be asked.
pub(super) async fn holders(
    session: &Session,
    worker: &str,
    tables: &[Relation],
) -> Result<Option<String>, DatabaseError> {
    let sql = statement(worker, tables);
    let rows = session.query("look for who has locked its tables", &sql, Vec::new());
    let rows = rows.await?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let table = usize::try_from(row.get::<_, i64>(0) - 1);
    let table = table.ok().and_then(|table| tables.get(table));
    let pids: &str = row.get(1);
    Ok(table.map(|table| format!("other sessions have locked {table} (PID {pids})")))
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
