//! One cycle of a worker: one look at its table, and where there are deltas, the folds.
//!
//! Says what it found. What follows from that, and from an error, is for the runner to say.

use tracing::{info, warn};

use super::initialize::{InitializeError, Known, initialize, insert_initial_total};
use super::statement::{self, Looks, Piece, bypass_row_security};
use super::table::Table;
use super::truncation::{Truncation, truncate};
use super::unusable::UnusableTable;
use super::{Fold, ROWS_FOLDED, Settings, TOTAL};
use crate::context::WorkerContext;
use crate::database::{DatabaseError, Tid};
use crate::functions::session::{Probe, Session, looks_in_order};

/// About how many deltas a block holds, in a table of our own.
const ROWS_PER_BLOCK: usize = 167;

/// What one cycle leaves for the next.
#[derive(Default)]
pub(super) struct Cycle {
    /// What is known of the table.
    known: Known,
    /// The probe, once the table can be worked on; gone when it is out of date.
    probe: Option<Look>,
    /// It said that it is initialized.
    is_initialized: bool,
    /// Rows with NULL were reported, and are still there.
    nulls_reported: bool,
    /// It was reported that the table cannot be truncated, and it still cannot.
    impossible_reported: bool,
    /// The last cycle found no total either.
    total_was_missing: bool,
}

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

/// A probe that is ready to be run.
struct Look {
    probe: Probe,
    /// What it looks for beside deltas.
    looks: Looks,
    has_answered: bool,
}

// === impl Cycle ===

impl Cycle {
    pub(super) fn new(known: Known) -> Self {
        Self {
            known,
            ..Self::default()
        }
    }

    /// Whether the table could be worked on, once.
    pub(super) fn is_initialized(&self) -> bool {
        self.is_initialized
    }

    /// Prepares the probe anew the next time: its session has ended, or it no longer fits.
    pub(super) fn forget_probe(&mut self) {
        self.probe = None;
    }

    /// Looks at the table anew the next time, whichever incarnation comes: something is not as it was.
    pub(super) fn forget(&mut self) {
        self.forget_probe();
        self.known.take();
    }

    /// One look, after the preparations that it needs, and if there is something to fold, the folds.
    pub(super) async fn run(
        &mut self,
        session: &Session,
        settings: &Settings,
        context: &mut WorkerContext,
    ) -> Result<Found, InitializeError> {
        let probe = match self.probe.take() {
            Some(probe) => probe,
            // Once, and not to be paid for by every worker.
            None => Box::pin(self.prepare(session, settings, context)).await?,
        };
        let probe = self.probe.insert(probe);
        let found = probe.probe.run("look for deltas").await?;
        let mut found = found.into_iter();
        let delta = found.next().flatten();
        let null = if probe.looks.for_nulls {
            found.next().flatten()
        } else {
            None
        };
        let hidden = if probe.looks.for_row_security {
            found.next().flatten()
        } else {
            None
        };
        if hidden.is_some() {
            return Err(hidden_by_row_security(session, &settings.table())
                .await?
                .into());
        }
        if !std::mem::replace(&mut probe.has_answered, true) {
            self.known.set(probe.looks.for_nulls);
        }
        self.report_nulls(context.name(), settings, null.is_some());
        let Some(Tid { block }) = delta else {
            return Ok(Found::Idle);
        };
        let outcome = match self.truncate(session, settings, context, block).await? {
            Some(outcome) => outcome,
            None => {
                let is_first = looks_in_order(context, settings.place());
                let from = if is_first { block } else { 0 };
                fold(session, settings, context, from).await?
            }
        };
        let is_missing = outcome == Found::NoTotal;
        let was_missing = std::mem::replace(&mut self.total_was_missing, is_missing);
        if let (true, true, Some(total)) = (is_missing, was_missing, settings.initial_total) {
            // Not at once: a client that replaces the total may be about to insert it.
            insert_initial_total(session, &settings.table(), total).await?;
            self.total_was_missing = false;
            return Ok(Found::Skipped);
        }
        Ok(outcome)
    }

