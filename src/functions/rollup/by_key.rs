//! The folds of a roll-up: all deltas of a piece into the totals of their keys, and around those that cannot be folded.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::SimpleQueryRow;
use tracing::{debug, info, warn};

use super::check::{self, Verdict};
use super::poison::Poison;
use super::settings::Settings;
use super::shape::Shape;
use super::statement::{self, How, Statements, Which};
use super::{KEYS, PENDING_ESTIMATE, ROWS_FOLDED, UnusableRollup, tables};
use crate::database::{DatabaseError, is_locked, is_made_already, is_of_a_row};
use crate::functions::folding::{
    At, CHANGED, Fold, Folded, Folder, Found, Isolation, MISCOUNTED, Piece, Queue, Terms, blocks,
    number, took,
};
use crate::functions::relation::Relation;
use crate::functions::runner::CycleError;

/// How often to look at the tables again at once when another session created something first.
const ATTEMPTS_MAX: usize = 5;

/// How often a fold that undid itself is run again at once: the new snapshot sees a key that the old one did not.
const UNDONE_MAX: usize = 2;

/// How long a fold waits for a total that another client holds before it folds around it.
const AROUND_AFTER: Duration = Duration::from_secs(1);

/// Folds into totals by key.
#[derive(Default)]
pub(super) struct ByKey {
    pub(super) poison: Poison,
    /// When a fold first met totals that other clients hold; `None` if they hold none.
    locked_since: Option<Instant>,
    /// Deltas were left in the queue, because other clients hold their totals.
    left: bool,
    /// A fold was tried in this cycle.
    tried: bool,
    /// The last reported number of rows that wait.
    pending: Option<i64>,
}

/// Rows that were folded, and keys whose totals they were added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Keys {
    rows: u64,
    keys: u64,
}

/// Why a folding statement failed.
pub(super) enum Failure {
    /// Some of the deltas cannot be added.
    Poison(DatabaseError),
    Other(DatabaseError),
}

// === impl Keys ===

impl Folded for Keys {
    fn rows(&self) -> u64 {
        self.rows
    }

    fn and(self, later: Self) -> Self {
        Self {
            rows: self.rows + later.rows,
            keys: self.keys + later.keys,
        }
    }
}

// === impl ByKey ===

impl ByKey {
    /// Runs one folding statement.
    pub(super) async fn run(
        &mut self,
        at: At<'_, Settings>,
        statements: &Statements<'_>,
        piece: Piece,
        which: Which<'_>,
        isolation: Isolation,
    ) -> Result<Fold<Keys>, Failure> {
        let how = match (self.locked_since, isolation) {
            (Some(since), _) if since.elapsed() > AROUND_AFTER => How::Around,
            (_, Isolation::RepeatableRead) => How::Snapshot,
            (_, Isolation::ReadCommitted) => How::Wait,
        };
        let sql = statements.fold(piece, which, how);
        let mut undone = 0;
        let rows = loop {
            match at.session.simple_query("fold", &sql).await {
                Ok(rows) => break rows,
                Err(error)
                    if error.undone().is_some_and(is_passing)
                        && how != How::Snapshot
                        && undone < UNDONE_MAX =>
                {
                    undone += 1;
                }
                Err(error) if is_poison(&error) => return Err(Failure::Poison(error)),
                Err(error) => {
                    if error.sqlstate().is_some_and(is_locked) {
                        self.locked_since.get_or_insert_with(Instant::now);
                    }
                    return Err(Failure::Other(error));
                }
            }
        };
        let Some(row) = rows.first() else {
            return Ok(Fold {
                found: Found::Idle,
                blocks: 0,
                took: Duration::ZERO,
            });
        };
        self.left |= number(row, 3) > 0;
        if how != How::Around {
            self.locked_since = None;
        }
        Ok(self.folded(at, row, took(&rows)))
    }

