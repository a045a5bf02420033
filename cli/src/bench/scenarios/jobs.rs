//! Jobs: from a tick to its mark, many ticks at one moment, and what a tick and a job that waits cost.

use std::error::Error;
use std::fmt::Write as _;
use std::time::Duration;

use bgworker::database;
use tokio::time::Instant;

use super::{BYTES, MEGABYTES, MICROSECONDS, MILLISECONDS, SECOND, SECONDS, percentile};
use crate::bench::BenchArguments;
use crate::bench::baseline::Baseline;
use crate::bench::configured::Configured;
use crate::bench::fleet::PATIENCE;
use crate::bench::ground::Ground;
use crate::bench::progress::Progress;
use crate::bench::report::Report;
use crate::bench::usage::{self, Usage};

/// What each job runs.
const STATEMENT: &str = "SELECT 1";

/// How many jobs tick each second.
const EACH_SECOND: usize = 100;

/// How many jobs are due at one moment, and how many wait.
const AT_ONCE: usize = 1_000;

/// How often waiting jobs are made to look.
const LOOKS: u32 = 20;

/// How many connections the jobs run on.
const CONNECTIONS: usize = 8;

/// Running jobs.
struct Jobs {
    workers: Configured,
    count: usize,
}

/// Measures the time from a tick to its mark, many ticks at one moment, and what a tick and a job that waits cost.
pub(in crate::bench) async fn jobs(
    ground: &Ground,
    arguments: &BenchArguments,
    report: &mut Report,
    progress: &Progress,
) -> Result<(), Box<dyn Error>> {
    ground.has_no_jobs().await?;
    progress.step("jobs");
    let bare = match arguments.baseline {
        true => Some(bare_statement(ground, SECOND).await?),
        false => None,
    };
    each_second(ground, SECOND * arguments.seconds, report, bare).await?;
    progress.step("jobs: due at once");
    at_once(ground, report).await?;
    progress.step("jobs: that wait");
    waiting(ground, report).await
}

async fn each_second(
    ground: &Ground,
    time: Duration,
    report: &mut Report,
    bare: Option<(f64, f64)>,
) -> Result<(), Box<dyn Error>> {
    let jobs = Jobs::begin(ground, EACH_SECOND, "every = \"1s\"").await?;
    // By then each job has had a tick, and the connections are open.
    jobs.have_run(ground, 2).await?;
    let (then, first) = (Usage::now(ground).await?, total_runs(ground).await?);
    tokio::time::sleep(time).await;
    let (now, last) = (Usage::now(ground).await?, total_runs(ground).await?);
    let (used, ticks) = (now.since(&then), last - first);
    jobs.stop().await?;
    let mut late = ground.lateness().await?;
    ground.clear_jobs().await?;
    for (what, percent) in [("p50", 50), ("p99", 99)] {
        let what =
            format!("from a tick to its mark, {EACH_SECOND} jobs that tick each second, {what}");
        let late = percentile(&mut late, percent) * 1e3;
        report.add("jobs", what, MILLISECONDS, late, None);
    }
    if let Some(cpu) = used.cpu {
        let what = "processor, both sides, for a tick";
        let bare = bare.map(|(cpu, _)| cpu * 1e6);
        report.add("jobs", what, MICROSECONDS, cpu * 1e6 / ticks, bare);
    }
    let what = "write-ahead log of a tick";
    let bare = bare.map(|(_, wal)| wal);
    report.add("jobs", what, BYTES, used.wal / ticks, bare);
    Ok(())
}

async fn at_once(ground: &Ground, report: &mut Report) -> Result<(), Box<dyn Error>> {
    // The interval is long enough that all jobs are there before their first common tick.
    let jobs = Jobs::begin(ground, AT_ONCE, "every = \"10s\"").await?;
    jobs.have_run(ground, 2).await?;
    jobs.stop().await?;
    // Taken from a tick that found all jobs waiting.
    let whole = ground.lateness_of_whole_tick(AT_ONCE).await?;
    ground.clear_jobs().await?;
    let what =
        format!("{AT_ONCE} jobs due at once, on {CONNECTIONS} connections, until the last mark");
    report.add("jobs", what, SECONDS, whole, None);
    Ok(())
}

