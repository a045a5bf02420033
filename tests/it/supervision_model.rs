//! The rules of supervision a second time, as plainly as they can be written, and the property
//! that the state machine does exactly the same.
//!
//! The model has one list in registration order, searched from its head for every question, as in
//! PostgreSQL. It keeps the whole past, and counts it again each time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bgworker::supervision::{
    Action, Afterwards, Counts, Limits, RegisterError, Shutdown, Signal, StateMachine, WorkerState,
};
use bgworker::{
    Access, BackgroundWorker, ExitStatus, Incarnation, RestartTime, StartTime, WorkerId,
};
use proptest::prelude::*;

use crate::support::histories::{Op, histories, nth};

const MS: Duration = Duration::from_millis(1);

/// The rules of supervision, written as plainly as possible.
struct Model {
    now: Instant,
    limits: Limits,
    reached: StartTime,
    list: Vec<Registered>,
    decided: VecDeque<Action>,
    starts: u64,
    starts_left: usize,
    /// Incarnations that the Sighup under way has yet to reach.
    sighup: Option<Vec<u64>>,
    sighup_again: bool,
    resetting: bool,
    shutdown: Option<ShuttingDown>,
}

/// The counterpart of `RegisteredBgWorker`.
struct Registered {
    id: WorkerId,
    worker: BackgroundWorker,
    /// The number of its incarnation, while it has one.
    pid: Option<u64>,
    ready: bool,
    asked: Option<Asked>,
    /// Earliest time of its next start.
    not_before: Option<Instant>,
    started: Option<Instant>,
    past: Vec<End>,
}

/// A request to a worker to end.
#[derive(Clone, Copy)]
struct Asked {
    abort_at: Option<Instant>,
    comes_back: bool,
}

/// How one incarnation of a worker ended.
struct End {
    at: Instant,
    exit: ExitStatus,
    was_ready: bool,
    /// Under a backoff, `true` if it had run for the healthy time.
    backoff: Option<bool>,
    /// `true` if a restart followed that counts towards its limit.
    counted: bool,
}

struct ShuttingDown {
    mode: Shutdown,
    since: Instant,
    deadline: Option<Instant>,
    /// Incarnations that it has yet to signal.
    tell: Option<Vec<u64>>,
    exited: bool,
}

// === impl Model ===

impl Model {
    fn new(now: Instant, limits: Limits) -> Self {
        Self {
            now,
            limits,
            reached: StartTime::PostmasterStart,
            list: Vec::new(),
            decided: VecDeque::new(),
            starts: 0,
            starts_left: 0,
            sighup: None,
            sighup_again: false,
            resetting: false,
            shutdown: None,
        }
    }

    fn enter(&mut self, now: Instant) {
        self.now = now;
        self.starts_left = 0;
    }

    fn refusal(&self, worker: &BackgroundWorker) -> Option<RegisterError> {
        let name = worker.name.clone();
        let limit = self.limits.max_workers;
        if let Err(invalid) = worker.check() {
            Some(RegisterError::Invalid(invalid))
        } else if self.shutdown.is_some() {
            Some(RegisterError::ShuttingDown { name })
        } else if self.list.iter().any(|rw| rw.worker.name == name) {
            Some(RegisterError::Duplicate { name })
        } else if self.list.len() >= limit {
            Some(RegisterError::TooManyWorkers { name, limit })
        } else {
            None
        }
    }

    fn register(&mut self, id: WorkerId, worker: BackgroundWorker) {
        self.list.push(Registered {
            id,
            worker,
            pid: None,
            ready: false,
            asked: None,
            not_before: None,
            started: None,
            past: Vec::new(),
        });
    }

    fn terminate(&mut self, id: WorkerId) {
        let abort_at = self.now + self.limits.shutdown_timeout;
        let Some(rw) = self.list.iter_mut().find(|rw| rw.id == id) else {
            return;
        };
        match (rw.pid, &mut rw.asked) {
            (None, _) => self.forget(id, ExitStatus::Stopped),
            (Some(_), Some(asked)) => asked.comes_back = false,
            (Some(pid), None) => {
                rw.ask(abort_at, false);
                self.decided.push_back(signal(id, pid, Signal::Sigterm));
            }
        }
    }

