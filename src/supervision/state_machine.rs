//! The state machine: its inputs, its actions, and the rules between them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::action::{Action, Afterwards, Signal};
use super::classes::Class;
use super::limits::Limits;
use super::roster::{Phase, Place, Roster};
use super::shutdown::{Shutdown, ShutdownUnderWay};
use super::status::{Counts, RegisterError, WorkerState};
use super::sweep::Sweep;
use crate::background_worker::{
    BackgroundWorker, ExitStatus, Incarnation, InvalidWorker, RestartLimit, RestartTime, StartTime,
    WorkerId,
};

/// Decides which worker starts, stops, is signalled or forgotten, and when to look again.
///
/// See [the contract](super). Every input and every action costs O(log n) with n workers
/// registered.
#[derive(Debug)]
pub struct StateMachine {
    limits: Limits,
    /// How far the server has come.
    reached: StartTime,
    roster: Roster,
    /// What an input decided, in order. Bounded by that input, not by the number of workers.
    actions: VecDeque<Action>,
    /// The Sighup under way.
    reload: Option<Sweep>,
    /// Another Sighup came before the first had reached every worker.
    reload_again: bool,
    /// A crash is being followed by a reset.
    resetting: bool,
    shutdown: Option<ShutdownUnderWay>,
    /// How many workers this tick may still start.
    starts_left: usize,
    /// The number of the next incarnation.
    next_incarnation: u64,
    /// The latest time that was passed in.
    now: Instant,
}

/// The next step of a reset.
#[derive(Clone, Copy, Debug)]
enum ResetStep {
    Stop(WorkerId),
    Finish,
}

// === impl StateMachine ===

impl StateMachine {
    /// How many expired restart times, and how many expired abort deadlines, one tick handles.
    const DUE_PER_TICK: usize = 64;

    /// A machine without workers, whose server has not been seen yet.
    #[must_use]
    pub fn new(now: Instant, limits: Limits) -> Self {
        Self {
            limits,
            reached: StartTime::PostmasterStart,
            roster: Roster::default(),
            actions: VecDeque::new(),
            reload: None,
            reload_again: false,
            resetting: false,
            shutdown: None,
            starts_left: 0,
            next_incarnation: 1,
            now,
        }
    }

    // Inputs.

    /// Registers a worker. A later tick starts it, when the server has come far enough.
    ///
    /// Mirrors `RegisterBackgroundWorker` and `RegisterDynamicBackgroundWorker`.
    ///
    /// # Errors
    ///
    /// If the registration is refused; then nothing has changed.
    pub fn register(
        &mut self,
        now: Instant,
        worker: BackgroundWorker,
    ) -> Result<WorkerId, RegisterError> {
        self.enter(now);
        worker.check()?;
        let name = Arc::clone(&worker.name);
        if self.shutdown.is_some() {
            return Err(RegisterError::ShuttingDown { name });
        }
        if self.roster.find(&name).is_some() {
            return Err(RegisterError::Duplicate { name });
        }
        let limit = self.limits.max_workers;
        if self.roster.len() >= limit {
            return Err(RegisterError::TooManyWorkers { name, limit });
        }
        Ok(self.roster.insert(worker))
    }

    /// Stops a worker for good. Does nothing if it is stopping for good already, or gone.
    ///
    /// Mirrors `TerminateBackgroundWorker`. One that has not ended after
    /// [`Limits::shutdown_timeout`] is aborted.
    pub fn terminate(&mut self, now: Instant, id: WorkerId) {
        self.enter(now);
        match self.roster.place(id) {
            None => {}
            Some(Place::Pending { .. } | Place::Waiting { .. }) => {
                self.unregister(id, ExitStatus::Stopped);
            }
            Some(Place::Running { number, phase }) => match phase {
                Phase::Starting | Phase::Ready => {
                    let signal = self.ask_to_end(id, number, self.limits.shutdown_timeout, false);
                    self.actions.push_back(signal);
                }
                // It was asked to stop already, but not for good until now.
                Phase::Ending { abort_at, .. } => {
                    let phase = Phase::Ending {
                        abort_at,
                        comes_back: false,
                    };
                    self.roster.put(id, Place::Running { number, phase });
                }
            },
        }
    }

    /// Reports how far the server has come.
    ///
    /// Workers whose level it does not reach are not started. When it falls, those of them that run are
    /// parked: stopped without prejudice, and started again when it has risen. A worker in its
    /// restart time keeps that time.
    pub fn reached(&mut self, now: Instant, level: StartTime) {
        self.enter(now);
        let before = std::mem::replace(&mut self.reached, level);
        if self.shutdown.is_some() {
            return;
        }
        if level < before {
            let falls_short = |class: Class| class.start_time > level && class.start_time <= before;
            let workers = self.roster.active.count(falls_short)
                + self.roster.pending_again.count(falls_short);
            self.report(workers, Action::Parked { workers });
        } else {
            let suffices = |class: Class| class.start_time > before && class.start_time <= level;
            let workers = self.roster.pending_again.count(suffices);
            self.report(workers, Action::Unparked { workers });
        }
    }

