//! Takes a whole backlog away at once: locks the table, sums it up, truncates it, and puts the total back.
//!
//! One transaction on a connection of the worker's own. Truncation takes everything, seen or not, so
//! that it is done only where everything has been seen to be deltas and their total; where it cannot be
//! done, the transaction is undone, and the deltas are deleted as ever.

use std::fmt;

use tracing::debug;

use super::table::Table;
use crate::database::{DatabaseError, ErrorClass, Parameters};
use crate::functions::session::Session;

/// What came of it.
#[derive(Debug)]
pub(super) enum Truncation {
    /// It is done.
    Folded { rows: u64, total: i64 },
    /// Nothing has changed: somebody is at the table.
    Busy,
    /// Nothing has changed, and it will be like that the next time too.
    Impossible(Impossible),
}

/// Why a table cannot be truncated.
#[derive(Debug)]
pub(super) enum Impossible {
    /// More would go than deltas, or something would not hear of it.
    Shape,
    /// The server refuses it.
    Refused(DatabaseError),
}

/// Folds all deltas of the table, or does nothing.
///
/// # Errors
///
/// If the server is away, or was lost: then it is for the server to say what became of it.
pub(super) async fn truncate(
    session: &Session,
    table: &Table,
    worker: &str,
) -> Result<Truncation, DatabaseError> {
    let folded = fold(session, table, worker).await;
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

/// `None` if the table holds, or is, something else; the transaction is still open then.
async fn fold(
    session: &Session,
    table: &Table,
    worker: &str,
) -> Result<Option<(u64, i64)>, DatabaseError> {
    let sql = table.lock(worker);
    session.batch_execute("lock the table", &sql).await?;
    let sql = table.sum_up(worker);
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