    fn reached(&mut self, level: StartTime) {
        let before = std::mem::replace(&mut self.reached, level);
        if self.shutdown.is_some() {
            return;
        }
        let (low, high) = (before.min(level), before.max(level));
        let between = |rw: &&Registered| low < rw.worker.start_time && rw.worker.start_time <= high;
        let concerned = || self.list.iter().filter(between);
        let wait_again = concerned()
            .filter(|rw| rw.is_pending() && rw.started.is_some())
            .count();
        let run = concerned()
            .filter(|rw| rw.pid.is_some() && rw.asked.is_none())
            .count();
        let workers = wait_again + run;
        if level < before && workers > 0 {
            self.decided.push_back(Action::Parked { workers });
        } else if level > before && wait_again > 0 {
            let workers = wait_again;
            self.decided.push_back(Action::Unparked { workers });
        }
    }

    fn ready(&mut self, incarnation: Incarnation) {
        let pid = Some(incarnation.number);
        if let Some(rw) = self.list.iter_mut().find(|rw| rw.pid == pid) {
            rw.ready |= rw.asked.is_none();
        }
    }

    fn exited(&mut self, incarnation: Incarnation, exit: ExitStatus, jitter: f64) {
        let (now, shutting_down) = (self.now, self.shutdown.is_some());
        let pid = Some(incarnation.number);
        let Some(rw) = self.list.iter_mut().find(|rw| rw.pid == pid) else {
            return;
        };
        let (exit_said, afterwards) = match rw.asked {
            _ if shutting_down => (ExitStatus::Stopped, Afterwards::Unregister),
            Some(asked) if asked.comes_back => {
                (ExitStatus::Stopped, Afterwards::Restart(Duration::ZERO))
            }
            Some(_) => (ExitStatus::Stopped, Afterwards::Unregister),
            None => (exit, rw.judge(now, exit, jitter)),
        };
        if exit_said == ExitStatus::Stopped {
            rw.ended(now, ExitStatus::Stopped, None, false);
        }
        rw.pid = None;
        rw.ready = false;
        rw.asked = None;
        let shares = rw.worker.access != Access::None;
        if let Afterwards::Restart(wait) = afterwards {
            rw.not_before = Some(now + wait).filter(|_| !wait.is_zero());
        }
        self.decided.push_back(Action::Exited {
            incarnation,
            exit: exit_said,
            afterwards,
        });
        if exit == ExitStatus::Crashed && shares && !self.resetting && !shutting_down {
            self.resetting = true;
            self.decided.push_back(Action::Reset);
        }
        if matches!(afterwards, Afterwards::Unregister | Afterwards::GiveUp(_)) {
            self.forget(incarnation.worker, exit_said);
        }
    }

    fn set_restart(&mut self, id: WorkerId, worker: &BackgroundWorker) {
        if let Some(rw) = self.list.iter_mut().find(|rw| rw.id == id) {
            rw.worker = worker.clone();
        }
    }

    fn sighup(&mut self) {
        if self.shutdown.is_some() {
            return;
        }
        if self.sighup.is_some() {
            self.sighup_again = true;
        } else {
            self.sighup = Some(self.pids());
        }
    }

    fn shut_down(&mut self, requested: Shutdown) {
        let mode = match &self.shutdown {
            None => Some(requested),
            Some(current) if current.exited => None,
            Some(current) => {
                let is_repeated = requested == current.mode && self.now >= current.since + 300 * MS;
                let wanted = if is_repeated {
                    stronger(requested)
                } else {
                    requested
                };
                Some(wanted).filter(|wanted| *wanted > current.mode)
            }
        };
        if let Some(mode) = mode {
            self.set_shutdown(mode);
        }
    }

