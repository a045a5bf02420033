//! Looks at a table that is too large to be looked at whole: at its end, and at a part of what lies before it.

use std::time::Duration;

use tokio::time::Instant;

use super::pieces::{Folds, Found, Pieces, blocks_in};
use super::windows::{WINDOW, Windows};
use super::{At, Folder, PROBE, Piece};
use crate::functions::runner::CycleError;
use crate::functions::session::looks_in_order;

/// How often a worker asks how large its table is.
const SIZE_EVERY: Duration = Duration::from_secs(60);

/// How many windows a sweep looks at before the end of the table is looked at again.
const SWEPT_AT_ONCE: u32 = 16;

/// What is known of the size of a table, and where to look in one that is large.
#[derive(Default)]
pub(super) struct LargeTable {
    /// `None` while it is small.
    windows: Option<Windows>,
    /// When to ask next how large the table is; folds to its end tell that too.
    asks_size_at: Option<Instant>,
}

/// What a look at some blocks has found.
struct Looked {
    delta: Option<u32>,
    blocks: u32,
}

/// Looks at the blocks from `from` up to, but not including, `end`.
async fn look<F: Folder>(
    folder: &F,
    at: At<'_, F::Settings>,
    shape: &F::Shape,
    (from, end): (u32, u32),
) -> Result<Looked, CycleError> {
    let blocks = end - from;
    let sql = F::queue(at.settings, shape).look(at.context.name(), Piece { from, blocks });
    let begin = Instant::now();
    let rows = at
        .session
        .query("look for deltas", &sql, Vec::new())
        .await?;
    at.context.progress().observe(PROBE, begin.elapsed());
    let Some(row) = rows.first() else {
        return Ok(Looked {
            delta: None,
            blocks: 0,
        });
    };
    if row.get(2) {
        return Err(folder.hidden(at).await);
    }
    let delta: Option<crate::database::Tid> = row.get(0);
    Ok(Looked {
        delta: delta.map(|tid| tid.block),
        blocks: blocks_in(row, 1),
    })
}

// === impl LargeTable ===

impl LargeTable {
    pub(super) fn is_large(&self) -> bool {
        self.windows.is_some()
    }

    /// `true` if there is more to look at than one look does.
    pub(super) fn is_sweeping(&self) -> bool {
        self.windows.as_ref().is_some_and(Windows::is_sweeping)
    }

    /// Records that the table has this many blocks.
    pub(super) fn has(&mut self, blocks: u32) {
        self.windows = Windows::of(blocks);
    }

    /// Asks how large the table is, once in a while: another instance may fold its deltas, and it may grow. Returns `false`
    /// if the tables are no longer what the worker knows of them.
    pub(super) async fn ask_size_if_due<F: Folder>(
        &mut self,
        at: At<'_, F::Settings>,
        shape: &F::Shape,
    ) -> Result<bool, CycleError> {
        let now = Instant::now();
        // The first time is random: otherwise thousands of workers would ask at once.
        let due = *self
            .asks_size_at
            .get_or_insert_with(|| now + SIZE_EVERY.mul_f64(fastrand::f64()));
        if due <= now {
            self.asks_size_at = Some(now + SIZE_EVERY);
            let (settings, worker) = (at.settings, at.context.name());
            let holds = F::holds(settings, shape);
            let sql = F::queue(settings, shape).measure(worker, &holds);
            let rows = at.session.query("look at its size", &sql, Vec::new());
            let rows = rows.await?;
            self.has(rows.first().map_or(0, |row| blocks_in(row, 0)));
            return Ok(rows.first().is_some_and(|row| row.get(1)));
        }
        Ok(true)
    }

    /// Looks at the end of a large table, then sweeps a part of what lies before it. `None` if the table is small by
    /// now.
    pub(super) async fn look<F: Folder>(
        &mut self,
        folder: &mut F,
        pieces: &mut Pieces,
        at: At<'_, F::Settings>,
        shape: &F::Shape,
    ) -> Result<Option<Found<F::Folded>>, CycleError> {
        let Some(mut windows) = self.windows else {
            return Ok(None);
        };
        let mut from = windows.tail();
        let mut found = loop {
            let look = look(folder, at, shape, (from, from.saturating_add(WINDOW))).await?;
            if look.blocks < windows.tail() {
                // It has shrunk.
                self.has(look.blocks);
                match self.windows {
                    Some(shorter) => windows = shorter,
                    None => return Ok(None),
                }
                from = windows.tail();
                continue;
            }
            if let Some(block) = look.delta {
                let is_first = looks_in_order(at.context, F::terms(at.settings).place);
                let block = if is_first { block } else { from };
                let Folds { found, end } = match folder.fold_at_once(at, shape, block).await? {
                    Some(folds) => folds,
                    None => pieces.fold(folder, at, shape, block, None).await?,
                };
                windows.looked_through(end.unwrap_or(0));
                break found;
            }
            from = from.saturating_add(WINDOW);
            if look.blocks <= from {
                windows.looked_through(look.blocks);
                break Found::Idle;
            }
        };
        for _ in 0..SWEPT_AT_ONCE {
            let goes_on = matches!(found, Found::Idle | Found::Folded(_))
                && !at.context.latch().is_stop_requested();
            let begin = Instant::now();
            let Some((from, end)) = windows.next_window(begin).filter(|_| goes_on) else {
                break;
            };
            let delta = look(folder, at, shape, (from, end)).await?.delta;
            // The time of the fold does not count as looking.
            let looked = begin.elapsed();
            if delta.is_some() {
                let folding = pieces.fold(folder, at, shape, from, Some(end));
                found = found.and(folding.await?.found);
            }
            windows.swept(looked, delta.is_some(), Instant::now());
        }
        self.windows = Some(windows);
        Ok(Some(found))
    }
}
