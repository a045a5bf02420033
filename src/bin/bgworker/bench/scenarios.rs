//! What is measured, scenario by scenario.

use std::error::Error;
use std::time::Duration;

use bgworker::database::{self, Database};
use bgworker::worker_spi::Table;
use tokio::time::Instant;

use super::baseline::Baseline;
use super::fleet::{Fleet, PATIENCE};
use super::ground::Ground;
use super::report::{Better, Plot, Report};
use super::usage::{self, LongestTransaction, Usage};
use super::{BenchArguments, progress};

const SECOND: Duration = Duration::from_secs(1);

/// How many connections the baseline is tried with, for its best.
const CONNECTIONS: [usize; 4] = [1, 8, 32, 64];

/// The time of a nap between which cycles are as good as back to back.
const NO_NAP: Duration = Duration::ZERO;

const PER_SECOND: (&str, Better) = ("/s", Better::Higher);
const MICROSECONDS: (&str, Better) = ("µs", Better::Lower);
const MILLISECONDS: (&str, Better) = ("ms", Better::Lower);
const BYTES: (&str, Better) = ("B", Better::Lower);
const MEGABYTES: (&str, Better) = ("MB", Better::Lower);

/// Empty cycles, back to back.
pub(super) async fn idle(
    ground: &Ground,
    arguments: &BenchArguments,
    report: &mut Report,
) -> Result<(), Box<dyn Error>> {
    let time = SECOND * arguments.seconds;
    let connections = arguments.connections as usize;
    progress("idle: one worker");
    let one = ground.tables("one", 1).await?;
    let fleet = Fleet::on(ground, &one, 1, NO_NAP).await?;
    let (alone, cycles, used) = fleet.measure(ground, time).await?;
    fleet.stop().await?;
    let wal = used.wal / cycles;

    let many = arguments.workers as usize;
    progress("idle: a fleet");
    let tables = ground.tables("many", many).await?;
    let fleet = Fleet::on(ground, &tables, connections, SECOND).await?;
    fleet.nap(NO_NAP);
    tokio::time::sleep(SECOND).await; // until all have heard of it
    let (together, ..) = fleet.measure(ground, time).await?;
    fleet.stop().await?;
    for table in one.iter().chain(&tables) {
        ground.check(table, 0).await?;
    }

    let (mut single, mut as_many, mut best, mut seed_wal) = (None, None, None, None);
    if arguments.baseline {
        let counts = CONNECTIONS.into_iter().chain([connections]);
        let mut counts: Vec<_> = counts.filter(|count| *count <= many.max(64)).collect();
        counts.sort_unstable();
        counts.dedup();
        let seeds = ground.tables("seed", *counts.last().unwrap_or(&1)).await?;
        for count in counts {
            progress(&format!(
                "idle: the sample's statement on {count} connections"
            ));
            let baseline = Baseline::on(ground, &seeds[..count]).await?;
            let (rate, used) = baseline.back_to_back(ground, time).await?;
            if count == 1 {
                single = Some(rate);
                seed_wal = Some(used.wal / (rate * time.as_secs_f64()));
            }
            if count == connections {
                as_many = Some(rate);
            }
            best = Some(best.map_or(rate, |best: f64| best.max(rate)));
        }
    }
    let what = "empty cycles, one worker";
    report.add("idle", what, PER_SECOND, alone, single);
    let what = format!("empty cycles, {many} workers on {connections} connections");
    report.add("idle", what, PER_SECOND, together, as_many);
    if best.is_some() {
        let what = "the same, against the sample's best at 1 to 64 connections";
        report.add("idle", what, PER_SECOND, together, best);
    }
    report.add(
        "idle",
        "write-ahead log of an empty cycle",
        BYTES,
        wal,
        seed_wal,
    );
    Ok(())
}

