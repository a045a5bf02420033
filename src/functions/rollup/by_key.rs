//! The folds of a roll-up: all deltas of a piece into the totals of their keys, or around those that cannot be folded.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::check::{self, Make, Verdict};
use super::poison::{Moved, Poison};
use super::settings::Settings;
use super::shape::Shape;
use super::statement::{self, How, Statements};
use super::turn::{self, Turn};
use super::width::Width;
use super::{KEYS, PENDING_ESTIMATE, ROWS_FOLDED, ROWS_REJECTED, look, relations};
use crate::database::{DatabaseError, ErrorClass, is_locked, is_made_already, is_stale};
use crate::functions::folding::{
    At, Fold, Folded, Folder, Folds, Found, Isolation, Piece, Queue, Terms, Undone, blocks, number,
    took,
};
use crate::functions::relation::Relation;
use crate::functions::runner::{CycleError, Waiting};

/// How often to look at the tables again at once when another session created something first.
const ATTEMPTS_MAX: usize = 5;

/// How long a fold waits for a total that another client holds before it folds around it.
const AROUND_AFTER: Duration = Duration::from_secs(1);

/// How many of the rows that wait are counted.
const COUNTED_MAX: u32 = 200_000;

/// Folds into totals by key.
#[derive(Default)]
pub(super) struct ByKey {
    pub(super) poison: Poison,
    pub(super) turn: Turn,
    /// How wide ranges of keys are.
    pub(super) width: Width,
    /// When a fold first met totals that other clients hold; `None` if they hold none.
    pub(super) locked_since: Option<Instant>,
    /// Deltas were left in the queue, because other clients hold their totals.
    pub(super) left: bool,
    /// The sessions that hold these totals, as they are told; they are looked for once.
    holders: Option<String>,
    /// Why nothing can be folded, though no error says so.
    blocked: Option<String>,
    /// What this cycle has moved away.
    pub(super) moved: Moved,
    /// How long this cycle has folded in parts.
    pub(super) spent: Duration,
    /// How many keys the next part of a fold in parts has, if the last one did not come to its end.
    pub(super) size: Option<u32>,
    /// Parts are one key each: the server has cancelled a larger one, and it is not known which key was slow.
    pub(super) one_by_one: bool,
    /// Keys were folded in this cycle.
    pub(super) passed: bool,
    /// A fold was tried in this cycle.
    pub(super) tried: bool,
    /// How many rows wait in blocks that this cycle has not reached.
    beyond: u64,
    /// The last reported number of rows that wait.
    pending: Option<i64>,
}

