//! The actors: what the state machine decides happens to real tasks, at the right time.
//!
//! No test here needs a server. Where time matters, the clock is tokio's paused clock: it jumps to the
//! next timer when all tasks wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bgworker::supervision::{Limits, RegisterError, Shutdown, WorkerState};
use bgworker::{
    Access, BackgroundWorker, Backoff, ExitStatus, Main, NoSystem, Postmaster, PostmasterHandle,
    RequestError, RestartLimit, RestartTime, StartTime, Wake, WorkerContext, WorkerError,
};
use tokio::sync::mpsc::unbounded_channel;
use tokio::time::Instant;
use tracing::Level;

use crate::support::log::{Line, Log};
use crate::support::{busy, eventually, postmaster};
use bgworker::database::ServerState;
use bgworker::testing::{FakeServer, PausedClock, Probe, Said, Script};

const SECOND: Duration = Duration::from_secs(1);

fn after(interval: Duration) -> RestartTime {
    RestartTime::After(interval)
}

async fn all_running(postmaster: &PostmasterHandle, count: usize) {
    eventually(&format!("{count} workers run"), || async {
        postmaster.status().await.unwrap().counts.ready == count
    })
    .await;
}

#[test]
fn without_a_system_there_is_an_error_not_a_panic() {
    assert_eq!(
        Postmaster::launch(Limits::default(), None).unwrap_err(),
        NoSystem
    );
}

#[actix::test]
async fn with_max_workers_2_the_third_is_refused_and_two_run() {
    let limits = Limits::default().max_workers(2);
    let postmaster = Postmaster::launch(limits, None).unwrap();
    let probe = Probe::new();
    for name in ["a", "b"] {
        let worker = BackgroundWorker::new(name);
        postmaster
            .register(worker, probe.main(Script::NAPS))
            .await
            .unwrap();
    }
    let refused = postmaster
        .register(BackgroundWorker::new("c"), probe.main(Script::NAPS))
        .await;
    let Err(RequestError::Refused(RegisterError::TooManyWorkers { name, limit })) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!((&*name, limit), ("c", 2));
    all_running(&postmaster, 2).await;
}

/// Registers `count` workers, and asks for status every millisecond until all run. Returns how long that took, and the
/// slowest answer.
async fn start_many(count: usize) -> (Duration, Duration) {
    let limits = Limits::default().max_workers(count);
    let postmaster = Postmaster::launch(limits, None).unwrap();
    let probe = Probe::new();
    for n in 0..count {
        let worker = BackgroundWorker::new(format!("w{n}")).start_time(StartTime::RecoveryFinished);
        postmaster
            .register(worker, probe.main(Script::NAPS))
            .await
            .unwrap();
    }
    let begin = Instant::now();
    let mut slowest = Duration::ZERO;
    let mut interval = tokio::time::interval(Duration::from_millis(1));
    loop {
        interval.tick().await;
        let asked = Instant::now();
        let status = postmaster.status().await.unwrap();
        slowest = slowest.max(asked.elapsed());
        if status.counts.ready == count {
            return (begin.elapsed(), slowest);
        }
    }
}

#[actix::test]
async fn fifty_workers_all_run_within_a_second_and_status_is_answered_within_50_ms() {
    let (all, slowest) = start_many(50).await;
    assert!(all < busy(SECOND), "{all:?}");
    assert!(slowest < busy(Duration::from_millis(50)), "{slowest:?}");
}

#[actix::test]
async fn ten_thousand_workers_all_run_within_two_seconds() {
    let (all, slowest) = start_many(10_000).await;
    assert!(all < busy(2 * SECOND), "{all:?}");
    assert!(slowest < busy(Duration::from_millis(50)), "{slowest:?}");
}

/// Registers `count` workers before the first of them can start.
async fn register_at_once<M: Main>(
    postmaster: &PostmasterHandle,
    count: usize,
    main: impl Fn() -> M,
) {
    let registrations: Vec<_> = (0..count)
        .map(|n| {
            let (postmaster, main) = (postmaster.clone(), main());
            let worker = BackgroundWorker::new(format!("w{n}"));
            actix_rt::spawn(async move { postmaster.register(worker, main).await.unwrap() })
        })
        .collect();
    for registration in registrations {
        registration.await.unwrap();
    }
}

