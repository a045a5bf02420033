//! Empty cycles, back to back: how many a second, and what they write.

use std::error::Error;
use std::time::Duration;

use super::{BYTES, PER_SECOND, SECOND};
use crate::bench::BenchArguments;
use crate::bench::baseline::Baseline;
use crate::bench::fleet::Fleet;
use crate::bench::ground::Ground;
use crate::bench::progress::Progress;
use crate::bench::report::Report;

/// The numbers of connections that the baseline is tried with, to find its best.
const CONNECTIONS: [usize; 4] = [1, 8, 32, 64];

/// A naptime with which cycles run practically back to back.
const NO_NAP: Duration = Duration::ZERO;

/// Measures empty cycles, back to back.
pub(in crate::bench) async fn idle(
    ground: &Ground,
    arguments: &BenchArguments,
    report: &mut Report,
    progress: &Progress,
) -> Result<(), Box<dyn Error>> {
    let time = SECOND * arguments.seconds;
    let connections = arguments.connections as usize;
    progress.step("idle: one worker");
    let one = ground.tables("one", 1).await?;
    let fleet = Fleet::on(ground, &one, 1, NO_NAP).await?;
    let (alone, cycles, used) = fleet.measure(ground, time).await?;
    fleet.stop().await?;
    let wal = used.wal / cycles;

    let many = arguments.workers as usize;
    progress.step("idle: a fleet");
    let tables = ground.tables("many", many).await?;
    let fleet = Fleet::on(ground, &tables, connections, SECOND).await?;
    fleet.nap(NO_NAP);
    tokio::time::sleep(SECOND).await; // until every worker has read it
    let (together, ..) = fleet.measure(ground, time).await?;
    fleet.stop().await?;
    for table in one.iter().chain(&tables) {
        ground.check(table, 0).await?;
    }

    let sample = match arguments.baseline {
        true => Sample::measure(ground, connections, time, progress).await?,
        false => Sample::default(),
    };
    let what = "empty cycles, one worker";
    report.add("idle", what, PER_SECOND, alone, sample.single);
    let what = format!("empty cycles, {many} workers on {connections} connections");
    report.add("idle", what, PER_SECOND, together, sample.as_many);
    if sample.best.is_some() {
        let what = "the same, against the sample's best at 1 to 64 connections";
        report.add("idle", what, PER_SECOND, together, sample.best);
    }
    let what = "write-ahead log of an empty cycle";
    report.add("idle", what, BYTES, wal, sample.wal);
    Ok(())
}

/// What the sample's statement does in a second, on one connection, on as many as the fleet has, and at best; and the
/// write-ahead log of one.
#[derive(Default)]
struct Sample {
    single: Option<f64>,
    as_many: Option<f64>,
    best: Option<f64>,
    wal: Option<f64>,
}

// === impl Sample ===

impl Sample {
    async fn measure(
        ground: &Ground,
        connections: usize,
        time: Duration,
        progress: &Progress,
    ) -> Result<Self, Box<dyn Error>> {
        let mut sample = Self::default();
        let counts = baseline_connections(connections);
        let seeds = ground.tables("seed", *counts.last().unwrap_or(&1)).await?;
        for count in counts {
            progress.step(format!("idle: the sample on {count} connections"));
            let baseline = Baseline::on(ground, &seeds[..count]).await?;
            let (rate, used) = baseline.back_to_back(ground, time).await?;
            if count == 1 {
                sample.single = Some(rate);
                sample.wal = Some(used.wal / (rate * time.as_secs_f64()));
            }
            if count == connections {
                sample.as_many = Some(rate);
            }
            sample.best = Some(sample.best.map_or(rate, |best| best.max(rate)));
        }
        Ok(sample)
    }
}

/// The numbers of connections that the baseline runs with: `CONNECTIONS` and that of the fleet, in order.
fn baseline_connections(connections: usize) -> Vec<usize> {
    let mut counts: Vec<_> = CONNECTIONS.into_iter().chain([connections]).collect();
    counts.sort_unstable();
    counts.dedup();
    counts
}

/// How many steps the scenario takes.
pub(in crate::bench) fn steps(arguments: &BenchArguments) -> usize {
    let baseline = baseline_connections(arguments.connections as usize).len();
    2 + if arguments.baseline { baseline } else { 0 }
}
