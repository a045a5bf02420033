//! Looks at a table that is too large to be looked at whole: at its end, and at a part of what lies before.

use std::time::Duration;

use tokio::time::Instant;

use super::Settings;
use super::fold::{Folds, Found, Pieces, blocks_in, count_blocks, fold};
use super::initialize::{InitializeError, hidden_by_row_security};
use super::statement::Piece;
use crate::context::WorkerContext;
use crate::database::{DatabaseError, Tid};
use crate::functions::session::{Session, looks_in_order};
use crate::functions::windows::{WINDOW, Windows};

/// How often a worker asks how large its table is.
const SIZE_EVERY: Duration = Duration::from_secs(60);

/// How many windows a sweep looks at before the end of the table is looked at again.
const SWEPT_AT_ONCE: u32 = 16;

/// What is known of the size of a table, and where to look in one that is large.
#[derive(Default)]
pub(super) struct LargeTable {
    /// `None` while it is small.
    windows: Option<Windows>,
    /// When it is to be asked how large the table is, unless a fold has told.
    asks_size_at: Option<Instant>,
}

/// What a look at some blocks has found.
struct Looked {
    delta: Option<u32>,
    blocks: u32,
}

/// Looks at the blocks from this one on that come before the other.
async fn look(
    session: &Session,
    settings: &Settings,
    context: &WorkerContext,
    (from, end): (u32, u32),
) -> Result<Looked, InitializeError> {
    let table = settings.table();
    let blocks = end - from;
    let sql = table.look(context.name(), Piece { from, blocks });
    let rows = session.query("look for deltas", &sql, Vec::new()).await?;
    let Some(row) = rows.first() else {
        return Ok(Looked {
            delta: None,
            blocks: 0,
        });
    };
    if row.get(2) {
        return Err(hidden_by_row_security(session, &table).await?.into());
    }
    let delta: Option<Tid> = row.get(0);
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

    /// Whether there is more to look at than one look does.
    pub(super) fn is_sweeping(&self) -> bool {
        self.windows.as_ref().is_some_and(Windows::is_sweeping)
    }

    /// The table has this many blocks, all of which were looked at.
    pub(super) fn has(&mut self, blocks: u32) {
        self.windows = Windows::of(blocks);
    }

    /// Asks how large the table is, once in a while: another instance may fold its deltas, and it may grow.
    pub(super) async fn ask_size_if_due(
        &mut self,
        session: &Session,
        settings: &Settings,
        context: &WorkerContext,
    ) -> Result<(), DatabaseError> {
        let now = Instant::now();
        // At the first time thousands would ask at once.
        let at = *self
            .asks_size_at
            .get_or_insert_with(|| now + SIZE_EVERY.mul_f64(fastrand::f64()));
        if at <= now {
            self.asks_size_at = Some(now + SIZE_EVERY);
            let blocks = count_blocks(session, &settings.table(), context.name()).await?;
            self.has(blocks);
        }
        Ok(())
    }

    /// Looks at the end of a large table, then sweeps a part of what lies before. `None` if the table is small by now.
    pub(super) async fn look(
        &mut self,
        folds: &mut Folds,
        session: &Session,
        settings: &Settings,
        context: &WorkerContext,
    ) -> Result<Option<Found>, InitializeError> {
        let Some(mut windows) = self.windows else {
            return Ok(None);
        };
        let mut from = windows.tail();
        let mut found = loop {
            let look = look(
                session,
                settings,
                context,
                (from, from.saturating_add(WINDOW)),
            )
            .await?;
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
                let is_first = looks_in_order(context, settings.place());
                let block = if is_first { block } else { from };
                let folding = folds.fold_to_end(session, settings, context, block);
                let Pieces { found, end } = folding.await?;
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
            let goes_on = matches!(found, Found::Idle | Found::Folded { .. })
                && !context.latch().is_stop_requested();
            let begin = Instant::now();
            let Some((from, end)) = windows.next_window(begin).filter(|_| goes_on) else {
                break;
            };
            let delta = look(session, settings, context, (from, end)).await?.delta;
            // The fold is no part of the look.
            let looked = begin.elapsed();
            if delta.is_some() {
                let folding = fold(session, settings, context, from, Some(end));
                let Pieces { found: more, .. } = folding.await?;
                found = found.and(more);
            }
            windows.swept(looked, delta.is_some(), Instant::now());
        }
        self.windows = Some(windows);
        Ok(Some(found))
    }
}
