//! A job in Rust: one of the instances that have it does it at each tick, and what it writes is committed with the tick.
//!
//! `cargo run --example job_in_rust postgresql://localhost/app`, in as many terminals as you like. Ctrl-C ends each.

use std::error::Error;
use std::time::Duration;

use bgworker::database::{self, ConnInfo, Database};
use bgworker::schedule::Schedule;
use bgworker::supervision::{Limits, Shutdown};
use bgworker::ticked::{self, Failure, Isolation, Job, Tick};
use bgworker::{BackgroundWorker, Postmaster};

/// Reads how much memory the machine has left, and keeps that with the tick.
async fn measure(tick: &Tick<'_>) -> Result<u64, Failure> {
    let memory = std::fs::read_to_string("/proc/meminfo")?;
    let free = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|value| value.trim().strip_suffix(" kB")?.parse::<i64>().ok())
        .ok_or("/proc/meminfo does not say how much memory is available")?;
    let at = tick.tick();
    let sql = format!("INSERT INTO free_memory VALUES ('{at}', {free})");
    tick.connection().batch_execute("keep it", &sql).await?;
    println!("{at}: {free} kB");
    Ok(1)
}

#[actix::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args()
        .nth(1)
        .ok_or("usage: job_in_rust postgresql://USER@HOST/DATABASE")?;
    let conninfo = ConnInfo::parse(&url, |name| std::env::var(name).ok())?;
    let database = Database::new(conninfo, database::Settings::default())?;
    let make =
        "CREATE TABLE IF NOT EXISTS free_memory (tick timestamptz PRIMARY KEY, kilobytes bigint)";
    let client = database.connect("setup", None).await?;
    client.batch_execute("make the table", make).await?;
    client.close().await;

    let every = Schedule::every(Duration::from_secs(1))?;
    // Another version, when the job does something else.
    let job = Job::in_transaction(every, Isolation::ReadCommitted, "v1", measure);
    let postmaster = Postmaster::launch(Limits::default(), Some(database))?;
    let worker = BackgroundWorker::new("free memory");
    postmaster.register(worker, ticked::main(job)).await?;

    tokio::signal::ctrl_c().await?;
    postmaster.shut_down(Shutdown::Smart);
    postmaster.exited().await?;
    Ok(())
}
