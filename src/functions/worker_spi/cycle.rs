//! One cycle of a worker: one look at its table, and where there are deltas, the folds.
//!
//! Says what it found. What follows from that, and from an error, is for the runner to say.

use tracing::{info, warn};

use super::Settings;
use super::fold::{Folds, Found, Pieces};
use super::initialize::{
    InitializeError, Known, hidden_by_row_security, initialize, insert_initial_total,
};
use super::large_table::LargeTable;
use super::statement::Looks;
use crate::context::WorkerContext;
use crate::database::Tid;
use crate::functions::session::{Probe, Session, looks_in_order};

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
    folds: Folds,
    /// The last cycle found no total either.
    total_was_missing: bool,
    /// Where to look in a table that is too large to be looked at whole.
    large: LargeTable,
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
        self.large = LargeTable::default();
    }

    /// Whether there is more to look at than this cycle did: the next one is not to wait.
    pub(super) fn is_sweeping(&self) -> bool {
        self.large.is_sweeping()
    }

    /// One look, after the preparations that it needs, and if there is something to fold, the folds.
    pub(super) async fn run(
        &mut self,
        session: &Session,
        settings: &Settings,
        context: &mut WorkerContext,
    ) -> Result<Found, InitializeError> {
        let mut outcome = None;
        if self.is_initialized && self.large.is_large() {
            let (large, folds) = (&mut self.large, &mut self.folds);
            // Of large tables alone, and not to be paid for by every worker.
            outcome = Box::pin(large.look(folds, session, settings, context)).await?;
        }
        let outcome = match outcome {
            Some(outcome) => outcome,
            None => self.look_at_whole(session, settings, context).await?,
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

    /// Looks at the whole table, together with the probes of neighbours.
    async fn look_at_whole(
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
            self.large
                .ask_size_if_due(session, settings, context)
                .await?;
            return Ok(Found::Idle);
        };
        let is_first = looks_in_order(context, settings.place());
        let from = if is_first { block } else { 0 };
        let folding = self.folds.fold_to_end(session, settings, context, from);
        let Pieces { found, end } = folding.await?;
        if let Some(blocks) = end {
            self.large.has(blocks);
        }
        Ok(found)
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
