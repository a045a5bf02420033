//! A backlog, folded at once: by deleting, and by truncating.

use std::error::Error;
use std::time::Duration;

use bgworker::worker_spi::{Fold, Settings, Table};
use tokio::time::Instant;

use super::{BYTES, MILLISECONDS, SECOND};
use crate::bench::BenchArguments;
use crate::bench::baseline::Baseline;
use crate::bench::fleet::{Fleet, PATIENCE};
use crate::bench::ground::Ground;
use crate::bench::progress::Progress;
use crate::bench::report::Report;
use crate::bench::usage::{LongestTransaction, Usage};

/// What one way of folding took.
struct Folded {
    /// Milliseconds.
    took: f64,
    /// Milliseconds.
    longest: f64,
    /// Bytes.
    wal: f64,
}

/// A backlog, folded at once.
pub(in crate::bench) async fn backlog(
    ground: &Ground,
    arguments: &BenchArguments,
    report: &mut Report,
    progress: &Progress,
) -> Result<(), Box<dyn Error>> {
    let rows = arguments.rows;
    let tables = ground.tables("backlog", 3).await?;
    let deleting = fold(ground, &tables[0], Fold::Delete, rows, progress).await?;
    let truncating = fold(ground, &tables[1], Fold::Truncate, rows, progress).await?;

    let (mut seed_took, mut seed_wal) = (None, None);
    if arguments.baseline {
        progress.step("backlog: filling");
        fill(ground, &tables[2], rows).await?;
        progress.step("backlog: the sample");
        let baseline = Baseline::on(ground, &tables[2..]).await?;
        let then = Usage::now(ground).await?;
        seed_took = Some(baseline.once().await?.as_secs_f64() * 1e3);
        seed_wal = Some(Usage::now(ground).await?.since(&then).wal / f64::from(rows));
        ground.check(&tables[2], i64::from(rows)).await?;
    }
    for (way, folded) in [("", deleting), (", fold = \"truncate\"", truncating)] {
        let Folded { took, longest, wal } = folded;
        let what = format!("folding {rows} deltas{way}");
        report.add("backlog", what, MILLISECONDS, took, seed_took);
        let what = format!("the longest transaction of it{way}");
        report.add("backlog", what, MILLISECONDS, longest, seed_took);
        let (what, wal) = (
            format!("write-ahead log of a delta{way}"),
            wal / f64::from(rows),
        );
        report.add("backlog", what, BYTES, wal, seed_wal);
    }
    Ok(())
}

/// Has a worker fold this many deltas.
async fn fold(
    ground: &Ground,
    table: &Table,
    fold: Fold,
    rows: u32,
    progress: &Progress,
) -> Result<Folded, Box<dyn Error>> {
    progress.step("backlog: filling");
    let mut settings = Settings::new(table.clone());
    settings.fold = fold;
    settings.naptime = Duration::from_secs(86_400);
    let fleet = Fleet::of(ground, vec![settings], 1).await?;
    fill(ground, table, rows).await?;
    progress.step(match fold {
        Fold::Delete => "backlog: deleting",
        Fold::Truncate => "backlog: truncating",
    });
    let then = Usage::now(ground).await?;
    let watcher = LongestTransaction::watch(ground).await?;
    let begin = Instant::now();
    fleet.postmaster.sighup();
    loop {
        let (workers, _) = fleet.postmaster.workers().await?;
        if workers
            .iter()
            .all(|worker| worker.report.rows == u64::from(rows))
        {
            break;
        }
        if begin.elapsed() > PATIENCE {
            return Err("the backlog was not folded".into());
        }
        tokio::time::sleep(SECOND / 1000).await;
    }
    let took = begin.elapsed().as_secs_f64() * 1e3;
    let longest = watcher.stop().await?;
    let wal = Usage::now(ground).await?.since(&then).wal;
    fleet.stop().await?;
    ground.check(table, i64::from(rows)).await?;
    Ok(Folded { took, longest, wal })
}

async fn fill(ground: &Ground, table: &Table, rows: u32) -> Result<(), Box<dyn Error>> {
    let sql = format!(
        "INSERT INTO {} SELECT 'delta', 1 FROM generate_series(1, {rows})",
        table.sql()
    );
    ground.client.batch_execute("fill", &sql).await?;
    // So that none falls into what is measured.
    Ok(ground
        .client
        .batch_execute("checkpoint", "CHECKPOINT")
        .await?)
}

/// How many steps it takes.
pub(in crate::bench) fn steps(arguments: &BenchArguments) -> usize {
    4 + if arguments.baseline { 2 } else { 0 }
}
