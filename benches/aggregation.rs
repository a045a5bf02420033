//! What a cycle of the built-in worker costs on a real server, empty and with deltas to fold; and what one
//! statement of many workers costs, by how many of them share a connection.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a bench measures real time"
)]

use std::time::{Duration, Instant};

use bgworker::database::{self, ConnInfo, Connection, Database};
use bgworker::embedded::{Cluster, ClusterSettings};
use bgworker::supervision::{Limits, Shutdown};
use bgworker::worker_spi::{self, ROWS_FOLDED, Settings, Table};
use bgworker::{Access, BackgroundWorker, Postmaster, PostmasterHandle, WorkerHandle};
use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use tokio::sync::watch;

/// A nap that only a Sighup ends.
const LONG: Duration = Duration::from_secs(86_400);

/// Waits for a condition, and checks it often enough for what takes tenths of a millisecond.
async fn until(mut condition: impl AsyncFnMut() -> bool) {
    while !condition().await {
        tokio::task::yield_now().await;
    }
}

/// One worker on a table of its own, and a client beside it.
struct Stage {
    postmaster: PostmasterHandle,
    worker: WorkerHandle,
    client: Connection,
    _settings: watch::Sender<Settings>,
}

impl Stage {
    async fn new(conninfo: &str) -> Self {
        let conninfo = ConnInfo::parse(conninfo, |_| None).unwrap();
        let database = Database::new(conninfo, database::Settings::default()).unwrap();
        let client = database.connect("bench", None).await.unwrap();
        client
            .batch_execute("clear", "DROP SCHEMA IF EXISTS s CASCADE")
            .await
            .unwrap();
        let postmaster = Postmaster::launch(Limits::default(), Some(database)).unwrap();
        let mut settings = Settings::new(Table::new("s", "t").unwrap());
        settings.naptime = LONG;
        settings.initial_total = Some(0);
        settings.vacuum_after = None;
        let (sender, receiver) = watch::channel(settings);
        let worker = BackgroundWorker::new("w").access(Access::Database);
        let main = worker_spi::main(receiver);
        let worker = postmaster.register(worker, main).await.unwrap();
        worker.ready().await.unwrap();
        let stage = Self {
            postmaster,
            worker,
            client,
            _settings: sender,
        };
        until(async || stage.report().await.napping && stage.report().await.cycles > 0).await;
        stage
    }

    async fn report(&self) -> bgworker::Report {
        let status = self.postmaster.worker(self.worker.id()).await.unwrap();
        status.unwrap().report
    }

    /// Runs one cycle that folds this many rows, and measures it from the Sighup to its end.
    async fn cycle(&self, rows: u64) -> Duration {
        if rows > 0 {
            let sql = format!("INSERT INTO s.t SELECT 'delta', 1 FROM generate_series(1, {rows})");
            self.client.batch_execute("fill", &sql).await.unwrap();
        }
        if rows >= 10_000 {
            // What earlier folds have left behind must not be measured again.
            self.client
                .batch_execute("vacuum", "VACUUM s.t")
                .await
                .unwrap();
        }
        let before = self.report().await;
        let begin = Instant::now();
        self.postmaster.sighup();
        until(async || self.report().await.cycles > before.cycles).await;
        let took = begin.elapsed();
        assert_eq!(
            self.report().await.count(ROWS_FOLDED),
            before.count(ROWS_FOLDED) + rows,
            "nothing is lost"
        );
        until(async || self.report().await.napping).await;
        took
    }

    async fn stop(self) {
        self.postmaster.shut_down(Shutdown::Smart);
        self.postmaster.exited().await.unwrap();
    }
}

fn cycles(c: &mut Criterion) {
    let cluster = Cluster::start(ClusterSettings::temporary()).unwrap();
    let conninfo = cluster.conninfo();
    for rows in [0, 1, 100, 10_000, 1_000_000] {
        let mut group = c.benchmark_group("aggregation/cycle_that_folds");
        group.sample_size(10).sampling_mode(SamplingMode::Flat);
        group.bench_function(rows.to_string(), |b| {
            b.iter_custom(|times| {
                actix::System::new().block_on(async {
                    let stage = Stage::new(&conninfo).await;
                    let mut took = Duration::ZERO;
                    for _ in 0..times {
                        took += stage.cycle(rows).await;
                    }
                    stage.stop().await;
                    took
                })
            });
        });
    }
    // The statements of this many workers, all under way at once, on one connection and on eight.
    for connections in [1, 8] {
        for workers in [1, 16, 256] {
            let mut group = c.benchmark_group("aggregation/statement_at_home");
            group.bench_function(format!("{workers}_workers_on_{connections}"), |b| {
                b.iter_custom(|times| {
                    actix::System::new().block_on(at_home(&conninfo, connections, workers, times))
                });
            });
        }
    }
}

/// The time of `workers` workers that run `times` statements each, divided by the number of workers.
async fn at_home(conninfo: &str, connections: usize, workers: usize, times: u64) -> Duration {
    let settings = database::Settings::default().connections(connections);
    let database = Database::new(ConnInfo::parse(conninfo, |_| None).unwrap(), settings).unwrap();
    let begin = Instant::now();
    let tasks: Vec<_> = (0..workers)
        .map(|slot| {
            let home = database.home(slot, None);
            tokio::spawn(async move {
                let statement = home.statement("SELECT 1").unwrap();
                for _ in 0..times {
                    home.run("bench", &statement).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let took = begin.elapsed();
    database.close().await;
    took / u32::try_from(workers).unwrap()
}

criterion_group!(benches, cycles);
criterion_main!(benches);