    fn set_shutdown(&mut self, mode: Shutdown) {
        self.sighup = None;
        self.sighup_again = false;
        self.resetting = false;
        self.shutdown = Some(ShuttingDown {
            mode,
            since: self.now,
            deadline: match mode {
                Shutdown::Smart => Some(self.now + self.limits.shutdown_timeout),
                Shutdown::Fast => Some(self.now + 5000 * MS),
                Shutdown::Immediate => None,
            },
            tell: Some(self.pids()),
            exited: false,
        });
    }

    fn tick(&mut self) {
        self.starts_left = self.limits.starts_per_tick.max(1);
        let now = self.now;
        if let Some(current) = &self.shutdown {
            if !current.exited && current.deadline.is_some_and(|at| at <= now) {
                let mode = stronger(current.mode);
                self.set_shutdown(mode);
            }
            return;
        }
        for rw in &mut self.list {
            rw.not_before = rw.not_before.filter(|at| *at > now);
        }
        let mut due: Vec<_> = self
            .list
            .iter_mut()
            .filter(|rw| rw.abort_at() <= Some(now))
            .collect();
        due.retain(|rw| rw.abort_at().is_some());
        due.sort_by_key(|rw| rw.abort_at());
        for rw in due {
            let (Some(pid), Some(asked)) = (rw.pid, &mut rw.asked) else {
                continue;
            };
            asked.abort_at = None;
            self.decided.push_back(Action::Abort(Incarnation {
                worker: rw.id,
                number: pid,
            }));
        }
    }

    fn poll_action(&mut self) -> Option<Action> {
        if let Some(action) = self.decided.pop_front() {
            return Some(action);
        }
        if self.shutdown.is_some() {
            return self.poll_shutdown();
        }
        if let Some(i) = self.to_park() {
            let abort_at = self.now + self.limits.shutdown_timeout;
            return Some(self.ask_back(i, abort_at));
        }
        if let Some(i) = self.to_stop_for_reset() {
            return Some(self.ask_back(i, self.now + 5000 * MS));
        }
        if self.is_reset_done() {
            self.resetting = false;
            return Some(Action::ResetShared);
        }
        while let Some(sighup) = &mut self.sighup {
            if sighup.is_empty() {
                self.sighup = std::mem::take(&mut self.sighup_again).then(|| self.pids());
                continue;
            }
            let pid = sighup.remove(0);
            if let Some(rw) = self.list.iter().find(|rw| rw.pid == Some(pid)) {
                return Some(signal(rw.id, pid, Signal::Sighup));
            }
        }
        if self.starts_left == 0 {
            return None;
        }
        self.starts_left -= 1;
        let i = self.to_start()?;
        self.starts += 1;
        let rw = &mut self.list[i];
        rw.pid = Some(self.starts);
        rw.started = Some(self.now);
        Some(Action::Start(Incarnation {
            worker: rw.id,
            number: self.starts,
        }))
    }

    fn poll_shutdown(&mut self) -> Option<Action> {
        let current = self.shutdown.as_mut()?;
        while let Some(tell) = &mut current.tell {
            if tell.is_empty() {
                current.tell = None;
                break;
            }
            let pid = tell.remove(0);
            let Some(rw) = self.list.iter().find(|rw| rw.pid == Some(pid)) else {
                continue;
            };
            return Some(match current.mode {
                Shutdown::Smart => signal(rw.id, pid, Signal::Sigterm),
                Shutdown::Fast => signal(rw.id, pid, Signal::Sigint),
                Shutdown::Immediate => Action::Abort(Incarnation {
                    worker: rw.id,
                    number: pid,
                }),
            });
        }
        let pending = self.list.iter().find(|rw| rw.is_pending());
        let waiting = self.list.iter().filter(|rw| rw.pid.is_none());
        if let Some(rw) = pending.or_else(|| waiting.min_by_key(|rw| rw.not_before)) {
            self.forget(rw.id, ExitStatus::Stopped);
            return self.decided.pop_front();
        }
        if self.list.is_empty() && !current.exited {
            current.exited = true;
            return Some(Action::Exit);
        }
        None
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let any_unstarted = self.list.iter().any(|rw| rw.pid.is_none());
        let at_once = match &self.shutdown {
            Some(current) => {
                current.tell.is_some() || any_unstarted || (self.list.is_empty() && !current.exited)
            }
            None => {
                self.to_park().is_some()
                    || self.to_stop_for_reset().is_some()
                    || self.is_reset_done()
                    || self.sighup.is_some()
                    || self.to_start().is_some()
            }
        };
        if at_once || !self.decided.is_empty() {
            return Some(self.now);
        }
        match &self.shutdown {
            Some(current) => current.deadline.filter(|_| !self.list.is_empty()),
            None => {
                let times = |rw: &Registered| [rw.not_before, rw.abort_at()];
                self.list.iter().flat_map(times).flatten().min()
            }
        }
    }

