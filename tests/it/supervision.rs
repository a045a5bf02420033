//! The rules of supervision on the pure machine: no clock, no actor, exact times.

use std::time::{Duration, Instant};

use bgworker::supervision::{
    Action, Afterwards, Limits, RegisterError, Shutdown, Signal, StateMachine, WorkerState,
};
use bgworker::{
    Access, BackgroundWorker, ExitStatus, Incarnation, InvalidWorker, RestartTime, StartTime,
    WorkerId,
};

const SECOND: Duration = Duration::from_secs(1);

/// A state machine and its time.
struct Machine {
    machine: StateMachine,
    now: Instant,
}

impl Machine {
    fn new(limits: Limits) -> Self {
        let now = Instant::now();
        let mut machine = StateMachine::new(now, limits);
        machine.reached(now, StartTime::RecoveryFinished);
        Self { machine, now }
    }

    fn register(&mut self, name: &str) -> WorkerId {
        self.register_worker(BackgroundWorker::new(name)).unwrap()
    }

    fn register_worker(&mut self, worker: BackgroundWorker) -> Result<WorkerId, RegisterError> {
        self.machine.register(self.now, worker)
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.machine.poll_action()).collect()
    }

    /// Handles one tick, and returns what it started.
    fn tick(&mut self) -> Vec<Incarnation> {
        self.machine.handle_timeout(self.now);
        started(&self.actions())
    }

    /// Handles ticks until nothing is due now, and returns what they started.
    fn ticks(&mut self) -> Vec<Incarnation> {
        let mut started = Vec::new();
        for _ in 0..1000 {
            if self.machine.poll_timeout().is_none_or(|at| at > self.now) {
                return started;
            }
            started.extend(self.tick());
        }
        panic!("livelock: {:?}", self.machine);
    }

    fn names(&self, incarnations: &[Incarnation]) -> Vec<String> {
        let worker = |incarnation: &Incarnation| self.machine.worker(incarnation.worker).unwrap();
        incarnations
            .iter()
            .map(|i| worker(i).name.to_string())
            .collect()
    }

    fn exit(&mut self, incarnation: Incarnation, exit: ExitStatus) -> Vec<Action> {
        self.machine.worker_exited(self.now, incarnation, exit, 0.0);
        self.actions()
    }
}

fn started(actions: &[Action]) -> Vec<Incarnation> {
    let start = |action: &Action| match action {
        Action::Start(incarnation) => Some(*incarnation),
        _ => None,
    };
    actions.iter().filter_map(start).collect()
}

fn exited(incarnation: Incarnation, exit: ExitStatus, afterwards: Afterwards) -> Action {
    Action::Exited {
        incarnation,
        exit,
        afterwards,
    }
}

// Registration.

#[test]
fn database_access_at_postmaster_start_is_refused_and_others_still_start() {
    let mut machine = Machine::new(Limits::default());
    let refused = BackgroundWorker::new("early")
        .access(Access::Database)
        .start_time(StartTime::PostmasterStart);
    let error = machine.register_worker(refused).unwrap_err();
    assert_eq!(
        error.to_string(),
        "background worker \"early\": cannot request database access if starting at postmaster start"
    );
    let shared = BackgroundWorker::new("shared")
        .access(Access::Shared)
        .start_time(StartTime::PostmasterStart);
    machine.register_worker(shared).unwrap();
    let started = machine.ticks();
    assert_eq!(machine.names(&started), ["shared"]);
}

#[test]
fn a_restart_time_of_zero_or_above_a_thousand_days_is_refused() {
    for seconds in [0, 86_400_001, u64::MAX] {
        let worker = BackgroundWorker::new("w")
            .restart_time(RestartTime::After(Duration::from_secs(seconds)));
        let error = worker.check().unwrap_err();
        assert!(matches!(error, InvalidWorker::RestartTime { .. }));
        assert!(
            error
                .to_string()
                .contains("\"w\": invalid restart interval"),
            "{error}"
        );
    }
    for seconds in [1, 86_400_000] {
        let worker = BackgroundWorker::new("w")
            .restart_time(RestartTime::After(Duration::from_secs(seconds)));
        assert_eq!(worker.check(), Ok(()));
    }
}

