//! The folds of a worker: piece by piece, or all at once, and what they came to.

use tokio_postgres::Row;
use tracing::warn;

use super::initialize::InitializeError;
use super::statement::{self, Piece};
use super::table::Table;
use super::truncation::{Truncation, truncate};
use super::{Fold, ROWS_FOLDED, Settings, TOTAL};
use crate::context::WorkerContext;
use crate::database::DatabaseError;
use crate::functions::session::Session;

/// About how many deltas a block holds, in a table of our own.
const ROWS_PER_BLOCK: usize = 167;

/// What a cycle found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// `rows` deltas were added, and `total` is the sum now.
    Folded { rows: u64, total: i64 },
    /// There was nothing to fold.
    Idle,
    /// Others hold the total.
    Skipped,
    /// There are deltas, and no total.
    NoTotal,
}

/// What a fold came to, and how many blocks the table has, if it was folded to its end.
pub(super) struct Pieces {
    pub(super) found: Found,
    pub(super) end: Option<u32>,
}

/// The ways of a worker to fold.
#[derive(Default)]
pub(super) struct Folds {
    /// It was reported that the table cannot be truncated, and it still cannot.
    impossible_reported: bool,
}

// === impl Found ===

impl Found {
    /// This, and what came after it.
    pub(super) fn and(self, later: Self) -> Self {
        match (self, later) {
            (Self::Folded { rows, .. }, Self::Folded { rows: more, total }) => Self::Folded {
                rows: rows + more,
                total,
            },
            (Self::Folded { .. }, _) => self,
            (_, later) => later,
        }
    }
}

// === impl Folds ===

impl Folds {
    /// Folds what there is from this block on.
    pub(super) async fn fold_to_end(
        &mut self,
        session: &Session,
        settings: &Settings,
        context: &WorkerContext,
        block: u32,
    ) -> Result<Pieces, InitializeError> {
        match self.truncate(session, settings, context, block).await? {
            Some(found) => Ok(Pieces { found, end: None }),
            None => fold(session, settings, context, block, None).await,
        }
    }

    /// Folds everything at once, if that was asked for, can be done, and is worth it.
    async fn truncate(
        &mut self,
        session: &Session,
        settings: &Settings,
        context: &WorkerContext,
        first: u32,
    ) -> Result<Option<Found>, DatabaseError> {
        if settings.fold == Fold::Delete {
            return Ok(None);
        }
        let (worker, table) = (context.name(), settings.table());
        let blocks = count_blocks(session, &table, worker).await?;
        if blocks <= first.saturating_add(blocks_of(settings.batch)) {
            return Ok(None);
        }
        match truncate(session, &table, worker).await? {
            Truncation::Folded { rows, total } => {
                self.impossible_reported = false;
                report(context, rows, total);
                return Ok(Some(Found::Folded { rows, total }));
            }
            Truncation::Busy => {}
            Truncation::Impossible(why) => {
                if !std::mem::replace(&mut self.impossible_reported, true) {
                    warn!(
                        worker,
                        "{worker}: {table} cannot be truncated, its deltas are deleted: {why}"
                    );
                }
            }
        }
        // Cancelled, it is not to begin anything else.
        let is_to_end = context.latch().is_stop_requested();
        Ok(is_to_end.then_some(Found::Idle))
    }
}

/// Folds piece by piece, each a transaction of its own, from this block to the end of the table, or to another block.
/// Between two of them neighbours on the connection have their turn.
pub(super) async fn fold(
    session: &Session,
    settings: &Settings,
    context: &WorkerContext,
    mut from: u32,
    until: Option<u32>,
) -> Result<Pieces, InitializeError> {
    let mut folded: Option<(u64, i64)> = None;
    let table = settings.table();
    let found = |found| Ok(Pieces { found, end: None });
    let end = loop {
        let left = until.map_or(u32::MAX, |until| until.saturating_sub(from));
        let blocks = blocks_of(settings.batch).min(left);
        let sql = table.fold(context.name(), Piece { from, blocks });
        let rows = session.query("fold", &sql, Vec::new()).await?;
        let Some(row) = rows.first() else {
            return found(Found::Skipped);
        };
        match (row.get(2), row.get(0), row.get::<_, Option<i64>>(1)) {
            (statement::FOLDED, Some(total), Some(rows)) => {
                let rows = rows.unsigned_abs();
                report(context, rows, total);
                folded = Some((rows + folded.map_or(0, |(rows, _)| rows), total));
            }
            (statement::IDLE, ..) => {}
            // What was folded before is told; the rest comes with the next cycle.
            (..) if folded.is_some() => break None,
            (statement::NO_TOTAL, ..) => return found(Found::NoTotal),
            _ => return found(Found::Skipped),
        }
        let size = blocks_in(row, 3);
        from = from.saturating_add(blocks);
        if from >= size.min(until.unwrap_or(u32::MAX)) {
            break Some(size);
        }
        if context.latch().is_stop_requested() {
            break None;
        }
    };
    let found = match folded {
        Some((rows, total)) => Found::Folded { rows, total },
        // Another session was first.
        None => Found::Idle,
    };
    Ok(Pieces { found, end })
}

/// Reports this many more rows, and the total that they have made.
pub(super) fn report(context: &WorkerContext, rows: u64, total: i64) {
    context.progress().count(ROWS_FOLDED, rows);
    context.progress().level(TOTAL, total);
}

/// How many blocks hold about this number of deltas.
pub(super) fn blocks_of(deltas: usize) -> u32 {
    let blocks = u32::try_from(deltas / ROWS_PER_BLOCK);
    blocks.unwrap_or(u32::MAX).max(1)
}

/// A number of blocks, as a statement returns it.
pub(super) fn blocks_in(row: &Row, column: usize) -> u32 {
    u32::try_from(row.get::<_, i64>(column)).unwrap_or(u32::MAX)
}

/// How many blocks the table has.
pub(super) async fn count_blocks(
    session: &Session,
    table: &Table,
    worker: &str,
) -> Result<u32, DatabaseError> {
    let sql = table.count_blocks(worker);
    let rows = session.query("look at its size", &sql, Vec::new());
    Ok(rows.await?.first().map_or(0, |row| blocks_in(row, 0)))
}