    fn state(&self, id: WorkerId) -> Option<WorkerState> {
        let rw = self.list.iter().find(|rw| rw.id == id)?;
        Some(match (rw.pid, rw.not_before) {
            (None, Some(until)) => WorkerState::BackingOff { until },
            (None, None) if rw.started.is_some() => WorkerState::Parked,
            (None, None) => WorkerState::Registered,
            (Some(_), _) if self.shutdown.is_some() || rw.asked.is_some() => WorkerState::Stopping,
            (Some(_), _) if rw.ready => WorkerState::Running,
            (Some(_), _) => WorkerState::Starting,
        })
    }

    fn counts(&self) -> Counts {
        let count = |is: &dyn Fn(&&Registered) -> bool| self.list.iter().filter(is).count();
        Counts {
            registered: self.list.len(),
            running: count(&|rw| rw.pid.is_some()),
            ready: count(&|rw| rw.ready && rw.asked.is_none()),
            backing_off: count(&|rw| rw.not_before.is_some()),
            parked: count(&|rw| {
                rw.is_pending() && rw.started.is_some() && rw.worker.start_time > self.reached
            }),
        }
    }

    fn to_start(&self) -> Option<usize> {
        self.list.iter().position(|rw| {
            let held = self.resetting && rw.worker.access != Access::None;
            rw.is_pending() && !held && rw.worker.start_time <= self.reached
        })
    }

    fn to_park(&self) -> Option<usize> {
        self.list.iter().position(|rw| {
            rw.pid.is_some() && rw.asked.is_none() && rw.worker.start_time > self.reached
        })
    }

    fn to_stop_for_reset(&self) -> Option<usize> {
        self.list.iter().position(|rw| {
            let shares = rw.worker.access != Access::None;
            self.resetting && rw.pid.is_some() && rw.asked.is_none() && shares
        })
    }

    fn is_reset_done(&self) -> bool {
        let runs = |rw: &Registered| rw.pid.is_some() && rw.worker.access != Access::None;
        self.resetting && !self.list.iter().any(runs)
    }

    fn ask_back(&mut self, i: usize, abort_at: Instant) -> Action {
        let rw = &mut self.list[i];
        rw.ask(abort_at, true);
        signal(rw.id, rw.pid.expect("it runs"), Signal::Sigterm)
    }

    fn pids(&self) -> Vec<u64> {
        self.list.iter().filter_map(|rw| rw.pid).collect()
    }

    fn forget(&mut self, worker: WorkerId, exit: ExitStatus) {
        self.list.retain(|rw| rw.id != worker);
        self.decided.push_back(Action::Unregister { worker, exit });
    }
}

// === impl Registered ===

impl Registered {
    fn is_pending(&self) -> bool {
        self.pid.is_none() && self.not_before.is_none()
    }

    fn abort_at(&self) -> Option<Instant> {
        self.asked?.abort_at
    }

    fn ask(&mut self, abort_at: Instant, comes_back: bool) {
        self.asked = Some(Asked {
            abort_at: Some(abort_at),
            comes_back,
        });
    }

    fn ended(&mut self, at: Instant, exit: ExitStatus, backoff: Option<bool>, counted: bool) {
        let was_ready = self.ready;
        self.past.push(End {
            at,
            exit,
            was_ready,
            backoff,
            counted,
        });
    }