    /// Sees to the table, gets the probe of it ready, and says so the first time.
    async fn prepare(
        &mut self,
        session: &Session,
        settings: &Settings,
        context: &mut WorkerContext,
    ) -> Result<Look, InitializeError> {
        let table = settings.table();
        let for_nulls = match self.known.take() {
            // Nothing more is asked: a fleet that comes back all at once would take three times as long.
            Some(for_nulls) => for_nulls,
            None => initialize(session, &table, settings.initial_total).await?,
        };
        let worker = context.name();
        let for_row_security = context
            .database()
            .is_some_and(|database| !database.settings().prepare);
        let looks = Looks {
            for_nulls,
            for_row_security,
        };
        let doing = "prepare to look for deltas";
        let prepared = session.prepare(doing, table.probe(worker, looks)).await?;
        if !std::mem::replace(&mut self.is_initialized, true) {
            let (schema, table) = (table.schema(), table.name());
            info!(
                worker,
                schema, table, "{worker} initialized with {schema}.{table}"
            );
            context.ready();
        }
        Ok(Look {
            probe: prepared,
            looks,
            has_answered: false,
        })
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
        let sql = table.count_blocks(worker);
        let rows = session.query("look at its size", &sql, Vec::new());
        let blocks = rows.await?.first().map_or(0, |row| row.get::<_, i64>(0));
        if blocks <= i64::from(first) + i64::from(blocks_of(settings.batch)) {
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

    fn report_nulls(&mut self, worker: &str, settings: &Settings, nulls: bool) {
        if nulls && !self.nulls_reported {
            let table = settings.table();
            warn!(
                worker,
                "{worker}: {table} has rows whose value is NULL: they are left alone"
            );
        }
        self.nulls_reported = nulls;
    }
}

/// Folds piece by piece, each a transaction of its own, from this block to the end of the table.
/// Between two of them neighbours on the connection have their turn.
async fn fold(
    session: &Session,
    settings: &Settings,
    context: &WorkerContext,
    from: u32,
) -> Result<Found, InitializeError> {
    let blocks = blocks_of(settings.batch);
    let mut piece = Piece { from, blocks };
    let mut folded: Option<(u64, i64)> = None;
    let table = settings.table();
    loop {
        let sql = table.fold(context.name(), piece);
        let rows = session.query("fold", &sql, Vec::new()).await?;
        let Some(row) = rows.first() else {
            return Ok(Found::Skipped);
        };
        let more: bool = row.get(3);
        match (row.get(2), row.get(0), row.get::<_, Option<i64>>(1)) {
            (statement::FOLDED, Some(total), Some(rows)) => {
                let rows = rows.unsigned_abs();
                report(context, rows, total);
                folded = Some((rows + folded.map_or(0, |(rows, _)| rows), total));
            }
            (statement::IDLE, ..) => {}
            // What was folded before is told; the rest comes with the next cycle.
            (..) if folded.is_some() => break,
            (statement::NO_TOTAL, ..) => return Ok(Found::NoTotal),
            _ => return Ok(Found::Skipped),
        }
        if !more || context.latch().is_stop_requested() {
            break;
        }
        piece.from = piece.from.saturating_add(piece.blocks);
    }
    Ok(match folded {
        Some((rows, total)) => Found::Folded { rows, total },
        // Another session was first.
        None => Found::Idle,
    })
}

/// Reports this many more rows, and the total that they have made.
fn report(context: &WorkerContext, rows: u64, total: i64) {
    context.progress().count(ROWS_FOLDED, rows);
    context.progress().level(TOTAL, total);
}

/// Policies hide rows of a table that were not there when it was looked at.
async fn hidden_by_row_security(
    session: &Session,
    table: &Table,
) -> Result<UnusableTable, DatabaseError> {
    let sql = "SELECT current_user::pg_catalog.text";
    let rows = session.query("ask for the role", sql, Vec::new()).await?;
    let role: String = rows.first().map_or_else(String::new, |row| row.get(0));
    Ok(UnusableTable::RowSecurity {
        table: table.to_string(),
        mend: bypass_row_security(&role),
    })
}

/// How many blocks hold about this number of deltas.
fn blocks_of(deltas: usize) -> u32 {
    let blocks = u32::try_from(deltas / ROWS_PER_BLOCK);
    blocks.unwrap_or(u32::MAX).max(1)
}
