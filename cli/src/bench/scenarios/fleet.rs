//! A fleet that mostly naps: what it costs to have it.

use std::error::Error;
use std::time::Duration;

use tokio::time::Instant;

use super::{MEGABYTES, MICROSECONDS, MILLISECONDS, PER_SECOND, SECOND, percentile};
use crate::bench::BenchArguments;
use crate::bench::baseline::Baseline;
use crate::bench::fleet::Fleet;
use crate::bench::ground::Ground;
use crate::bench::progress::Progress;
use crate::bench::report::Report;
use crate::bench::usage;

/// Measures a fleet that mostly naps.
pub(in crate::bench) async fn fleet(
    ground: &Ground,
    arguments: &BenchArguments,
    report: &mut Report,
    progress: &Progress,
) -> Result<(), Box<dyn Error>> {
    let time = SECOND * arguments.seconds.max(2 * arguments.naptime);
    let (many, connections) = (arguments.workers as usize, arguments.connections as usize);
    progress.step("fleet");
    let tables = ground.tables("fleet", many).await?;
    let naptime = SECOND * arguments.naptime;
    let fleet = Fleet::on(ground, &tables, connections, naptime).await?;
    tokio::time::sleep(3 * naptime).await; // until the workers are in step
    ground.checkpoint().await?;
    let (rate, cycles, used) = fleet.measure(ground, time).await?;
    let memory = usage::memory(ground).await?;
    let late = lateness(&fleet, naptime, time).await?;
    fleet.stop().await?;
    for table in &tables {
        ground.check(table, 0).await?;
    }

    let (mut seed_cpu, mut seeds_at) = (None, String::new());
    if arguments.baseline {
        let most = connections_left(ground, arguments).await?;
        seeds_at = format!(" (the sample: back to back on {most})");
        progress.step(format!("fleet: the sample on {most} connections"));
        let seeds = ground.tables("fleet_seed", most).await?;
        let baseline = Baseline::on(ground, &seeds).await?;
        let (rate, used) = baseline.back_to_back(ground, time).await?;
        seed_cpu = used.cpu.map(|cpu| cpu * 1e6 / (rate * time.as_secs_f64()));
    }
    let what = format!("cycles of {many} workers that nap {} s", arguments.naptime);
    report.add("fleet", what, PER_SECOND, rate, None);
    if let Some(cpu) = used.cpu {
        let what = format!("processor, both sides, for an empty cycle{seeds_at}");
        report.add("fleet", what, MICROSECONDS, cpu * 1e6 / cycles, seed_cpu);
    }
    if let Some(memory) = memory {
        let what = "memory of the program and of its backends";
        report.add("fleet", what, MEGABYTES, memory / 1e6, None);
    }
    report.add(
        "fleet",
        "lateness of a cycle, p99",
        MILLISECONDS,
        late * 1e3,
        None,
    );
    Ok(())
}

/// How many connections the baseline takes: all that a private server still allows, but only a third, and at most 64,
/// on a server that other clients may use.
async fn connections_left(
    ground: &Ground,
    arguments: &BenchArguments,
) -> Result<usize, Box<dyn Error>> {
    let sql = "SELECT pg_catalog.current_setting('max_connections')::pg_catalog.int8 OPERATOR(pg_catalog.-) \
               pg_catalog.current_setting('superuser_reserved_connections')::pg_catalog.int8 \
               OPERATOR(pg_catalog.-) pg_catalog.count(*) FROM pg_catalog.pg_stat_activity \
               WHERE backend_type OPERATOR(pg_catalog.=) 'client backend'";
    // Negative if superusers have more connections than the others leave.
    let left = usize::try_from(ground.value::<i64>(sql).await?).unwrap_or(0);
    Ok(match arguments.database {
        Some(_) => (left / 3).clamp(1, 64),
        None => left.max(1),
    })
}

/// How much older than its naptime a worker's last cycle is, in seconds: 99 % of looks find no more than this.
async fn lateness(fleet: &Fleet, naptime: Duration, time: Duration) -> Result<f64, Box<dyn Error>> {
    let begin = Instant::now();
    let mut late = Vec::new();
    while begin.elapsed() < time {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let workers = fleet.postmaster.workers().await?.registered;
        late.extend(workers.iter().filter_map(|worker| {
            let age = worker.report.last_success?.elapsed();
            Some(age.saturating_sub(naptime).as_secs_f64())
        }));
    }
    Ok(percentile(&mut late, 99))
}

/// How many steps the scenario takes.
pub(in crate::bench) fn steps(arguments: &BenchArguments) -> usize {
    1 + usize::from(arguments.baseline)
}
