//! A backlog, folded at once: by deleting, and by truncating.

use std::error::Error;
use std::time::Duration;

use bgworker::worker_spi::{self, Fold, Settings, Table};
use tokio::time::Instant;

use super::{BYTES, MILLISECONDS, SECOND, percentile};
use crate::bench::BenchArguments;
use crate::bench::baseline::Baseline;
use crate::bench::fleet::{Fleet, PATIENCE};
use crate::bench::ground::Ground;
use crate::bench::progress::Progress;
use crate::bench::report::Report;
use crate::bench::usage::{LongestTransaction, Usage};

/// How a worker may fold.
const WAYS: [Fold; 2] = [Fold::Delete, Fold::Truncate];

/// A nap that only a Sighup ends.
const LONG: Duration = Duration::from_secs(86_400);

/// How often each way is measured; the medians are reported.
const ROUNDS: usize = 3;

/// What one way of folding took, round by round.
#[derive(Default)]
struct Folded {
    /// Milliseconds.
    took: Vec<f64>,
    /// Bytes per delta.
    wal: Vec<f64>,
}

/// Measures a backlog folded at once. The ways take turns, so that other load on the machine affects each of them.
pub(in crate::bench) async fn backlog(
    ground: &Ground,
    arguments: &BenchArguments,
    report: &mut Report,
    progress: &Progress,
) -> Result<(), Box<dyn Error>> {
    let rows = arguments.rows;
    let (mut ours, mut seed) = ([Folded::default(), Folded::default()], Folded::default());
    for round in 1..=ROUNDS {
        progress.step(format!("backlog: round {round} of {ROUNDS}"));
        for (fold, folded) in std::iter::zip(WAYS, &mut ours) {
            let stage = Stage::fill(ground, fold, rows).await?;
            let then = Usage::now(ground).await?;
            folded.took.push(stage.fold().await?);
            let used = Usage::now(ground).await?.since(&then);
            folded.wal.push(used.wal / f64::from(rows));
            stage.end().await?;
        }
        if arguments.baseline {
            let table = table(ground, rows).await?;
            let baseline = Baseline::on(ground, std::slice::from_ref(&table)).await?;
            let then = Usage::now(ground).await?;
            seed.took.push(baseline.once().await?.as_secs_f64() * 1e3);
            let used = Usage::now(ground).await?.since(&then);
            seed.wal.push(used.wal / f64::from(rows));
            ground.check(&table, i64::from(rows)).await?;
            ground.drop(&table).await?;
        }
    }
    let median = |values: &mut [f64]| percentile(values, 50);
    let seed_took = arguments.baseline.then(|| median(&mut seed.took));
    let seed_wal = arguments.baseline.then(|| median(&mut seed.wal));
    for (fold, mut folded) in std::iter::zip(WAYS, ours) {
        progress.step("backlog: the longest transaction");
        // Watching takes some of the processor, so it is not part of the rounds.
        let stage = Stage::fill(ground, fold, rows).await?;
        let watcher = LongestTransaction::watch(ground).await?;
        stage.fold().await?;
        let longest = watcher.stop().await?;
        stage.end().await?;
        let way = match fold {
            Fold::Delete => "",
            Fold::Truncate => ", fold = \"truncate\"",
        };
        let (what, took) = (
            format!("folding {rows} deltas{way}"),
            median(&mut folded.took),
        );
        report.add("backlog", what, MILLISECONDS, took, seed_took);
        let what = format!("its longest transaction{way}");
        report.add("backlog", what, MILLISECONDS, longest, seed_took);
        let (what, wal) = (
            format!("write-ahead log of a delta{way}"),
            median(&mut folded.wal),
        );
        report.add("backlog", what, BYTES, wal, seed_wal);
    }
    Ok(())
}

/// A worker that naps beside a table full of deltas.
struct Stage<'g> {
    ground: &'g Ground,
    table: Table,
    rows: u32,
    fleet: Fleet,
}

impl<'g> Stage<'g> {
    async fn fill(ground: &'g Ground, fold: Fold, rows: u32) -> Result<Self, Box<dyn Error>> {
        let table = table(ground, 0).await?;
        let settings = Settings::new(table.clone()).fold(fold).naptime(LONG);
        let fleet = Fleet::of(ground, vec![settings], 1).await?;
        fill(ground, &table, rows).await?;
        Ok(Self {
            ground,
            table,
            rows,
            fleet,
        })
    }

    /// Wakes the worker, and returns how long it took to fold everything, in milliseconds.
    async fn fold(&self) -> Result<f64, Box<dyn Error>> {
        let begin = Instant::now();
        self.fleet.postmaster.sighup();
        loop {
            let workers = self.fleet.postmaster.workers().await?.registered;
            let mut rows = workers
                .iter()
                .map(|worker| worker.report.count(worker_spi::ROWS_FOLDED));
            if rows.all(|rows| rows == u64::from(self.rows)) {
                return Ok(begin.elapsed().as_secs_f64() * 1e3);
            }
            if begin.elapsed() > PATIENCE {
                return Err("the backlog was not folded".into());
            }
            tokio::time::sleep(SECOND / 1000).await;
        }
    }

    async fn end(self) -> Result<(), Box<dyn Error>> {
        self.fleet.stop().await?;
        let Self { table, rows, .. } = self;
        self.ground.check(&table, i64::from(rows)).await?;
        self.ground.drop(&table).await
    }
}

/// Makes a table with this many deltas.
async fn table(ground: &Ground, rows: u32) -> Result<Table, Box<dyn Error>> {
    let mut tables = ground.tables("backlog", 1).await?;
    let table = tables.pop().ok_or("no table was made")?;
    fill(ground, &table, rows).await?;
    Ok(table)
}

async fn fill(ground: &Ground, table: &Table, rows: u32) -> Result<(), Box<dyn Error>> {
    let sql = format!(
        "INSERT INTO {} SELECT 'delta', 1 FROM pg_catalog.generate_series(1, {rows})",
        table.sql()
    );
    ground.client.batch_execute("fill", &sql).await?;
    ground.checkpoint().await
}

/// How many steps the scenario takes.
pub(in crate::bench) const BACKLOG_STEPS: usize = ROUNDS + WAYS.len();
