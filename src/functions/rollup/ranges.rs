//! Folds a backlog of many keys by ranges of a key, so that each total is written once, and not once for each piece.
//!
//! Only where folds may take long: each range reads the whole backlog, or a part of it that is read a few times.

use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use super::by_key::{ByKey, Keys, statements};
use super::sample::{Sample, sample};
use super::settings::Settings;
use super::shape::Shape;
use super::statement::{How, Statements};
use crate::database::{Database, DatabaseError};
use crate::functions::folding::{
    At, Folder as _, Folds, Found, Piece, Undone, blocks_of, count_blocks,
};
use crate::functions::runner::CycleError;

/// How long folds must be allowed to take.
const FOLD_TIME_MIN: Duration = Duration::from_millis(200);

/// How many ranges a part of the backlog has at most, since each of them reads it.
const RANGES_MAX: f64 = 8.0;

/// About how many deltas some blocks hold.
fn deltas_of(blocks: u32) -> f64 {
    f64::from(blocks) / f64::from(blocks_of(1_000_000)) * 1e6
}

/// An estimate as a number.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "it is positive, and saturates"
)]
fn whole(deltas: f64) -> u64 {
    deltas as u64
}

// === impl ByKey ===

impl ByKey {
    /// Folds the backlog from this block on by ranges, if there may be enough of it, of enough keys, and nothing is known to
    /// stand in the way. `None` if it must be folded by pieces.
    pub(super) async fn fold_by_ranges(
        &mut self,
        at: At<'_, Settings>,
        shape: &Shape,
        mut from: u32,
    ) -> Result<Option<Folds<Keys>>, CycleError> {
        let (queue, settings) = (&at.settings.queue, at.settings);
        if settings.fold_time < FOLD_TIME_MIN || !self.may_use_ranges(at, shape) {
            return Ok(None);
        }
        let blocks = count_blocks(at.session, queue, at.context.name()).await?;
        let mut found = Found::Idle;
        while from < blocks {
            let width = self.width.deltas(settings);
            let left = deltas_of(blocks - from);
            if left <= 2.0 * width {
                if found != Found::Idle {
                    self.are_beyond(at, whole(left));
                }
                break;
            }
            let most = usize::try_from(whole(RANGES_MAX * width)).unwrap_or(usize::MAX);
            let piece = Piece {
                from,
                blocks: blocks_of(most).min(blocks - from),
            };
            let (folded, is_whole) = self.fold_ranges_of(at, shape, piece, blocks).await?;
            found = found.and(folded);
            if !is_whole {
                // Pieces fold what is left, before new deltas of other keys come first again.
                self.width.rests(Instant::now());
                break;
            }
            from = from.saturating_add(piece.blocks);
        }
        // What is left is little: the next look finds it.
        let end = (from >= blocks).then_some(blocks);
        Ok((found != Found::Idle).then_some(Folds { found, end }))
    }

    /// `true` if nothing is known that would fail a range.
    fn may_use_ranges(&self, at: At<'_, Settings>, shape: &Shape) -> bool {
        let is_ours = at
            .context
            .database()
            .is_none_or(Database::sessions_are_ours);
        let is_off = self.width.is_off(Instant::now());
        let is_bare = shape.queue.is_bare && shape.totals.is_bare;
        is_ours && is_bare && !is_off && self.has_no_trouble()
    }

    /// Folds a part of the backlog by ranges. Returns what was found, and whether all ranges were folded.
    async fn fold_ranges_of(
        &mut self,
        at: At<'_, Settings>,
        shape: &Shape,
        piece: Piece,
        blocks: u32,
    ) -> Result<(Found<Keys>, bool), CycleError> {
        let (statements, settings) = (statements(at, shape), at.settings);
        let Some(sample) = self.sample(at, &statements, piece).await? else {
            return Ok((Found::Idle, false));
        };
        let (key, all) = (
            &shape.keys[sample.key],
            deltas_of(piece.blocks) * sample.share,
        );
        let (queue, mut found, mut next) = (Self::queue(settings, shape), Found::Idle, 0);
        let mut left = all + deltas_of(blocks - piece.from - piece.blocks);
        self.tried = true;
        loop {
            let part = self.width.deltas(settings) / all;
            let Some(range) = sample.range(key, next, part) else {
                return Ok((found, true));
            };
            // One key that has more than a batch is folded by pieces.
            if range.part() > 2.0 * part || at.context.latch().is_stop_requested() {
                return Ok((found, false));
            }
            let deltas = range.among(&queue.deltas(piece));
            let sql = statements.fold_those(&deltas, How::Snapshot);
            let begin = Instant::now();
            let fold = match self.run(at, &statements, (&sql, piece.from)).await {
                Ok(fold) => fold,
                Err(error) if error.is_away() || Undone::of(&error) == Some(Undone::Changed) => {
                    return Err(error.into());
                }
                // Pieces find out what is at fault.
                Err(error) => {
                    self.cannot(at, &error);
                    return Ok((found, false));
                }
            };
            at.has_folded(&fold.found, begin);
            if let Found::Left { .. } = fold.found {
                return Ok((found.and(fold.found), false));
            }
            if !fold.took.is_zero() {
                let goal = settings.fold_time;
                self.width.took(range.part() * all, fold.took, goal);
            }
            at.has_folded_a_piece(&fold.found);
            left = (left - range.part() * all).max(0.0);
            self.are_beyond(at, whole(left));
            next = range.next;
            found = found.and(fold.found);
        }
    }

    /// Has the backlog folded by pieces for a while, since this error kept a range from being folded.
    fn cannot(&mut self, at: At<'_, Settings>, error: &DatabaseError) {
        let worker = at.context.name();
        debug!(
            worker,
            "{worker}: a range of keys could not be folded: {error}"
        );
        self.width.failed(at.settings);
    }

    /// Takes a sample of a part of the backlog. `None` if it must be folded by pieces.
    async fn sample(
        &mut self,
        at: At<'_, Settings>,
        statements: &Statements<'_>,
        piece: Piece,
    ) -> Result<Option<Sample>, CycleError> {
        let sql = sample(statements, piece);
        let sampling = at.session.query("sample the keys", &sql, Vec::new());
        let rows = match sampling.await {
            Err(error) if !error.is_away() => {
                self.cannot(at, &error);
                return Ok(None);
            }
            rows => rows?,
        };
        // A server without an encoding may have texts that are none here.
        let found = rows.iter().map(|row| {
            let bounds = row.try_get(2).ok()?;
            Some((row.get(0), row.get(1), bounds))
        });
        let sample = found
            .collect::<Option<_>>()
            .and_then(|found| Sample::of(piece, found));
        let least = 2.0 * self.width.deltas(at.settings);
        Ok(sample.filter(|sample| deltas_of(piece.blocks) * sample.share > least))
    }
}
