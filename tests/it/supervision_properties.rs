//! Properties of the pure machine, under random histories of inputs.
//!
//! The simulation performs actions as a Postmaster would, jumps from deadline to deadline, and
//! fails if the machine asks to be called at once without end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bgworker::supervision::{
    Action, Afterwards, Limits, RegisterError, Shutdown, Signal, StateMachine, WorkerState,
};
use bgworker::{
    Access, BackgroundWorker, ExitStatus, Incarnation, RestartTime, StartTime, WorkerId,
};
use proptest::prelude::*;

use crate::support::histories::{Op, histories, nth};

/// The state machine, and what an outside observer knows.
struct Sim {
    machine: StateMachine,
    now: Instant,
    limits: Limits,
    level: StartTime,
    registered: BTreeMap<WorkerId, BackgroundWorker>,
    running: BTreeMap<WorkerId, Incarnation>,
    ended: Vec<Incarnation>,
    /// Earliest time at which a worker may start.
    not_before: BTreeMap<WorkerId, Instant>,
    /// When an incarnation ended, and the registration of its worker at that time.
    exits_seen: BTreeMap<Incarnation, (Instant, BackgroundWorker)>,
    told_to_stop: BTreeSet<Incarnation>,
    /// Incarnations that were terminated, or ended during a shutdown.
    for_good: BTreeSet<Incarnation>,
    /// `true` between a crash and the end of the reset that follows it.
    resetting: bool,
    last_number: u64,
    starts_allowed: usize,
    shutdown: Option<Shutdown>,
    exits: usize,
    /// How many Sighups came while an incarnation ran, and how many it received.
    sighups: BTreeMap<Incarnation, (usize, usize)>,
}

impl Sim {
    fn new() -> Self {
        let now = Instant::now();
        let limits = Limits::default();
        Self {
            machine: StateMachine::new(now, limits.clone()),
            now,
            limits,
            level: StartTime::PostmasterStart,
            registered: BTreeMap::new(),
            running: BTreeMap::new(),
            ended: Vec::new(),
            not_before: BTreeMap::new(),
            exits_seen: BTreeMap::new(),
            told_to_stop: BTreeSet::new(),
            for_good: BTreeSet::new(),
            resetting: false,
            last_number: 0,
            starts_allowed: 0,
            shutdown: None,
            exits: 0,
            sighups: BTreeMap::new(),
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Register(worker) => self.register(worker),
            Op::Terminate(n) => {
                let Some(&id) = nth(self.registered.keys(), n) else {
                    return;
                };
                self.machine.terminate(self.now, id);
                if let Some(incarnation) = self.running.get(&id) {
                    self.told_to_stop.insert(*incarnation);
                    self.for_good.insert(*incarnation);
                }
                self.starts_allowed = 0;
            }
            Op::Reached(level) => {
                self.machine.reached(self.now, level);
                self.level = level;
                self.starts_allowed = 0;
            }
            Op::Ready(n) => {
                let Some(&incarnation) = nth(self.running.values(), n) else {
                    return;
                };
                self.machine.worker_ready(self.now, incarnation);
                self.starts_allowed = 0;
            }
            Op::Exit(n, exit, jitter) => {
                let Some(&incarnation) = nth(self.running.values(), n) else {
                    return;
                };
                self.exit(incarnation, exit, jitter);
            }
            Op::SetRestart(n, restart_time, restart_limit) => {
                let Some(&id) = nth(self.registered.keys(), n) else {
                    return;
                };
                let set = (self.machine).set_restart(self.now, id, restart_time, restart_limit);
                if let Some(worker) = self.machine.worker(id) {
                    assert!(set.is_err() || worker.restart_time == restart_time);
                    self.registered.insert(id, worker.clone());
                }
                self.starts_allowed = 0;
            }
            Op::SetLimits(limits) => {
                self.machine.set_limits(self.now, limits.clone());
                self.limits = limits;
                self.starts_allowed = 0;
            }
            Op::StaleExit(n, exit) => {
                let Some(&incarnation) = nth(self.ended.iter(), n) else {
                    return;
                };
                let before = format!("{:?}", self.machine.counts());
                self.machine.worker_exited(self.now, incarnation, exit, 0.5);
                assert_eq!(
                    before,
                    format!("{:?}", self.machine.counts()),
                    "a stale exit"
                );
                self.starts_allowed = 0;
            }
            Op::Sighup => {
                self.machine.sighup(self.now);
                for incarnation in self.running.values() {
                    self.sighups.entry(*incarnation).or_default().0 += 1;
                }
                self.starts_allowed = 0;
            }
            Op::ShutDown(mode) => {
                let before = self.machine.shutdown();
                self.machine.shut_down(self.now, mode);
                self.shutdown = self.machine.shutdown();
                assert!(self.shutdown >= before, "a shutdown goes back");
                self.resetting = false;
                self.starts_allowed = 0;
            }
            Op::Drain(n) => self.drain(n),
            Op::Tick => {
                self.machine.handle_timeout(self.now);
                assert!(
                    self.machine.shutdown() >= self.shutdown,
                    "a shutdown goes back"
                );
                self.shutdown = self.machine.shutdown();
                self.starts_allowed = self.limits.starts_per_tick.max(1);
            }
            Op::Turn => {
                self.apply(Op::Tick);
                self.drain(usize::MAX);
            }
            Op::Wait(wait) => self.now += wait,
        }
    }

