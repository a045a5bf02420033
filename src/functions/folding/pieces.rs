//! The folds of a backlog: some blocks in each transaction, as many as make it take about as long as it should.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::{Row, SimpleQueryRow};

use super::keys;
use super::statement;
use super::undone::Undone;
use super::{At, Folded, Folder, Isolation, Piece, Terms};
use crate::database::{Database, DatabaseError, ErrorClass, is_of_a_row, is_stale};
use crate::functions::relation::Relation;
use crate::functions::runner::CycleError;
use crate::functions::session::Session;

/// About how many deltas a block holds in a table that bgworker made.
const ROWS_PER_BLOCK: usize = 167;

/// How long folds are not at one snapshot after one has failed because of rows, or of what other clients do.
const AFTER_CONFLICT: Duration = Duration::from_secs(60);

/// The same after one has failed because of what the table is.
const AFTER_NOT_PLAIN: Duration = Duration::from_secs(86_400);

/// What a cycle found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::functions) enum Found<D> {
    /// Deltas were folded.
    Folded(D),
    /// There was nothing to fold.
    Idle,
    /// There are deltas, which are left to another session.
    Left {
        /// It has folded some since the last cycle.
        moves: bool,
    },
    /// Other clients were in the way, for this reason; and the process of one on the server, if it was looked for.
    Busy(&'static str, Option<i32>),
}

/// The result of one fold.
pub(in crate::functions) struct Fold<D> {
    pub(in crate::functions) found: Found<D>,
    /// How many blocks the table has.
    pub(in crate::functions) blocks: u32,
    /// How long it took on the server, without its commit; zero if that says nothing.
    pub(in crate::functions) took: Duration,
}

/// The result of several folds, and how many blocks the table has if the folds reached their end.
pub(in crate::functions) struct Folds<D> {
    pub(in crate::functions) found: Found<D>,
    pub(in crate::functions) end: Option<u32>,
}

/// How the next piece is folded.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pieces {
    /// How many blocks took about as long as they should; `None` before the first fold.
    blocks: Option<u32>,
    /// Until when folds are not at one snapshot, because one has failed.
    no_snapshot_until: Option<Instant>,
    /// The block at which another session had the queue. To begin at the first one again would be to fold the same blocks for
    /// ever, if others take the queue more often than this session comes to its end.
    resume_at: Option<u32>,
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

// === impl Fold ===

impl<D> Fold<D> {
    /// A fold that did not fold, for this reason.
    pub(in crate::functions) fn without(found: Found<D>) -> Self {
        Self {
            found,
            blocks: 0,
            took: Duration::ZERO,
        }
    }
}

// === impl Pieces ===

impl Pieces {
    /// How many blocks the next fold must take.
    fn next(self, batch: usize, careful: u32) -> u32 {
        // How long a larger batch takes is not known yet.
        let first = || blocks_of(batch.min(keys::batch())).div_ceil(careful);
        self.blocks.unwrap_or_else(first).clamp(1, blocks_of(batch))
    }

