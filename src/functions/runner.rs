//! The runner of a routine: a cycle, a nap, and what follows from the cycle's outcome.
//!
//! Stops or cancels a cycle when the worker is asked to end, renews the session when it must, decides how long to nap
//! after an error, and reports each condition once. It names no table and has no statement of its own.

use std::pin::pin;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, error, warn};

use super::beside::Beside;
pub(super) use super::outcome::{CycleError, Nap, Outcome, Waiting};
use super::relation::Relation;
pub(super) use super::remedy::RETRIES_UNTIL_WARNING;
use super::remedy::{Patience, Remedy, is_lost};
use super::session::{Place, Session};
use super::table_locks::TableLocks;
use crate::backoff::Spell;
use crate::context::{WorkerContext, WorkerError};
use crate::database::DatabaseError;
use crate::latch::Wake;

/// After this many, at least a minute unless its naptime is shorter than a second, it warns in any case.
const RETRIES_UNTIL_REMINDER: u32 = 64;

/// A worker is late if it has had no success for this many naps plus one statement timeout.
const NAPS_UNTIL_LATE: u32 = 3;

/// Longest wait for a cancelled cycle to return.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);

/// The work of a built-in function, one cycle at a time.
pub(super) trait Routine {
    /// The settings of a worker, which a reload may change.
    type Settings;

    /// How long a worker naps between two cycles.
    fn naptime(settings: &Self::Settings) -> Duration;

    /// How old a worker's last success may become before the worker is late.
    fn success_within(settings: &Self::Settings, statement_timeout: Duration) -> Duration {
        Self::naptime(settings)
            .saturating_mul(NAPS_UNTIL_LATE)
            .saturating_add(statement_timeout)
    }

    /// Where its statements run.
    fn place(settings: &Self::Settings) -> Place<'_>;

    /// The tables that its cycles write to, as far as they are known: locks on them are looked for when one is in the way.
    fn tables(settings: &Self::Settings) -> Vec<Relation> {
        let _ = settings;
        Vec::new()
    }

    /// What waits while cycles fail, such as `the deltas of s.t`.
    fn backlog(settings: &Self::Settings) -> String;

    /// What an error means for its rows, and what is likely at fault.
    fn advice(error: &DatabaseError) -> &'static str;

    /// Runs one cycle. It may be dropped wherever it awaits.
    async fn cycle(&mut self, turn: Turn<'_, Self::Settings>) -> Result<Outcome, CycleError>;

    /// `true` once a cycle has been able to do its work. Until then, an error that a person must fix ends the worker.
    fn was_ready(&self) -> bool;

    /// Forgets what was prepared, because the session has ended: the next cycle prepares it again.
    fn forget_prepared(&mut self);

    /// Forgets everything that was found out, because something has changed: the next cycle, of this or another
    /// incarnation, looks again.
    fn forget(&mut self);
}

/// What a cycle is given.
pub(super) struct Turn<'t, S> {
    pub(super) session: &'t Session,
    /// One snapshot for the whole cycle.
    pub(super) settings: &'t S,
    pub(super) context: &'t mut WorkerContext,
    pub(super) beside: &'t Beside,
}

/// Runs a routine until the worker is asked to stop, or cannot go on. `read` makes its settings from what is received.
pub(super) async fn run<R: Routine, S>(
    context: WorkerContext,
    mut changing: watch::Receiver<S>,
    read: impl Fn(&S) -> R::Settings,
    routine: R,
) -> Result<(), WorkerError> {
    let initial = read(&changing.borrow_and_update());
    let latch = context.latch().clone();
    let session = tokio::select! {
        biased;
        () = latch.stop_requested() => return Ok(()),
        session = Session::open(&context, R::place(&initial)) => session?,
    };
    let mut runner = Runner {
        context,
        routine,
        session,
        patience: Patience::default(),
        renews: false,
        reported: Condition::Well,
        crowded: Spell::default(),
        table_locks: TableLocks::default(),
        first_nap: Some(fastrand::f64()),
    };
    let end = runner.cycle_and_nap(initial, changing, read).await;
    drop(runner.routine);
    runner.session.close().await;
    end
}

