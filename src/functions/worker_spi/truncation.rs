//! Removes a whole backlog at once: locks the table, sums it up, truncates it, and puts the total back.
//!
//! It is one transaction on a connection of the worker's own. Truncation removes every row, seen or not, so it is
//! done only if every row was seen to be a delta or the total. If it cannot be done, the transaction is rolled
//! back, and the deltas are deleted as usual.

use std::fmt;

use tracing::debug;

use super::shape::Shape;
use super::table::Table;
use crate::database::{DatabaseError, ErrorClass, Parameters};
use crate::functions::session::Session;

/// The outcome of a truncation.
#[derive(Debug)]
pub(super) enum Truncation {
    /// The deltas are folded.
    Folded { rows: u64, total: i64 },
    /// Nothing has changed: another client uses the table, or the statement was cancelled.
    Busy,
    /// Nothing has changed, and the next attempt would end the same way.
    Impossible(Impossible),
}

/// Why a table cannot be truncated.
#[derive(Debug)]
pub(super) enum Impossible {
    /// More than deltas would be removed, or something that depends on deletions would miss them.
    Shape,
    /// The server refuses it.
    Refused(DatabaseError),
}

/// Folds all deltas of the table, or does nothing.
///
/// # Errors
///
/// If the server is away or was lost: then only the server knows the outcome.
pub(super) async fn truncate(
    session: &Session,
    table: &Table,
    shape: &Shape,
    worker: &str,
) -> Result<Truncation, DatabaseError> {
    let folded = fold(session, table, shape, worker).await;
    let given_way = match folded {
        Ok(Some((rows, total))) => return Ok(Truncation::Folded { rows, total }),
        Ok(None) => Truncation::Impossible(Impossible::Shape),
        Err(error) => match error.class() {
            ErrorClass::InTheWay | ErrorClass::Cancelled => {
                debug!(worker, "{worker}: {table} is not truncated: {error}");
                Truncation::Busy
            }
            ErrorClass::ToBeMended | ErrorClass::Exhausted => {
                Truncation::Impossible(Impossible::Refused(error))
            }
            _ => return Err(error),
        },
    };
    let doing = "give a truncation up";
    session.batch_execute(doing, "ROLLBACK").await?;
    Ok(given_way)
}

/// Folds all deltas of the table. `None` if it holds, or is, something else; the transaction is still open then.
async fn fold(
    session: &Session,
    table: &Table,
    shape: &Shape,
    worker: &str,
) -> Result<Option<(u64, i64)>, DatabaseError> {
    let sql = table.lock(worker);
    session.batch_execute("lock the table", &sql).await?;
    let sql = table.sum_up(worker, shape);
    let rows = session
        .query("sum the table up", &sql, Parameters::new())
        .await?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let (is_plain, all, deltas, totals): (bool, i64, i64, i64) =
        (row.get(0), row.get(1), row.get(2), row.get(3));
    let Some(total) = row.get::<_, Option<i64>>(4) else {
        return Ok(None);
    };
    if !is_plain || totals != 1 || all != deltas + 1 {
        return Ok(None);
    }
    let sql = table.truncate(worker, total);
    session.batch_execute("truncate the table", &sql).await?;
    Ok(Some((deltas.unsigned_abs(), total)))
}

// === impl Impossible ===

impl fmt::Display for Impossible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shape => f.write_str(
                "it must have the columns type and value alone, no trigger, rule, foreign key, row security \
                 or child, and hold nothing but deltas and one total",
            ),
            Self::Refused(error) => error.fmt(f),
        }
    }
}
