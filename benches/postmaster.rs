//! What a fleet of no-op workers costs in real actors: starting one per tick, a Sighup to all, a
//! Sigterm to empty, the memory of one that naps, and how late a timer of another task on the thread is.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a bench measures real time and prints what it finds"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use actix::{Actor, Context};
use bgworker::supervision::{Limits, Shutdown};
use bgworker::{BackgroundWorker, Postmaster, PostmasterHandle, Wake, WorkerContext};
use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};

/// The figures of one run of a fleet. Starting includes registering, one worker after the other.
#[derive(Clone, Copy, Debug)]
struct Figures {
    all_running: Duration,
    status_p99: Duration,
    sighup: Duration,
    empty: Duration,
    bytes_per_worker: u64,
    timer_late: Duration,
}

/// What workers have done so far.
#[derive(Debug, Default)]
struct Done {
    started: AtomicUsize,
    sighups: AtomicUsize,
}

/// Picks one of the figures that are a time.
type Figure = fn(&Figures) -> Duration;

/// One criterion benchmark for each figure that is a time; the memory in a line of its own.
fn figures(c: &mut Criterion) {
    let figures: [(&str, Figure); 5] = [
        ("all_running", |run| run.all_running),
        ("status_p99", |run| run.status_p99),
        ("sighup_handled_by_all", |run| run.sighup),
        ("sigterm_to_empty", |run| run.empty),
        ("foreign_timer_late_by_at_most", |run| run.timer_late),
    ];
    for workers in [10_000, 100_000] {
        // First, since later runs reuse memory that earlier ones have left.
        let bytes = run(workers).bytes_per_worker;
        println!("postmaster/memory_of_one_that_naps/{workers}: {bytes} bytes");
        for (name, figure) in figures {
            let mut group = c.benchmark_group(format!("postmaster/{name}"));
            group.sample_size(10).sampling_mode(SamplingMode::Flat);
            group.warm_up_time(Duration::from_millis(1));
            group.measurement_time(Duration::from_millis(1));
            group.bench_function(workers.to_string(), |b| {
                b.iter_custom(|runs| (0..runs).map(|_| figure(&run(workers))).sum());
            });
        }
    }
}

/// The yardstick: starting actors that do nothing, without any supervision.
fn bare_actors(c: &mut Criterion) {
    struct Bare;
    impl Actor for Bare {
        type Context = Context<Self>;
    }
    let mut group = c.benchmark_group("postmaster/bare_actix_actors_started");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.bench_function("10000", |b| {
        b.iter_custom(|runs| {
            let start = |_| {
                actix::System::new().block_on(async {
                    let begin = Instant::now();
                    let actors: Vec<_> = (0..10_000).map(|_| Bare.start()).collect();
                    // Behind all of them in the queue: they have had their first turn.
                    actix_rt::spawn(async {}).await.unwrap();
                    let took = begin.elapsed();
                    drop(actors);
                    took
                })
            };
            (0..runs).map(start).sum()
        });
    });
}

fn run(workers: usize) -> Figures {
    // A thread of its own for each run, so that memory of the last one is not reused unnoticed.
    std::thread::spawn(move || actix::System::new().block_on(fleet(workers)))
        .join()
        .unwrap()
}

async fn fleet(workers: usize) -> Figures {
    let done = Arc::new(Done::default());
    let limits = Limits::default().max_workers(workers);
    let before = resident();
    let postmaster = Postmaster::launch(limits, None).unwrap();
    let registering = Instant::now();
    let registrations: Vec<_> = (0..workers)
        .map(|n| {
            let (postmaster, done) = (postmaster.clone(), Arc::clone(&done));
            async move {
                let worker = BackgroundWorker::new(format!("w{n}"));
                postmaster
                    .register(worker, move |context| nap(context, Arc::clone(&done)))
                    .await
            }
        })
        .collect();
    let late = foreign_timer();
    let status = ask_status(postmaster.clone());
    for registration in registrations {
        registration.await.unwrap();
    }
    wait_for(|| done.started.load(Ordering::Relaxed) == workers).await;
    let all_running = registering.elapsed();
    let status_p99 = status.stop().await;
    let bytes_per_worker = resident().saturating_sub(before) / workers as u64;

    let begin = Instant::now();
    postmaster.sighup();
    wait_for(|| done.sighups.load(Ordering::Relaxed) == workers).await;
    let sighup = begin.elapsed();

    let begin = Instant::now();
    postmaster.shut_down(Shutdown::Smart);
    postmaster.exited().await.unwrap();
    let empty = begin.elapsed();
    Figures {
        all_running,
        status_p99,
        sighup,
        empty,
        bytes_per_worker,
        timer_late: late.stop().await,
    }
}

/// A worker that does nothing but nap.
async fn nap(mut context: WorkerContext, done: Arc<Done>) -> Result<(), bgworker::WorkerError> {
    context.ready();
    done.started.fetch_add(1, Ordering::Relaxed);
    loop {
        match context.nap(Duration::from_secs(3600)).await {
            Wake::Sighup => {
                done.sighups.fetch_add(1, Ordering::Relaxed);
            }
            wake if wake.is_stop() => return Ok(()),
            _ => {}
        }
    }
}

/// A measurement that runs beside the fleet.
struct Beside {
    stop: tokio::sync::oneshot::Sender<()>,
    figure: tokio::sync::oneshot::Receiver<Duration>,
}

impl Beside {
    async fn stop(self) -> Duration {
        let _ = self.stop.send(());
        self.figure.await.unwrap()
    }
}

/// The most that a timer of a millisecond on the same thread is late, beyond a millisecond of its own inaccuracy.
fn foreign_timer() -> Beside {
    let (stop, mut stopped) = tokio::sync::oneshot::channel();
    let (send, figure) = tokio::sync::oneshot::channel();
    actix_rt::spawn(async move {
        let mut latest = Duration::ZERO;
        while stopped.try_recv().is_err() {
            let begin = Instant::now();
            tokio::time::sleep(Duration::from_millis(1)).await;
            latest = latest.max(begin.elapsed().saturating_sub(Duration::from_millis(2)));
        }
        let _ = send.send(latest);
    });
    Beside { stop, figure }
}

/// The 99th percentile of the time of a status request from another thread, one every millisecond.
fn ask_status(postmaster: PostmasterHandle) -> Beside {
    let (stop, mut stopped) = tokio::sync::oneshot::channel();
    let (send, figure) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        actix::System::new().block_on(async {
            let mut took = Vec::new();
            let mut interval = tokio::time::interval(Duration::from_millis(1));
            while stopped.try_recv().is_err() {
                interval.tick().await;
                let begin = Instant::now();
                postmaster.status().await.unwrap();
                took.push(begin.elapsed());
            }
            took.sort_unstable();
            let _ = send.send(took[took.len() * 99 / 100]);
        });
    });
    Beside { stop, figure }
}

async fn wait_for(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}

/// The resident memory of this process, in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

criterion_group!(benches, figures, bare_actors);
criterion_main!(benches);
