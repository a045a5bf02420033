//! The folds of a backlog: some blocks in each transaction, as many as make it take about as long as it should.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Row;

use super::{At, Folded, Folder, Piece, Queue};
use crate::database::DatabaseError;
use crate::functions::runner::CycleError;
use crate::functions::session::Session;

/// About how many deltas a block holds in a table that bgworker made.
const ROWS_PER_BLOCK: usize = 167;

/// How long one transaction should take on the server.
const GOAL: Duration = Duration::from_millis(50);

/// What a cycle found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::functions) enum Found<D> {
    /// Deltas were folded.
    Folded(D),
    /// There was nothing to fold.
    Idle,
    /// Other clients were in the way, for this reason.
    Busy(&'static str),
}

/// The result of one fold.
pub(in crate::functions) struct Fold<D> {
    pub(in crate::functions) found: Found<D>,
    /// How many blocks the table has.
    pub(in crate::functions) blocks: u32,
    /// How long it took on the server, without its commit.
    pub(in crate::functions) took: Duration,
}

/// The result of folding piece by piece, and how many blocks the table has if the folds reached their end.
pub(super) struct Folds<D> {
    pub(super) found: Found<D>,
    pub(super) end: Option<u32>,
}

/// The size of pieces.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pieces {
    /// How many blocks took about as long as they should; `None` before the first fold.
    blocks: Option<u32>,
}

// === impl Found ===

impl<D: Folded> Found<D> {
    /// This and what was found later, as one.
    pub(in crate::functions) fn and(self, later: Self) -> Self {
        match (self, later) {
            (Self::Folded(folded), Self::Folded(more)) => Self::Folded(folded.and(more)),
            (Self::Folded(_), _) => self,
            (_, later) => later,
        }
    }
}

// === impl Pieces ===

impl Pieces {
    /// How many blocks the next fold must take.
    fn next(self, batch: usize, careful: u32) -> u32 {
        let most = blocks_of(batch);
        self.blocks
            .unwrap_or_else(|| most.div_ceil(careful))
            .clamp(1, most)
    }

    /// Records that a fold of this many blocks took this long.
    fn took(&mut self, blocks: u32, took: Duration) {
        let factor = GOAL.as_secs_f64() / took.as_secs_f64().max(1e-6);
        // At least half as many, and at most twice as many: one measurement proves little.
        let next = f64::from(blocks) * factor.clamp(0.5, 2.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is positive, and saturates"
        )]
        let next = next as u32;
        self.blocks = Some(next.max(1));
    }

    /// Folds piece by piece, each in a transaction of its own, from this block to the end of the table or to the
    /// block `until`. Between two pieces, neighbours on the connection get their turn.
    pub(super) async fn fold<F: Folder>(
        &mut self,
        folder: &mut F,
        at: At<'_, F::Settings>,
        shape: &F::Shape,
        mut from: u32,
        until: Option<u32>,
    ) -> Result<Folds<F::Folded>, CycleError> {
        let batch = F::terms(at.settings).batch;
        let mut found = Found::Idle;
        let end = loop {
            let left = until.map_or(u32::MAX, |until| until.saturating_sub(from));
            let blocks = self.next(batch, F::CAREFUL).min(left);
            let begin = Instant::now();
            let fold = folder.fold(at, shape, Piece { from, blocks }).await?;
            at.has_folded(&fold.found, begin);
            match fold.found {
                // What was folded before is reported; the next cycle folds the rest.
                Found::Busy(_) if matches!(found, Found::Folded(_)) => break None,
                Found::Busy(why) => {
                    return Ok(Folds {
                        found: Found::Busy(why),
                        end: None,
                    });
                }
                more => found = found.and(more),
            }
            let end = fold.blocks.min(until.unwrap_or(u32::MAX));
            if from.saturating_add(blocks) <= end && matches!(fold.found, Found::Folded(_)) {
                self.took(blocks, fold.took);
            }
            from = from.saturating_add(blocks);
            if from >= end {
                break Some(fold.blocks);
            }
            if at.context.latch().is_stop_requested() {
                break None;
            }
        };
        Ok(Folds { found, end })
    }
}

/// How many blocks hold about this many deltas, at least 1.
pub(in crate::functions) fn blocks_of(deltas: usize) -> u32 {
    let blocks = u32::try_from(deltas / ROWS_PER_BLOCK);
    blocks.unwrap_or(u32::MAX).max(1)
}

/// A number of blocks, as a statement returns it.
pub(in crate::functions) fn blocks_in(row: &Row, column: usize) -> u32 {
    u32::try_from(row.get::<_, i64>(column)).unwrap_or(u32::MAX)
}

/// Asks how many blocks the table has.
pub(in crate::functions) async fn count_blocks(
    session: &Session,
    queue: &Queue,
    worker: &str,
) -> Result<u32, DatabaseError> {
    let sql = queue.count_blocks(worker);
    let rows = session.query("look at its size", &sql, Vec::new());
    Ok(rows.await?.first().map_or(0, |row| blocks_in(row, 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_converge_on_the_goal_and_never_exceed_a_batch() {
        for (block_takes, batch, expected) in [
            (Duration::from_micros(500), 50_000, 100),
            (Duration::from_micros(100), 50_000, 299),
            (Duration::from_millis(200), 50_000, 1),
        ] {
            let mut pieces = Pieces::default();
            for _ in 0..20 {
                let blocks = pieces.next(batch, 8);
                assert!(blocks <= blocks_of(batch));
                pieces.took(blocks, block_takes * blocks);
            }
            assert!(pieces.next(batch, 8).abs_diff(expected) <= 1);
        }
    }
}
