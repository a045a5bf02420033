//! Folding: what functions share that take rows from a queue and add them up, some blocks of it in each transaction.
//!
//! A [`Folder`] knows its tables and the statement that folds; all else is here: the look for something to fold, the
//! windows of a large table, the pieces, the vacuum afterwards. Nothing here knows what is added up.

mod cycle;
mod large_table;
mod pieces;
mod statement;
mod vacuum;
mod windows;

use std::time::Duration;

use self::cycle::Cycle;
pub(super) use self::cycle::Known;
pub(super) use self::pieces::{Fold, Found, blocks_in, blocks_of, count_blocks};
pub(super) use self::statement::{Piece, Queue, TOOK, bypass_row_security, comment};
use self::vacuum::Vacuum;
use super::runner::{CycleError, Outcome, Routine, Turn};
use super::session::{Place, Session};
use crate::context::WorkerContext;
use crate::database::{DatabaseError, ErrorClass};

/// What differs between functions that fold.
pub(super) trait Folder {
    /// What a worker is told, and a reload may change.
    type Settings: Clone;

    /// What was found out about the tables before the first cycle.
    type Shape: Clone + Send + 'static;

    /// What folds come to.
    type Folded: Folded;

    /// The first fold takes one part in this many of a batch: how long it takes is not known then.
    const CAREFUL: u32;

    /// How it is to fold.
    fn terms(settings: &Self::Settings) -> Terms<'_>;

    /// Where rows wait.
    fn queue(settings: &Self::Settings) -> Queue;

    /// A scalar that finds a row which no fold takes because of a NULL, if there can be one.
    fn with_null(settings: &Self::Settings, shape: &Self::Shape) -> Option<String>;

    /// What is likely at fault when a fold has undone itself, for this reason.
    fn at_fault(undone: &str) -> &'static str;

    /// Makes the tables that are missing, and refuses tables that the worker cannot use.
    async fn initialize(&self, at: At<'_, Self::Settings>) -> Result<Self::Shape, CycleError>;

    /// Policies hide rows of the queue that were not there when it was looked at.
    async fn hidden(&self, at: At<'_, Self::Settings>) -> CycleError;

    /// Folds everything from this block on at once, if that was asked for, can be done, and is worth it.
    async fn fold_at_once(
        &mut self,
        at: At<'_, Self::Settings>,
        from: u32,
    ) -> Result<Option<Found<Self::Folded>>, CycleError> {
        let _ = (at, from);
        Ok(None)
    }

    /// Folds some blocks, in one transaction, and reports it.
    async fn fold(
        &mut self,
        at: At<'_, Self::Settings>,
        shape: &Self::Shape,
        piece: Piece,
    ) -> Result<Fold<Self::Folded>, CycleError>;

    /// Tells what a cycle has folded.
    fn tell(at: At<'_, Self::Settings>, folded: &Self::Folded);

    /// What waits for a person, at the end of a cycle.
    fn waits(&mut self, at: At<'_, Self::Settings>) -> Option<String>;
}

/// What folds come to, one after the other.
pub(super) trait Folded: Copy {
    /// How many rows they took from the queue.
    fn rows(&self) -> u64;

    /// This, and what came after it.
    fn and(self, later: Self) -> Self;
}

/// How a worker is to fold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms<'s> {
    pub(super) naptime: Duration,
    /// About how many rows it folds in one transaction, at most.
    pub(super) batch: usize,
    /// After how many folded rows it vacuums the queue.
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

/// What an incarnation of a worker that folds does.
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

    /// It naps, unless it is in the middle of a sweep.
    fn goes_on(&self) -> Outcome {
        if self.cycle.is_sweeping() {
            Outcome::Idle(Duration::ZERO)
        } else {
            Outcome::Done
        }
    }

    /// Has the queue vacuumed if this many rows more have left their room behind.
    fn vacuum_if_due(&mut self, settings: &F::Settings, context: &WorkerContext, rows: u64) {
        let terms = F::terms(settings);
        self.vacuum.count(rows);
        if !self.vacuum.is_due(terms.vacuum_after) {
            return;
        }
        if let Some(database) = context.database().cloned() {
            let (worker, queue) = (context.name().to_owned(), F::queue(settings));
            let dbname = terms.place.dbname.map(str::to_owned);
            self.vacuum.begin(database, worker, dbname, queue);
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

    fn backlog(settings: &F::Settings) -> String {
        format!("the deltas of {}", F::queue(settings).relation)
    }

    fn advice(error: &DatabaseError) -> &'static str {
        match error.undone() {
            Some(undone) => F::at_fault(undone),
            None if error.class() == ErrorClass::Cancelled => {
                "the deltas are kept: give it a longer statement_timeout"
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
        let cycle = self.cycle.run(&mut self.folder, session, settings, context);
        let found = cycle.await?;
        let at = At {
            session,
            settings,
            context,
        };
        if let Found::Folded(folded) = &found {
            self.vacuum_if_due(settings, context, folded.rows());
            F::tell(at, folded);
        }
        let waits = self.folder.waits(at);
        Ok(match (found, waits) {
            (_, Some(why)) => Outcome::Waits(why),
            (Found::Busy(why), None) => Outcome::Busy(why),
            (Found::Folded(_) | Found::Idle, None) => self.goes_on(),
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