/// A worker with its routine and its session.
struct Runner<R> {
    context: WorkerContext,
    routine: R,
    session: Session,
    patience: Patience,
    /// The next cycle must run in a new session.
    renews: bool,
    /// The last condition; it is reported only when it changes.
    reported: Condition,
    /// Other clients are in the way, or there is no room, again and again.
    crowded: Spell,
    table_locks: TableLocks,
    /// The part of its naptime that the worker's first nap takes: thousands of workers that started together must not all wake
    /// at once.
    first_nap: Option<f64>,
}

/// The condition of a worker, reported once.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Condition {
    Well,
    Crowded,
    Waits(String),
    Failing { sqlstate: String },
    Unusable { why: String },
}

// === impl Runner ===

impl<R: Routine> Runner<R> {
    async fn cycle_and_nap<S>(
        &mut self,
        mut settings: R::Settings,
        mut changing: watch::Receiver<S>,
        read: impl Fn(&S) -> R::Settings,
    ) -> Result<(), WorkerError> {
        self.promise(&settings);
        loop {
            // One snapshot for each cycle, read only if it is new.
            if has_changed(&mut changing) {
                settings = read(&changing.borrow());
                self.promise(&settings);
            }
            let renewed = if std::mem::take(&mut self.renews) || self.session.is_closed() {
                // Rare, so boxed: other workers should not pay for its size.
                Box::pin(self.renew_unless_stopped(&settings)).await
            } else {
                Some(Ok(()))
            };
            let cycle = match renewed {
                // Boxed, so that a worker has no room for a cycle while it naps.
                Some(Ok(())) => Box::pin(self.cycle_unless_stopped(&settings)).await,
                Some(Err(error)) => Some(Err(error.into())),
                None => None,
            };
            let nap = match cycle {
                None => return Ok(()),
                Some(Ok(outcome)) => self.found(&settings, outcome),
                Some(Err(CycleError::Database(e))) => Box::pin(self.failed(&settings, e)).await?,
                Some(Err(CycleError::Unusable(what))) if self.routine.was_ready() => {
                    let why = what.to_string();
                    let condition = Condition::Unusable { why: why.clone() };
                    self.back_off(&settings, condition, None, &why)
                }
                Some(Err(CycleError::Unusable(what))) => return Err(WorkerError::Failed(what)),
            };
            match self.context.nap(nap).await {
                Wake::Timeout => {}
                Wake::Sighup => debug!(worker = self.context.name(), "got sighup!"),
                Wake::Sigterm | Wake::Sigint | Wake::PostmasterDeath => return Ok(()),
            }
        }
    }

    /// Promises how often the worker will succeed: an older success makes it unhealthy.
    fn promise(&self, settings: &R::Settings) {
        let statement_timeout = self.context.database().map_or(Duration::ZERO, |database| {
            database.settings().statement_timeout
        });
        let within = R::success_within(settings, statement_timeout);
        self.context.progress().promise_success_within(within);
    }

    /// Renews the session: it ended while the worker napped, or what is fixed in it may be what is wrong. `None` if
    /// the worker is to end.
    async fn renew_unless_stopped(
        &mut self,
        settings: &R::Settings,
    ) -> Option<Result<(), DatabaseError>> {
        if matches!(self.session, Session::Own(_)) {
            self.routine.forget_prepared();
        }
        let latch = self.context.latch().clone();
        tokio::select! {
            biased;
            () = latch.stop_requested() => None,
            renewed = self.session.renew(&self.context, R::place(settings)) => Some(renewed),
        }
    }

