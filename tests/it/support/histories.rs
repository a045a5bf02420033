//! Random histories of inputs to the state machine.

use std::time::Duration;

use bgworker::supervision::{Limits, Shutdown};
use bgworker::{
    Access, BackgroundWorker, Backoff, ExitStatus, RestartLimit, RestartTime, StartTime,
};
use proptest::prelude::*;

/// One input, chosen at random. Indices are taken modulo the number of items.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Register(BackgroundWorker),
    Terminate(usize),
    Reached(StartTime),
    Ready(usize),
    Exit(usize, ExitStatus, f64),
    StaleExit(usize, ExitStatus),
    SetRestart(usize, RestartTime, Option<RestartLimit>),
    SetLimits(Limits),
    Sighup,
    ShutDown(Shutdown),
    /// Drains at most this many actions, like a busy Postmaster.
    Drain(usize),
    Tick,
    /// A tick, and all the actions that follow from it.
    Turn,
    Wait(Duration),
}

pub(crate) fn histories() -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(op(), 0..160)
}

/// The item at an index, modulo their number.
pub(crate) fn nth<T>(mut items: impl ExactSizeIterator<Item = T>, n: usize) -> Option<T> {
    let len = items.len();
    items.nth(n.checked_rem(len)?)
}

fn op() -> impl Strategy<Value = Op> {
    let exit = prop_oneof![
        Just(ExitStatus::Finished),
        Just(ExitStatus::Failed),
        Just(ExitStatus::Crashed),
        Just(ExitStatus::DatabaseAway),
    ];
    let jitter = (0..=4_u8).prop_map(|quarters| f64::from(quarters) / 4.0);
    let mode = prop_oneof![
        Just(Shutdown::Smart),
        Just(Shutdown::Fast),
        Just(Shutdown::Immediate),
    ];
    prop_oneof![
        4 => worker().prop_map(Op::Register),
        1 => any::<usize>().prop_map(Op::Terminate),
        2 => level().prop_map(Op::Reached),
        2 => any::<usize>().prop_map(Op::Ready),
        8 => (any::<usize>(), exit.clone(), jitter)
            .prop_map(|(n, exit, jitter)| Op::Exit(n, exit, jitter)),
        1 => (any::<usize>(), exit).prop_map(|(n, exit)| Op::StaleExit(n, exit)),
        1 => (any::<usize>(), restart_time(), restart_limit())
            .prop_map(|(n, time, limit)| Op::SetRestart(n, time, limit)),
        1 => limits().prop_map(Op::SetLimits),
        1 => Just(Op::Sighup),
        // A shutdown is rare, because little happens after it.
        1 => (0..4_u8, mode).prop_map(|(n, mode)| if n == 0 { Op::ShutDown(mode) } else { Op::Turn }),
        3 => (0..5_usize).prop_map(Op::Drain),
        3 => Just(Op::Tick),
        12 => Just(Op::Turn),
        6 => wait().prop_map(Op::Wait),
    ]
}

fn level() -> impl Strategy<Value = StartTime> {
    prop_oneof![
        Just(StartTime::PostmasterStart),
        Just(StartTime::ConsistentState),
        Just(StartTime::RecoveryFinished),
    ]
}

fn worker() -> impl Strategy<Value = BackgroundWorker> {
    let access = prop_oneof![
        Just(Access::None),
        Just(Access::Shared),
        Just(Access::Database),
    ];
    (0..6_u8, access, level(), restart_time(), restart_limit()).prop_map(
        |(name, access, start_time, restart_time, restart_limit)| {
            let mut worker = BackgroundWorker::new(format!("w{name}"))
                .access(access)
                .start_time(start_time)
                .restart_time(restart_time);
            worker.restart_limit = restart_limit;
            worker
        },
    )
}

/// Few different durations, so that deadlines coincide. Zero is among them.
fn wait() -> impl Strategy<Value = Duration> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(100),
        Just(200),
        Just(800),
        0..3000_u64
    ]
    .prop_map(Duration::from_millis)
}

/// Restart times, among them zero, which is refused.
fn restart_time() -> impl Strategy<Value = RestartTime> {
    prop_oneof![
        1 => Just(RestartTime::Never),
        3 => wait().prop_map(RestartTime::After),
        3 => (wait(), wait(), wait()).prop_map(|(initial, max, healthy_after)| {
            RestartTime::Backoff(Backoff {
                initial,
                max,
                healthy_after,
            })
        }),
    ]
}

fn restart_limit() -> impl Strategy<Value = Option<RestartLimit>> {
    let within = Duration::from_secs(5);
    prop_oneof![
        2 => Just(None),
        1 => (0..4_u32).prop_map(move |restarts| Some(RestartLimit { restarts, within })),
    ]
}

fn limits() -> impl Strategy<Value = Limits> {
    (3..8_usize, 0..4_usize, 0..20_000_u64).prop_map(|(max_workers, starts_per_tick, ms)| {
        Limits::default()
            .max_workers(max_workers)
            .starts_per_tick(starts_per_tick)
            .shutdown_timeout(Duration::from_millis(ms))
    })
}