#[actix::test]
async fn all_other_tasks_have_a_turn_between_two_starts() {
    let turns = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&turns);
    let foreign = actix_rt::spawn(async move {
        loop {
            counter.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
    });
    let postmaster = postmaster();
    let (started, mut starts) = unbounded_channel();
    register_at_once(&postmaster, 50, || {
        let (turns, started) = (Arc::clone(&turns), started.clone());
        move |context: WorkerContext| {
            started.send(turns.load(Ordering::Relaxed)).unwrap();
            async move {
                context.latch().stop_requested().await;
                Ok(())
            }
        }
    })
    .await;
    let mut at = Vec::new();
    for _ in 0..50 {
        at.push(starts.recv().await.unwrap());
    }
    foreign.abort();
    let between: Vec<_> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(
        between.iter().all(|turns| (1..=3).contains(turns)),
        "{between:?}"
    );
}

#[actix::test]
async fn a_sigterm_after_ten_of_fifty_starts_ends_the_starting() {
    let postmaster = postmaster();
    let (started, mut starts) = unbounded_channel();
    register_at_once(&postmaster, 50, || {
        let (handle, started) = (postmaster.clone(), started.clone());
        move |context: WorkerContext| {
            started.send(context.name().to_owned()).unwrap();
            if context.name() == "w9" {
                handle.shut_down(Shutdown::Smart);
            }
            async move {
                context.latch().stop_requested().await;
                Ok(())
            }
        }
    })
    .await;
    postmaster.exited().await.unwrap();
    let mut names = Vec::new();
    while let Ok(name) = starts.try_recv() {
        names.push(name);
    }
    let expected: Vec<_> = (0..10).map(|n| format!("w{n}")).collect();
    assert_eq!(names, expected);
}

#[actix::test]
async fn workers_start_in_registration_order_a_hundred_times() {
    for _ in 0..100 {
        let postmaster = postmaster();
        let mut probe = Probe::new();
        let names: Vec<_> = (0..20).map(|n| format!("w{n}")).collect();
        for name in &names {
            let worker = BackgroundWorker::new(name.as_str());
            postmaster
                .register(worker, probe.main(Script::NAPS))
                .await
                .unwrap();
        }
        for name in &names {
            assert_eq!(probe.started().await.0, *name);
        }
        postmaster.shut_down(Shutdown::Smart);
        postmaster.exited().await.unwrap();
    }
}

/// Registers one worker with a script, and returns the Postmaster, the worker's id and its probe.
async fn one(
    script: Script,
    restart_time: RestartTime,
) -> (PostmasterHandle, bgworker::WorkerId, Probe) {
    let postmaster = postmaster();
    let probe = Probe::new();
    let worker = BackgroundWorker::new("w").restart_time(restart_time);
    let id = postmaster
        .register(worker, probe.main(script))
        .await
        .unwrap()
        .id();
    (postmaster, id, probe)
}

#[actix::test]
async fn a_failing_worker_starts_two_seconds_after_each_failure() {
    let _clock = PausedClock::pause();
    let script = Script::FailAfter(SECOND);
    let (_postmaster, _, mut probe) = one(script, after(2 * SECOND)).await;
    let (_, mut last) = probe.started().await;
    for _ in 0..5 {
        let (_, at) = probe.started().await;
        let (ran_and_waited, timer) = (3 * SECOND, Duration::from_millis(3));
        let between = at - last;
        assert!(
            between >= ran_and_waited && between <= ran_and_waited + timer,
            "{between:?}"
        );
        last = at;
    }
}

#[actix::test]
async fn a_backoff_doubles_and_a_limit_ends_it_with_one_loud_line() {
    let _clock = PausedClock::pause();
    let log = Log::capture();
    let postmaster = postmaster();
    let mut probe = Probe::new();
    let worker = BackgroundWorker::new("w")
        .restart_time(RestartTime::Backoff(Backoff {
            initial: SECOND,
            max: 4 * SECOND,
            healthy_after: 60 * SECOND,
        }))
        .restart_limit(RestartLimit {
            restarts: 5,
            within: 3600 * SECOND,
        });
    let main = probe.main(Script::FailAfter(Duration::ZERO));
    postmaster.register(worker, main).await.unwrap();
    let (_, mut last) = probe.started().await;
    for wait in [1, 2, 4, 4, 4] {
        let (_, at) = probe.started().await;
        let (waited, most) = (at - last, wait * SECOND);
        assert!(waited <= most + Duration::from_millis(10), "{waited:?}");
        assert!(waited >= most * 3 / 4, "{waited:?}");
        last = at;
    }
    tokio::time::sleep(3600 * SECOND).await;
    assert_eq!(probe.rest().len(), 0);
    let ended = postmaster.workers().await.unwrap().ended;
    assert!(ended[0].gave_up);
    assert_eq!((ended[0].exit, ended[0].starts), (ExitStatus::Failed, 6));
    let loud = log.with(Level::ERROR, "");
    assert_eq!(
        loud,
        ["background worker \"w\" is stopped for good: it was restarted 5 times within 1h"]
    );
}