    /// Reports that an incarnation is ready for its work, which is more than having been started.
    pub fn worker_ready(&mut self, now: Instant, incarnation: Incarnation) {
        self.enter(now);
        let Incarnation { worker, number } = incarnation;
        if self.roster.phase(incarnation) == Some(Phase::Starting) {
            let phase = Phase::Ready;
            self.roster.put(worker, Place::Running { number, phase });
            if let Some((_, history)) = self.roster.history_mut(worker) {
                history.ready();
            }
        }
    }

    /// Reports that an incarnation has ended. Mirrors `CleanupBackend`.
    ///
    /// The exit of an incarnation that is not running changes nothing. `jitter`, from 0 to 1, is
    /// the randomness of the wait that may follow.
    pub fn worker_exited(
        &mut self,
        now: Instant,
        incarnation: Incarnation,
        exit: ExitStatus,
        jitter: f64,
    ) {
        self.enter(now);
        let Some(phase) = self.roster.phase(incarnation) else {
            return;
        };
        let id = incarnation.worker;
        let panicked = exit == ExitStatus::Crashed;
        let (exit, afterwards) = match phase {
            Phase::Ending {
                comes_back: true, ..
            } if self.shutdown.is_none() => {
                (ExitStatus::Stopped, Afterwards::Restart(Duration::ZERO))
            }
            Phase::Starting | Phase::Ready if self.shutdown.is_none() => {
                (exit, self.judge(id, exit, jitter))
            }
            // A worker that was asked to stop counts as stopped, however it ended.
            Phase::Starting | Phase::Ready | Phase::Ending { .. } => {
                (ExitStatus::Stopped, Afterwards::Unregister)
            }
        };
        self.actions.push_back(Action::Exited {
            incarnation,
            exit,
            afterwards,
        });
        // What a crash may have left broken does not depend on why the worker ended.
        if panicked {
            self.reset_after_crash(id);
        }
        match afterwards {
            Afterwards::Unregister | Afterwards::GiveUp(_) => self.unregister(id, exit),
            Afterwards::Restart(Duration::ZERO) => {
                self.roster.put(id, Place::Pending { again: true });
            }
            Afterwards::Restart(wait) => {
                let until = self.now + wait;
                self.roster.put(id, Place::Waiting { until });
            }
        }
    }

    /// Sets new limits. Registered workers stay, even if they are now too many.
    pub fn set_limits(&mut self, now: Instant, limits: Limits) {
        self.enter(now);
        self.limits = limits;
    }

    /// Sets new rules for the restarts of a worker, from its next failure on.
    ///
    /// # Errors
    ///
    /// If they are refused; then nothing has changed.
    pub fn set_restart(
        &mut self,
        now: Instant,
        id: WorkerId,
        restart_time: RestartTime,
        restart_limit: Option<RestartLimit>,
    ) -> Result<(), InvalidWorker> {
        self.enter(now);
        self.roster.set_restart(id, restart_time, restart_limit)
    }

    /// Signals every running worker, once, to look at its settings. Several requests that overlap
    /// are merged.
    pub fn sighup(&mut self, now: Instant) {
        self.enter(now);
        if self.shutdown.is_some() {
            return;
        }
        if self.reload.is_some() {
            self.reload_again = true;
        } else {
            self.reload = Some(Sweep::default());
        }
    }

    /// Asks for a shutdown. No worker starts from here on.
    ///
    /// A stronger request overrides a weaker one, a weaker one is ignored, and the same one repeated
    /// after 300 ms or more is taken as the next stronger one. Each mode but the last has a
    /// deadline, after which the next takes over.
    pub fn shut_down(&mut self, now: Instant, mode: Shutdown) {
        self.enter(now);
        let next = match &self.shutdown {
            None => Some(mode),
            Some(current) => current.after_request(now, mode),
        };
        if let Some(mode) = next {
            self.set_shutdown(mode);
        }
    }

