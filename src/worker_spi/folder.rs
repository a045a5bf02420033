//! One worker at work: a cycle, a nap, and what follows from what the cycle found.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use super::Settings;
use super::cycle::{Cycle, Outcome};
use super::initialize::{InitializeError, Known};
use super::remedy::{Patience, Remedy};
use super::session::Session;
use super::statement;
use super::vacuum::Vacuum;
use crate::context::{WorkerContext, WorkerError};
use crate::database::DatabaseError;
use crate::latch::Wake;

/// After so many retries in a row, somebody should know.
const RETRIES_UNTIL_WARNING: u32 = 8;

/// After so many naps, and the longest statement, a worker without a success is late.
const NAPS_UNTIL_LATE: u32 = 3;

/// How long a cancelled cycle may take to say so.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);

/// A worker with its session.
pub(super) struct Folder {
    context: WorkerContext,
    settings: watch::Receiver<Settings>,
    session: Rc<Session>,
    cycle: Cycle,
    patience: Patience,
    /// What was reported last: the same again is not.
    reported: Condition,
    vacuum: Vacuum,
}

/// What somebody has to be told, once.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Condition {
    Well,
    NoTotal,
    Crowded,
    Failing { sqlstate: String },
}

// === impl Folder ===

impl Folder {
    pub(super) fn new(
        context: WorkerContext,
        settings: watch::Receiver<Settings>,
        session: Session,
        known: Known,
    ) -> Self {
        let session = Rc::new(session);
        Self {
            cycle: Cycle::new(settings.clone(), Rc::clone(&session), known),
            context,
            settings,
            session,
            patience: Patience::default(),
            reported: Condition::Well,
            vacuum: Vacuum::default(),
        }
    }

    /// Cycles and naps until it is asked to stop, or cannot go on; then closes its session.
    pub(super) async fn work(mut self) -> Result<(), WorkerError> {
        let end = self.cycle_and_nap().await;
        drop(self.cycle);
        if let Some(session) = Rc::into_inner(self.session) {
            session.close().await;
        }
        end
    }

    async fn cycle_and_nap(&mut self) -> Result<(), WorkerError> {
        // Thousands that started together are not to march in step.
        let mut first_nap = Some(fastrand::f64());
        loop {
            self.promise();
            let Some(cycle) = self.cycle_unless_stopped().await else {
                return Ok(());
            };
            let nap = match cycle {
                Ok(outcome) => {
                    let nap = self.found(outcome);
                    match first_nap.take() {
                        Some(part) => nap.mul_f64(part),
                        None => self.session.in_company(nap),
                    }
                }
                Err(InitializeError::Database(error)) => self.failed(error).await?,
                Err(InitializeError::Unusable(table)) => return Err(table.into()),
            };
            match self.context.nap(nap).await {
                Wake::Timeout => {}
                Wake::Sighup => debug!(worker = self.context.name(), "got sighup!"),
                Wake::Sigterm | Wake::Sigint | Wake::PostmasterDeath => return Ok(()),
            }
        }
    }

    /// Says how old a success may become before somebody should know.
    fn promise(&self) {
        let naptime = self.settings.borrow().naptime;
        let statement_timeout = self.context.database().map_or(Duration::ZERO, |database| {
            database.settings().statement_timeout
        });
        let within = naptime
            .saturating_mul(NAPS_UNTIL_LATE)
            .saturating_add(statement_timeout);
        self.context.progress().promise_success_within(within);
    }

    /// One cycle. `None` if the worker is to end, and it was cancelled or had not begun.
    async fn cycle_unless_stopped(&mut self) -> Option<Result<Outcome, InitializeError>> {
        let latch = self.context.latch().clone();
        let session = Rc::clone(&self.session);
        let mut cycle = pin!(self.cycle.run(&mut self.context));
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
    fn found(&mut self, outcome: Outcome) -> Duration {
        let naptime = self.settings.borrow().naptime;
        match outcome {
            Outcome::Skipped => return self.retry("others hold its total"),
            Outcome::NoTotal => {
                let table = self.settings.borrow().table.clone();
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
                self.vacuum_after(rows);
                let worker = self.context.name();
                let table = &self.settings.borrow().table;
                info!(
                    worker,
                    rows, total, "{worker}: count in {table} is now {total}"
                );
            }
        }
        self.patience = Patience::default();
        naptime
    }

    /// Has the table vacuumed if so many deltas have left their room behind.
    fn vacuum_after(&mut self, folded: u64) {
        let settings = self.settings.borrow();
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
    async fn failed(&mut self, error: DatabaseError) -> Result<Duration, WorkerError> {
        let latch = self.context.latch().clone();
        let remedy = tokio::select! {
            biased;
            () = latch.stop_requested() => return Ok(Duration::ZERO),
            remedy = Remedy::find(&error, &self.session, self.cycle.is_initialized()) => remedy,
        };
        match remedy {
            Remedy::Again => {
                // What is prepared may be what is out of date.
                if is_out_of_date(&error) {
                    self.cycle.forget();
                }
                self.context.progress().failed(error.to_string());
                Ok(self.retry(&error.to_string()))
            }
            Remedy::BackOff => {
                let sqlstate = error.sqlstate().unwrap_or_default().to_owned();
                self.context.progress().failed(error.to_string());
                if self.is_news(Condition::Failing { sqlstate }) {
                    let worker = self.context.name();
                    let sqlstate = error.sqlstate();
                    let why = match sqlstate {
                        Some(statement::UNDONE) => "something suppresses the update of the total",
                        Some("57014") => "the deltas are kept: give it a longer statement_timeout",
                        Some(_) | None => "the deltas are kept",
                    };
                    error!(worker, sqlstate, "{worker}: {error}: {why}");
                }
                let naptime = self.settings.borrow().naptime;
                Ok(self.patience.back_off(naptime))
            }
            Remedy::Away => match *self.session {
                Session::Own(_) => Err(WorkerError::DatabaseAway(Box::new(error))),
                // Others see to the connection, and the Postmaster to the server. Meanwhile this one
                // is as good as napping, and goes on as soon as it can.
                Session::Home(ref home) => {
                    if !is_lost(&error) {
                        home.give_up();
                    }
                    self.context.progress().failed(error.to_string());
                    Ok(self.retry(&error.to_string()))
                }
            },
            Remedy::Exit => {
                // Something is not as it was: the next incarnation looks for itself.
                self.cycle.forget();
                Err(error.into())
            }
        }
    }

    fn retry(&mut self, why: &str) -> Duration {
        let naptime = self.settings.borrow().naptime;
        let wait = self.patience.retry(naptime);
        let is_due = self.patience.retries() == RETRIES_UNTIL_WARNING;
        if is_due && self.is_news(Condition::Crowded) {
            let worker = self.context.name();
            let table = &self.settings.borrow().table;
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

/// Whether the connection is gone with the error. Otherwise it leads to a server that will not do.
fn is_lost(error: &DatabaseError) -> bool {
    !matches!(error, DatabaseError::Statement { .. })
}

/// Whether the server has forgotten what was prepared, or cannot use it any more.
fn is_out_of_date(error: &DatabaseError) -> bool {
    matches!(error.sqlstate(), Some("26000" | "0A000"))
}