#[actix::test]
async fn a_worker_that_never_restarts_says_why_and_others_keep_running() {
    let _clock = PausedClock::pause();
    let (postmaster, id, mut probe) = one(Script::FailAfter(SECOND), RestartTime::Never).await;
    let other = BackgroundWorker::new("other");
    let other = postmaster
        .register(other, probe.main(Script::NAPS))
        .await
        .unwrap()
        .id();
    tokio::time::sleep(100 * SECOND).await;
    assert_eq!(
        probe.rest().len(),
        2,
        "each started once, and no worker was signalled"
    );
    assert!(postmaster.worker(id).await.unwrap().is_none());
    let bgworker::Workers {
        registered: workers,
        ended,
        ..
    } = postmaster.workers().await.unwrap();
    assert_eq!(workers.len(), 1);
    assert_eq!(
        (workers[0].id, workers[0].state),
        (other, WorkerState::Running)
    );
    assert_eq!((ended[0].id, ended[0].exit), (id, ExitStatus::Failed));
    assert_eq!(ended[0].reason.as_deref(), Some("the script says so"));
}

#[actix::test]
async fn a_worker_that_returns_is_finished_and_its_name_is_free() {
    let _clock = PausedClock::pause();
    let (postmaster, id, probe) = one(Script::FinishAfter(SECOND), after(SECOND)).await;
    tokio::time::sleep(100 * SECOND).await;
    let ended = postmaster.workers().await.unwrap().ended;
    assert_eq!(
        (ended[0].id, ended[0].exit, ended[0].starts),
        (id, ExitStatus::Finished, 1)
    );
    let next = postmaster
        .register(BackgroundWorker::new("w"), probe.main(Script::NAPS))
        .await
        .unwrap()
        .id();
    assert_eq!(next.slot(), id.slot());
}

#[actix::test]
async fn two_failing_workers_keep_their_own_times() {
    let _clock = PausedClock::pause();
    let postmaster = postmaster();
    let mut probe = Probe::new();
    let begin = Instant::now();
    for (name, seconds) in [("one", 1), ("five", 5)] {
        let worker = BackgroundWorker::new(name).restart_time(after(Duration::from_secs(seconds)));
        let main = probe.main(Script::FailAfter(Duration::ZERO));
        postmaster.register(worker, main).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(10_500)).await;
    let mut starts = [0, 0];
    for said in probe.rest() {
        let Said::Started { name, at } = said else {
            panic!("{said:?}")
        };
        let (index, every) = if &*name == "one" { (0, 1) } else { (1, 5) };
        let due = begin + Duration::from_secs(every) * starts[index];
        assert!(
            at >= due && at < due + Duration::from_millis(100),
            "{name} at {:?}",
            at - begin
        );
        starts[index] += 1;
    }
    assert_eq!(starts, [11, 3]);
}

#[actix::test]
async fn a_panic_in_a_main_is_a_crash_with_its_text_and_the_postmaster_lives() {
    let _clock = PausedClock::pause();
    let (postmaster, id, mut probe) = one(Script::PanicAfter(SECOND), after(SECOND)).await;
    for _ in 0..3 {
        probe.started().await;
    }
    let status = postmaster.worker(id).await.unwrap().unwrap();
    assert_eq!(
        status.reason.as_deref(),
        Some("the script of \"w\" says so")
    );
    assert_eq!(status.starts, 3);
}

#[actix::test]
async fn a_panic_before_the_main_is_a_future_is_a_crash_too() {
    let _clock = PausedClock::pause();
    fn constructor(_: WorkerContext) -> std::future::Ready<Result<(), WorkerError>> {
        panic!("no future")
    }
    let postmaster = postmaster();
    let worker = BackgroundWorker::new("w").restart_time(RestartTime::Never);
    let id = postmaster.register(worker, constructor).await.unwrap().id();
    eventually("it has ended", || async {
        postmaster.worker(id).await.unwrap().is_none()
    })
    .await;
    let ended = postmaster.workers().await.unwrap().ended;
    assert_eq!(ended[0].exit, ExitStatus::Crashed);
    assert_eq!(ended[0].reason.as_deref(), Some("no future"));
}

