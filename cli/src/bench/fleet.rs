//! A fleet of `worker_spi` workers that a bench measures.

use std::error::Error;
use std::time::Duration;

use bgworker::database::{self, Database};
use bgworker::supervision::{Limits, Shutdown};
use bgworker::worker_spi::{self, Settings, Table};
use bgworker::{Access, BackgroundWorker, Postmaster, PostmasterHandle};
use tokio::sync::watch;
use tokio::time::Instant;

use super::ground::Ground;
use super::usage::{self, Usage};

/// How long a bench waits for workers: longer than they ever need.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// Running workers, one for each table.
pub(super) struct Fleet {
    pub(super) postmaster: PostmasterHandle,
    settings: watch::Sender<Duration>,
}

// === impl Fleet ===

impl Fleet {
    /// Starts a worker on each table, and waits until each has had a cycle.
    pub(super) async fn on(
        ground: &Ground,
        tables: &[Table],
        connections: usize,
        naptime: Duration,
    ) -> Result<Self, Box<dyn Error>> {
        let settings = tables.iter().map(|table| {
            let mut settings = Settings::new(table.clone());
            settings.naptime = naptime;
            settings
        });
        Self::of(ground, settings.collect(), connections).await
    }

    /// Starts a worker with each of these settings, and waits until each has had a cycle.
    pub(super) async fn of(
        ground: &Ground,
        workers: Vec<Settings>,
        connections: usize,
    ) -> Result<Self, Box<dyn Error>> {
        let settings = database::Settings::default().connections(connections);
        let database = Database::new(ground.conninfo.clone(), settings)?;
        let limits = Limits::default().max_workers(workers.len());
        let postmaster = Postmaster::launch(limits, Some(database))?;
        let (naptimes, _) = watch::channel(Settings::NAPTIME);
        for (n, settings) in workers.into_iter().enumerate() {
            let (sender, receiver) = watch::channel(settings);
            let mut changed = naptimes.subscribe();
            tokio::spawn(async move {
                while changed.changed().await.is_ok() {
                    let naptime = *changed.borrow_and_update();
                    sender.send_modify(|settings| settings.naptime = naptime);
                }
            });
            let worker = BackgroundWorker::new(format!("bench {n}")).access(Access::Database);
            postmaster
                .register(worker, worker_spi::main(receiver))
                .await?;
        }
        let fleet = Self {
            postmaster,
            settings: naptimes,
        };
        let deadline = Instant::now() + PATIENCE;
        while fleet.cycles().await?.contains(&0) {
            if Instant::now() > deadline {
                return Err("the workers did not start working in time".into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(fleet)
    }

    pub(super) async fn cycles(&self) -> Result<Vec<u64>, Box<dyn Error>> {
        let workers = self.postmaster.workers().await?.registered;
        Ok(workers.iter().map(|worker| worker.report.cycles).collect())
    }

    /// Watches the fleet for `time`. Returns its cycles per second, how many cycles it had, and what they used.
    pub(super) async fn measure(
        &self,
        ground: &Ground,
        time: Duration,
    ) -> Result<(f64, f64, usage::Used), Box<dyn Error>> {
        let (before, then) = (self.cycles().await?, Usage::now(ground).await?);
        let begin = Instant::now();
        tokio::time::sleep(time).await;
        let (after, now) = (self.cycles().await?, Usage::now(ground).await?);
        let took = begin.elapsed();
        let cycles: u64 = std::iter::zip(&after, &before).map(|(a, b)| a - b).sum();
        let cycles = cycles as f64;
        Ok((cycles / took.as_secs_f64(), cycles, now.since(&then)))
    }

    /// Gives every worker another naptime from now on.
    pub(super) fn nap(&self, naptime: Duration) {
        self.settings.send_replace(naptime);
        self.postmaster.sighup();
    }

    pub(super) async fn stop(self) -> Result<(), Box<dyn Error>> {
        self.postmaster.shut_down(Shutdown::Smart);
        self.postmaster.exited().await?;
        Ok(())
    }
}
