//! The state machine: its inputs, its actions, and the rules between them.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::action::{Action, Afterwards, Signal};
use super::limits::Limits;
use super::registry::Registry;
use super::restart;
use super::shutdown::{Shutdown, ShutdownUnderWay};
use super::status::{Counts, RegisterError, WorkerState};
use super::sweep::Sweep;
use crate::background_worker::{BackgroundWorker, ExitStatus, Incarnation, StartTime, WorkerId};

/// Decides which worker starts, stops, is signalled or forgotten, and when to look again.
///
/// See [the contract](super). Every input and every action costs O(log n) with n workers
/// registered.
#[derive(Debug)]
pub struct StateMachine {
    limits: Limits,
    /// How far the server has come.
    reached: StartTime,
    registry: Registry<RegisteredWorker>,
    names: HashMap<Arc<str>, WorkerId>,
    /// Workers that wait for their level and their turn, in registration order, by start time.
    pending: [BTreeSet<WorkerId>; 3],
    /// Workers that wait out their restart time, by its end.
    waiting: BTreeSet<(Instant, WorkerId)>,
    /// Workers with a live incarnation.
    running: BTreeSet<WorkerId>,
    /// Those of them that said they are ready.
    ready: usize,
    /// Single workers that were asked to stop, by the moment at which patience ends.
    stopping: BTreeSet<(Instant, WorkerId)>,
    /// What an input decided, in order. Bounded by that input, not by the number of workers.
    actions: VecDeque<Action>,
    /// The Sighup under way.
    reload: Option<Sweep>,
    /// Another Sighup came before the first was through.
    reload_again: bool,
    shutdown: Option<ShutdownUnderWay>,
    /// How many workers this tick may still start.
    starts_left: usize,
    /// The number of the next incarnation.
    next_incarnation: u64,
    /// The latest time that was passed in.
    now: Instant,
}

#[derive(Debug)]
struct RegisteredWorker {
    worker: BackgroundWorker,
    state: State,
    /// How often in a row it lost its database without having been ready.
    away: u32,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Pending,
    Waiting { until: Instant },
    Running { number: u64, phase: Phase },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    Ready,
    /// Asked to stop on its own, not by a shutdown.
    Stopping {
        until: Instant,
    },
}

// === impl StateMachine ===

impl StateMachine {
    /// How many restart times that ended together one tick looks at.
    const DUE_PER_TICK: usize = 64;

    /// A machine without workers, whose server has not been seen yet.
    #[must_use]
    pub fn new(now: Instant, limits: Limits) -> Self {
        Self {
            limits,
            reached: StartTime::PostmasterStart,
            registry: Registry::new(),
            names: HashMap::new(),
            pending: Default::default(),
            waiting: BTreeSet::new(),
            running: BTreeSet::new(),
            ready: 0,
            stopping: BTreeSet::new(),
            actions: VecDeque::new(),
            reload: None,
            reload_again: false,
            shutdown: None,
            starts_left: 0,
            next_incarnation: 1,
            now,
        }
    }

    // Inputs.