    fn judge(&mut self, now: Instant, exit: ExitStatus, jitter: f64) -> Afterwards {
        match exit {
            ExitStatus::Finished | ExitStatus::Stopped => Afterwards::Unregister,
            ExitStatus::DatabaseAway => {
                self.ended(now, exit, None, false);
                Afterwards::Restart(self.away_wait(jitter))
            }
            ExitStatus::Failed | ExitStatus::Crashed => {
                let ran = now - self.started.expect("it was started");
                let healthy = match self.worker.restart_time {
                    RestartTime::Backoff(backoff) => Some(ran >= backoff.healthy_after),
                    _ => None,
                };
                let limit = self.worker.restart_limit;
                let may_restart = limit.is_none_or(|limit| {
                    let is_recent = |end: &&End| end.counted && now - end.at < limit.within;
                    let recent = self.past.iter().filter(is_recent).count();
                    recent < limit.restarts as usize
                });
                self.ended(now, exit, healthy, limit.is_some() && may_restart);
                let wait = match self.worker.restart_time {
                    RestartTime::After(interval) => interval,
                    RestartTime::Backoff(backoff) => {
                        let in_a_row = self.past.iter().filter_map(|end| end.backoff);
                        let doublings =
                            in_a_row.fold(0, |n, healthy| if healthy { 1 } else { n + 1 }) - 1;
                        jittered(
                            doubled(backoff.initial, doublings.max(0), backoff.max),
                            jitter,
                        )
                    }
                    _ => return Afterwards::Unregister,
                };
                match limit {
                    Some(limit) if !may_restart => Afterwards::GiveUp(limit),
                    _ => Afterwards::Restart(wait),
                }
            }
        }
    }

    /// The wait after the database went away: none the first time, then growing. It starts over after the worker was
    /// ready, or failed by itself.
    fn away_wait(&self, jitter: f64) -> Duration {
        let mut in_a_row = 0;
        for end in self.past.iter().rev() {
            match end.exit {
                ExitStatus::DatabaseAway => in_a_row += 1,
                ExitStatus::Failed | ExitStatus::Crashed => break,
                ExitStatus::Finished | ExitStatus::Stopped => {}
            }
            if end.was_ready {
                break;
            }
        }
        match in_a_row {
            1 => Duration::ZERO,
            n => jittered(doubled(100 * MS, n - 2, 1000 * MS), jitter),
        }
    }
}

fn signal(worker: WorkerId, pid: u64, signal: Signal) -> Action {
    let incarnation = Incarnation {
        worker,
        number: pid,
    };
    Action::Signal {
        incarnation,
        signal,
    }
}

fn stronger(mode: Shutdown) -> Shutdown {
    match mode {
        Shutdown::Smart => Shutdown::Fast,
        Shutdown::Fast | Shutdown::Immediate => Shutdown::Immediate,
    }
}

fn doubled(wait: Duration, times: i32, max: Duration) -> Duration {
    (0..times).fold(wait, |wait, _| (wait * 2).min(max))
}

/// The wait, shortened by up to a quarter in whole milliseconds.
fn jittered(wait: Duration, jitter: f64) -> Duration {
    let less = wait.mul_f64(jitter) / 4;
    wait - MS * u32::try_from(less.as_millis()).expect("short waits")
}

/// The state machine and the model, side by side.
struct Both {
    machine: StateMachine,
    model: Model,
    now: Instant,
    /// Every worker that was ever registered, and every incarnation that ever was.
    ids: Vec<WorkerId>,
    incarnations: Vec<Incarnation>,
}

impl Both {
    fn new() -> Self {
        let (now, limits) = (Instant::now(), Limits::default());
        Self {
            machine: StateMachine::new(now, limits.clone()),
            model: Model::new(now, limits),
            now,
            ids: Vec::new(),
            incarnations: Vec::new(),
        }
    }

