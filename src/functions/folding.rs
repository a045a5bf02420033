//! Folding, shared by functions that take rows from a queue and add them up, some blocks in each transaction.
//!
//! A [`Folder`] knows its tables and the statement that folds; everything else is here: the look for something to
//! fold, the windows of a large table, the pieces, the vacuum afterwards. Nothing here knows what is added up.

mod cycle;
pub(super) mod keys;
mod large_table;
mod layout;
mod pieces;
mod statement;
mod undone;
mod vacuum;
mod windows;

use std::time::Duration;

use tokio::time::Instant;

use self::cycle::Cycle;
pub(super) use self::cycle::Known;
pub(super) use self::layout::{COLUMN_VERSIONS, HAS_CHILDREN, HAS_RULES, IS_BARE, Layout, hold};
pub(super) use self::pieces::{Fold, Folds, Found, blocks, blocks_of, count_blocks, number, took};
pub(super) use self::statement::{
    Isolation, Piece, Queue, bypass_row_security, comment, has_trigger, undo,
};
pub(super) use self::undone::Undone;
use self::vacuum::Vacuum;
use super::relation::Relation;
use super::runner::{CycleError, Nap, Outcome, Routine, Turn, Waiting};
use super::session::{Place, Session};
use crate::context::WorkerContext;
use crate::database::{DatabaseError, ErrorClass, is_missing, is_of_columns};

/// The figure that counts the rows that were folded.
pub(super) const ROWS_FOLDED: &str = "rows_folded";

/// The histogram of looks for deltas.
const PROBE: &str = "probe";

/// The histogram of folds, each a transaction.
const FOLD: &str = "fold";

/// What differs between functions that fold.
pub(super) trait Folder {
    /// The settings of a worker, which a reload may change.
    type Settings: Clone;

    /// What was found out about the tables before the first cycle.
    type Shape: Clone + Send + 'static;

    /// The result of a fold.
    type Folded: Folded;

    /// Divisor for the first fold's part of a batch: how long a fold takes is not known yet.
    const CAREFUL: u32;

    /// How the worker must fold.
    fn terms(settings: &Self::Settings) -> Terms<'_>;

    /// The table in which rows wait.
    fn relation(settings: &Self::Settings) -> Relation;

    /// The tables that folds write to.
    fn tables(settings: &Self::Settings) -> Vec<Relation> {
        vec![Self::relation(settings)]
    }

    /// Where rows wait.
    fn queue(settings: &Self::Settings, shape: &Self::Shape) -> Queue;

    /// A condition: the tables are still what the worker has found out about them. A fold under which it no longer holds
    /// undoes itself with [`Undone::Changed`].
    fn holds(settings: &Self::Settings, shape: &Self::Shape) -> String;

    /// A scalar that finds a row that no fold takes because of a NULL, if there can be one.
    fn with_null(settings: &Self::Settings, shape: &Self::Shape) -> Option<String>;

    /// What is likely at fault when a fold has undone itself for this reason.
    fn at_fault(undone: Undone) -> &'static str;

    /// Makes the tables that are missing, and refuses tables that the worker cannot use.
    async fn initialize(&self, at: At<'_, Self::Settings>) -> Result<Self::Shape, CycleError>;

    /// The error for policies that hide rows of the queue, but did not when the worker first looked at it.
    async fn hidden(&self, at: At<'_, Self::Settings>) -> CycleError;

    /// Folds what there is from this block on in another way than by pieces, if the settings ask for it, it can be done, and
    /// it is worth it.
    async fn fold_at_once(
        &mut self,
        at: At<'_, Self::Settings>,
        shape: &Self::Shape,
        from: u32,
    ) -> Result<Option<Folds<Self::Folded>>, CycleError> {
        let _ = (at, shape, from);
        Ok(None)
    }

    /// Folds some blocks in one transaction, and reports the result. If that fails at one snapshot, it may be called again
    /// for the same blocks.
    async fn fold(
        &mut self,
        at: At<'_, Self::Settings>,
        shape: &Self::Shape,
        piece: Piece,
        isolation: Isolation,
    ) -> Result<Fold<Self::Folded>, CycleError>;

    /// Logs what a cycle has folded.
    fn tell(at: At<'_, Self::Settings>, folded: &Self::Folded);

    /// Why rows wait for a person at the end of a cycle, if they do.
    async fn waits(&mut self, at: At<'_, Self::Settings>) -> Result<Option<Waiting>, CycleError>;
}

/// The result of one fold, or of several in a row.
pub(super) trait Folded: Copy {
    /// Number of rows taken from the queue.
    fn rows(&self) -> u64;

    /// This result and a later one, as one.
    fn and(self, later: Self) -> Self;
}

/// How a worker must fold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms<'s> {
    pub(super) naptime: Duration,
    /// About how many rows it folds in one transaction, at most.
    pub(super) batch: usize,
    /// How long one transaction should take on the server.
    pub(super) fold_time: Duration,
    /// Number of folded rows after which it vacuums the queue.
    pub(super) vacuum_after: Option<u64>,
    pub(super) place: Place<'s>,
}

/// Where a cycle works, and for which worker.
pub(super) struct At<'a, S> {
    pub(super) session: &'a Session,
    pub(super) settings: &'a S,
    pub(super) context: &'a WorkerContext,
}

impl<S> Clone for At<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for At<'_, S> {}

impl<S> At<'_, S> {
    /// Records how long a fold took, if this is one.
    pub(super) fn has_folded<D: Folded>(&self, found: &Found<D>, begin: Instant) {
        if let Found::Folded(folded) = found {
            let (progress, took) = (self.context.progress(), begin.elapsed());
            progress.observe(FOLD, took);
            progress.did(format!("folded {} rows", folded.rows()), took);
        }
    }

    /// Records that a piece of a backlog was folded, and others follow: the worker does its work long before its cycle ends.
    pub(super) fn has_folded_a_piece<D>(&self, found: &Found<D>) {
        if let Found::Folded(_) = found {
            let progress = self.context.progress();
            progress.is_able();
            progress.was_done(Instant::now());
        }
    }
}

/// The routine of one incarnation of a worker that folds.
pub(super) struct Folding<F: Folder> {
    folder: F,
    cycle: Cycle<F>,
    vacuum: Vacuum,
}

// === impl Folding ===

impl<F: Folder> Folding<F> {
    pub(super) fn new(folder: F, known: Known<F::Shape>) -> Self {
        Self {
            folder,
            cycle: Cycle::new(known),
            vacuum: Vacuum::default(),
        }
    }