#[test]
fn a_restart_time_beyond_31_bits_of_milliseconds_is_kept_not_overflowed() {
    let interval = Duration::from_secs(3_000_000);
    let mut machine = Machine::new(Limits::default());
    let worker = BackgroundWorker::new("w").restart_time(RestartTime::After(interval));
    machine.register_worker(worker).unwrap();
    let started = machine.ticks();
    machine.exit(started[0], ExitStatus::Failed);
    assert_eq!(machine.machine.poll_timeout(), Some(machine.now + interval));
    machine.now += interval - SECOND;
    assert_eq!(machine.tick(), []);
}

#[test]
fn the_registration_over_the_limit_is_refused_naming_worker_number_and_key() {
    let mut machine = Machine::new(Limits::default().max_workers(2));
    machine.register("a");
    machine.register("b");
    let error = machine
        .register_worker(BackgroundWorker::new("c"))
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("too many background workers"), "{error}");
    for part in ["\"c\"", "up to 2", "\"max_workers\""] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(machine.ticks().len(), 2);
}

#[test]
fn a_second_worker_of_a_name_is_refused_until_the_first_is_gone() {
    let mut machine = Machine::new(Limits::default());
    let first = machine.register("w");
    let again = machine
        .register_worker(BackgroundWorker::new("w"))
        .unwrap_err();
    assert_eq!(
        again.to_string(),
        "background worker \"w\" is already registered"
    );
    machine.machine.terminate(machine.now, first);
    machine.register("w");
}

#[test]
fn a_name_must_have_1_to_63_bytes_and_no_nul() {
    for name in ["", &"x".repeat(64), "a\0b"] {
        let error = BackgroundWorker::new(name).check().unwrap_err();
        assert!(error.to_string().contains("1 to 63 bytes"), "{error}");
    }
    assert_eq!(BackgroundWorker::new("x".repeat(63)).check(), Ok(()));
}

// Start times and ticks.

const LEVELS: [StartTime; 3] = [
    StartTime::PostmasterStart,
    StartTime::ConsistentState,
    StartTime::RecoveryFinished,
];

/// Registers a worker for each start time, the latest first.
fn one_of_each_level(machine: &mut Machine) {
    for level in LEVELS.into_iter().rev() {
        let worker = BackgroundWorker::new(level.to_string()).start_time(level);
        machine.register_worker(worker).unwrap();
    }
}

#[test]
fn each_level_starts_exactly_its_own_workers_and_stops_none() {
    let mut machine = Machine::new(Limits::default());
    one_of_each_level(&mut machine);
    for level in LEVELS {
        machine.machine.reached(machine.now, level);
        assert_eq!(machine.actions(), [], "an advance by itself does nothing");
        let started = machine.ticks();
        assert_eq!(machine.names(&started), [level.to_string()]);
    }
    assert_eq!(machine.machine.counts().running, 3);
}

#[test]
fn a_jump_past_a_level_starts_the_workers_of_both_one_per_tick() {
    let mut machine = Machine::new(Limits::default());
    machine
        .machine
        .reached(machine.now, StartTime::PostmasterStart);
    one_of_each_level(&mut machine);
    assert_eq!(machine.ticks().len(), 1);
    machine
        .machine
        .reached(machine.now, StartTime::RecoveryFinished);
    assert_eq!(machine.tick().len(), 1);
    assert_eq!(machine.tick().len(), 1);
    assert_eq!(machine.machine.poll_timeout(), None);
}

#[test]
fn a_postmaster_start_worker_that_fails_after_recovery_is_restarted() {
    let mut machine = Machine::new(Limits::default());
    let worker = BackgroundWorker::new("w")
        .start_time(StartTime::PostmasterStart)
        .restart_time(RestartTime::After(SECOND));
    machine.register_worker(worker).unwrap();
    let started = machine.ticks();
    machine.exit(started[0], ExitStatus::Failed);
    machine.now += SECOND;
    assert_eq!(machine.ticks().len(), 1);
}

#[test]
fn workers_start_in_the_order_of_their_registration_one_per_tick() {
    let mut machine = Machine::new(Limits::default());
    let names: Vec<_> = (0..50).map(|n| format!("w{n}")).collect();
    for name in &names {
        machine.register(name);
    }
    for name in &names {
        let started = machine.tick();
        assert_eq!(machine.names(&started), [name.as_str()]);
    }
}