/// Rows that were folded, and keys whose totals they were added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Keys {
    rows: u64,
    keys: u64,
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
    /// Folds what a statement folds whole, from this block on.
    pub(super) async fn run(
        &mut self,
        at: At<'_, Settings>,
        statements: &Statements<'_>,
        (sql, from): (&str, u32),
    ) -> Result<Fold<Keys>, DatabaseError> {
        let rows = at.session.simple_query("fold", sql).await?;
        let Some(row) = rows.first() else {
            return Ok(Fold::without(Found::Idle));
        };
        let (rows_folded, keys) = (number(row, 1).unsigned_abs(), number(row, 2).unsigned_abs());
        let found = if row.get(0) == Some("t") {
            self.turn.is_ours();
            self.locked_since = None;
            self.folded(at, rows_folded, keys)
        } else {
            let moves = self.turn.is_not_ours(at, statements, from).await?;
            Found::Left { moves }
        };
        Ok(Fold {
            found,
            blocks: blocks(row, 4),
            took: took(&rows),
        })
    }

    /// Decides what follows from the error of a fold of a whole piece: it is folded in parts if a row may be at fault.
    async fn after(
        &mut self,
        error: DatabaseError,
        at: At<'_, Settings>,
        statements: &Statements<'_>,
        piece: Piece,
        isolation: Isolation,
    ) -> Result<Fold<Keys>, CycleError> {
        let undone = Undone::of(&error);
        // The queue keeps every delta, or loses others than those deleted: no key is at fault.
        if let Some(Undone::Changed | Undone::KeptAll | Undone::Miscounted) = undone {
            return Err(error.into());
        }
        let is_repeated = undone.is_some() || error.sqlstate().is_some_and(is_stale);
        let is_slow = error.class() == ErrorClass::Cancelled && piece.blocks <= 1;
        if isolation == Isolation::RepeatableRead && is_repeated {
            Err(error.into())
        } else if undone.is_some() || error.may_be_of_a_row() || is_slow {
            self.fold_in_parts(at, statements, piece, Some(error)).await
        } else {
            Err(error.into())
        }
    }

    /// Counts what was folded.
    pub(super) fn folded(&mut self, at: At<'_, Settings>, rows: u64, keys: u64) -> Found<Keys> {
        if rows == 0 {
            return Found::Idle;
        }
        self.passed = true;
        at.context.progress().count(ROWS_FOLDED, rows);
        at.context.progress().count(KEYS, keys);
        Found::Folded(Keys { rows, keys })
    }

    /// `true` if other clients have held totals for long enough for folds to go around them.
    pub(super) fn goes_around(&self) -> bool {
        let since = self.locked_since.as_ref();
        since.is_some_and(|since| since.elapsed() > AROUND_AFTER)
    }

    /// `true` if no key is known that must be left out, nor one whose total other clients hold.
    pub(super) fn has_no_trouble(&self) -> bool {
        self.poison.is_empty() && !self.goes_around()
    }

    /// Records that a lock could not be had. After it was to be had for longer than a fold may take, the report says who
    /// has it.
    async fn is_locked(
        &mut self,
        error: DatabaseError,
        at: At<'_, Settings>,
        statements: &Statements<'_>,
    ) -> Result<Fold<Keys>, CycleError> {
        let since = *self.locked_since.get_or_insert_with(Instant::now);
        let longest = turn::longest(at);
        if since.elapsed() <= longest {
            return Err(error.into());
        }
        if self.holders.is_none() {
            self.holders = Some(turn::holders(at, statements).await?);
        }
        let (totals, holders) = (&at.settings.totals, self.holders.as_deref());
        self.blocked = Some(format!(
            "other clients have locked {totals} for more than {}{}: the deltas wait",
            humantime::format_duration(longest),
            holders.unwrap_or_default(),
        ));
        Ok(Fold::without(Found::Idle))
    }

    /// Records that about this many rows wait that this cycle has not reached.
    pub(super) fn are_beyond(&mut self, at: At<'_, Settings>, rows: u64) {
        self.beyond = rows;
        self.report_pending(at, i64::try_from(rows).unwrap_or(i64::MAX));
    }

    /// Counts the rows that wait, and forgets keys that have none.
    async fn count_waiting(&mut self, at: At<'_, Settings>) -> Result<i64, DatabaseError> {
        let sql = statement::count(at.context.name(), &at.settings.queue, COUNTED_MAX);
        let rows = at.session.query("count what waits", &sql, Vec::new());
        let waiting = rows.await?.first().map_or(0, |row| row.get(0));
        if waiting == 0 {
            self.poison.clear();
        }
        Ok(waiting)
    }

    /// Forgets the keys that were to be tried again, and of which nothing is left in the queue.
    async fn forget_gone(&mut self, at: At<'_, Settings>) -> Result<(), DatabaseError> {
        let gone = self.poison.gone();
        if gone.is_empty() {
            return Ok(());
        }
        let Settings { queue, keys, .. } = at.settings;
        let worker = at.context.name();
        let sql = statement::which_are_there(worker, queue, keys, &gone, COUNTED_MAX);
        let rows = at.session.query("look for keys", &sql, Vec::new());
        for row in rows.await? {
            self.poison.is_there(row.get(0));
        }
        for hash in self.poison.gone() {
            self.poison.forget(hash);
        }
        Ok(())
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
            fold_time: settings.fold_time,
            vacuum_after: settings.vacuum_after,
            place: settings.place(),
        }
    }

    fn relation(settings: &Settings) -> Relation {
        settings.queue.clone()
    }

    fn tables(settings: &Settings) -> Vec<Relation> {
        vec![settings.queue.clone(), settings.totals.clone()]
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

    fn at_fault(undone: Undone) -> &'static str {
        match undone {
            Undone::Miscounted => {
                "nothing was changed: a trigger or a foreign key of the queue keeps deltas or deletes other rows"
            }
            Undone::Kept | Undone::KeptAll => {
                "nothing was changed: a trigger on DELETE keeps deltas in the queue"
            }
            Undone::NotANumber => "nothing was changed: correct or delete these deltas",
            _ => "nothing was changed: a trigger alters or suppresses totals",
        }
    }

    async fn initialize(&self, at: At<'_, Settings>) -> Result<Shape, CycleError> {
        let mut attempts = 1..=ATTEMPTS_MAX;
        loop {
            let found = look::look(at.session, at.settings, trusted_owners(at)).await?;
            match check::check(at.settings, &found)
                .map_err(|all| CycleError::Unusable(all.into_error()))?
            {
                Verdict::Usable(shape) => {
                    let worker = at.context.name();
                    for warning in check::warnings(at.settings, &found) {
                        warn!(worker, "{worker}: {warning}");
                    }
                    if at.settings.rejected().is_some() {
                        // An alert on its growth needs to have seen it before.
                        at.context.progress().count(ROWS_REJECTED, 0);
                    }
                    return Ok(shape);
                }
                Verdict::Make(Make { what, told, sql }) => {
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
        let found = match look::look(at.session, at.settings, trusted_owners(at)).await {
            Ok(found) => found,
            Err(error) => return error.into(),
        };
        let hidden = relations::hides_rows(&at.settings.queue, &found.queue, &found.role);
        CycleError::Unusable(match hidden {
            Some(fault) => Box::new(fault),
            // The policies are gone again.
            None => "row security has just changed".into(),
        })
    }

    async fn fold_at_once(
        &mut self,
        at: At<'_, Settings>,
        shape: &Shape,
        from: u32,
    ) -> Result<Option<Folds<Keys>>, CycleError> {
        // Rare, so boxed: other workers should not pay for its size.
        Box::pin(self.fold_by_ranges(at, shape, from)).await
    }

    async fn fold(
        &mut self,
        at: At<'_, Settings>,
        shape: &Shape,
        piece: Piece,
        isolation: Isolation,
    ) -> Result<Fold<Keys>, CycleError> {
        self.tried = true;
        let statements = statements(at, shape);
        // Boxed because it is rare: not every worker should pay for its size.
        let fold = if self.has_no_trouble() {
            let how = match isolation {
                Isolation::RepeatableRead => How::Snapshot,
                Isolation::ReadCommitted => How::Wait,
            };
            let sql = statements.fold(piece, how);
            match self.run(at, &statements, (&sql, piece.from)).await {
                Ok(fold) => Ok(fold),
                Err(error) => Box::pin(self.after(error, at, &statements, piece, isolation)).await,
            }
        } else {
            Box::pin(self.fold_in_parts(at, &statements, piece, None)).await
        };
        let fold = match fold {
            Err(CycleError::Database(error)) if error.sqlstate().is_some_and(is_locked) => {
                Box::pin(self.is_locked(error, at, &statements)).await?
            }
            Err(error) => {
                if !error.is_away()
                    && let Ok(waiting) = Box::pin(self.count_waiting(at)).await
                {
                    self.report_pending(at, waiting);
                }
                return Err(error);
            }
            Ok(fold) => fold,
        };
        if (self.left || self.poison.has_held()) && self.holders.is_none() {
            self.holders = Some(turn::holders(at, &statements).await?);
        }
        let end = piece.from.saturating_add(piece.blocks);
        let blocks_left = u64::from(fold.blocks.saturating_sub(end));
        match &fold.found {
            Found::Folded(folded) => {
                let beyond = folded.rows * blocks_left / u64::from(piece.blocks.max(1));
                self.are_beyond(at, beyond);
            }
            _ if blocks_left == 0 => self.beyond = 0,
            _ => {}
        }
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

    async fn waits(&mut self, at: At<'_, Settings>) -> Result<Option<Waiting>, CycleError> {
        self.tell_moved(at);
        self.spent = Duration::ZERO;
        self.passed = false;
        self.poison.ends_cycle();
        let tried = std::mem::take(&mut self.tried);
        if tried {
            Box::pin(self.forget_gone(at)).await?;
        } else {
            self.turn.is_over();
        }
        let left = std::mem::take(&mut self.left) || self.poison.has_held();
        let blocked = self.blocked.take();
        let waits = left || blocked.is_some() || self.turn.is_lost() || !self.poison.is_empty();
        if waits || (!tried && self.pending.is_some_and(|pending| pending != 0)) {
            let waiting = Box::pin(self.count_waiting(at)).await?;
            let beyond = i64::try_from(self.beyond).unwrap_or(i64::MAX);
            self.report_pending(at, if waiting == 0 { 0 } else { waiting.max(beyond) });
        } else if self.beyond == 0 {
            self.report_pending(at, 0);
        }
        if blocked.is_some() {
            return Ok(blocked.map(Waiting::from));
        }
        // What is left to another session proves nothing about the totals.
        if !left && self.goes_around() && !self.turn.is_lost() {
            self.locked_since = None;
        }
        if !left && !self.turn.is_lost() && self.poison.is_empty() {
            self.turn.is_over();
        }
        let poisoned = self.poison.tell(&at.settings.queue);
        if let Some(told) = poisoned.or_else(|| self.turn.tell(at).map(Waiting::from)) {
            return Ok(Some(told));
        }
        if !left {
            self.holders = None;
            return Ok(None);
        }
        let (totals, holders) = (
            &at.settings.totals,
            self.holders.as_deref().unwrap_or_default(),
        );
        let why = format!(
            "other clients hold some totals of {totals}{holders}: the deltas of their keys wait"
        );
        Ok(Some(why.into()))
    }
}

/// The statements on the tables of a worker.
pub(super) fn statements<'s>(at: At<'s, Settings>, shape: &'s Shape) -> Statements<'s> {
    Statements {
        worker: at.context.name(),
        queue: &at.settings.queue,
        totals: &at.settings.totals,
        shape,
    }
}

/// The owners of tables that the settings trust.
pub(super) fn trusted_owners<'t>(at: At<'t, Settings>) -> &'t [String] {
    let database = at.context.database();
    database.map_or(&[], |database| &database.settings().trusted_owners)
}