    /// The outcome that lets the worker nap, unless it is in the middle of a sweep.
    fn goes_on(&self) -> Outcome {
        if self.cycle.is_sweeping() {
            Outcome::Done(Nap::AtOnce)
        } else {
            Outcome::Done(Nap::Usual)
        }
    }

    /// Counts this many more folded rows, and starts a vacuum of the queue if one is due.
    fn vacuum_if_due(&mut self, settings: &F::Settings, context: &WorkerContext, rows: u64) {
        let terms = F::terms(settings);
        self.vacuum.count(rows);
        if !self.vacuum.is_due(terms.vacuum_after) {
            return;
        }
        if let Some(database) = context.database().cloned() {
            let (worker, table) = (context.name().to_owned(), F::relation(settings));
            let dbname = terms.place.dbname.map(str::to_owned);
            self.vacuum.begin(database, worker, dbname, table);
        }
    }
}

impl<F: Folder> Routine for Folding<F> {
    type Settings = F::Settings;

    fn naptime(settings: &F::Settings) -> Duration {
        F::terms(settings).naptime
    }

    fn place(settings: &F::Settings) -> Place<'_> {
        F::terms(settings).place
    }

    fn tables(settings: &F::Settings) -> Vec<Relation> {
        F::tables(settings)
    }

    fn backlog(settings: &F::Settings) -> String {
        format!("the deltas of {}", F::relation(settings))
    }

    fn advice(error: &DatabaseError) -> &'static str {
        match Undone::of(error) {
            Some(Undone::Changed) => {
                "nothing was changed: its tables are being altered again and again"
            }
            Some(undone) => F::at_fault(undone),
            None if error.class() == ErrorClass::Cancelled => {
                "the deltas are kept: give it a longer statement_timeout"
            }
            None if error.class() == ErrorClass::ReadOnly => {
                "the database was made read-only for this role (default_transaction_read_only): the deltas are kept"
            }
            None if error.sqlstate().is_some_and(is_missing) => {
                "its tables are looked at again: a table that was dropped has taken its deltas along"
            }
            None => "the deltas are kept",
        }
    }

    async fn cycle(&mut self, turn: Turn<'_, F::Settings>) -> Result<Outcome, CycleError> {
        let Turn {
            session,
            settings,
            context,
            ..
        } = turn;
        let (cycle, folder) = (&mut self.cycle, &mut self.folder);
        let found = match cycle.run(folder, session, settings, context).await {
            Err(CycleError::Database(error)) if has_changed(&error) => {
                cycle.forget();
                // Rare, so boxed: other workers should not pay for its size.
                Box::pin(cycle.run(folder, session, settings, context)).await?
            }
            found => found?,
        };
        let at = At {
            session,
            settings,
            context,
        };
        if let Found::Folded(folded) = &found {
            self.vacuum_if_due(settings, context, folded.rows());
            F::tell(at, folded);
        }
        let waits = self.folder.waits(at).await?;
        Ok(match (found, waits) {
            (_, Some(waiting)) => Outcome::Waits(waiting),
            (Found::Busy(why, None), None) => Outcome::Again(why.into()),
            (Found::Busy(why, Some(pid)), None) => {
                Outcome::Again(format!("{why} (PID {pid})").into())
            }
            (Found::Left { moves: false }, None) => Outcome::Left,
            (Found::Folded(_) | Found::Idle | Found::Left { moves: true }, None) => self.goes_on(),
        })
    }

    fn was_ready(&self) -> bool {
        self.cycle.is_initialized()
    }

    fn forget_prepared(&mut self) {
        self.cycle.forget_probe();
    }

    fn forget(&mut self) {
        self.cycle.forget();
    }
}

/// `true` if a statement found that its tables are not what the worker knows of them: it looks at them again.
fn has_changed(error: &DatabaseError) -> bool {
    Undone::of(error) == Some(Undone::Changed) || error.sqlstate().is_some_and(is_of_columns)
}