#[test]
fn starts_per_tick_is_how_many_one_tick_starts() {
    let mut machine = Machine::new(Limits::default().starts_per_tick(3));
    for n in 0..7 {
        machine.register(&format!("w{n}"));
    }
    let started: Vec<_> = (0..4).map(|_| machine.tick().len()).collect();
    assert_eq!(started, [3, 3, 1, 0]);
}

#[test]
fn only_a_tick_starts_workers() {
    let mut machine = Machine::new(Limits::default());
    machine.machine.handle_timeout(machine.now);
    machine.register("w");
    assert_eq!(machine.actions(), []);
    assert_eq!(machine.tick().len(), 1);
}

#[test]
fn a_level_that_falls_withholds_starts_and_lets_them_come_when_it_rises() {
    let mut machine = Machine::new(Limits::default());
    machine.register("w");
    machine
        .machine
        .reached(machine.now, StartTime::ConsistentState);
    assert_eq!(machine.tick(), []);
    assert_eq!(machine.machine.poll_timeout(), None);
    machine
        .machine
        .reached(machine.now, StartTime::RecoveryFinished);
    assert_eq!(machine.tick().len(), 1);
}

// Ends.

#[test]
fn a_failed_worker_starts_exactly_its_restart_time_after_each_exit() {
    let mut machine = Machine::new(Limits::default());
    let worker = BackgroundWorker::new("w").restart_time(RestartTime::After(2 * SECOND));
    machine.register_worker(worker).unwrap();
    let mut incarnation = machine.ticks()[0];
    for _ in 0..5 {
        machine.now += 7 * SECOND; // it ran for a while
        let actions = machine.exit(incarnation, ExitStatus::Failed);
        let restart = Afterwards::Restart(2 * SECOND);
        assert_eq!(actions, [exited(incarnation, ExitStatus::Failed, restart)]);
        let due = machine.now + 2 * SECOND;
        assert_eq!(machine.machine.poll_timeout(), Some(due));
        machine.now = due - Duration::from_nanos(1);
        assert_eq!(machine.tick(), []);
        machine.now = due;
        incarnation = machine.tick()[0];
    }
    assert_eq!(incarnation.number, 6);
}

#[test]
fn a_worker_that_never_restarts_is_unregistered_by_its_failure() {
    for exit in [ExitStatus::Failed, ExitStatus::Crashed] {
        let mut machine = Machine::new(Limits::default());
        let worker = BackgroundWorker::new("w").restart_time(RestartTime::Never);
        let id = machine.register_worker(worker).unwrap();
        let started = machine.ticks();
        let actions = machine.exit(started[0], exit);
        assert_eq!(
            actions,
            [
                exited(started[0], exit, Afterwards::Unregister),
                Action::Unregister { worker: id, exit },
            ]
        );
        assert_eq!(machine.machine.poll_timeout(), None);
    }
}

#[test]
fn a_worker_that_returns_is_finished_and_its_slot_and_name_are_free() {
    let mut machine = Machine::new(Limits::default());
    let id = machine.register("w");
    let started = machine.ticks();
    let actions = machine.exit(started[0], ExitStatus::Finished);
    let exit = ExitStatus::Finished;
    assert_eq!(
        actions,
        [
            exited(started[0], exit, Afterwards::Unregister),
            Action::Unregister { worker: id, exit },
        ]
    );
    assert_eq!(machine.machine.state(id), None);
    let next = machine.register("w");
    assert_eq!(next.slot(), id.slot());
    assert_ne!(next.generation(), id.generation());
    assert_eq!(
        machine.machine.state(id),
        None,
        "the old handle names no worker"
    );
}

#[test]
fn two_failed_workers_each_come_back_at_their_own_time() {
    let mut machine = Machine::new(Limits::default());
    for (name, seconds) in [("slow", 5), ("quick", 1)] {
        let interval = Duration::from_secs(seconds);
        let worker = BackgroundWorker::new(name).restart_time(RestartTime::After(interval));
        machine.register_worker(worker).unwrap();
    }
    for incarnation in machine.ticks() {
        machine.exit(incarnation, ExitStatus::Failed);
    }
    machine.now += SECOND;
    let started = machine.ticks();
    assert_eq!(machine.names(&started), ["quick"]);
    machine.now += 4 * SECOND;
    let started = machine.ticks();
    assert_eq!(machine.names(&started), ["slow"]);
}

