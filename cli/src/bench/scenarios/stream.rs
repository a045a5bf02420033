//! Inserts at a rate: what dead rows do to the table and to its cycles, how long a delta waits, and what all of it
//! costs.

use std::collections::VecDeque;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bgworker::database::{self, Connection, Database, DatabaseError};
use bgworker::worker_spi::Table;
use tokio::time::Instant;

use super::{BYTES, MEGABYTES, MILLISECONDS, PER_SECOND, SECOND, SECONDS, percentile};
use crate::bench::BenchArguments;
use crate::bench::fleet::{Fleet, PATIENCE};
use crate::bench::ground::Ground;
use crate::bench::progress::Progress;
use crate::bench::report::{Plot, Report};
use crate::bench::usage::{Usage, Used};

const INSERTS_PER_SECOND: u32 = 50;

const NAPTIME: Duration = Duration::from_millis(50);

/// How often the total is read to see which inserts have been folded.
const LOOK: Duration = Duration::from_millis(5);

/// Inserts that have not been seen folded: for each, the sum of all up to it, and when it was committed.
type Waiting = Arc<Mutex<VecDeque<(i64, Instant)>>>;

/// Measures inserts at a rate.
pub(in crate::bench) async fn stream(
    ground: &Ground,
    arguments: &BenchArguments,
    report: &mut Report,
    progress: &Progress,
) -> Result<(), Box<dyn Error>> {
    measure("stream", ground, arguments, report, progress).await
}

/// Measures the same while another client holds a snapshot, so that no dead row can be removed.
pub(in crate::bench) async fn held(
    ground: &Ground,
    arguments: &BenchArguments,
    report: &mut Report,
    progress: &Progress,
) -> Result<(), Box<dyn Error>> {
    let database = Database::new(ground.conninfo.clone(), database::Settings::default())?;
    let holder = database.connect("bgworker bench", None).await?;
    let hold = "SET idle_in_transaction_session_timeout = 0; \
                BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM pg_catalog.pg_class LIMIT 1";
    holder.batch_execute("hold a snapshot", hold).await?;
    measure("held", ground, arguments, report, progress).await?;
    holder.close().await;
    Ok(())
}

async fn measure(
    scenario: &'static str,
    ground: &Ground,
    arguments: &BenchArguments,
    report: &mut Report,
    progress: &Progress,
) -> Result<(), Box<dyn Error>> {
    let time = SECOND * arguments.seconds.max(5);
    progress.step(scenario);
    let tables = ground.tables(scenario, 1).await?;
    let table = &tables[0];
    let fleet = Fleet::on(ground, &tables, 1, NAPTIME).await?;
    let database = Database::new(ground.conninfo.clone(), database::Settings::default())?;
    let inserter = database.connect("bgworker bench", None).await?;
    let looker = database.connect("bgworker bench", None).await?;
    let waiting = Waiting::default();
    let then = Usage::now(ground).await?;
    let begin = Instant::now();
    let rows = arguments.rate / INSERTS_PER_SECOND;
    let inserting = insert(inserter, table.clone(), rows, time, Arc::clone(&waiting));
    let inserting = tokio::spawn(inserting);
    let looking = tokio::spawn(look(looker, table.clone(), waiting));
    let mut streamed = Streamed::default();
    let mut before = fleet.cycles().await?[0];
    while !inserting.is_finished() {
        let at = begin.elapsed().as_secs_f64();
        progress.say(format!("{scenario}: {at:.0} s of {} s", time.as_secs()));
        tokio::time::sleep(SECOND).await;
        let size: i64 = ground
            .value(&format!(
                "SELECT pg_catalog.pg_relation_size('{}')",
                table.sql()
            ))
            .await?;
        let cycles = fleet.cycles().await?[0];
        streamed.sizes.push((at, size as f64 / 1e6));
        // Each cycle is followed by a nap.
        let each = SECOND.as_secs_f64() / (cycles - before).max(1) as f64 - NAPTIME.as_secs_f64();
        let each = each * 1e3;
        streamed.cycle_times.push((at, each.max(0.0)));
        before = cycles;
    }
    streamed.inserted = inserting.await??;
    let used = Usage::now(ground).await?.since(&then);
    streamed.latencies = match looking.await? {
        Ok(latencies) => latencies,
        Err(error) => return Err(error),
    };
    fleet.stop().await?;
    ground.check(table, streamed.inserted).await?;
    streamed.report(scenario, time, &used, report);
    Ok(())
}

