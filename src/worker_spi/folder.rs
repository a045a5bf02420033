//! One worker at work: a cycle, a nap, and what follows from what the cycle found.

use std::pin::pin;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use super::Settings;
use super::cycle::{Cycle, Outcome};
use super::initialize::{InitializeError, Known};
use super::remedy::{Patience, Remedy};
use super::session::Session;
use super::vacuum::Vacuum;
use crate::context::{WorkerContext, WorkerError};
use crate::database::{DatabaseError, ErrorClass};
use crate::latch::Wake;

/// After this many retries in a row, the worker says that its deltas wait.
const RETRIES_UNTIL_WARNING: u32 = 8;

/// After this many naps, and the longest statement, a worker without a success is late.
const NAPS_UNTIL_LATE: u32 = 3;

/// How long a cancelled cycle may take to say so.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);

/// A worker with its session.
pub(super) struct Folder {
    context: WorkerContext,
    settings: watch::Receiver<Settings>,
    session: Session,
    cycle: Cycle,
    patience: Patience,
    /// The next cycle is to run in a session that begins anew.
    renews: bool,
    /// What was reported last: the same again is not.
    reported: Condition,
    vacuum: Vacuum,
}

/// What has to be told, once.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Condition {
    Well,
    NoTotal,
    Crowded,
    Failing { sqlstate: String },
    Unusable { why: String },
}

// === impl Folder ===

impl Folder {
    pub(super) fn new(
        context: WorkerContext,
        settings: watch::Receiver<Settings>,
        session: Session,
        known: Known,
    ) -> Self {
        Self {
            cycle: Cycle::new(known),
            context,
            settings,
            session,
            patience: Patience::default(),
            renews: false,
            reported: Condition::Well,
            vacuum: Vacuum::default(),
        }
    }

    /// Cycles and naps until it is asked to stop, or cannot go on; then closes its session.
    pub(super) async fn work(mut self) -> Result<(), WorkerError> {
        let end = self.cycle_and_nap().await;
        drop(self.cycle);
        self.session.close().await;
        end
    }

    async fn cycle_and_nap(&mut self) -> Result<(), WorkerError> {
        // Thousands that started together are not to march in step.
        let mut first_nap = Some(fastrand::f64());
        let mut settings = self.settings.borrow_and_update().clone();
        loop {
            // One snapshot for each cycle, and a copy only of what is new.
            if self.settings.has_changed().unwrap_or(true) {
                settings = self.settings.borrow_and_update().clone();
            }
            self.promise(&settings);
            let renewed = if std::mem::take(&mut self.renews) || self.session.is_closed() {
                // Rare, and not to be paid for by every worker.
                Box::pin(self.renew_unless_stopped(&settings)).await
            } else {
                Some(Ok(()))
            };
            let cycle = match renewed {
                Some(Ok(())) => self.cycle_unless_stopped(&settings).await,
                Some(Err(error)) => Some(Err(error.into())),
                None => None,
            };
            let Some(cycle) = cycle else {
                return Ok(());
            };
            let nap = match cycle {
                Ok(outcome) => {
                    let nap = self.found(&settings, outcome);
                    match first_nap.take() {
                        Some(part) => nap.mul_f64(part),
                        None => self.session.in_company(nap),
                    }
                }
                Err(InitializeError::Database(error)) => self.failed(&settings, error).await?,
                Err(InitializeError::Unusable(table)) if self.cycle.is_initialized() => {
                    let why = table.to_string();
                    let condition = Condition::Unusable { why: why.clone() };
                    self.back_off(&settings, condition, None, &why)
                }
                Err(InitializeError::Unusable(table)) => return Err(table.into()),
            };
            match self.context.nap(nap).await {
                Wake::Timeout => {}
                Wake::Sighup => debug!(worker = self.context.name(), "got sighup!"),
                Wake::Sigterm | Wake::Sigint | Wake::PostmasterDeath => return Ok(()),
            }
        }
    }

    /// Promises how often the worker will succeed: an older success makes it unhealthy.
    fn promise(&self, settings: &Settings) {
        let statement_timeout = self.context.database().map_or(Duration::ZERO, |database| {
            database.settings().statement_timeout
        });
        let within = (settings.naptime)
            .saturating_mul(NAPS_UNTIL_LATE)
            .saturating_add(statement_timeout);
        self.context.progress().promise_success_within(within);
    }

    /// Renews the session, if it has ended while the worker napped, or what is fixed in it may be what is wrong.
    /// `None` if the worker is to end.
    async fn renew_unless_stopped(
        &mut self,
        settings: &Settings,
    ) -> Option<Result<(), DatabaseError>> {
        if matches!(self.session, Session::Own(_)) {
            self.cycle.forget_probe();
        }
        let latch = self.context.latch().clone();
        tokio::select! {
            biased;
            () = latch.stop_requested() => None,
            renewed = self.session.renew(&self.context, settings) => Some(renewed),
        }
    }