#[test]
fn the_exit_of_an_earlier_incarnation_changes_nothing() {
    let mut machine = Machine::new(Limits::default());
    machine
        .register_worker(BackgroundWorker::new("w").restart_time(RestartTime::After(SECOND)))
        .unwrap();
    let first = machine.ticks()[0];
    machine.exit(first, ExitStatus::Failed);
    machine.now += SECOND;
    let second = machine.ticks()[0];
    for exit in [
        ExitStatus::Failed,
        ExitStatus::Finished,
        ExitStatus::Crashed,
    ] {
        assert_eq!(machine.exit(first, exit), []);
    }
    assert_eq!(machine.machine.counts().running, 1);
    machine.exit(second, ExitStatus::Finished);
    assert_eq!(machine.exit(second, ExitStatus::Failed), []);
}

#[test]
fn a_lost_database_is_not_held_against_a_worker_that_never_restarts() {
    let mut machine = Machine::new(Limits::default());
    let worker = BackgroundWorker::new("w").restart_time(RestartTime::Never);
    machine.register_worker(worker).unwrap();
    let mut incarnation = machine.ticks()[0];
    for millis in [0, 100, 200, 400, 800, 1000, 1000] {
        let wait = Duration::from_millis(millis);
        let actions = machine.exit(incarnation, ExitStatus::DatabaseAway);
        let restart = Afterwards::Restart(wait);
        assert_eq!(
            actions,
            [exited(incarnation, ExitStatus::DatabaseAway, restart)]
        );
        machine.now += wait;
        incarnation = machine.ticks()[0];
    }
    machine.machine.worker_ready(machine.now, incarnation);
    let actions = machine.exit(incarnation, ExitStatus::DatabaseAway);
    let restart = Afterwards::Restart(Duration::ZERO);
    assert_eq!(
        actions,
        [exited(incarnation, ExitStatus::DatabaseAway, restart)],
        "once it was ready, the count begins again"
    );
}

#[test]
fn while_the_level_is_missing_a_worker_that_lost_its_database_waits_for_it() {
    let mut machine = Machine::new(Limits::default());
    machine.register("w");
    let incarnation = machine.ticks()[0];
    machine
        .machine
        .reached(machine.now, StartTime::PostmasterStart);
    machine.exit(incarnation, ExitStatus::DatabaseAway);
    assert_eq!(machine.machine.poll_timeout(), None);
    machine.now += 3600 * SECOND;
    machine
        .machine
        .reached(machine.now, StartTime::RecoveryFinished);
    assert_eq!(machine.tick().len(), 1);
}

// Termination, Sighup, shutdown.

#[test]
fn terminate_stops_a_worker_in_any_state_and_twice_is_once() {
    let mut machine = Machine::new(Limits::default());
    let waits = machine.register("waits");
    machine.machine.terminate(machine.now, waits);
    let exit = ExitStatus::Stopped;
    assert_eq!(
        machine.actions(),
        [Action::Unregister {
            worker: waits,
            exit
        }]
    );

    let runs = machine.register("runs");
    let incarnation = machine.ticks()[0];
    machine.machine.terminate(machine.now, runs);
    machine.machine.terminate(machine.now, runs);
    let signal = Signal::Sigterm;
    assert_eq!(
        machine.actions(),
        [Action::Signal {
            incarnation,
            signal
        }]
    );
    assert_eq!(machine.machine.state(runs), Some(WorkerState::Stopping));
    let actions = machine.exit(incarnation, ExitStatus::Crashed);
    assert_eq!(
        actions[0],
        exited(incarnation, ExitStatus::Stopped, Afterwards::Unregister),
        "whatever it says, it was asked to"
    );

    let failed = machine.register("failed");
    let incarnation = machine.ticks()[0];
    machine.exit(incarnation, ExitStatus::Failed);
    machine.machine.terminate(machine.now, failed);
    assert_eq!(
        machine.actions(),
        [Action::Unregister {
            worker: failed,
            exit
        }]
    );
    assert_eq!(machine.machine.poll_timeout(), None);
}

#[test]
fn a_terminated_worker_that_does_not_end_is_aborted_at_the_deadline() {
    let mut machine = Machine::new(Limits::default());
    let id = machine.register("w");
    let incarnation = machine.ticks()[0];
    machine.machine.terminate(machine.now, id);
    machine.actions();
    let deadline = machine.now + Limits::default().shutdown_timeout;
    assert_eq!(machine.machine.poll_timeout(), Some(deadline));
    machine.now = deadline;
    machine.machine.handle_timeout(machine.now);
    assert_eq!(machine.actions(), [Action::Abort(incarnation)]);
}