    fn register(&mut self, worker: BackgroundWorker) {
        let is_taken = self.machine.find(&worker.name).is_some();
        let is_full = self.machine.counts().registered >= self.limits.max_workers;
        self.starts_allowed = 0;
        match self.machine.register(self.now, worker.clone()) {
            Ok(id) => {
                assert!(!is_taken && !is_full && self.shutdown.is_none());
                let before = self.registered.insert(id, worker);
                assert_eq!(before, None, "a generation is used again");
            }
            Err(RegisterError::Duplicate { .. }) => assert!(is_taken),
            Err(RegisterError::TooManyWorkers { .. }) => assert!(is_full),
            Err(RegisterError::ShuttingDown { .. }) => assert!(self.shutdown.is_some()),
            Err(RegisterError::Invalid(_)) => assert!(worker.check().is_err()),
            Err(error) => panic!("{error}"),
        }
    }

    fn exit(&mut self, incarnation: Incarnation, exit: ExitStatus, jitter: f64) {
        if self.shutdown.is_some() {
            self.for_good.insert(incarnation);
        }
        let worker = self.registered[&incarnation.worker].clone();
        (self.exits_seen).insert(incarnation, (self.now, worker));
        (self.machine).worker_exited(self.now, incarnation, exit, jitter);
        self.running.remove(&incarnation.worker);
        self.ended.push(incarnation);
        self.starts_allowed = 0;
    }