    /// One cycle. `None` if the worker is to end, and it was cancelled or had not begun.
    async fn cycle_unless_stopped(
        &mut self,
        settings: &Settings,
    ) -> Option<Result<Outcome, InitializeError>> {
        let latch = self.context.latch().clone();
        let session = &self.session;
        let mut cycle = pin!(self.cycle.run(session, settings, &mut self.context));
        let stopped = async {
            latch.stop_requested().await;
            if session.is_at_work() {
                // What has begun is finished.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            outcome = &mut cycle => return Some(outcome),
            () = latch.cancel_requested() => {}
            () = stopped => return None,
        }
        if !session.is_at_work() {
            return None;
        }
        session.cancel().await;
        // It may have committed before the cancellation arrived; both is well.
        let _ = tokio::time::timeout(CANCEL_TIMEOUT, cycle).await;
        None
    }

    /// What follows from what a cycle found: how long to nap.
    fn found(&mut self, settings: &Settings, outcome: Outcome) -> Duration {
        let table = &settings.table;
        match outcome {
            Outcome::Skipped => return self.retry(settings, "others hold its total"),
            Outcome::NoTotal => {
                let waits =
                    format!("{table} has deltas but no total: they wait until one is inserted");
                if self.is_news(Condition::NoTotal) {
                    let worker = self.context.name();
                    warn!(worker, "{worker}: {waits}");
                }
                self.context.progress().failed(waits);
            }
            Outcome::Idle => self.succeeded(),
            Outcome::Folded { rows, total } => {
                self.succeeded();
                self.vacuum_after(settings, rows);
                let worker = self.context.name();
                info!(
                    worker,
                    rows, total, "{worker}: count in {table} is now {total}"
                );
            }
        }
        self.patience = Patience::default();
        settings.naptime
    }

    /// Has the table vacuumed if so many deltas have left their room behind.
    fn vacuum_after(&mut self, settings: &Settings, folded: u64) {
        if !self.vacuum.is_due(folded, settings.vacuum_after) {
            return;
        }
        if let Some(database) = self.context.database().cloned() {
            let worker = self.context.name().to_owned();
            let sql = settings.table.vacuum(&worker);
            self.vacuum
                .begin(database, worker, settings.database.clone(), sql);
        }
    }

    /// What follows from a cycle that failed: how long to nap, or the worker's end.
    async fn failed(
        &mut self,
        settings: &Settings,
        error: DatabaseError,
    ) -> Result<Duration, WorkerError> {
        let was_ready = self.cycle.is_initialized();
        let mut remedy = Remedy::of(&error, was_ready, &mut self.patience);
        if remedy == Remedy::AskForRecovery {
            let latch = self.context.latch().clone();
            let in_recovery = tokio::select! {
                biased;
                () = latch.stop_requested() => return Ok(Duration::ZERO),
                in_recovery = self.session.is_in_recovery() => in_recovery,
            };
            // One that was a primary, if it is a standby.
            remedy = match in_recovery {
                Ok(true) | Err(_) => Remedy::Away,
                Ok(false) => Remedy::BackOff,
            };
        }
        let text = error.to_string();
        match remedy {
            Remedy::Again => {
                self.context.progress().failed(text.clone());
                Ok(self.retry(settings, &text))
            }
            Remedy::PrepareAgain => {
                self.cycle.forget();
                self.context.progress().failed(text.clone());
                Ok(self.retry(settings, &text))
            }
            Remedy::BackOff => {
                let sqlstate = error.sqlstate().unwrap_or_default().to_owned();
                let condition = Condition::Failing { sqlstate };
                let why = format!("{text}: {}", advice(&error));
                Ok(self.back_off(settings, condition, error.sqlstate(), &why))
            }
            Remedy::Away => match &self.session {
                Session::Own(_) => Err(WorkerError::DatabaseAway(Box::new(error))),
                // The line sees to the connection, and the Postmaster to the server. Meanwhile this worker
                // is as good as napping, and goes on as soon as it can.
                Session::Home(home) => {
                    if !is_lost(&error) {
                        home.give_up();
                    }
                    self.context.progress().failed(text.clone());
                    Ok(self.retry(settings, &text))
                }
            },
            Remedy::Exit | Remedy::AskForRecovery => {
                // Something is not as it was: the next incarnation looks for itself.
                self.cycle.forget();
                Err(error.into())
            }
        }
    }

    /// Says what has to be mended, unless that was said before, and looks at everything anew the next time: the
    /// table, and what is fixed when a session begins.
    fn back_off(
        &mut self,
        settings: &Settings,
        condition: Condition,
        sqlstate: Option<&str>,
        why: &str,
    ) -> Duration {
        self.cycle.forget();
        self.renews = true;
        self.context.progress().failed(why.to_owned());
        if self.is_news(condition) {
            let worker = self.context.name();
            error!(worker, sqlstate, "{worker}: {why}");
        }
        self.patience.back_off(settings.naptime)
    }

    fn retry(&mut self, settings: &Settings, why: &str) -> Duration {
        let wait = self.patience.retry(settings.naptime);
        let is_due = self.patience.retries() == RETRIES_UNTIL_WARNING;
        if is_due && self.is_news(Condition::Crowded) {
            let (worker, table) = (self.context.name(), &settings.table);
            warn!(
                worker,
                "{worker}: the deltas of {table} wait, after {RETRIES_UNTIL_WARNING} attempts: {why}"
            );
        }
        wait
    }

    fn succeeded(&mut self) {
        self.context.progress().succeeded();
        self.reported = Condition::Well;
    }

    /// Remembers a condition, and says whether it was another one before.
    fn is_news(&mut self, condition: Condition) -> bool {
        let is_news = self.reported != condition;
        self.reported = condition;
        is_news
    }
}

/// What an error means for the deltas, and what is likely at fault.
fn advice(error: &DatabaseError) -> &'static str {
    match error.undone() {
        Some(what) if what.contains("deltas") => {
            "nothing was changed: a trigger or a rule on DELETE keeps deltas in the table"
        }
        Some(_) => "nothing was changed: a trigger on UPDATE alters or suppresses the total",
        None if error.class() == ErrorClass::Cancelled => {
            "the deltas are kept: give it a longer statement_timeout"
        }
        None => "the deltas are kept",
    }
}

/// Whether the connection is gone with the error. Otherwise it leads to a server that will not do.
fn is_lost(error: &DatabaseError) -> bool {
    !matches!(error, DatabaseError::Statement { .. })
}