#[test]
fn a_sighup_reaches_each_running_worker_once_and_no_other() {
    let mut machine = Machine::new(Limits::default());
    for n in 0..10 {
        machine.register(&format!("w{n}"));
    }
    let mut running = machine.ticks();
    let failed = running.remove(3);
    machine.exit(failed, ExitStatus::Failed);
    machine.register("not started");
    machine.machine.sighup(machine.now);
    let signal = Signal::Sighup;
    let expected: Vec<_> = running
        .iter()
        .map(|&incarnation| Action::Signal {
            incarnation,
            signal,
        })
        .collect();
    assert_eq!(machine.actions(), expected);
    assert_eq!(
        machine.machine.counts().backing_off,
        1,
        "it restarts no worker"
    );
}

#[test]
fn sighups_that_overlap_are_merged_and_none_is_lost() {
    let mut machine = Machine::new(Limits::default());
    for n in 0..10 {
        machine.register(&format!("w{n}"));
    }
    machine.ticks();
    machine.machine.sighup(machine.now);
    for _ in 0..5 {
        machine.machine.poll_action().unwrap();
    }
    for _ in 0..1000 {
        machine.machine.sighup(machine.now);
    }
    assert_eq!(machine.actions().len(), 5 + 10);
}

#[test]
fn a_worker_that_starts_during_a_sighup_does_not_receive_it() {
    let mut machine = Machine::new(Limits::default());
    machine.register("a");
    let first = machine.ticks();
    machine.register("b");
    machine.machine.sighup(machine.now);
    machine.machine.handle_timeout(machine.now);
    let signalled: Vec<_> = machine
        .actions()
        .into_iter()
        .filter_map(|action| match action {
            Action::Signal { incarnation, .. } => Some(incarnation),
            _ => None,
        })
        .collect();
    assert_eq!(signalled, first);
    machine.ticks();
}

fn shut_down_signals(mode: Shutdown) -> Vec<Action> {
    let mut machine = Machine::new(Limits::default());
    machine.register("w");
    machine.ticks();
    machine.machine.shut_down(machine.now, mode);
    machine.actions()
}

#[test]
fn smart_asks_fast_cancels_immediate_aborts() {
    let signal = |actions: Vec<Action>| match actions[..] {
        [Action::Signal { signal, .. }] => Some(signal),
        [Action::Abort(_)] => None,
        _ => panic!("{actions:?}"),
    };
    assert_eq!(
        signal(shut_down_signals(Shutdown::Smart)),
        Some(Signal::Sigterm)
    );
    assert_eq!(
        signal(shut_down_signals(Shutdown::Fast)),
        Some(Signal::Sigint)
    );
    assert_eq!(signal(shut_down_signals(Shutdown::Immediate)), None);
}

#[test]
fn a_shutdown_starts_no_worker_waits_only_for_running_ones_and_exits_once() {
    let mut machine = Machine::new(Limits::default());
    machine.register("runs");
    machine.register("failed");
    let started = machine.ticks();
    machine.exit(started[1], ExitStatus::Failed);
    machine.register("pending");
    machine.machine.shut_down(machine.now, Shutdown::Smart);
    machine.actions();
    machine.now += SECOND;
    assert_eq!(machine.ticks(), []);
    let late = machine
        .register_worker(BackgroundWorker::new("late"))
        .unwrap_err();
    assert!(matches!(late, RegisterError::ShuttingDown { .. }));
    let actions = machine.exit(started[0], ExitStatus::Failed);
    assert_eq!(
        actions[0],
        exited(started[0], ExitStatus::Stopped, Afterwards::Unregister)
    );
    assert_eq!(actions.last(), Some(&Action::Exit));
    machine
        .machine
        .shut_down(machine.now + SECOND, Shutdown::Immediate);
    assert_eq!(machine.actions(), []);
    assert_eq!(machine.machine.poll_timeout(), None);
}