#[actix::test]
async fn a_panic_of_a_worker_that_was_asked_to_stop_is_still_logged() {
    let _clock = PausedClock::pause();
    let log = Log::capture();
    let (postmaster, id, _stage) = one(Script::PanicWhenStopped, after(SECOND)).await;
    all_running(&postmaster, 1).await;
    postmaster.terminate(id).await.unwrap();
    postmaster.shut_down(Shutdown::Smart);
    postmaster.exited().await.unwrap();
    let ended = postmaster.workers().await.unwrap().ended;
    assert_eq!(ended[0].exit, ExitStatus::Stopped);
    let exited = log.with(Level::ERROR, "background worker \"w\" exited");
    assert_eq!(exited.len(), 1);
}

/// An error that panics when it is displayed.
#[derive(Debug)]
struct Mute;

impl std::fmt::Display for Mute {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("no words")
    }
}

impl std::error::Error for Mute {}

#[actix::test]
async fn an_error_that_panics_when_it_is_read_is_a_crash_that_is_reported() {
    let postmaster = postmaster();
    let worker = BackgroundWorker::new("w").restart_time(RestartTime::Never);
    let main = |_: WorkerContext| async { Err::<(), WorkerError>(Mute.into()) };
    let worker = postmaster.register(worker, main).await.unwrap();
    let ended = worker.stopped().await.unwrap();
    assert_eq!(ended.exit, ExitStatus::Crashed);
    assert_eq!(ended.reason.as_deref(), Some("no words"));
}

#[actix::test]
async fn a_crash_resets_the_sharers_and_the_hook_runs_between_stop_and_start() {
    let _clock = PausedClock::pause();
    let log = Log::capture();
    let postmaster = postmaster();
    let mut probe = Probe::new();
    for (name, access) in [
        ("alone", Access::None),
        ("shares", Access::Shared),
        ("has a database", Access::Database),
    ] {
        let worker = BackgroundWorker::new(name)
            .access(access)
            .restart_time(RestartTime::Never);
        postmaster
            .register(worker, probe.main(Script::NAPS))
            .await
            .unwrap();
    }
    all_running(&postmaster, 3).await;
    probe.rest();
    let (hook, mut hooked) = unbounded_channel();
    let begin = Instant::now();
    postmaster
        .on_reset(move || {
            hook.send(begin.elapsed()).unwrap();
            panic!("a user's hook");
        })
        .await
        .unwrap();
    let crashing = BackgroundWorker::new("crashing")
        .access(Access::Shared)
        .restart_time(after(10 * SECOND));
    let main = probe.main(Script::PanicAfter(SECOND));
    postmaster.register(crashing, main).await.unwrap();
    assert_eq!(probe.started().await.0, "crashing");
    let mut told = Vec::new();
    for _ in 0..2 {
        let Said::Woke { name, wake } = probe.said().await else {
            panic!("no worker starts before all have stopped");
        };
        assert_eq!(wake, Wake::Sigterm);
        told.push(name.to_string());
    }
    assert_eq!(told, ["shares", "has a database"]);
    assert_eq!(probe.started().await.0, "shares");
    assert_eq!(probe.started().await.0, "has a database");
    assert!(hooked.recv().await.unwrap() >= SECOND);
    let (name, at) = probe.started().await;
    assert_eq!(name, "crashing", "at its own restart time");
    assert!(at - begin >= 11 * SECOND);
    assert_eq!(
        log.with(
            Level::WARN,
            "terminating any other active background workers"
        )
        .len(),
        1
    );
    assert_eq!(log.with(Level::ERROR, "hook").len(), 1);
}

#[actix::test]
async fn a_lost_database_brings_back_even_a_worker_that_never_restarts() {
    let _clock = PausedClock::pause();
    let script = Script::LoseDatabaseAfter(SECOND);
    let (_postmaster, _, mut probe) = one(script, RestartTime::Never).await;
    let (_, first) = probe.started().await;
    let (_, second) = probe.started().await;
    assert!(
        second - first < SECOND + Duration::from_millis(10),
        "at once the first time"
    );
}

