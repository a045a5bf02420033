//! The folds of the sample: all deltas of a table into its one total.

use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::initialize::{hidden_by_row_security, initialize, insert_initial_total};
use super::shape::Shape;
use super::statement;
use super::truncation::{Truncation, truncate};
use super::{Fold as HowToFold, ROWS_FOLDED, Settings, TOTAL};
use crate::context::WorkerContext;
use crate::functions::folding::{
    At, Fold, Folded, Folder, Folds, Found, Isolation, Piece, Queue, Terms, Undone, blocks,
    blocks_of, count_blocks, hold, number, took,
};
use crate::functions::relation::Relation;
use crate::functions::runner::{CycleError, RETRIES_UNTIL_WARNING, Waiting};

/// Why a fold does nothing, though there are deltas.
const HELD: &str = "other sessions hold its total";

/// After this many such folds in a row, and as many more, the session that holds the total is looked for: before the
/// runner warns.
const LOOK_AFTER: u32 = RETRIES_UNTIL_WARNING / 2;

/// Folds into one total.
#[derive(Default)]
pub(super) struct OneTotal {
    /// It was reported that the table cannot be truncated, and it still cannot.
    impossible_reported: bool,
    /// This cycle found deltas and no total.
    total_is_missing: bool,
    /// The last cycle did so too.
    total_was_missing: bool,
    /// How many folds in a row found the total held.
    held: u32,
    /// The process of the session that holds it, if it was found.
    holder: Option<i32>,
}

/// The number of rows that were added, and the total that this made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Total {
    rows: u64,
    total: i64,
}

// === impl Total ===

impl Folded for Total {
    fn rows(&self) -> u64 {
        self.rows
    }

    fn and(self, later: Self) -> Self {
        Self {
            rows: self.rows + later.rows,
            total: later.total,
        }
    }
}

// === impl OneTotal ===

impl OneTotal {
    /// Folds the whole table at once.
    async fn truncate(
        &mut self,
        At {
            session,
            settings,
            context,
        }: At<'_, Settings>,
        shape: &Shape,
    ) -> Result<Option<Found<Total>>, CycleError> {
        let (worker, table) = (context.name(), settings.table());
        match truncate(session, &table, shape, worker).await? {
            Truncation::Folded { rows, total } => {
                self.impossible_reported = false;
                return Ok(Some(folded(context, rows, total)));
            }
            Truncation::Busy => {}
            Truncation::Impossible(why) => {
                if !std::mem::replace(&mut self.impossible_reported, true) {
                    warn!(
                        worker,
                        "{worker}: {table} cannot be truncated, so its deltas are deleted: {why}"
                    );
                }
            }
        }
        // After a cancellation, it must not begin anything else.
        let is_to_end = context.latch().is_stop_requested();
        Ok(is_to_end.then_some(Found::Idle))
    }

    /// What to say of a total that another session holds. The session is looked for once this has gone on for a while.
    async fn held(&mut self, at: At<'_, Settings>) -> Result<Found<Total>, CycleError> {
        self.held += 1;
        if self.held.is_multiple_of(LOOK_AFTER) {
            let sql = at.settings.table().holder_of_total(at.context.name());
            let doing = "look for who holds the total";
            let rows = at.session.query(doing, &sql, Vec::new()).await?;
            self.holder = rows.first().map(|row| row.get(0));
        }
        Ok(Found::Busy(HELD, self.holder))
    }

    /// Handles deltas without a total.
    async fn without_total(
        &mut self,
        At {
            session, settings, ..
        }: At<'_, Settings>,
    ) -> Result<Found<Total>, CycleError> {
        match settings.initial_total {
            // Not at once: a client that replaces the total may be about to insert it.
            Some(total) if self.total_was_missing => {
                insert_initial_total(session, &settings.table(), total).await?;
                Ok(Found::Busy(HELD, None))
            }
            _ => {
                self.total_is_missing = true;
                Ok(Found::Idle)
            }
        }
    }
}

impl Folder for OneTotal {
    type Settings = Settings;
    type Shape = Shape;
    type Folded = Total;

    const CAREFUL: u32 = 1;