#[test]
fn a_shutdown_escalates_at_its_deadlines_and_by_repetition_and_never_back() {
    let mut machine = Machine::new(Limits::default());
    machine.register("deaf");
    machine.ticks();
    machine.machine.shut_down(machine.now, Shutdown::Smart);
    machine.machine.shut_down(machine.now, Shutdown::Smart);
    assert_eq!(
        machine.machine.shutdown(),
        Some(Shutdown::Smart),
        "the same request"
    );
    machine.now += Limits::default().shutdown_timeout;
    assert_eq!(machine.ticks(), []);
    assert_eq!(machine.machine.shutdown(), Some(Shutdown::Fast));
    machine.machine.shut_down(machine.now, Shutdown::Smart);
    assert_eq!(machine.machine.shutdown(), Some(Shutdown::Fast));
    machine.now += Duration::from_millis(300);
    machine.machine.shut_down(machine.now, Shutdown::Fast);
    assert_eq!(machine.machine.shutdown(), Some(Shutdown::Immediate));
    assert!(matches!(machine.actions()[..], [Action::Abort(_)]));
}

// Parking.

/// The signals among these actions, each with its incarnation.
fn signalled(actions: &[Action]) -> Vec<(Incarnation, Signal)> {
    let signal = |action: &Action| match action {
        Action::Signal {
            incarnation,
            signal,
        } => Some((*incarnation, *signal)),
        _ => None,
    };
    actions.iter().filter_map(signal).collect()
}

/// A machine with three workers of the last level and one of the first, all running; and the three of the last level.
fn fleet() -> (Machine, Vec<Incarnation>) {
    let mut machine = Machine::new(Limits::default());
    let early = BackgroundWorker::new("early").start_time(StartTime::PostmasterStart);
    machine.register_worker(early).unwrap();
    for name in ["a", "b", "c"] {
        let worker = BackgroundWorker::new(name)
            .restart_time(RestartTime::Never)
            .access(Access::Database);
        machine.register_worker(worker).unwrap();
    }
    let late = machine.ticks().split_off(1);
    (machine, late)
}

#[test]
fn a_level_that_falls_parks_those_above_it_and_they_come_back_in_order() {
    let (mut machine, late) = fleet();
    machine
        .machine
        .reached(machine.now, StartTime::ConsistentState);
    let actions = machine.actions();
    assert_eq!(actions[0], Action::Parked { workers: 3 });
    let told: Vec<_> = late.iter().map(|i| (*i, Signal::Sigterm)).collect();
    assert_eq!(signalled(&actions), told);
    for incarnation in &late {
        let back = Afterwards::Restart(Duration::ZERO);
        let actions = machine.exit(*incarnation, ExitStatus::DatabaseAway);
        assert_eq!(actions, [exited(*incarnation, ExitStatus::Stopped, back)]);
        let state = machine.machine.state(incarnation.worker);
        assert_eq!(state, Some(WorkerState::Parked));
    }
    assert_eq!(machine.machine.counts().parked, 3);
    assert_eq!(machine.ticks(), []);
    machine
        .machine
        .reached(machine.now, StartTime::RecoveryFinished);
    assert_eq!(machine.actions(), [Action::Unparked { workers: 3 }]);
    let started = machine.ticks();
    assert_eq!(machine.names(&started), ["a", "b", "c"]);
}

#[test]
fn a_fall_and_a_rise_within_one_turn_restart_no_worker() {
    let (mut machine, _) = fleet();
    machine
        .machine
        .reached(machine.now, StartTime::PostmasterStart);
    machine
        .machine
        .reached(machine.now, StartTime::RecoveryFinished);
    assert_eq!(signalled(&machine.actions()), []);
    assert_eq!(machine.ticks(), []);
}

#[test]
fn a_parked_worker_keeps_its_restart_time_and_one_that_does_not_stop_is_aborted() {
    let (mut machine, late) = fleet();
    let failing = BackgroundWorker::new("failing").restart_time(RestartTime::After(9 * SECOND));
    machine.register_worker(failing).unwrap();
    let failing = machine.ticks()[0];
    machine.exit(failing, ExitStatus::Failed);
    machine
        .machine
        .reached(machine.now, StartTime::PostmasterStart);
    machine.actions();
    machine.exit(late[0], ExitStatus::Stopped);
    machine.exit(late[1], ExitStatus::Stopped);
    machine
        .machine
        .reached(machine.now, StartTime::RecoveryFinished);
    machine.now += 8 * SECOND;
    assert_eq!(machine.ticks().len(), 2, "not the failing one");
    machine.now += SECOND;
    let started = machine.ticks();
    assert_eq!(machine.names(&started), ["failing"]);
    machine.now += 11 * SECOND;
    machine.machine.handle_timeout(machine.now);
    assert_eq!(machine.actions(), [Action::Abort(late[2])]);
    machine.exit(late[2], ExitStatus::Failed);
    let started = machine.ticks();
    assert_eq!(machine.names(&started), ["c"]);
}