#[actix::test]
async fn a_sighup_is_handled_once_by_each_running_worker_and_restarts_none() {
    let _clock = PausedClock::pause();
    let postmaster = postmaster();
    let mut probe = Probe::new();
    for name in ["naps", "naps too"] {
        let worker = BackgroundWorker::new(name);
        postmaster
            .register(worker, probe.main(Script::NAPS))
            .await
            .unwrap();
    }
    let worker = BackgroundWorker::new("waits for its restart").restart_time(after(3600 * SECOND));
    let main = probe.main(Script::FailAfter(Duration::ZERO));
    postmaster.register(worker, main).await.unwrap();
    tokio::time::sleep(SECOND).await;
    assert_eq!(probe.rest().len(), 3);
    postmaster.sighup();
    tokio::time::sleep(SECOND).await;
    let woke: Vec<_> = probe
        .rest()
        .into_iter()
        .map(|said| match said {
            Said::Woke { name, wake } => (name.to_string(), wake),
            said @ Said::Started { .. } => panic!("{said:?}"),
        })
        .collect();
    let expected = ["naps", "naps too"].map(|name| (name.to_owned(), Wake::Sighup));
    assert_eq!(woke, expected);
}

#[actix::test]
async fn a_sighup_during_a_cycle_is_handled_once_after_it() {
    let _clock = PausedClock::pause();
    let postmaster = postmaster();
    let (woke, mut wakes) = unbounded_channel();
    let main = move |mut context: WorkerContext| {
        let woke = woke.clone();
        async move {
            context.ready();
            loop {
                tokio::time::sleep(10 * SECOND).await; // a cycle
                let wake = context.nap(10 * SECOND).await;
                woke.send((wake, Instant::now())).unwrap();
                if wake.is_stop() {
                    return Ok(());
                }
            }
        }
    };
    postmaster
        .register(BackgroundWorker::new("w"), main)
        .await
        .unwrap();
    let begin = Instant::now();
    tokio::time::sleep(5 * SECOND).await;
    postmaster.sighup();
    postmaster.sighup();
    let mut next = async || {
        let (wake, at) = wakes.recv().await.unwrap();
        (wake, (at - begin).as_secs())
    };
    assert_eq!(next().await, (Wake::Sighup, 10));
    assert_eq!(next().await, (Wake::Timeout, 30));
}

#[actix::test]
async fn a_repeated_failure_is_logged_at_each_doubling() {
    let _clock = PausedClock::pause();
    let log = Log::capture();
    let (_postmaster, _, mut probe) = one(Script::FailAfter(SECOND), after(SECOND)).await;
    for _ in 0..21 {
        probe.started().await;
    }
    let times = |line: &Line| {
        let (_, times) = line.fields.split_once(" times=").unwrap_or_default();
        times.split(' ').next().unwrap_or_default().to_owned()
    };
    let lines = log.lines().into_iter();
    let exits = lines.filter(|line| line.message.ends_with("exited") && line.level == Level::WARN);
    let told: Vec<_> = exits.map(|line| times(&line)).collect();
    assert_eq!(told, ["", "2", "4", "8", "16"]);
}

#[actix::test]
async fn a_thousand_sighups_wake_a_worker_a_bounded_number_of_times() {
    let (postmaster, _, mut probe) = one(Script::NAPS, after(SECOND)).await;
    all_running(&postmaster, 1).await;
    probe.rest();
    for _ in 0..1000 {
        postmaster.sighup();
    }
    // These are answered after all the SIGHUPs and their effects.
    postmaster.status().await.unwrap();
    all_running(&postmaster, 1).await;
    let woke = probe.rest().len();
    assert!((1..=3).contains(&woke), "{woke}");
}

#[actix::test]
async fn idle_workers_end_at_once_on_sigterm_and_are_woken_once() {
    let _clock = PausedClock::pause();
    let postmaster = postmaster();
    let mut probe = Probe::new();
    for n in 0..1000 {
        let worker = BackgroundWorker::new(format!("w{n}"));
        postmaster
            .register(worker, probe.main(Script::NAPS))
            .await
            .unwrap();
    }
    all_running(&postmaster, 1000).await;
    probe.rest();
    let begin = Instant::now();
    postmaster.shut_down(Shutdown::Smart);
    assert_eq!(postmaster.exited().await.unwrap().aborted.len(), 0);
    assert!(
        begin.elapsed() < Duration::from_millis(10),
        "{:?}",
        begin.elapsed()
    );
    let woke = probe.rest();
    assert_eq!(woke.len(), 1000);
    let sigterm = |said: &Said| {
        matches!(
            said,
            Said::Woke {
                wake: Wake::Sigterm,
                ..
            }
        )
    };
    assert!(woke.iter().all(sigterm));
}