/// A fleet that mostly naps.
pub(super) async fn fleet(
    ground: &Ground,
    arguments: &BenchArguments,
    report: &mut Report,
) -> Result<(), Box<dyn Error>> {
    let time = SECOND * arguments.seconds.max(2 * arguments.naptime);
    let (many, connections) = (arguments.workers as usize, arguments.connections as usize);
    progress("fleet");
    let tables = ground.tables("fleet", many).await?;
    let naptime = SECOND * arguments.naptime;
    let fleet = Fleet::on(ground, &tables, connections, naptime).await?;
    tokio::time::sleep(naptime).await; // so that their first naps are over
    let (rate, cycles, used) = fleet.measure(ground, time).await?;
    let memory = usage::memory(ground).await?;
    let late = lateness(&fleet, naptime, time).await?;
    fleet.stop().await?;

    let mut seed_cpu = None;
    if arguments.baseline {
        progress("fleet: the sample's statement");
        let seeds = ground.tables("fleet_seed", 64).await?;
        let baseline = Baseline::on(ground, &seeds).await?;
        let (rate, used) = baseline.back_to_back(ground, time).await?;
        seed_cpu = used.cpu.map(|cpu| cpu * 1e6 / (rate * time.as_secs_f64()));
    }
    let what = format!("cycles of {many} workers that nap {} s", arguments.naptime);
    report.add("fleet", what, PER_SECOND, rate, None);
    if let Some(cpu) = used.cpu {
        let what = "processor, both sides, for an empty cycle (the sample: on 64)";
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

/// By how much the last cycle of a worker is older than its naptime, in the worst hundredth of looks.
/// Seconds.
async fn lateness(fleet: &Fleet, naptime: Duration, time: Duration) -> Result<f64, Box<dyn Error>> {
    let begin = Instant::now();
    let mut late = Vec::new();
    while begin.elapsed() < time {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let (workers, _) = fleet.postmaster.workers().await?;
        late.extend(workers.iter().filter_map(|worker| {
            let age = worker.report.last_success?.elapsed();
            Some(age.saturating_sub(naptime).as_secs_f64())
        }));
    }
    Ok(percentile(&mut late, 99))
}

/// A backlog, folded at once.
pub(super) async fn backlog(
    ground: &Ground,
    arguments: &BenchArguments,
    report: &mut Report,
) -> Result<(), Box<dyn Error>> {
    let rows = arguments.rows;
    let tables = ground.tables("backlog", 2).await?;
    let fill = async |table: &Table| {
        let sql = format!(
            "INSERT INTO {} SELECT 'delta', 1 FROM generate_series(1, {rows})",
            table.sql()
        );
        let checkpoint = "CHECKPOINT";
        ground.client.batch_execute("fill", &sql).await?;
        // So that none falls into what is measured.
        ground.client.batch_execute("checkpoint", checkpoint).await
    };
    progress("backlog: filling");
    let hours = Duration::from_secs(86_400);
    let fleet = Fleet::on(ground, &tables[..1], 1, hours).await?;
    fill(&tables[0]).await?;
    progress("backlog: folding");
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
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let took = begin.elapsed();
    let longest = watcher.stop().await?;
    let used = Usage::now(ground).await?.since(&then);
    fleet.stop().await?;
    ground.check(&tables[0], i64::from(rows)).await?;

    let (mut seed_took, mut seed_wal) = (None, None);
    if arguments.baseline {
        progress("backlog: the sample's statement");
        fill(&tables[1]).await?;
        let baseline = Baseline::on(ground, &tables[1..]).await?;
        let then = Usage::now(ground).await?;
        seed_took = Some(baseline.once().await?.as_secs_f64() * 1e3);
        seed_wal = Some(Usage::now(ground).await?.since(&then).wal / f64::from(rows));
        ground.check(&tables[1], i64::from(rows)).await?;
    }
    let took = took.as_secs_f64() * 1e3;
    let what = format!("folding {rows} deltas");
    report.add("backlog", what, MILLISECONDS, took, seed_took);
    let what = "the longest transaction of it";
    report.add("backlog", what, MILLISECONDS, longest, seed_took);
    report.add(
        "backlog",
        "write-ahead log of a delta",
        BYTES,
        used.wal / f64::from(rows),
        seed_wal,
    );
    Ok(())
}

/// Inserts at a rate.
pub(super) async fn stream(
    ground: &Ground,
    arguments: &BenchArguments,
    report: &mut Report,
) -> Result<(), Box<dyn Error>> {
    const INSERTS_PER_SECOND: u32 = 50;
    const NAPTIME: Duration = Duration::from_millis(50);
    let time = SECOND * arguments.seconds.max(5);
    let tables = ground.tables("stream", 1).await?;
    let table = &tables[0];
    let fleet = Fleet::on(ground, &tables, 1, NAPTIME).await?;
    let database = Database::new(ground.conninfo.clone(), database::Settings::default())?;
    let client = database.connect("bgworker bench", None).await?;
    let rows = arguments.rate / INSERTS_PER_SECOND;
    let sql = format!(
        "INSERT INTO {} SELECT 'delta', 1 FROM generate_series(1, {rows})",
        table.sql()
    );
    let begin = Instant::now();
    let inserting = tokio::spawn(async move {
        let mut interval = tokio::time::interval(SECOND / INSERTS_PER_SECOND);
        let mut inserted = 0_i64;
        while begin.elapsed() < time {
            interval.tick().await;
            client.batch_execute("insert", &sql).await?;
            inserted += i64::from(rows);
        }
        client.close().await;
        Ok::<_, database::DatabaseError>(inserted)
    });
    let (mut sizes, mut cycle_times) = (Vec::new(), Vec::new());
    let mut before = fleet.cycles().await?[0];
    while !inserting.is_finished() {
        let at = begin.elapsed().as_secs_f64();
        progress(&format!("stream: {at:.0} s of {} s", time.as_secs()));
        tokio::time::sleep(SECOND).await;
        let size: i64 = ground
            .value(&format!("SELECT pg_relation_size('{}')", table.sql()))
            .await?;
        let cycles = fleet.cycles().await?[0];
        sizes.push((at, size as f64 / 1e6));
        // A nap belongs to each.
        let each = SECOND.as_secs_f64() / (cycles - before).max(1) as f64 - NAPTIME.as_secs_f64();
        let each = each * 1e3;
        cycle_times.push((at, each.max(0.0)));
        before = cycles;
    }
    let inserted = inserting.await??;
    let deadline = Instant::now() + PATIENCE;
    let total = format!(
        "SELECT value::bigint FROM {} WHERE type = 'total'",
        table.sql()
    );
    while ground.value::<i64>(&total).await? < inserted && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    fleet.stop().await?;
    ground.check(table, inserted).await?;
    let largest = |points: &[(f64, f64)]| points.iter().map(|(_, y)| *y).fold(0.0, f64::max);
    let rate = inserted as f64 / time.as_secs_f64();
    report.add(
        "stream",
        "rows inserted, and folded",
        PER_SECOND,
        rate,
        None,
    );
    report.add(
        "stream",
        "size of the table at most",
        MEGABYTES,
        largest(&sizes),
        None,
    );
    let what = "mean cycle of the worst second";
    report.add("stream", what, MILLISECONDS, largest(&cycle_times), None);
    report.plots.push(Plot {
        title: "stream: size of the table".to_owned(),
        unit: "MB",
        points: sizes,
    });
    report.plots.push(Plot {
        title: "stream: mean time of a cycle".to_owned(),
        unit: "ms",
        points: cycle_times,
    });
    Ok(())
}

/// From an insert to its fold.
pub(super) async fn latency(
    ground: &Ground,
    arguments: &BenchArguments,
    report: &mut Report,
) -> Result<(), Box<dyn Error>> {
    const NAPTIME: Duration = Duration::from_millis(10);
    progress("latency");
    let tables = ground.tables("latency", 1).await?;
    let table = &tables[0];
    let fleet = Fleet::on(ground, &tables, 1, NAPTIME).await?;
    let begin = Instant::now();
    let mut took = Vec::new();
    let insert = format!("INSERT INTO {} VALUES ('delta', 1)", table.sql());
    let total = format!(
        "SELECT value::bigint FROM {} WHERE type = 'total'",
        table.sql()
    );
    while begin.elapsed() < SECOND * arguments.seconds {
        ground.client.batch_execute("insert", &insert).await?;
        let inserted = Instant::now();
        while ground.value::<i64>(&total).await? <= took.len() as i64 {
            if inserted.elapsed() > PATIENCE {
                return Err("a delta was not folded".into());
            }
        }
        took.push(inserted.elapsed().as_secs_f64() * 1e3);
    }
    fleet.stop().await?;
    ground.check(table, took.len() as i64).await?;
    for (what, percent) in [("p50", 50), ("p99", 99), ("at most", 100)] {
        let what = format!("from an insert to its fold, naptime 10 ms, {what}");
        report.add(
            "latency",
            what,
            MILLISECONDS,
            percentile(&mut took, percent),
            None,
        );
    }
    Ok(())
}

/// The value that so many of a hundred do not exceed.
fn percentile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let index = (values.len() * percent).div_ceil(100).saturating_sub(1);
    values.get(index).copied().unwrap_or(0.0)
}