/// What became of a stream of inserts.
#[derive(Default)]
struct Streamed {
    /// The size of the table in each second, in megabytes.
    sizes: Vec<(f64, f64)>,
    /// The mean time of a cycle in each second, in milliseconds.
    cycle_times: Vec<(f64, f64)>,
    inserted: i64,
    /// How long each insert waited for its fold, in milliseconds.
    latencies: Vec<f64>,
}

// === impl Streamed ===

impl Streamed {
    fn report(mut self, scenario: &'static str, time: Duration, used: &Used, report: &mut Report) {
        let inserted = self.inserted;
        let largest = |points: &[(f64, f64)]| points.iter().map(|(_, y)| *y).fold(0.0, f64::max);
        let rate = inserted as f64 / time.as_secs_f64();
        let what = "rows inserted, and folded";
        report.add(scenario, what, PER_SECOND, rate, None);
        let what = "size of the table at most";
        report.add(scenario, what, MEGABYTES, largest(&self.sizes), None);
        let what = "mean cycle of the worst second";
        report.add(
            scenario,
            what,
            MILLISECONDS,
            largest(&self.cycle_times),
            None,
        );
        for (what, percent) in [("p50", 50), ("p99", 99), ("at most", 100)] {
            let what = format!("from an insert to its fold, naptime 50 ms, {what}");
            let latency = percentile(&mut self.latencies, percent);
            report.add(scenario, what, MILLISECONDS, latency, None);
        }
        if let Some(cpu) = used.cpu {
            let what = "processor, both sides and the inserts, for a million rows";
            report.add(scenario, what, SECONDS, cpu * 1e6 / inserted as f64, None);
        }
        let what = "write-ahead log of a row, inserted and folded";
        report.add(scenario, what, BYTES, used.wal / inserted as f64, None);
        report.plots.push(Plot {
            title: format!("{scenario}: size of the table"),
            unit: "MB",
            points: self.sizes,
        });
        report.plots.push(Plot {
            title: format!("{scenario}: mean time of a cycle"),
            unit: "ms",
            points: self.cycle_times,
        });
    }
}

/// Inserts this many rows at a time for `time`, and returns how many rows it inserted in all.
async fn insert(
    client: Connection,
    table: Table,
    rows: u32,
    time: Duration,
    waiting: Waiting,
) -> Result<i64, DatabaseError> {
    let sql = format!(
        "INSERT INTO {} SELECT 'delta', 1 FROM pg_catalog.generate_series(1, {rows})",
        table.sql()
    );
    let mut interval = tokio::time::interval(SECOND / INSERTS_PER_SECOND);
    let begin = Instant::now();
    let mut inserted = 0_i64;
    while begin.elapsed() < time {
        interval.tick().await;
        client.batch_execute("insert", &sql).await?;
        inserted += i64::from(rows);
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push_back((inserted, Instant::now()));
    }
    client.close().await;
    Ok(inserted)
}

/// Looks at the total until the inserter is done and everything is folded. Returns how long each insert waited, in
/// milliseconds.
async fn look(
    client: Connection,
    table: Table,
    waiting: Waiting,
) -> Result<Vec<f64>, Box<dyn Error + Send + Sync>> {
    let sql = format!(
        "SELECT value::pg_catalog.int8 FROM {} WHERE type OPERATOR(pg_catalog.=) 'total'",
        table.sql()
    );
    let total = client.prepare("look at the total", &sql).await?;
    let mut latencies = Vec::new();
    let mut since = Instant::now();
    loop {
        let rows = client.query_prepared("look at the total", &total).await?;
        let total: i64 = rows.first().map_or(0, |row| row.get(0));
        // The inserter holds the other reference until it is done.
        let is_done = Arc::strong_count(&waiting) == 1;
        let is_empty = {
            let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
            while let Some((sum, at)) = waiting.front().copied() {
                if sum > total {
                    break;
                }
                waiting.pop_front();
                latencies.push(at.elapsed().as_secs_f64() * 1e3);
                since = Instant::now();
            }
            waiting.is_empty()
        };
        if is_empty && is_done {
            client.close().await;
            return Ok(latencies);
        }
        if since.elapsed() > PATIENCE {
            return Err("a delta was not folded".into());
        }
        tokio::time::sleep(LOOK).await;
    }
}