#[test]
fn a_worker_that_is_terminated_while_it_is_being_parked_does_not_come_back() {
    let (mut machine, late) = fleet();
    machine
        .machine
        .reached(machine.now, StartTime::PostmasterStart);
    machine.actions();
    machine.machine.terminate(machine.now, late[0].worker);
    let actions = machine.exit(late[0], ExitStatus::Finished);
    assert_eq!(
        actions[0],
        exited(late[0], ExitStatus::Stopped, Afterwards::Unregister)
    );
}

// Reset.

#[test]
fn a_crash_stops_every_other_sharer_once_then_resets_then_starts_them_again() {
    let (mut machine, late) = fleet();
    let crash = ExitStatus::Crashed;
    let actions = machine.exit(late[1], crash);
    assert_eq!(
        actions[..3],
        [
            exited(late[1], crash, Afterwards::Unregister),
            Action::Reset,
            Action::Unregister {
                worker: late[1].worker,
                exit: crash
            },
        ]
    );
    let told = [(late[0], Signal::Sigterm), (late[2], Signal::Sigterm)];
    assert_eq!(signalled(&actions), told, "and not the one without access");
    assert_eq!(
        machine.exit(late[0], ExitStatus::Crashed).len(),
        1,
        "no second reset"
    );
    assert_eq!(
        machine.ticks(),
        [],
        "no worker starts before all have stopped"
    );
    let actions = machine.exit(late[2], ExitStatus::Finished);
    assert_eq!(actions.last(), Some(&Action::ResetShared));
    let started = machine.ticks();
    assert_eq!(
        machine.names(&started),
        ["a", "c"],
        "a bystander comes back even with `never`"
    );
}

#[test]
fn a_crash_of_a_worker_that_was_asked_to_stop_resets_too_but_not_during_a_shutdown() {
    let (mut machine, late) = fleet();
    machine.machine.terminate(machine.now, late[1].worker);
    machine.actions();
    let actions = machine.exit(late[1], ExitStatus::Crashed);
    let stopped = exited(late[1], ExitStatus::Stopped, Afterwards::Unregister);
    assert_eq!(actions[..2], [stopped, Action::Reset]);
    let told = [(late[0], Signal::Sigterm), (late[2], Signal::Sigterm)];
    assert_eq!(signalled(&actions), told);

    let (mut machine, late) = fleet();
    machine.machine.shut_down(machine.now, Shutdown::Smart);
    machine.actions();
    let actions = machine.exit(late[1], ExitStatus::Crashed);
    let stopped = exited(late[1], ExitStatus::Stopped, Afterwards::Unregister);
    assert_eq!(actions[0], stopped);
    assert!(!actions.contains(&Action::Reset));
}

#[test]
fn a_crash_without_access_resets_no_worker() {
    let (mut machine, _) = fleet();
    machine.register("alone");
    let alone = machine.ticks()[0];
    let actions = machine.exit(alone, ExitStatus::Crashed);
    let restart = Afterwards::Restart(Duration::from_secs(60));
    assert_eq!(actions, [exited(alone, ExitStatus::Crashed, restart)]);
}

#[test]
fn during_a_reset_others_start_sharers_wait_and_unresponsive_ones_are_aborted_after_5_s() {
    let (mut machine, late) = fleet();
    machine.exit(late[0], ExitStatus::Crashed);
    machine.register("without access");
    let sharer = BackgroundWorker::new("sharer").access(Access::Shared);
    machine.register_worker(sharer).unwrap();
    let started = machine.ticks();
    assert_eq!(machine.names(&started), ["without access"]);
    machine.exit(late[1], ExitStatus::Stopped);
    machine.now += Limits::RESET_TIMEOUT;
    machine.machine.handle_timeout(machine.now);
    assert_eq!(machine.actions(), [Action::Abort(late[2])]);
    machine.exit(late[2], ExitStatus::Failed);
    let started = machine.ticks();
    assert_eq!(machine.names(&started), ["b", "c", "sharer"]);
}