#[actix::test]
async fn a_worker_that_ignores_everything_is_aborted_at_the_deadline_and_named() {
    let _clock = PausedClock::pause();
    let (postmaster, _, mut probe) = one(Script::IgnoreEverything, after(SECOND)).await;
    let worker = BackgroundWorker::new("polite");
    postmaster
        .register(worker, probe.main(Script::NAPS))
        .await
        .unwrap();
    probe.started().await;
    probe.started().await;
    let begin = Instant::now();
    postmaster.shut_down(Shutdown::Smart);
    let exit = postmaster.exited().await.unwrap();
    assert_eq!(
        exit.aborted.iter().map(|name| &**name).collect::<Vec<_>>(),
        ["w"]
    );
    let smart_and_fast = Duration::from_secs(25);
    let took = begin.elapsed();
    assert!(
        took >= smart_and_fast && took < smart_and_fast + SECOND,
        "{took:?}"
    );
}

#[actix::test]
async fn two_postmasters_in_one_system_are_independent() {
    let (first, _, _stage) = one(Script::NAPS, after(SECOND)).await;
    let (second, id, _stage) = one(Script::NAPS, after(SECOND)).await;
    all_running(&first, 1).await;
    all_running(&second, 1).await;
    first.shut_down(Shutdown::Smart);
    first.exited().await.unwrap();
    let status = second.worker(id).await.unwrap().unwrap();
    assert_eq!(status.state, WorkerState::Running);
}

#[actix::test]
async fn a_shutdown_timeout_beyond_all_time_never_expires() {
    let _clock = PausedClock::pause();
    let limits = Limits::default().shutdown_timeout(Duration::MAX);
    let postmaster = Postmaster::launch(limits, None).unwrap();
    let probe = Probe::new();
    for name in ["terminated", "shut down"] {
        let worker = BackgroundWorker::new(name);
        let main = probe.main(Script::IgnoreEverything);
        let worker = postmaster.register(worker, main).await.unwrap();
        worker.ready().await.unwrap();
        if name == "terminated" {
            worker.terminate();
        }
    }
    postmaster.shut_down(Shutdown::Smart);
    tokio::time::sleep(86_400 * SECOND).await;
    assert_eq!(postmaster.status().await.unwrap().counts.running, 2);
    postmaster.shut_down(Shutdown::Immediate);
    postmaster.exited().await.unwrap();
}

// The latch.

#[actix::test]
async fn a_latch_wakes_a_nap_early() {
    let _clock = PausedClock::pause();
    let (postmaster, _, mut probe) = one(Script::NAPS, after(SECOND)).await;
    probe.started().await;
    let begin = Instant::now();
    postmaster.sighup();
    assert!(matches!(
        probe.said().await,
        Said::Woke {
            wake: Wake::Sighup,
            ..
        }
    ));
    assert!(begin.elapsed() < SECOND);
}

#[actix::test]
async fn a_nap_that_nothing_wakes_lasts_its_time() {
    let _clock = PausedClock::pause();
    let (_postmaster, _, mut probe) = one(Script::NapUntilStopped(7 * SECOND), after(SECOND)).await;
    let (_, begin) = probe.started().await;
    assert!(matches!(
        probe.said().await,
        Said::Woke {
            wake: Wake::Timeout,
            ..
        }
    ));
    let took = begin.elapsed();
    assert!(took >= 7 * SECOND && took < 8 * SECOND, "{took:?}");
}

/// Panics inside the Postmaster that drops it: the only way to kill a Postmaster from outside.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("dropped inside the Postmaster");
    }
}

fn bomb() -> impl Main {
    let bomb = Arc::new(Bomb);
    move |_: WorkerContext| {
        let _in_use = Arc::clone(&bomb);
        async { Ok(()) }
    }
}