async fn waiting(ground: &Ground, report: &mut Report) -> Result<(), Box<dyn Error>> {
    let jobs = Jobs::begin(ground, AT_ONCE, "cron = \"@yearly\"").await?;
    let mut looks = jobs.have_looked(1).await?;
    let then = Usage::now(ground).await?;
    for _ in 0..LOOKS {
        jobs.workers.postmaster.sighup();
        looks = jobs.have_looked(looks + 1).await?;
    }
    let used = Usage::now(ground).await?.since(&then);
    let memory = usage::memory(ground).await?;
    jobs.stop().await?;
    ground.clear_jobs().await?;
    if let Some(cpu) = used.cpu {
        let what = format!("processor, both sides, for a look at one of {AT_ONCE} jobs that wait");
        let looks = f64::from(LOOKS) * AT_ONCE as f64;
        report.add("jobs", what, MICROSECONDS, cpu * 1e6 / looks, None);
    }
    if let Some(memory) = memory {
        let what = format!("memory of the program and of its backends, {AT_ONCE} jobs that wait");
        report.add("jobs", what, MEGABYTES, memory / 1e6, None);
    }
    Ok(())
}

/// Seconds of processor, and bytes of write-ahead log, that one run of the bare statement takes.
async fn bare_statement(ground: &Ground, time: Duration) -> Result<(f64, f64), Box<dyn Error>> {
    let statements = vec![STATEMENT.to_owned(); CONNECTIONS];
    let baseline = Baseline::of(ground, statements).await?;
    let (rate, used) = baseline.back_to_back(ground, time).await?;
    let many = rate * time.as_secs_f64();
    Ok((used.cpu.unwrap_or(0.0) / many, used.wal / many))
}

/// How many ticks all jobs have done.
async fn total_runs(ground: &Ground) -> Result<f64, Box<dyn Error>> {
    let sql = "SELECT pg_catalog.sum(runs)::pg_catalog.float8 FROM bgworker.job";
    ground.value(sql).await
}

// === impl Jobs ===

impl Jobs {
    async fn begin(ground: &Ground, count: usize, when: &str) -> Result<Self, Box<dyn Error>> {
        let mut text = String::new();
        for n in 0..count {
            let _ = write!(
                text,
                "[[worker]]\nname = \"{n}\"\nfunction = \"sql\"\nsql = \"{STATEMENT}\"\n\
                 history = 1000\n{when}\n"
            );
        }
        let database = database::Settings::default().jobs(CONNECTIONS);
        let workers = Configured::start(ground, &text, database).await?;
        Ok(Self { workers, count })
    }

    /// Waits until each job has done this many ticks.
    async fn have_run(&self, ground: &Ground, ticks: i64) -> Result<(), Box<dyn Error>> {
        self.have_looked(1).await?;
        let sql = format!(
            "SELECT pg_catalog.count(*) FROM bgworker.job WHERE runs OPERATOR(pg_catalog.>=) {ticks}"
        );
        let begin = Instant::now();
        while ground.value::<i64>(&sql).await? < self.count as i64 {
            self.wait(begin).await?;
        }
        Ok(())
    }

    /// Waits until each job has looked this many times, and returns how many times each has at least.
    async fn have_looked(&self, looks: u64) -> Result<u64, Box<dyn Error>> {
        let begin = Instant::now();
        loop {
            let workers = self.workers.postmaster.workers().await?.registered;
            let least = workers.iter().map(|worker| worker.report.cycles).min();
            match least {
                Some(least) if least >= looks => return Ok(least),
                _ => self.wait(begin).await?,
            }
        }
    }

    async fn wait(&self, since: Instant) -> Result<(), Box<dyn Error>> {
        if since.elapsed() > PATIENCE {
            return Err("the jobs did not start working in time".into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        Ok(())
    }

    async fn stop(self) -> Result<(), Box<dyn Error>> {
        self.workers.stop().await
    }
}