    /// Runs one cycle. `None` if the worker is to end, and the cycle was cancelled or had no statement under way.
    async fn cycle_unless_stopped(
        &mut self,
        settings: &R::Settings,
    ) -> Option<Result<Outcome, CycleError>> {
        let latch = self.context.latch().clone();
        let session = &self.session;
        let beside = &Beside::default();
        let is_at_work = || session.is_at_work() || beside.is_at_work();
        let mut cycle = pin!(self.routine.cycle(Turn {
            session,
            settings,
            context: &mut self.context,
            beside,
        }));
        let stopped = async {
            latch.stop_requested().await;
            if is_at_work() {
                // Let it finish what it has begun.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            outcome = &mut cycle => return Some(outcome),
            () = latch.cancel_requested() => {}
            () = stopped => return None,
        }
        if !is_at_work() {
            return None;
        }
        beside.cancel().await;
        if session.is_at_work() {
            session.cancel().await;
        }
        // It may have committed before the cancellation arrived; either is fine.
        let _ = tokio::time::timeout(CANCEL_TIMEOUT, cycle).await;
        None
    }

    /// Reports the outcome of a cycle, and returns how long to nap.
    fn found(&mut self, settings: &R::Settings, outcome: Outcome) -> Duration {
        let progress = self.context.progress();
        let nap = match outcome {
            Outcome::Done(nap) => {
                progress.succeeded();
                self.reported = Condition::Well;
                nap
            }
            Outcome::Looked(nap) => {
                progress.looked();
                self.reported = Condition::Well;
                nap
            }
            Outcome::Pending(nap) => {
                progress.is_able();
                self.reported = Condition::Well;
                nap
            }
            Outcome::Left => Nap::Usual,
            // A failure that was dealt with is not a lasting condition.
            Outcome::Failed(why) => {
                progress.failed(why);
                progress.is_able();
                Nap::AtOnce
            }
            Outcome::Again(why) => {
                // A single such cycle is no failure.
                if self.patience.retries() >= RETRIES_UNTIL_WARNING {
                    progress.failed(why.as_ref());
                }
                return self.retry(settings, &why);
            }
            Outcome::Waits(waiting) => {
                let whole = format!("{}{}", waiting.why, waiting.more);
                progress.failed(whole.as_str());
                self.warn(waiting.why, &whole);
                Nap::Usual
            }
            Outcome::Held(why) => {
                progress.is_able();
                self.warn(why.clone(), &why);
                Nap::Usual
            }
        };
        self.patience = Patience::default();
        match nap {
            Nap::AtOnce => Duration::ZERO,
            Nap::For(time) => time,
            Nap::Usual => {
                let nap = R::naptime(settings);
                match self.first_nap.take() {
                    Some(part) => nap.mul_f64(part),
                    None => self.session.in_company(nap),
                }
            }
        }
    }

    /// Logs why the work does not go on, unless that was the last condition.
    fn warn(&mut self, why: String, whole: &str) {
        if self.is_news(Condition::Waits(why)) {
            let worker = self.context.name();
            warn!(worker, "{worker}: {whole}");
        }
    }

    /// Handles a failed cycle. Returns how long to nap, or the error that ends the worker.
    async fn failed(
        &mut self,
        settings: &R::Settings,
        error: DatabaseError,
    ) -> Result<Duration, WorkerError> {
        let was_ready = self.routine.was_ready();
        let mut remedy = Remedy::of(&error, was_ready, &mut self.patience);
        let was_asked = remedy == Remedy::AskForRecovery;
        if was_asked {
            remedy = match self.ask_for_recovery().await {
                Some(remedy) => remedy,
                None => return Ok(Duration::ZERO),
            };
        }
        let text = error.to_string();
        match remedy {
            Remedy::Again => {
                let attempt = self.patience.retries() + 1;
                let (context, tables) = (&self.context, R::tables(settings));
                let locks = &mut self.table_locks;
                let locked = locks.after(&error, attempt, &self.session, context, &tables);
                let text = text + locked.await;
                self.context.progress().failed(text.clone());
                Ok(self.retry(settings, &text))
            }
            Remedy::PrepareAgain => {
                self.routine.forget();
                self.context.progress().failed(text.clone());
                Ok(self.retry(settings, &text))
            }
            Remedy::BackOff => {
                let sqlstate = error.sqlstate().unwrap_or_default().to_owned();
                let condition = Condition::Failing { sqlstate };
                let why = format!("{text}: {}", R::advice(&error));
                Ok(self.back_off(settings, condition, error.sqlstate(), &why))
            }
            Remedy::Away => match &self.session {
                // The server answered. Rare, so boxed: other workers should not pay for its size.
                Session::Own(_) if was_ready && !is_lost(&error) && !was_asked => {
                    Box::pin(self.go_on(settings, error)).await
                }
                Session::Own(_) => Err(WorkerError::DatabaseAway(Box::new(error))),
                // The line sees to the connection, and the Postmaster to the server. Meanwhile this worker naps in
                // effect, and goes on as soon as it can.
                Session::Home(home) => {
                    if !is_lost(&error) {
                        home.give_up();
                    }
                    self.context.progress().failed(text.clone());
                    Ok(self.retry(settings, &text))
                }
            },
            Remedy::Exit | Remedy::AskForRecovery => {
                // Something has changed: the next incarnation looks for itself.
                self.routine.forget();
                Err(error.into())
            }
        }
    }

    /// Asks whether the server is a standby: then the server that was the primary is away. `None` if the worker is to end.
    async fn ask_for_recovery(&self) -> Option<Remedy> {
        let latch = self.context.latch();
        tokio::select! {
            biased;
            () = latch.stop_requested() => None,
            in_recovery = self.session.is_in_recovery() => Some(match in_recovery {
                Ok(true) | Err(_) => Remedy::Away,
                Ok(false) => Remedy::BackOff,
            }),
        }
    }

    /// Goes on after the server has ended the worker's own session. If the server no longer lets the worker in, such as
    /// into a database that was dropped, the worker waits until it does: to end would be for good if it never restarts.
    async fn go_on(
        &mut self,
        settings: &R::Settings,
        ended: DatabaseError,
    ) -> Result<Duration, WorkerError> {
        let error = match self.renew_unless_stopped(settings).await {
            None => return Ok(Duration::ZERO),
            Some(Ok(())) => {
                let why = ended.to_string();
                self.context.progress().failed(why.clone());
                return Ok(self.retry(settings, &why));
            }
            Some(Err(error)) => error,
        };
        if Remedy::of(&error, true, &mut self.patience) != Remedy::BackOff {
            return Err(WorkerError::DatabaseAway(Box::new(ended)));
        }
        let why = format!("{error}: {}", R::advice(&error));
        let sqlstate = error.sqlstate().unwrap_or_default().to_owned();
        let condition = Condition::Failing { sqlstate };
        Ok(self.back_off(settings, condition, error.sqlstate(), &why))
    }

    /// Logs what must be fixed, unless it was the last condition, and returns how long to back off. The next cycle
    /// looks at everything again: at the table, and in a new session, since settings are fixed when a session begins.
    fn back_off(
        &mut self,
        settings: &R::Settings,
        condition: Condition,
        sqlstate: Option<&str>,
        why: &str,
    ) -> Duration {
        self.routine.forget();
        self.renews = true;
        self.context.progress().failed(why.to_owned());
        if self.is_news(condition) {
            let worker = self.context.name();
            error!(worker, sqlstate, "{worker}: {why}");
        }
        self.patience.back_off(R::naptime(settings))
    }

    /// Returns how long to wait before the next attempt. Warns once there were several in a row, and reminds of it.
    fn retry(&mut self, settings: &R::Settings, why: &str) -> Duration {
        let wait = self.patience.retry(R::naptime(settings));
        let retries = self.patience.retries();
        let is_crowded = retries >= RETRIES_UNTIL_WARNING;
        let is_news = is_crowded && self.crowded.is_news(Instant::now().into_std());
        if is_news || retries == RETRIES_UNTIL_REMINDER {
            self.reported = Condition::Crowded;
            let (worker, backlog) = (self.context.name(), R::backlog(settings));
            warn!(
                worker,
                "{worker}: {backlog} wait, after {retries} attempts: {why}"
            );
        }
        wait
    }

    /// Remembers a condition. `true` if it differs from the last one.
    fn is_news(&mut self, condition: Condition) -> bool {
        let is_news = self.reported != condition;
        self.reported = condition;
        is_news
    }
}

/// `true` if the settings changed since the last call, whether or not their sender still exists.
fn has_changed<S>(changing: &mut watch::Receiver<S>) -> bool {
    changing.borrow_and_update().has_changed()
}