#[actix::test]
async fn the_death_of_the_postmaster_ends_every_nap_at_once_and_no_request_hangs() {
    let _clock = PausedClock::pause();
    let (postmaster, id, mut probe) = one(Script::NAPS, after(SECOND)).await;
    probe.started().await;
    let waiting = postmaster.clone();
    let waiting = actix_rt::spawn(async move { waiting.exited().await });
    let begin = Instant::now();
    postmaster
        .register(BackgroundWorker::new("bomb"), bomb())
        .await
        .unwrap();
    let woke = probe.said().await;
    assert!(
        matches!(
            woke,
            Said::Woke {
                wake: Wake::PostmasterDeath,
                ..
            }
        ),
        "{woke:?}"
    );
    assert!(begin.elapsed() < busy(SECOND));
    let died = RequestError::PostmasterDied;
    assert_eq!(waiting.await.unwrap().unwrap_err(), died);
    assert_eq!(postmaster.exited().await.unwrap_err(), died);
    assert_eq!(postmaster.status().await.unwrap_err(), died);
    assert_eq!(postmaster.worker(id).await.unwrap_err(), died);
    let late = postmaster
        .register(BackgroundWorker::new("late"), probe.main(Script::NAPS))
        .await;
    assert_eq!(late.unwrap_err(), died);
}

#[actix::test]
async fn terminate_ends_a_worker_for_good_and_its_handle_says_so() {
    let _clock = PausedClock::pause();
    let (postmaster, id, mut probe) = one(Script::NAPS, after(SECOND)).await;
    probe.started().await;
    postmaster.terminate(id).await.unwrap();
    postmaster.terminate(id).await.unwrap();
    tokio::time::sleep(100 * SECOND).await;
    assert!(postmaster.worker(id).await.unwrap().is_none());
    let ended = postmaster.workers().await.unwrap().ended;
    assert_eq!((ended.len(), ended[0].exit), (1, ExitStatus::Stopped));
}

#[actix::test]
async fn a_worker_that_is_parked_and_comes_back_was_not_restarted_and_has_not_failed() {
    let (clock, log) = (PausedClock::pause(), Log::capture());
    let limits = Limits::default().shutdown_timeout(5 * SECOND);
    let (postmaster, server) = FakeServer::launch(limits).unwrap();
    let deaf = |mut context: WorkerContext| async move {
        context.ready();
        std::future::pending::<Result<(), WorkerError>>().await
    };
    let worker = BackgroundWorker::new("w");
    postmaster.register(worker, deaf).await.unwrap();
    for (state, seconds) in [
        (ServerState::Primary, 1),
        (ServerState::Away, 10),
        (ServerState::Primary, 1),
    ] {
        server.becomes(state);
        clock.advance(seconds * SECOND).await;
    }
    let parks = log.with(Level::INFO, "parks 1 background workers");
    assert_eq!(parks.len(), 1, "{}", log.text());
    let status = &postmaster.workers().await.unwrap().registered[0];
    assert_eq!(status.state, WorkerState::Running);
    assert_eq!((status.starts, status.restarts), (2, 0));
    assert_eq!(status.report.last_error, None);
}

#[actix::test]
async fn a_database_that_is_lost_is_one_restart_and_one_that_is_not_reached_between_outages_is_none()
 {
    let clock = PausedClock::pause();
    let (postmaster, server) = FakeServer::launch(Limits::default()).unwrap();
    let gone = || Err(WorkerError::DatabaseAway("gone".into()));
    for (name, naps) in [("parked", 3600 * SECOND), ("loses it", SECOND / 2)] {
        let starts = AtomicU32::new(0);
        let main = move |mut context: WorkerContext| {
            let is_first = starts.fetch_add(1, Ordering::Relaxed) == 0;
            async move {
                if !is_first {
                    return gone();
                }
                context.ready();
                match context.nap(naps).await {
                    wake if wake.is_stop() => Ok(()),
                    _ => gone(),
                }
            }
        };
        postmaster
            .register(BackgroundWorker::new(name), main)
            .await
            .unwrap();
    }
    for (state, seconds) in [
        (ServerState::Primary, 1),
        (ServerState::Away, 10),
        (ServerState::Primary, 1),
        (ServerState::Away, 10),
    ] {
        server.becomes(state);
        clock.advance(seconds * SECOND).await;
    }
    let workers = postmaster.workers().await.unwrap().registered;
    assert!(workers.iter().all(|worker| worker.starts > 3));
    assert!((workers.iter()).all(|worker| worker.state == WorkerState::Parked));
    let restarts: Vec<_> = workers.iter().map(|worker| worker.restarts).collect();
    assert_eq!(restarts, [0, 1]);
}