    fn apply(&mut self, op: Op) {
        let now = self.now;
        let Self { machine, model, .. } = self;
        match op {
            Op::Register(worker) => {
                model.enter(now);
                let registered = machine.register(now, worker.clone());
                assert_eq!(registered.as_ref().err(), model.refusal(&worker).as_ref());
                if let Ok(id) = registered {
                    model.register(id, worker);
                    self.ids.push(id);
                }
            }
            Op::Terminate(n) => {
                if let Some(&id) = nth(self.ids.iter(), n) {
                    model.enter(now);
                    machine.terminate(now, id);
                    model.terminate(id);
                }
            }
            Op::Reached(level) => {
                model.enter(now);
                machine.reached(now, level);
                model.reached(level);
            }
            Op::Ready(n) => {
                if let Some(incarnation) = self.running(n) {
                    self.model.enter(now);
                    self.machine.worker_ready(now, incarnation);
                    self.model.ready(incarnation);
                }
            }
            Op::Exit(n, exit, jitter) => {
                if let Some(incarnation) = self.running(n) {
                    self.model.enter(now);
                    self.machine.worker_exited(now, incarnation, exit, jitter);
                    self.model.exited(incarnation, exit, jitter);
                }
            }
            Op::StaleExit(n, exit) => {
                let is_stale = |i: &&Incarnation| !model.pids().contains(&i.number);
                let stale: Vec<_> = self.incarnations.iter().filter(is_stale).collect();
                if let Some(&&incarnation) = nth(stale.iter(), n) {
                    model.enter(now);
                    machine.worker_exited(now, incarnation, exit, 0.5);
                }
            }
            Op::SetRestart(n, restart_time, restart_limit) => {
                if let Some(&id) = nth(self.ids.iter(), n) {
                    let worker = machine.worker(id).cloned();
                    model.enter(now);
                    let set = machine.set_restart(now, id, restart_time, restart_limit);
                    if let Some(worker) = worker {
                        let mut worker = worker.restart_time(restart_time);
                        worker.restart_limit = restart_limit;
                        assert_eq!(set, worker.check());
                        if set.is_ok() {
                            model.set_restart(id, &worker);
                        }
                    }
                }
            }
            Op::SetLimits(limits) => {
                model.enter(now);
                machine.set_limits(now, limits.clone());
                model.limits = limits;
            }
            Op::Sighup => {
                model.enter(now);
                machine.sighup(now);
                model.sighup();
            }
            Op::ShutDown(mode) => {
                model.enter(now);
                machine.shut_down(now, mode);
                model.shut_down(mode);
            }
            Op::Drain(n) => self.drain(n),
            Op::Tick => {
                model.enter(now);
                machine.handle_timeout(now);
                model.tick();
            }
            Op::Turn => {
                self.apply(Op::Tick);
                self.drain(usize::MAX);
            }
            Op::Wait(wait) => self.now += wait,
        }
        self.agree();
    }

    /// The running incarnation that an index means.
    fn running(&self, n: usize) -> Option<Incarnation> {
        let pids = self.model.pids();
        let pid = *nth(pids.iter(), n)?;
        let mut all = self.incarnations.iter();
        all.find(|incarnation| incarnation.number == pid).copied()
    }

    fn drain(&mut self, most: usize) {
        for _ in 0..most {
            let action = self.machine.poll_action();
            assert_eq!(action, self.model.poll_action());
            match action {
                None => return,
                Some(Action::Start(incarnation)) => self.incarnations.push(incarnation),
                Some(_) => {}
            }
        }
    }

    fn agree(&self) {
        assert_eq!(self.machine.poll_timeout(), self.model.poll_timeout());
        assert_eq!(self.machine.counts(), self.model.counts());
        let mode = self.model.shutdown.as_ref().map(|current| current.mode);
        assert_eq!(self.machine.shutdown(), mode);
        for id in &self.ids {
            assert_eq!(self.machine.state(*id), self.model.state(*id));
        }
    }

    /// Drains actions and ticks from deadline to deadline, at most 50 times.
    fn run(&mut self) {
        for _ in 0..50 {
            self.drain(usize::MAX);
            self.agree();
            let Some(at) = self.machine.poll_timeout() else {
                return;
            };
            self.now = self.now.max(at);
            self.apply(Op::Tick);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 10_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_machine_does_what_the_simplest_reading_of_the_rules_does(ops in histories()) {
        let mut both = Both::new();
        for op in ops {
            both.apply(op);
        }
        both.run();
    }
}