    /// Runs one tick: lets pending workers start, and carries out what has become due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.enter(now);
        self.starts_left = (self.limits.starts_per_tick).clamp(1, Limits::STARTS_PER_TICK_MAX);
        if let Some(current) = &self.shutdown {
            if let Some(mode) = current.after_deadline(now) {
                self.set_shutdown(mode);
            }
            return;
        }
        for _ in 0..Self::DUE_PER_TICK {
            match self.roster.first_waiting() {
                Some((until, id)) if until <= now => {
                    self.roster.put(id, Place::Pending { again: true });
                }
                Some(_) | None => break,
            }
        }
        for _ in 0..Self::DUE_PER_TICK {
            match self.roster.first_to_abort() {
                Some((until, id)) if until <= now => self.abort(id),
                Some(_) | None => break,
            }
        }
    }

    // Outputs.

    /// The next thing to do, or `None` when everything is done for now.
    pub fn poll_action(&mut self) -> Option<Action> {
        if let Some(action) = self.actions.pop_front() {
            return Some(action);
        }
        if self.shutdown.is_some() {
            return self.poll_shutdown();
        }
        self.poll_park()
            .or_else(|| self.poll_reset())
            .or_else(|| self.poll_reload())
            .or_else(|| self.poll_start())
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) next; `None` means not until something
    /// happens.
    ///
    /// Mirrors `DetermineSleepTime`, which changes the list of workers, as this query does not.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.actions.is_empty() {
            return Some(self.now);
        }
        if let Some(current) = &self.shutdown {
            let any_running = self.roster.running_after(None).is_some();
            let any_unstarted = self.roster.first_unstarted().is_some();
            return current.timeout(self.now, any_running, any_unstarted);
        }
        let at_once = self.next_to_park().is_some()
            || self.next_of_reset().is_some()
            || self.reload.is_some()
            || self.next_to_start().is_some();
        if at_once {
            return Some(self.now);
        }
        let due = [self.roster.first_waiting(), self.roster.first_to_abort()];
        due.into_iter().flatten().map(|(until, _)| until).min()
    }

    // Queries.

    /// The state of a worker; `None` if it was unregistered.
    #[must_use]
    pub fn state(&self, id: WorkerId) -> Option<WorkerState> {
        Some(match self.roster.place(id)? {
            Place::Pending { again: false } => WorkerState::Registered,
            Place::Pending { again: true } => WorkerState::Parked,
            Place::Waiting { until } => WorkerState::BackingOff { until },
            Place::Running { .. } if self.shutdown.is_some() => WorkerState::Stopping,
            Place::Running { phase, .. } => match phase {
                Phase::Starting => WorkerState::Starting,
                Phase::Ready => WorkerState::Running,
                Phase::Ending { .. } => WorkerState::Stopping,
            },
        })
    }

    /// A worker's registration; `None` if it was unregistered.
    #[must_use]
    pub fn worker(&self, id: WorkerId) -> Option<&BackgroundWorker> {
        self.roster.worker(id)
    }

    /// The worker registered under this name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<WorkerId> {
        self.roster.find(name)
    }

    /// The number of workers in each state.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let falls_short = |class: Class| class.start_time > self.reached;
        Counts {
            parked: self.roster.pending_again.count(falls_short),
            ..self.roster.counts()
        }
    }

    /// How far the server has come.
    #[must_use]
    pub fn level(&self) -> StartTime {
        self.reached
    }

    /// The shutdown under way.
    #[must_use]
    pub fn shutdown(&self) -> Option<Shutdown> {
        self.shutdown.as_ref().map(ShutdownUnderWay::mode)
    }

    // The rules.

    /// Begins an input. A tick's permission to start workers does not outlast the tick.
    fn enter(&mut self, now: Instant) {
        self.now = self.now.max(now);
        self.starts_left = 0;
    }

    /// The worker that a tick would start. Mirrors the search of `maybe_start_bgworkers`, except that the
    /// worker registered first comes first.
    ///
    /// During a reset no worker that shares something starts.
    fn next_to_start(&self) -> Option<WorkerId> {
        let may_start =
            |class: Class| class.start_time <= self.reached && !(self.resetting && class.shares());
        self.roster.pending.first(may_start)
    }

    /// A worker that runs although the server no longer reaches its level.
    fn next_to_park(&self) -> Option<WorkerId> {
        let falls_short = |class: Class| class.start_time > self.reached;
        self.roster.active.first(falls_short)
    }

    /// The next step of the reset, if one is under way: stop a worker that shares something, or finish
    /// when none of them runs.
    fn next_of_reset(&self) -> Option<ResetStep> {
        if !self.resetting {
            return None;
        }
        match self.roster.active.first(Class::shares) {
            Some(id) => Some(ResetStep::Stop(id)),
            None if self.roster.ending.first(Class::shares).is_none() => Some(ResetStep::Finish),
            None => None,
        }
    }

    fn poll_park(&mut self) -> Option<Action> {
        let Incarnation { worker, number } = self.roster.incarnation(self.next_to_park()?)?;
        Some(self.ask_to_end(worker, number, self.limits.shutdown_timeout, true))
    }

    fn poll_reset(&mut self) -> Option<Action> {
        match self.next_of_reset()? {
            ResetStep::Stop(id) => {
                let Incarnation { worker, number } = self.roster.incarnation(id)?;
                Some(self.ask_to_end(worker, number, Limits::RESET_TIMEOUT, true))
            }
            ResetStep::Finish => {
                self.resetting = false;
                Some(Action::ResetShared)
            }
        }
    }

    fn poll_start(&mut self) -> Option<Action> {
        self.starts_left = self.starts_left.checked_sub(1)?;
        let id = self.next_to_start()?;
        let number = self.next_incarnation;
        self.next_incarnation += 1;
        let phase = Phase::Starting;
        self.roster.put(id, Place::Running { number, phase });
        if let Some((_, history)) = self.roster.history_mut(id) {
            history.started(self.now);
        }
        Some(Action::Start(Incarnation { worker: id, number }))
    }

    fn poll_reload(&mut self) -> Option<Action> {
        loop {
            if let Some(incarnation) = self.reload.as_mut()?.next(&self.roster) {
                return Some(Action::Signal {
                    incarnation,
                    signal: Signal::Sighup,
                });
            }
            self.reload = std::mem::take(&mut self.reload_again).then(Sweep::default);
        }
    }

    fn poll_shutdown(&mut self) -> Option<Action> {
        let current = self.shutdown.as_mut()?;
        let mode = current.mode();
        if let Some(sweep) = &mut current.sweep {
            if let Some(incarnation) = sweep.next(&self.roster) {
                return Some(match mode {
                    Shutdown::Smart => Action::Signal {
                        incarnation,
                        signal: Signal::Sigterm,
                    },
                    Shutdown::Fast => Action::Signal {
                        incarnation,
                        signal: Signal::Sigint,
                    },
                    Shutdown::Immediate => Action::Abort(incarnation),
                });
            }
            current.sweep = None;
        }
        // Mirrors ForgetUnstartedBackgroundWorkers.
        if let Some(id) = self.roster.first_unstarted() {
            self.unregister(id, ExitStatus::Stopped);
            return self.actions.pop_front();
        }
        let current = self.shutdown.as_mut()?;
        if self.roster.running_after(None).is_none() && !current.exited {
            current.exited = true;
            return Some(Action::Exit);
        }
        None
    }

    fn set_shutdown(&mut self, mode: Shutdown) {
        self.reload = None;
        self.reload_again = false;
        self.resetting = false;
        self.shutdown = Some(ShutdownUnderWay::new(self.now, mode, &self.limits));
    }

    /// Decides what follows the end of an incarnation, from its worker's past.
    fn judge(&mut self, id: WorkerId, exit: ExitStatus, jitter: f64) -> Afterwards {
        let Some((worker, history)) = self.roster.history_mut(id) else {
            return Afterwards::Unregister;
        };
        match exit {
            ExitStatus::Finished | ExitStatus::Stopped => Afterwards::Unregister,
            ExitStatus::Failed | ExitStatus::Crashed => history.failed(self.now, worker, jitter),
            ExitStatus::DatabaseAway => Afterwards::Restart(history.lost_database(jitter)),
        }
    }

    fn unregister(&mut self, id: WorkerId, exit: ExitStatus) {
        if self.roster.remove(id) {
            self.actions
                .push_back(Action::Unregister { worker: id, exit });
        }
    }

    /// Begins a reset after a crash, if the worker shared something and neither a reset nor a shutdown
    /// is under way. Mirrors `HandleChildCrash`.
    fn reset_after_crash(&mut self, id: WorkerId) {
        let shares = |worker| Class::of(worker).shares();
        let may_reset = !self.resetting && self.shutdown.is_none();
        if may_reset && self.roster.worker(id).is_some_and(shares) {
            self.resetting = true;
            self.actions.push_back(Action::Reset);
        }
    }

    /// Asks one running worker to end. It is aborted if it still runs when `patience` has passed.
    fn ask_to_end(
        &mut self,
        id: WorkerId,
        number: u64,
        patience: Duration,
        comes_back: bool,
    ) -> Action {
        let phase = Phase::Ending {
            abort_at: self.now.checked_add(patience),
            comes_back,
        };
        self.roster.put(id, Place::Running { number, phase });
        Action::Signal {
            incarnation: Incarnation { worker: id, number },
            signal: Signal::Sigterm,
        }
    }

    /// Aborts a worker that was asked to end and still runs.
    fn abort(&mut self, id: WorkerId) {
        let Some(Place::Running { number, phase }) = self.roster.place(id) else {
            return;
        };
        let phase = Phase::Ending {
            abort_at: None,
            comes_back: matches!(
                phase,
                Phase::Ending {
                    comes_back: true,
                    ..
                }
            ),
        };
        self.roster.put(id, Place::Running { number, phase });
        let incarnation = Incarnation { worker: id, number };
        self.actions.push_back(Action::Abort(incarnation));
    }

    /// Queues a report that concerns this many workers, unless there are none.
    fn report(&mut self, workers: usize, report: Action) {
        if workers > 0 {
            self.actions.push_back(report);
        }
    }
}