    fn drain(&mut self, most: usize) {
        for _ in 0..most {
            let Some(action) = self.machine.poll_action() else {
                return;
            };
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        let forgets = matches!(action, Action::Unregister { .. });
        assert!(self.exits == 0 || forgets, "{action:?} after Exit");
        match action {
            Action::Start(incarnation) => self.start(incarnation),
            Action::Signal {
                incarnation,
                signal,
            } => {
                let is_running = self.running.get(&incarnation.worker) == Some(&incarnation);
                // It may have ended since the action was decided; that does no harm.
                assert!(
                    is_running || self.ended.contains(&incarnation),
                    "{action:?}"
                );
                if signal == Signal::Sighup {
                    let (asked, told) = self.sighups.entry(incarnation).or_default();
                    *told += 1;
                    assert!(told <= asked, "received more Sighups than were sent");
                } else {
                    let is_new = self.told_to_stop.insert(incarnation);
                    let again = self.shutdown.is_some() || self.for_good.contains(&incarnation);
                    assert!(is_new || again, "told twice");
                }
            }
            Action::Abort(incarnation) => {
                self.told_to_stop.insert(incarnation);
            }
            Action::Exited {
                incarnation,
                exit,
                afterwards,
            } => {
                self.check_exit(incarnation, exit, afterwards);
            }
            Action::Unregister { worker, .. } => {
                assert!(!self.running.contains_key(&worker));
                assert!(
                    self.registered.remove(&worker).is_some(),
                    "unregistered twice"
                );
                assert_eq!(
                    self.machine.state(worker),
                    None,
                    "an old handle names a worker"
                );
                self.not_before.remove(&worker);
            }
            Action::Parked { workers } | Action::Unparked { workers } => assert!(workers > 0),
            Action::Reset => {
                assert!(!self.resetting, "two resets at once");
                // A shutdown that came since has ended the reset.
                self.resetting = self.shutdown.is_none();
            }
            Action::ResetShared => {
                assert!(self.resetting);
                let mut running = self.running.keys().map(|id| &self.registered[id]);
                assert!(
                    running.all(|worker| worker.access == Access::None),
                    "a sharer runs"
                );
                self.resetting = false;
            }
            Action::Exit => {
                assert!(self.running.is_empty() && self.shutdown.is_some());
                self.exits += 1;
            }
        }
    }

    /// Properties 1, 2, 3 and 7: one live incarnation, level and shutdown, restart time, per tick.
    fn start(&mut self, incarnation: Incarnation) {
        let id = incarnation.worker;
        assert!(
            incarnation.number > self.last_number,
            "an incarnation is used again"
        );
        self.last_number = incarnation.number;
        assert!(
            self.running.insert(id, incarnation).is_none(),
            "two live incarnations"
        );
        assert!(self.shutdown.is_none(), "started during a shutdown");
        let worker = &self.registered[&id];
        assert!(worker.start_time <= self.level, "started too early");
        let shares = worker.access != Access::None;
        assert!(
            !(self.resetting && shares),
            "a sharer started during a reset"
        );
        let not_before = self.not_before.remove(&id);
        assert!(
            not_before.is_none_or(|at| at <= self.now),
            "restarted too early"
        );
        self.starts_allowed = self
            .starts_allowed
            .checked_sub(1)
            .expect("a start outside a tick");
        // Order: no worker that could start now was registered earlier.
        for (other, worker) in &self.registered {
            let state = self.machine.state(*other);
            let waits = matches!(state, Some(WorkerState::Registered | WorkerState::Parked));
            let held = self.resetting && worker.access != Access::None;
            assert!(
                !(waits && !held && worker.start_time <= self.level && other < &id),
                "out of order"
            );
        }
    }

    /// Property 4, and what may follow an exit.
    fn check_exit(&mut self, incarnation: Incarnation, exit: ExitStatus, then: Afterwards) {
        let id = incarnation.worker;
        let (at, worker) = &self.exits_seen[&incarnation];
        if self.told_to_stop.contains(&incarnation) {
            assert_eq!(exit, ExitStatus::Stopped);
        }
        let stopped_for_good = self.for_good.contains(&incarnation);
        match (exit, worker.restart_time, then) {
            (ExitStatus::Stopped, _, Afterwards::Restart(Duration::ZERO)) => {
                assert!(!stopped_for_good, "it was not to come back");
            }
            (ExitStatus::Stopped, _, Afterwards::Unregister) => {
                assert!(stopped_for_good, "it was to come back");
            }
            (ExitStatus::Finished, _, Afterwards::Unregister)
            | (
                ExitStatus::Failed | ExitStatus::Crashed,
                RestartTime::Never,
                Afterwards::Unregister,
            ) => {}
            (
                ExitStatus::Failed | ExitStatus::Crashed,
                RestartTime::After(interval),
                Afterwards::Restart(wait),
            ) => {
                assert_eq!(wait, interval);
            }
            (
                ExitStatus::Failed | ExitStatus::Crashed,
                RestartTime::Backoff(backoff),
                Afterwards::Restart(wait),
            ) => {
                assert!(wait <= backoff.max && wait >= backoff.initial * 3 / 4);
            }
            (ExitStatus::Failed | ExitStatus::Crashed, _, Afterwards::GiveUp(limit)) => {
                assert_eq!(worker.restart_limit, Some(limit));
            }
            (ExitStatus::DatabaseAway, _, Afterwards::Restart(wait)) => {
                assert!(wait <= Duration::from_secs(1));
            }
            unexpected => panic!("{unexpected:?}"),
        }
        if let Afterwards::Restart(wait) = then {
            self.not_before.insert(id, *at + wait);
        }
    }

    /// Drains and ticks until nothing is due; panics if 1,000 ticks are not enough (property 8).
    fn settle(&mut self) {
        for _ in 0..1000 {
            self.drain(usize::MAX);
            match self.machine.poll_timeout() {
                Some(at) if at <= self.now => self.apply(Op::Tick),
                Some(_) | None => return,
            }
        }
        panic!("livelock: {:?}", self.machine);
    }

    /// Jumps to the next deadline; `false` if there is none.
    fn step(&mut self) -> bool {
        self.settle();
        let Some(at) = self.machine.poll_timeout() else {
            return false;
        };
        self.now = at;
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 10_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_history_breaks_a_rule(ops in histories()) {
        let mut sim = Sim::new();
        for op in ops {
            sim.apply(op);
        }
        sim.settle();
    }

    #[test]
    fn every_worker_whose_level_is_reached_runs_in_the_end(ops in histories()) {
        let mut sim = Sim::new();
        for op in ops {
            if !matches!(op, Op::ShutDown(_)) {
                sim.apply(op);
            }
        }
        sim.apply(Op::Reached(StartTime::RecoveryFinished));
        for _ in 0..1000 {
            let is_due_later = sim.step();
            // Workers that were asked to stop do so.
            let mut stopping: Vec<_> = sim.running.values().copied().collect();
            stopping.retain(|incarnation| sim.told_to_stop.contains(incarnation));
            if stopping.is_empty() && !is_due_later {
                break;
            }
            for incarnation in stopping {
                sim.exit(incarnation, ExitStatus::Finished, 0.5);
            }
        }
        prop_assert_eq!(sim.machine.poll_timeout(), None);
        let counts = sim.machine.counts();
        prop_assert_eq!(counts.running, counts.registered);
        prop_assert_eq!(sim.running.len(), counts.running);
    }

    #[test]
    fn from_any_state_a_shutdown_reaches_its_exit(ops in histories(), aborts in any::<bool>()) {
        let mut sim = Sim::new();
        for op in ops {
            sim.apply(op);
        }
        sim.apply(Op::ShutDown(Shutdown::Smart));
        for _ in 0..100 {
            sim.settle();
            if sim.exits == 1 {
                break;
            }
            // Either all end when asked, or none ends until it is aborted.
            let last = sim.machine.shutdown() == Some(Shutdown::Immediate);
            if last || !aborts {
                for incarnation in sim.running.clone().into_values() {
                    sim.exit(incarnation, ExitStatus::Failed, 0.5);
                }
            } else {
                prop_assert!(sim.step(), "a deadline is missing");
            }
        }
        prop_assert_eq!(sim.exits, 1);
        prop_assert_eq!(sim.machine.poll_timeout(), None);
    }

    #[test]
    fn a_spurious_tick_does_nothing(ops in histories()) {
        let mut sim = Sim::new();
        for op in ops {
            sim.apply(op);
        }
        sim.settle();
        let before = sim.machine.counts();
        for _ in 0..3 {
            sim.machine.handle_timeout(sim.now);
            prop_assert_eq!(sim.machine.poll_action(), None);
        }
        prop_assert_eq!(sim.machine.counts(), before);
    }
}
