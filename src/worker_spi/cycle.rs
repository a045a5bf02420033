//! One cycle of a worker: one look at its table, and where there are deltas, the folds.
//!
//! Says what it found. What follows from that, and from an error, is for the [`Folder`](super::folder) to say.

use std::rc::Rc;

use tokio::sync::watch;
use tracing::{info, warn};

use super::initialize::{InitializeError, Known, initialize};
use super::session::{PreparedProbe, Session};
use super::statement::{self, Piece};
use super::truncation::{Truncation, truncate};
use super::{Fold, Settings};
use crate::context::WorkerContext;
use crate::database::{DatabaseError, Tid};

/// About how many deltas a block holds, in a table of our own.
const ROWS_PER_BLOCK: usize = 167;

/// What one cycle leaves for the next.
pub(super) struct Cycle {
    settings: watch::Receiver<Settings>,
    session: Rc<Session>,
    /// What is known of the table.
    known: Known,
    /// The probe, once the table can be worked on; gone when it is out of date.
    probe: Option<Probe>,
    /// It said that it is initialized.
    is_initialized: bool,
    /// Rows with NULL were reported, and are still there.
    nulls_reported: bool,
    /// It was reported that the table cannot be truncated, and it still cannot.
    impossible_reported: bool,
}

/// What a cycle found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// So many deltas were added, and this is the total now.
    Folded { rows: u64, total: i64 },
    /// There was nothing to fold.
    Idle,
    /// Others hold the total.
    Skipped,
    /// There are deltas, and no total.
    NoTotal,
}

/// A probe that is ready to be run.
struct Probe {
    prepared: PreparedProbe,
    /// It looks for values that are NULL.
    may_be_null: bool,
    has_answered: bool,
}

// === impl Cycle ===

impl Cycle {
    pub(super) fn new(
        settings: watch::Receiver<Settings>,
        session: Rc<Session>,
        known: Known,
    ) -> Self {
        Self {
            settings,
            session,
            known,
            probe: None,
            is_initialized: false,
            nulls_reported: false,
            impossible_reported: false,
        }
    }

    /// Whether the table could be worked on, once.
    pub(super) fn is_initialized(&self) -> bool {
        self.is_initialized
    }

    /// Looks at the table anew the next time, whoever comes: something is not as it was.
    pub(super) fn forget(&mut self) {
        self.probe = None;
        self.known.take();
    }

    /// One look, after the preparations that it needs, and if there is something to fold, the folds.
    pub(super) async fn run(
        &mut self,
        context: &mut WorkerContext,
    ) -> Result<Outcome, InitializeError> {
        let probe = match self.probe.take() {
            Some(probe) => probe,
            None => self.prepare(context).await?,
        };
        let probe = self.probe.insert(probe);
        let found = self.session.run("look for deltas", &probe.prepared).await?;
        if !std::mem::replace(&mut probe.has_answered, true) {
            self.known.set(probe.may_be_null);
        }
        self.report_nulls(context.name(), matches!(found.get(1), Some(Some(_))));
        let Some(Some(Tid { block })) = found.first().copied() else {
            return Ok(Outcome::Idle);
        };
        match self.truncate(context, block).await? {
            Some(outcome) => Ok(outcome),
            None => self.fold(context, block).await,
        }
    }

    /// Sees to the table, gets the probe of it ready, and says so the first time.
    async fn prepare(&mut self, context: &mut WorkerContext) -> Result<Probe, InitializeError> {
        let Settings {
            table,
            initial_total,
            ..
        } = self.settings.borrow().clone();
        let may_be_null = match self.known.take() {
            Some(may_be_null) => may_be_null,
            None => initialize(&self.session, &table, initial_total).await?,
        };
        let worker = context.name();
        let probe = table.probe(worker, may_be_null);
        let doing = "prepare to look for deltas";
        let prepared = self.session.prepare(doing, probe).await?;
        if !std::mem::replace(&mut self.is_initialized, true) {
            let (schema, table) = (table.schema(), table.name());
            info!(
                worker,
                schema, table, "{worker} initialized with {schema}.{table}"
            );
            context.ready();
        }
        Ok(Probe {
            prepared,
            may_be_null,
            has_answered: false,
        })
    }

    /// Folds everything at once, if that was asked for, can be done, and is worth it.
    async fn truncate(
        &mut self,
        context: &WorkerContext,
        first: u32,
    ) -> Result<Option<Outcome>, DatabaseError> {
        let Settings {
            table, batch, fold, ..
        } = self.settings.borrow().clone();
        if fold == Fold::Delete {
            return Ok(None);
        }
        let worker = context.name();
        let sql = table.count_blocks(worker);
        let rows = self.session.query("look at its size", &sql, Vec::new());
        let blocks = rows.await?.first().map_or(0, |row| row.get::<_, i64>(0));
        if blocks <= i64::from(first) + i64::from(blocks_of(batch)) {
            return Ok(None);
        }
        match truncate(&self.session, &table, worker).await? {
            Truncation::Folded { rows, total } => {
                self.impossible_reported = false;
                context.progress().folded(rows, total);
                return Ok(Some(Outcome::Folded { rows, total }));
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
        Ok(is_to_end.then_some(Outcome::Idle))
    }

    /// Folds piece by piece, each a transaction of its own, from this block to the end of the table.
    /// Between two of them neighbours on the connection have their turn.
    async fn fold(
        &mut self,
        context: &WorkerContext,
        first: u32,
    ) -> Result<Outcome, InitializeError> {
        let Settings { table, batch, .. } = self.settings.borrow().clone();
        let mut piece = Piece {
            from: first,
            blocks: blocks_of(batch),
        };
        let mut folded: Option<(u64, i64)> = None;
        loop {
            let sql = table.fold(context.name(), piece);
            let rows = self.session.query("fold", &sql, Vec::new()).await?;
            let Some(row) = rows.first() else {
                return Ok(Outcome::Skipped);
            };
            let more: bool = row.get(3);
            match (row.get(2), row.get(0), row.get::<_, Option<i64>>(1)) {
                (statement::FOLDED, Some(total), Some(rows)) => {
                    let rows = rows.unsigned_abs();
                    context.progress().folded(rows, total);
                    folded = Some((rows + folded.map_or(0, |(rows, _)| rows), total));
                }
                (statement::IDLE, ..) => {}
                // What was folded before is told; the rest comes with the next cycle.
                (..) if folded.is_some() => break,
                (statement::NO_TOTAL, ..) => return Ok(Outcome::NoTotal),
                _ => return Ok(Outcome::Skipped),
            }
            if !more || context.latch().is_stop_requested() {
                break;
            }
            piece.from = piece.from.saturating_add(piece.blocks);
        }
        Ok(match folded {
            Some((rows, total)) => Outcome::Folded { rows, total },
            // Somebody else was first.
            None => Outcome::Idle,
        })
    }

    fn report_nulls(&mut self, worker: &str, nulls: bool) {
        if nulls && !self.nulls_reported {
            let table = &self.settings.borrow().table;
            warn!(
                worker,
                "{worker}: {table} has rows whose value is NULL: they are left alone"
            );
        }
        self.nulls_reported = nulls;
    }
}

/// How many blocks hold about so many deltas.
fn blocks_of(deltas: usize) -> u32 {
    let blocks = u32::try_from(deltas / ROWS_PER_BLOCK);
    blocks.unwrap_or(u32::MAX).max(1)
}
