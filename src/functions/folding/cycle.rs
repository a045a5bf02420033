//! One cycle of a worker that folds: one look at its queue, and the folds if there are deltas.
//!
//! Returns what it found. The runner decides what follows from that, and from an error.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;
use tracing::{info, warn};

use super::large_table::LargeTable;
use super::pieces::{Folds, Found, Pieces};
use super::{At, Folder, PROBE};
use crate::context::WorkerContext;
use crate::database::Tid;
use crate::functions::runner::CycleError;
use crate::functions::session::{Probe, Session, looks_in_order};

/// What earlier incarnations found out about the tables, unless it has been disproved. With it, a fleet that comes
/// back all at once need not look again. Clones share one value.
#[derive(Debug)]
pub(in crate::functions) struct Known<S>(Arc<Mutex<Option<S>>>);

/// What one cycle leaves for the next.
pub(super) struct Cycle<F: Folder> {
    known: Known<F::Shape>,
    /// The probe, once the tables can be worked on; `None` when it is out of date.
    probe: Option<Look<F::Shape>>,
    /// The worker has logged that it is initialized.
    is_initialized: bool,
    /// Rows with NULL were reported, and are still there.
    nulls_reported: bool,
    pieces: Pieces,
    /// Where to look in a table that is too large to be looked at whole.
    large: LargeTable,
}

/// A probe that is ready to be run.
struct Look<S> {
    shape: S,
    probe: Probe,
    for_nulls: bool,
    for_row_security: bool,
    has_answered: bool,
}

// === impl Known ===

impl<S> Default for Known<S> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<S> Clone for Known<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S> Known<S> {
    /// Takes what is known, if the last look succeeded. Nothing stays behind, so that the next incarnation looks
    /// again if this look fails.
    fn take(&self) -> Option<S> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Records that a look has succeeded.
    fn set(&self, shape: S) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(shape);
    }
}

// === impl Cycle ===

impl<F: Folder> Cycle<F> {
    pub(super) fn new(known: Known<F::Shape>) -> Self {
        Self {
            known,
            probe: None,
            is_initialized: false,
            nulls_reported: false,
            pieces: Pieces::default(),
            large: LargeTable::default(),
        }
    }

    /// `true` once the tables could be worked on.
    pub(super) fn is_initialized(&self) -> bool {
        self.is_initialized
    }

    /// Forgets the probe, because its session has ended or it no longer fits: the next cycle prepares it again.
    pub(super) fn forget_probe(&mut self) {
        self.probe = None;
    }

    /// Forgets everything that was found out, because something has changed: the next cycle, of this or another
    /// incarnation, looks at the tables again.
    pub(super) fn forget(&mut self) {
        self.probe = None;
        self.known.take();
        self.large = LargeTable::default();
    }

    /// `true` if there is more to look at than this cycle did: the next one must not wait.
    pub(super) fn is_sweeping(&self) -> bool {
        self.large.is_sweeping()
    }

    /// Looks once, after the preparations that this needs, and folds if there is something to fold.
    pub(super) async fn run(
        &mut self,
        folder: &mut F,
        session: &Session,
        settings: &F::Settings,
        context: &mut WorkerContext,
    ) -> Result<Found<F::Folded>, CycleError> {
        let look = match self.probe.take() {
            Some(look) => look,
            // Once, so boxed: cycles should not pay for its size.
            None => Box::pin(self.prepare(folder, session, settings, context)).await?,
        };
        let at = At {
            session,
            settings,
            context,
        };
        let look = self.probe.insert(look);
        if self.large.is_large() {
            let (large, pieces) = (&mut self.large, &mut self.pieces);
            // Only for large tables, so boxed: other workers should not pay for its size.
            let looking = Box::pin(large.look(folder, pieces, at, &look.shape));
            if let Some(found) = looking.await? {
                return Ok(found);
            }
        }
        self.look_at_whole(folder, at).await
    }

    /// Looks at the whole table, together with the probes of neighbours.
    async fn look_at_whole(
        &mut self,
        folder: &mut F,
        at: At<'_, F::Settings>,
    ) -> Result<Found<F::Folded>, CycleError> {
        let Some(look) = &mut self.probe else {
            return Ok(Found::Idle);
        };
        let begin = Instant::now();
        let found = look.probe.run("look for deltas").await?;
        at.context.progress().observe(PROBE, begin.elapsed());
        let mut found = found.into_iter();
        let delta = found.next().flatten();
        let null = if look.for_nulls {
            found.next().flatten()
        } else {
            None
        };
        let hidden = if look.for_row_security {
            found.next().flatten()
        } else {
            None
        };
        if hidden.is_some() {
            return Err(Box::pin(folder.hidden(at)).await);
        }
        if !std::mem::replace(&mut look.has_answered, true) {
            self.known.set(look.shape.clone());
        }
        if null.is_some() && !self.nulls_reported {
            let (worker, queue) = (at.context.name(), F::relation(at.settings));
            warn!(
                worker,
                "{worker}: {queue} has rows whose value is NULL: they are left alone"
            );
        }
        self.nulls_reported = null.is_some();
        let Some(Tid { block }) = delta else {
            if !self.large.ask_size_if_due::<F>(at, &look.shape).await? {
                // The next cycle looks at them.
                self.forget();
            }
            return Ok(Found::Idle);
        };
        let is_first = looks_in_order(at.context, F::terms(at.settings).place);
        let from = if is_first { block } else { 0 };
        let Folds { found, end } = match folder.fold_at_once(at, &look.shape, from).await? {
            Some(folds) => folds,
            None => {
                let folding = self.pieces.fold_all(folder, at, &look.shape, from);
                folding.await?
            }
        };
        if let Some(blocks) = end {
            self.large.has(blocks);
        }
        Ok(found)
    }

    /// Initializes the tables unless they are known, prepares the probe, and the first time reports the worker ready.
    async fn prepare(
        &mut self,
        folder: &F,
        session: &Session,
        settings: &F::Settings,
        context: &mut WorkerContext,
    ) -> Result<Look<F::Shape>, CycleError> {
        let at = At {
            session,
            settings,
            context,
        };
        let shape = match self.known.take() {
            // Nothing more is asked: otherwise a fleet that comes back all at once would take three times as long.
            Some(shape) => shape,
            None => folder.initialize(at).await?,
        };
        let worker = context.name();
        let for_row_security = context
            .database()
            .is_some_and(|database| !database.sessions_are_ours());
        let with_null = F::with_null(settings, &shape);
        let for_nulls = with_null.is_some();
        let queue = F::queue(settings, &shape);
        let sql = queue.probe(worker, with_null, for_row_security);
        let probe = session.prepare("prepare to look for deltas", sql).await?;
        if !std::mem::replace(&mut self.is_initialized, true) {
            let (schema, table) = (&*queue.relation.schema, &*queue.relation.name);
            info!(
                worker,
                schema, table, "{worker} initialized with {schema}.{table}"
            );
            context.ready();
        }
        Ok(Look {
            shape,
            probe,
            for_nulls,
            for_row_security,
            has_answered: false,
        })
    }
}