    fn terms(settings: &Settings) -> Terms<'_> {
        Terms {
            naptime: settings.naptime,
            batch: settings.batch,
            fold_time: settings.fold_time,
            vacuum_after: settings.vacuum_after,
            place: settings.place(),
        }
    }

    fn relation(settings: &Settings) -> Relation {
        settings.table().relation().clone()
    }

    fn queue(settings: &Settings, shape: &Shape) -> Queue {
        settings.table().queue(shape)
    }

    fn holds(settings: &Settings, shape: &Shape) -> String {
        hold(&[(settings.table().relation(), &shape.layout)])
    }

    fn with_null(settings: &Settings, shape: &Shape) -> Option<String> {
        shape.may_be_null.then(|| settings.table().with_null())
    }

    fn at_fault(undone: Undone) -> &'static str {
        match undone {
            Undone::Miscounted => {
                "nothing was changed: a trigger or a foreign key of the table keeps deltas or deletes other rows"
            }
            Undone::Kept | Undone::KeptAll => {
                "nothing was changed: a trigger on DELETE keeps deltas in the table or in a child"
            }
            _ => "nothing was changed: a trigger on UPDATE alters or suppresses the total",
        }
    }

    async fn initialize(&self, at: At<'_, Settings>) -> Result<Shape, CycleError> {
        let (table, initial_total) = (at.settings.table(), at.settings.initial_total);
        Ok(initialize(at.session, &table, initial_total).await?)
    }

    async fn hidden(&self, at: At<'_, Settings>) -> CycleError {
        match hidden_by_row_security(at.session, &at.settings.table()).await {
            Ok(table) => CycleError::Unusable(Box::new(table)),
            Err(error) => error.into(),
        }
    }

    async fn fold_at_once(
        &mut self,
        at: At<'_, Settings>,
        shape: &Shape,
        from: u32,
    ) -> Result<Option<Folds<Total>>, CycleError> {
        if at.settings.fold == HowToFold::Delete {
            return Ok(None);
        }
        let table = at.settings.table();
        let blocks = count_blocks(at.session, table.relation(), at.context.name()).await?;
        if blocks <= from.saturating_add(blocks_of(at.settings.batch)) {
            return Ok(None);
        }
        let begin = Instant::now();
        let found = self.truncate(at, shape).await?;
        Ok(found.map(|found| {
            at.has_folded(&found, begin);
            Folds { found, end: None }
        }))
    }

    async fn fold(
        &mut self,
        at: At<'_, Settings>,
        shape: &Shape,
        piece: Piece,
        isolation: Isolation,
    ) -> Result<Fold<Total>, CycleError> {
        let table = at.settings.table();
        let isolation = if shape.layout.has_children {
            // A trigger of a child can keep its rows.
            Isolation::ReadCommitted
        } else {
            isolation
        };
        let sql = table.fold(at.context.name(), shape, piece, isolation);
        let rows = at.session.simple_query("fold", &sql).await?;
        let Some(row) = rows.first() else {
            return Ok(Fold::without(self.held(at).await?));
        };
        let found = match row.get(2) {
            Some(statement::FOLDED) => {
                folded(at.context, number(row, 1).unsigned_abs(), number(row, 0))
            }
            Some(statement::IDLE) => Found::Idle,
            Some(statement::NO_TOTAL) => self.without_total(at).await?,
            _ => self.held(at).await?,
        };
        if !matches!(found, Found::Busy(..)) {
            (self.held, self.holder) = (0, None);
        }
        Ok(Fold {
            found,
            blocks: blocks(row, 3),
            took: took(&rows),
        })
    }

    fn tell(at: At<'_, Settings>, Total { rows, total }: &Total) {
        let (worker, table) = (at.context.name(), at.settings.table());
        match at.context.progress().is_worth_a_line() {
            Some(0) => info!(
                worker,
                rows, total, "{worker}: count in {table} is now {total}"
            ),
            Some(more) => info!(
                worker,
                rows,
                total,
                "{worker}: count in {table} is now {total}; {more} more folds since the last such line"
            ),
            None => debug!(
                worker,
                rows, total, "{worker}: count in {table} is now {total}"
            ),
        }
    }

    async fn waits(&mut self, at: At<'_, Settings>) -> Result<Option<Waiting>, CycleError> {
        self.total_was_missing = std::mem::take(&mut self.total_is_missing);
        Ok(self.total_was_missing.then(|| {
            let table = at.settings.table();
            format!("{table} has deltas but no total: they wait until one is inserted").into()
        }))
    }
}

/// Reports this many more folded rows, and the new total.
fn folded(context: &WorkerContext, rows: u64, total: i64) -> Found<Total> {
    context.progress().count(ROWS_FOLDED, rows);
    context.progress().level(TOTAL, total);
    Found::Folded(Total { rows, total })
}