    /// Records that a fold of this many blocks took this long, and how long it should have taken.
    fn took(&mut self, blocks: u32, took: Duration, goal: Duration) {
        let factor = goal.as_secs_f64() / took.as_secs_f64().max(1e-6);
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

    /// The isolation of the next fold, in a session of bgworker's own.
    fn isolation(&self, now: Instant) -> Isolation {
        match self.no_snapshot_until {
            Some(until) if now < until => Isolation::ReadCommitted,
            _ => Isolation::RepeatableRead,
        }
    }

    /// Records that a fold at one snapshot has failed. Each failure is an error in the server's log, so the next attempt
    /// is not made soon.
    fn failed_at_one_snapshot(&mut self, is_plain: bool, now: Instant) {
        let wait = if is_plain {
            AFTER_CONFLICT
        } else {
            AFTER_NOT_PLAIN
        };
        self.no_snapshot_until = Some(now + wait);
    }

    /// Folds one piece: at one snapshot, unless that cannot be done or has failed for a reason that may lie in that.
    async fn fold_piece<F: Folder>(
        &mut self,
        folder: &mut F,
        at: At<'_, F::Settings>,
        shape: &F::Shape,
        piece: Piece,
    ) -> Result<Fold<F::Folded>, CycleError> {
        // A pooler's sessions are not bgworker's to set, so what it may see and wait for is not known.
        let database = at.context.database();
        let is_ours = database.is_none_or(Database::sessions_are_ours);
        if is_ours && self.isolation(Instant::now()) == Isolation::RepeatableRead {
            let folding = folder.fold(at, shape, piece, Isolation::RepeatableRead);
            match folding.await {
                Err(CycleError::Database(error)) if is_to_be_repeated(&error) => {
                    let is_plain = Undone::of(&error) != Some(Undone::NotPlain);
                    self.failed_at_one_snapshot(is_plain, Instant::now());
                }
                folded => return folded,
            }
        }
        folder
            .fold(at, shape, piece, Isolation::ReadCommitted)
            .await
    }

    /// Folds piece by piece, from this block to the end of the table: first what is left from where another session had the
    /// queue, if one had it in the last cycle.
    pub(super) async fn fold_all<F: Folder>(
        &mut self,
        folder: &mut F,
        at: At<'_, F::Settings>,
        shape: &F::Shape,
        from: u32,
    ) -> Result<Folds<F::Folded>, CycleError> {
        let Some(resumed) = self.resume_at.take().filter(|resumed| *resumed > from) else {
            return self.fold(folder, at, shape, from, None).await;
        };
        let later = self.fold(folder, at, shape, resumed, None).await?;
        if later.end.is_none() {
            return Ok(later);
        }
        let earlier = self.fold(folder, at, shape, from, Some(resumed)).await?;
        Ok(Folds {
            found: later.found.and(earlier.found),
            end: earlier.end.and(later.end),
        })
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
        let Terms {
            batch, fold_time, ..
        } = F::terms(at.settings);
        let mut found = Found::Idle;
        let end = loop {
            let left = until.map_or(u32::MAX, |until| until.saturating_sub(from));
            let blocks = self.next(batch, F::CAREFUL).min(left);
            let begin = Instant::now();
            let piece = Piece { from, blocks };
            let fold = match self.fold_piece(folder, at, shape, piece).await {
                Err(CycleError::Database(error))
                    if error.class() == ErrorClass::Cancelled
                        && blocks > 1
                        && !at.context.latch().is_stop_requested() =>
                {
                    // It would take as long the next time.
                    self.blocks = Some(blocks / 2);
                    continue;
                }
                fold => fold?,
            };
            at.has_folded(&fold.found, begin);
            if matches!(fold.found, Found::Left { .. }) {
                self.resume_at = Some(from);
            }
            match fold.found {
                // What was folded before is reported; the next cycle folds the rest.
                Found::Busy(..) | Found::Left { .. } if matches!(found, Found::Folded(_)) => {
                    break None;
                }
                found @ (Found::Busy(..) | Found::Left { .. }) => {
                    return Ok(Folds { found, end: None });
                }
                more => found = found.and(more),
            }
            let end = fold.blocks.min(until.unwrap_or(u32::MAX));
            let is_whole = from.saturating_add(blocks) <= end && !fold.took.is_zero();
            if is_whole && matches!(fold.found, Found::Folded(_)) {
                self.took(blocks, fold.took, fold_time);
            }
            from = from.saturating_add(blocks);
            if from >= end {
                break Some(fold.blocks);
            }
            at.has_folded_a_piece(&fold.found);
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

/// `true` if a fold that failed at one snapshot may succeed without it, or must fail without it to be dealt with.
fn is_to_be_repeated(error: &DatabaseError) -> bool {
    let is_such = |code: &str| is_stale(code) || is_of_a_row(code);
    match Undone::of(error) {
        Some(undone) => undone != Undone::Changed,
        None => error.sqlstate().is_some_and(is_such),
    }
}

/// A number in a row of text; 0 if there is none.
pub(in crate::functions) fn number(row: &SimpleQueryRow, column: usize) -> i64 {
    let text = row.get(column);
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// A number of blocks in a row of text.
pub(in crate::functions) fn blocks(row: &SimpleQueryRow, column: usize) -> u32 {
    u32::try_from(number(row, column)).unwrap_or(u32::MAX)
}

/// How long a fold took, as its last row says.
pub(in crate::functions) fn took(rows: &[SimpleQueryRow]) -> Duration {
    let text = rows.last().and_then(|row| row.get(0));
    let seconds = text.and_then(|text| text.parse().ok());
    let took = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    took.unwrap_or_default()
}

/// A number of blocks, as a statement returns it.
pub(super) fn blocks_in(row: &Row, column: usize) -> u32 {
    u32::try_from(row.get::<_, i64>(column)).unwrap_or(u32::MAX)
}

/// Asks how many blocks a table has.
pub(in crate::functions) async fn count_blocks(
    session: &Session,
    table: &Relation,
    worker: &str,
) -> Result<u32, DatabaseError> {
    let sql = statement::count_blocks(worker, table);
    let rows = session.query("look at its size", &sql, Vec::new());
    Ok(rows.await?.first().map_or(0, |row| blocks_in(row, 0)))
}

#[cfg(test)]
mod tests {
    use super::super::keys;
    use super::*;

    #[test]
    fn pieces_converge_on_the_goal_and_never_exceed_a_batch() {
        for (block_takes, goal, batch, expected) in [
            (Duration::from_micros(500), keys::fold_time(), 50_000, 100),
            (Duration::from_micros(100), keys::fold_time(), 50_000, 299),
            (Duration::from_millis(200), keys::fold_time(), 50_000, 1),
            (
                Duration::from_micros(500),
                Duration::from_secs(1),
                1_000_000,
                2_000,
            ),
        ] {
            let mut pieces = Pieces::default();
            assert!(pieces.next(batch, 8) <= 38);
            for _ in 0..20 {
                let blocks = pieces.next(batch, 8);
                assert!(blocks <= blocks_of(batch));
                pieces.took(blocks, block_takes * blocks, goal);
            }
            assert!(pieces.next(batch, 8).abs_diff(expected) <= 1);
        }
    }

    #[test]
    fn a_conflict_ends_folds_at_one_snapshot_for_a_minute_and_a_table_that_is_not_plain_for_a_day()
    {
        let (mut pieces, now) = (Pieces::default(), Instant::now());
        assert_eq!(pieces.isolation(now), Isolation::RepeatableRead);
        for (is_plain, minutes) in [(true, 1), (false, 24 * 60)] {
            pieces.failed_at_one_snapshot(is_plain, now);
            let end = now + Duration::from_secs(minutes * 60);
            let before = end - Duration::from_secs(1);
            assert_eq!(pieces.isolation(before), Isolation::ReadCommitted);
            assert_eq!(pieces.isolation(end), Isolation::RepeatableRead);
        }
    }
}