    /// Registers a worker. It starts by a later tick, when the server has come far enough.
    ///
    /// Mirrors `RegisterBackgroundWorker` and `RegisterDynamicBackgroundWorker`.
    ///
    /// # Errors
    ///
    /// If the registration is refused; nothing has changed then.
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
        if self.names.contains_key(&name) {
            return Err(RegisterError::Duplicate { name });
        }
        let limit = self.limits.max_workers;
        if self.registry.len() >= limit {
            return Err(RegisterError::TooManyWorkers { name, limit });
        }
        let start_time = worker.start_time;
        let id = self.registry.insert(RegisteredWorker {
            worker,
            state: State::Pending,
            away: 0,
        });
        self.names.insert(name, id);
        self.pending[start_time as usize].insert(id);
        Ok(id)
    }

    /// Stops a worker for good. Stopping one that is stopping or gone is a no-op.
    ///
    /// Mirrors `TerminateBackgroundWorker`. One that has not ended after
    /// [`Limits::shutdown_timeout`] is aborted.
    pub fn terminate(&mut self, now: Instant, id: WorkerId) {
        self.enter(now);
        let until = now + self.limits.shutdown_timeout;
        let Some(registered) = self.registry.get_mut(id) else {
            return;
        };
        match registered.state {
            State::Pending | State::Waiting { .. } => self.unregister(id, ExitStatus::Stopped),
            State::Running { number, phase } => {
                if matches!(phase, Phase::Stopping { .. }) {
                    return;
                }
                let phase = Phase::Stopping { until };
                self.set_running(id, number, phase);
                self.stopping.insert((until, id));
                self.actions.push_back(Action::Signal {
                    incarnation: Incarnation { worker: id, number },
                    signal: Signal::Sigterm,
                });
            }
        }
    }

    /// Says how far the server has come. Workers that it falls short of are not started.
    pub fn reached(&mut self, now: Instant, level: StartTime) {
        self.enter(now);
        self.reached = level;
    }

    /// Says that an incarnation is ready for its work, which is more than being started.
    pub fn worker_ready(&mut self, now: Instant, incarnation: Incarnation) {
        self.enter(now);
        if self.phase(incarnation) != Some(Phase::Starting) {
            return;
        }
        self.set_running(incarnation.worker, incarnation.number, Phase::Ready);
        if let Some(registered) = self.registry.get_mut(incarnation.worker) {
            registered.away = 0;
        }
    }

    /// Says that an incarnation has ended. Mirrors `CleanupBackend`.
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
        let Some(phase) = self.phase(incarnation) else {
            return;
        };
        let id = incarnation.worker;
        self.running.remove(&id);
        self.leave_phase(id, phase);
        let told_to_stop = self.shutdown.is_some() || matches!(phase, Phase::Stopping { .. });
        let exit = if told_to_stop {
            ExitStatus::Stopped
        } else {
            exit
        };
        let restart = self.restart_in(id, exit, jitter);
        self.actions.push_back(Action::Exited {
            incarnation,
            exit,
            afterwards: restart.map_or(Afterwards::Unregister, Afterwards::Restart),
        });
        match restart {
            Some(wait) => self.back_off(id, wait),
            None => self.unregister(id, exit),
        }
    }

    /// Tells every running worker, once, to look at its settings. Several requests that overlap
    /// are merged.
    pub fn sighup(&mut self, now: Instant) {
        self.enter(now);
        if self.shutdown.is_some() {
            return;
        }
        if self.reload.is_some() {
            self.reload_again = true;
        } else {
            self.reload = Some(Sweep::new(self.next_incarnation));
        }
    }

    /// Asks for a shutdown. No worker starts from here on.
    ///
    /// A stronger request overrides a weaker one, a weaker one is ignored, and the same one again,
    /// 300 ms later or more, is taken as the next stronger one. Each mode but the last has a
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

    /// One tick: lets pending workers start, and carries out what has become due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.enter(now);
        self.starts_left = self.limits.starts_per_tick.max(1);
        if let Some(current) = &self.shutdown {
            if let Some(mode) = current.after_deadline(now) {
                self.set_shutdown(mode);
            }
            return;
        }
        for _ in 0..Self::DUE_PER_TICK {
            let Some(&(until, id)) = self.waiting.first().filter(|(until, _)| *until <= now) else {
                break;
            };
            self.waiting.remove(&(until, id));
            self.make_pending(id);
        }
        for _ in 0..Self::DUE_PER_TICK {
            let Some(&(until, id)) = self.stopping.first().filter(|(until, _)| *until <= now)
            else {
                break;
            };
            self.stopping.remove(&(until, id));
            if let Some(incarnation) = self.incarnation(id) {
                self.actions.push_back(Action::Abort(incarnation));
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
        self.poll_reload().or_else(|| self.poll_start())
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) next, or `None`: not until something
    /// happens.
    ///
    /// Mirrors `DetermineSleepTime`, which mistakes a wait for a question and changes the list.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.actions.is_empty() {
            return Some(self.now);
        }
        if let Some(current) = &self.shutdown {
            return current.timeout(self.now, !self.running.is_empty());
        }
        if self.reload.is_some() || self.next_to_start().is_some() {
            return Some(self.now);
        }
        let waiting = self.waiting.first().map(|(until, _)| *until);
        let stopping = self.stopping.first().map(|(until, _)| *until);
        waiting.into_iter().chain(stopping).min()
    }

    // Queries.

    /// Where a worker is; `None` if the handle is from before: it was unregistered.
    #[must_use]
    pub fn state(&self, id: WorkerId) -> Option<WorkerState> {
        let registered = self.registry.get(id)?;
        Some(match registered.state {
            State::Pending => WorkerState::Registered,
            State::Waiting { until } => WorkerState::BackingOff { until },
            State::Running { .. } if self.shutdown.is_some() => WorkerState::Stopping,
            State::Running { phase, .. } => match phase {
                Phase::Starting => WorkerState::Starting,
                Phase::Ready => WorkerState::Running,
                Phase::Stopping { .. } => WorkerState::Stopping,
            },
        })
    }

    /// A worker as it was registered; `None` if the handle is from before.
    #[must_use]
    pub fn worker(&self, id: WorkerId) -> Option<&BackgroundWorker> {
        self.registry.get(id).map(|registered| &registered.worker)
    }

    /// The worker registered under this name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<WorkerId> {
        self.names.get(name).copied()
    }

    /// How many workers are where.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            registered: self.registry.len(),
            running: self.running.len(),
            ready: self.ready,
            backing_off: self.waiting.len(),
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

    /// The worker that a tick would start. Mirrors the search of `maybe_start_bgworkers`, but the
    /// first registered comes first.
    fn next_to_start(&self) -> Option<WorkerId> {
        self.pending[..=self.reached as usize]
            .iter()
            .filter_map(|level| level.first().copied())
            .min()
    }

    fn poll_start(&mut self) -> Option<Action> {
        self.starts_left = self.starts_left.checked_sub(1)?;
        let id = self.next_to_start()?;
        let number = self.next_incarnation;
        self.next_incarnation += 1;
        self.remove_from_pending(id);
        self.running.insert(id);
        self.set_running(id, number, Phase::Starting);
        Some(Action::Start(Incarnation { worker: id, number }))
    }

    fn poll_reload(&mut self) -> Option<Action> {
        loop {
            let sweep = self.reload.as_mut()?;
            let started_before = sweep.started_before;
            let Some(id) = sweep.next(&self.running) else {
                self.reload = std::mem::take(&mut self.reload_again)
                    .then(|| Sweep::new(self.next_incarnation));
                continue;
            };
            match self.incarnation(id) {
                Some(incarnation) if incarnation.number < started_before => {
                    return Some(Action::Signal {
                        incarnation,
                        signal: Signal::Sighup,
                    });
                }
                Some(_) | None => {}
            }
        }
    }

    fn poll_shutdown(&mut self) -> Option<Action> {
        let current = self.shutdown.as_mut()?;
        let mode = current.mode();
        if let Some(sweep) = &mut current.sweep {
            if let Some(id) = sweep.next(&self.running) {
                let incarnation = self.incarnation(id)?;
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
        if self.running.is_empty() && !current.exited {
            current.exited = true;
            return Some(Action::Exit);
        }
        None
    }

    fn set_shutdown(&mut self, mode: Shutdown) {
        self.reload = None;
        self.reload_again = false;
        let sweep = Sweep::new(self.next_incarnation);
        self.shutdown = Some(ShutdownUnderWay::new(self.now, mode, &self.limits, sweep));
    }

    /// How long after its exit a worker starts again; `None` if it is unregistered instead.
    fn restart_in(&mut self, id: WorkerId, exit: ExitStatus, jitter: f64) -> Option<Duration> {
        let registered = self.registry.get_mut(id)?;
        match exit {
            ExitStatus::Finished | ExitStatus::Stopped => None,
            ExitStatus::Failed | ExitStatus::Crashed => {
                registered.away = 0;
                restart::after_failure(registered.worker.restart_time)
            }
            ExitStatus::DatabaseAway => {
                registered.away = registered.away.saturating_add(1);
                Some(restart::while_away(registered.away, jitter))
            }
        }
    }

    fn back_off(&mut self, id: WorkerId, wait: Duration) {
        if wait.is_zero() {
            self.make_pending(id);
        } else if let Some(registered) = self.registry.get_mut(id) {
            let until = self.now + wait;
            registered.state = State::Waiting { until };
            self.waiting.insert((until, id));
        }
    }

    fn make_pending(&mut self, id: WorkerId) {
        if let Some(registered) = self.registry.get_mut(id) {
            registered.state = State::Pending;
            self.pending[registered.worker.start_time as usize].insert(id);
        }
    }

    fn remove_from_pending(&mut self, id: WorkerId) {
        if let Some(registered) = self.registry.get(id) {
            self.pending[registered.worker.start_time as usize].remove(&id);
        }
    }

    fn unregister(&mut self, id: WorkerId, exit: ExitStatus) {
        self.remove_from_pending(id);
        let Some(registered) = self.registry.remove(id) else {
            return;
        };
        if let State::Waiting { until } = registered.state {
            self.waiting.remove(&(until, id));
        }
        self.names.remove(&registered.worker.name);
        self.actions
            .push_back(Action::Unregister { worker: id, exit });
    }

    /// The live incarnation of a worker.
    fn incarnation(&self, id: WorkerId) -> Option<Incarnation> {
        match self.registry.get(id)?.state {
            State::Running { number, .. } => Some(Incarnation { worker: id, number }),
            State::Pending | State::Waiting { .. } => None,
        }
    }

    /// The phase of an incarnation; `None` if it does not run (any more).
    fn phase(&self, incarnation: Incarnation) -> Option<Phase> {
        match self.registry.get(incarnation.worker)?.state {
            State::Running { number, phase } if number == incarnation.number => Some(phase),
            State::Running { .. } | State::Pending | State::Waiting { .. } => None,
        }
    }

    fn set_running(&mut self, id: WorkerId, number: u64, phase: Phase) {
        if let Some(registered) = self.registry.get_mut(id) {
            let before = std::mem::replace(&mut registered.state, State::Running { number, phase });
            if let State::Running { phase, .. } = before {
                self.leave_phase(id, phase);
            }
        }
        if phase == Phase::Ready {
            self.ready += 1;
        }
    }

    fn leave_phase(&mut self, id: WorkerId, phase: Phase) {
        match phase {
            Phase::Starting => {}
            Phase::Ready => self.ready -= 1,
            Phase::Stopping { until } => {
                self.stopping.remove(&(until, id));
            }
        }
    }
}