    /// Reads and counts the result of a folding statement.
    fn folded(&self, at: At<'_, Settings>, row: &SimpleQueryRow, took: Duration) -> Fold<Keys> {
        let (rows, keys) = (number(row, 1).unsigned_abs(), number(row, 2).unsigned_abs());
        // If another session folds this queue, it takes care of the deltas: its hold ends with its statement.
        let found = if rows == 0 {
            Found::Idle
        } else {
            at.context.progress().count(ROWS_FOLDED, rows);
            at.context.progress().count(KEYS, keys);
            Found::Folded(Keys { rows, keys })
        };
        Fold {
            found,
            blocks: blocks(row, 4),
            took,
        }
    }

    /// Reports how many rows wait, if that has changed.
    fn report_pending(&mut self, at: At<'_, Settings>, rows: i64) {
        if self.pending.replace(rows) != Some(rows) {
            at.context.progress().level(PENDING_ESTIMATE, rows);
        }
    }
}

impl Folder for ByKey {
    type Settings = Settings;
    type Shape = Shape;
    type Folded = Keys;

    const CAREFUL: u32 = 8;

    fn terms(settings: &Settings) -> Terms<'_> {
        Terms {
            naptime: settings.naptime,
            batch: settings.batch,
            vacuum_after: settings.vacuum_after,
            place: settings.place(),
        }
    }

    fn relation(settings: &Settings) -> Relation {
        settings.queue.clone()
    }

    fn queue(settings: &Settings, _: &Shape) -> Queue {
        statement::queue(&settings.queue)
    }

    fn holds(settings: &Settings, shape: &Shape) -> String {
        statement::holds(&settings.queue, &settings.totals, shape)
    }

    fn with_null(_: &Settings, _: &Shape) -> Option<String> {
        // It counts as 0.
        None
    }

    fn at_fault(undone: &str) -> &'static str {
        if undone.starts_with(MISCOUNTED) {
            "nothing was changed: a trigger or a foreign key of the queue keeps deltas or deletes other rows"
        } else if undone.contains("deleted") {
            "nothing was changed: a trigger on DELETE keeps deltas in the queue"
        } else {
            "nothing was changed: a trigger alters or suppresses totals"
        }
    }

    async fn initialize(&self, at: At<'_, Settings>) -> Result<Shape, CycleError> {
        let mut attempts = 1..=ATTEMPTS_MAX;
        loop {
            let found = tables::look(at.session, at.settings, trusted_owners(at)).await?;
            match check::check(at.settings, &found).map_err(unusable)? {
                Verdict::Usable(shape) => {
                    let worker = at.context.name();
                    for warning in check::warnings(at.settings, &found) {
                        warn!(worker, "{worker}: {warning}");
                    }
                    return Ok(shape);
                }
                Verdict::Make { what, told, sql } => {
                    let is_last = attempts.next().is_none();
                    match at.session.batch_execute(what, &sql).await {
                        Ok(()) if is_last => {
                            let why = "its tables change while the worker looks at them";
                            return Err(CycleError::Unusable(why.into()));
                        }
                        Ok(()) => {
                            let worker = at.context.name();
                            info!(worker, "{worker}: {told}");
                        }
                        Err(error) if !is_last && error.sqlstate().is_some_and(is_made_already) => {
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
            }
        }
    }

    async fn hidden(&self, at: At<'_, Settings>) -> CycleError {
        let found = match tables::look(at.session, at.settings, trusted_owners(at)).await {
            Ok(found) => found,
            Err(error) => return error.into(),
        };
        let queue = check::hides_nothing(&at.settings.queue, &found.queue, &found.role);
        match queue {
            Err(error) => unusable(error),
            // The policies are gone again.
            Ok(()) => CycleError::Unusable("row security has just changed".into()),
        }
    }

    async fn fold(
        &mut self,
        at: At<'_, Settings>,
        shape: &Shape,
        piece: Piece,
        isolation: Isolation,
    ) -> Result<Fold<Keys>, CycleError> {
        self.tried = true;
        let statements = Statements {
            worker: at.context.name(),
            queue: &at.settings.queue,
            totals: &at.settings.totals,
            shape,
        };
        let left_out = self.poison.keys();
        let folding = self.run(at, &statements, piece, Which::AllBut(&left_out), isolation);
        let mut fold = match folding.await {
            Ok(fold) => fold,
            Err(Failure::Poison(error))
                if isolation == Isolation::RepeatableRead || is_not_of_a_key(&error) =>
            {
                return Err(error.into());
            }
            // Boxed because it is rare: not every worker should pay for its size.
            Err(Failure::Poison(_)) => Box::pin(self.halve(at, &statements, piece)).await?,
            Err(Failure::Other(error)) => return Err(error.into()),
        };
        if !self.poison.due(Instant::now()).is_empty() {
            let again = Box::pin(self.try_again(at, &statements, piece)).await?;
            fold.found = fold.found.and(again);
        }
        let blocks_left = fold
            .blocks
            .saturating_sub(piece.from.saturating_add(piece.blocks));
        let rows = match &fold.found {
            Found::Folded(folded) => folded.rows,
            _ => 0,
        };
        let pending = rows * u64::from(blocks_left) / u64::from(piece.blocks.max(1));
        self.report_pending(at, i64::try_from(pending).unwrap_or(i64::MAX));
        Ok(fold)
    }

    fn tell(at: At<'_, Settings>, Keys { rows, keys }: &Keys) {
        let (worker, totals) = (at.context.name(), &at.settings.totals);
        match at.context.progress().is_worth_a_line() {
            Some(0) => info!(
                worker,
                rows, keys, "{worker}: folded {rows} rows into {totals}"
            ),
            Some(more) => info!(
                worker,
                rows,
                keys,
                "{worker}: folded {rows} rows into {totals}; {more} more folds since the last such line"
            ),
            None => debug!(
                worker,
                rows, keys, "{worker}: folded {rows} rows into {totals}"
            ),
        }
    }

    fn waits(&mut self, at: At<'_, Settings>) -> Option<String> {
        let now = Instant::now();
        if !std::mem::take(&mut self.tried) {
            self.poison.forget_due(now);
            self.report_pending(at, 0);
        }
        self.poison.forget_gone();
        let left = std::mem::take(&mut self.left);
        if !left
            && self
                .locked_since
                .is_some_and(|since| since.elapsed() > AROUND_AFTER)
        {
            self.locked_since = None;
        }
        if let Some(told) = self.poison.tell(&at.settings.queue) {
            return Some(told);
        }
        let totals = &at.settings.totals;
        left.then(|| {
            format!("other clients hold some totals of {totals}: the deltas of their keys wait, all others are folded")
        })
    }
}

/// The owners of tables that the settings trust.
fn trusted_owners<'t>(at: At<'t, Settings>) -> &'t [String] {
    let database = at.context.database();
    database.map_or(&[], |database| &database.settings().trusted_owners)
}

fn unusable(error: UnusableRollup) -> CycleError {
    CycleError::Unusable(Box::new(error))
}

/// `true` if a fold that undid itself may succeed when it is run again at once.
fn is_passing(undone: &str) -> bool {
    !undone.starts_with("a sum") && undone != CHANGED
}

/// `true` if the queue keeps every delta, or loses others than those deleted: no key is at fault.
fn is_not_of_a_key(error: &DatabaseError) -> bool {
    let is_such = |undone: &str| {
        undone.ends_with(" deltas 0 could be deleted") || undone.starts_with(MISCOUNTED)
    };
    error.undone().is_some_and(is_such)
}

/// `true` if some of the deltas are at fault, and not the statement, the session or the server.
fn is_poison(error: &DatabaseError) -> bool {
    match error.undone() {
        Some(undone) => undone != CHANGED,
        None => error.sqlstate().is_some_and(is_of_a_row),
    }
}
