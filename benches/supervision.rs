//! What one input to the pure state machine costs, with 10, 1,000 and 100,000 workers registered; and
//! what the whole life of 100,000 workers costs.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a bench measures real time"
)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use bgworker::supervision::{Action, Limits, StateMachine};
use bgworker::{BackgroundWorker, ExitStatus, Incarnation, RestartTime, StartTime};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};

const SECOND: Duration = Duration::from_secs(1);

/// A machine with this many running workers, and their incarnations.
fn running(workers: usize) -> (StateMachine, Instant, Vec<Incarnation>) {
    let now = Instant::now();
    let limits = Limits::default().max_workers(workers + 1);
    let mut machine = StateMachine::new(now, limits);
    machine.reached(now, StartTime::RecoveryFinished);
    for n in 0..workers {
        let worker =
            BackgroundWorker::new(format!("w{n}")).restart_time(RestartTime::After(SECOND));
        machine.register(now, worker).unwrap();
    }
    let incarnations = start_all(&mut machine, now);
    (machine, now, incarnations)
}

/// Ticks until no worker is pending, and returns the incarnations that were started.
fn start_all(machine: &mut StateMachine, now: Instant) -> Vec<Incarnation> {
    let mut started = Vec::new();
    while machine.poll_timeout().is_some_and(|at| at <= now) {
        machine.handle_timeout(now);
        while let Some(action) = machine.poll_action() {
            if let Action::Start(incarnation) = action {
                started.push(incarnation);
            }
        }
    }
    started
}

fn drain(machine: &mut StateMachine) {
    while let Some(action) = machine.poll_action() {
        black_box(action);
    }
}

fn inputs(c: &mut Criterion) {
    for workers in [10, 1_000, 100_000] {
        let (mut machine, mut now, mut incarnations) = running(workers);
        // One failure, its wait, and the start that follows: three inputs, for each worker in turn.
        let mut next = 0;
        c.bench_function(&format!("supervision/fail_and_restart/{workers}"), |b| {
            b.iter(|| {
                machine.worker_exited(now, incarnations[next], ExitStatus::Failed, 0.5);
                drain(&mut machine);
                now += SECOND;
                incarnations[next] = start_all(&mut machine, now)[0];
                next = (next + 1) % workers;
            });
        });
        c.bench_function(
            &format!("supervision/register_and_terminate/{workers}"),
            |b| {
                b.iter(|| {
                    let id = machine
                        .register(now, BackgroundWorker::new("one more"))
                        .unwrap();
                    machine.terminate(now, id);
                    drain(&mut machine);
                });
            },
        );
        c.bench_function(&format!("supervision/sighup_first_action/{workers}"), |b| {
            b.iter_batched(
                || (),
                |()| {
                    machine.sighup(now);
                    black_box(machine.poll_action())
                },
                BatchSize::SmallInput,
            );
        });
        drain(&mut machine);
    }
}

fn whole_life(c: &mut Criterion) {
    let mut group = c.benchmark_group("supervision/whole_life");
    group.sample_size(10);
    group.bench_function("100000", |b| {
        b.iter(|| {
            let (mut machine, now, incarnations) = running(100_000);
            for incarnation in &incarnations {
                machine.worker_exited(now, *incarnation, ExitStatus::Failed, 0.5);
                drain(&mut machine);
            }
            let now = now + SECOND;
            for incarnation in start_all(&mut machine, now) {
                machine.terminate(now, incarnation.worker);
                machine.worker_exited(now, incarnation, ExitStatus::Finished, 0.5);
                drain(&mut machine);
            }
            assert_eq!(machine.counts().registered, 0);
        });
    });
}

criterion_group!(benches, inputs, whole_life);
criterion_main!(benches);
