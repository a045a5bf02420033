//! What a stretch of time costs: processor, write-ahead log, memory, long transactions. Processor and memory are known
//! only if the server's processes are visible on this machine.

use std::error::Error;
use std::fs;
use std::ops::Range;
use std::time::Duration;

use bgworker::database::{self, Connection, Database};

use super::ground::Ground;

/// The kernel counts processor time in hundredths of a second.
const TICKS_PER_SECOND: f64 = 100.0;

/// The place of the parent in what the kernel says of a process, from its state on.
const PARENT: usize = 1;

/// The places of the times that the process has used.
const TIMES: Range<usize> = 11..13;

/// The places of the times that those of its children have used that have ended.
const CHILDREN_TIMES: Range<usize> = 13..15;

/// What had been used at one moment.
pub(super) struct Usage {
    client: f64,
    server: Option<ServerUsage>,
    wal: f64,
}

/// Seconds of processor that the server has used; only known if the server is on this machine.
struct ServerUsage {
    /// By each of its processes.
    living: Vec<f64>,
    /// By all those that have ended.
    ended: f64,
}

/// What was used between two moments.
#[derive(Clone, Copy)]
pub(super) struct Used {
    /// Seconds of processor, both sides; `None` if the server is elsewhere.
    pub(super) cpu: Option<f64>,
    /// Bytes of write-ahead log.
    pub(super) wal: f64,
}

// === impl Usage ===

impl Usage {
    pub(super) async fn now(ground: &Ground) -> Result<Self, Box<dyn Error>> {
        let pids = backends(ground, "true").await?;
        let server = ServerUsage::of(&pids);
        let wal = "SELECT pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_insert_lsn(), '0/0')::pg_catalog.float8";
        Ok(Self {
            client: cpu("self").ok_or("there is no /proc to measure with")?,
            server,
            wal: ground.value(wal).await?,
        })
    }

    /// What was used since `then`.
    pub(super) fn since(&self, then: &Self) -> Used {
        let server = self.server.as_ref().zip(then.server.as_ref());
        let server = server.map(|(now, then)| now.total() - then.total());
        Used {
            cpu: server.map(|server| server + self.client - then.client),
            wal: self.wal - then.wal,
        }
    }
}

// === impl ServerUsage ===

impl ServerUsage {
    fn of(pids: &[i32]) -> Option<Self> {
        let parent: i32 = stat(&pids.first()?.to_string())?
            .get(PARENT)?
            .parse()
            .ok()?;
        let living = pids.iter().map(|pid| cpu(&pid.to_string()));
        Some(Self {
            living: living.collect::<Option<_>>()?,
            ended: seconds(&stat(&parent.to_string())?, CHILDREN_TIMES)?,
        })
    }

    fn total(&self) -> f64 {
        self.ended + self.living.iter().sum::<f64>()
    }
}

/// The memory of this process and of the workers' backends, in bytes; shared pages count in part. `None` if the server
/// is elsewhere.
pub(super) async fn memory(ground: &Ground) -> Result<Option<f64>, Box<dyn Error>> {
    let pids = backends(ground, "application_name OPERATOR(pg_catalog.=) 'bgworker'").await?;
    let server: Option<f64> = pids.iter().map(|pid| pss(&pid.to_string())).sum();
    Ok(server
        .zip(pss("self"))
        .map(|(server, client)| server + client))
}

async fn backends(ground: &Ground, which: &str) -> Result<Vec<i32>, Box<dyn Error>> {
    let sql = format!(
        "SELECT coalesce(pg_catalog.array_agg(pid), '{{}}') FROM pg_catalog.pg_stat_activity WHERE {which}"
    );
    ground.value(&sql).await
}

/// Seconds of processor that a process has used.
fn cpu(pid: &str) -> Option<f64> {
    seconds(&stat(pid)?, TIMES)
}

/// What the kernel says of a process, from its state on.
fn stat(pid: &str) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, even a parenthesis.
    let (_, fields) = stat.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

/// The sum of a user and a system time there.
fn seconds(stat: &[String], times: Range<usize>) -> Option<f64> {
    let ticks = stat.get(times)?.iter().map(|time| time.parse::<f64>().ok());
    Some(ticks.sum::<Option<f64>>()? / TICKS_PER_SECOND)
}

fn pss(pid: &str) -> Option<f64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find(|line| line.starts_with("Pss:"))?;
    let kilobytes: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024.0)
}

/// Watches how long the longest transaction of the workers lasts.
pub(super) struct LongestTransaction {
    task: tokio::task::JoinHandle<Result<f64, database::DatabaseError>>,
    stop: tokio::sync::oneshot::Sender<()>,
}

// === impl LongestTransaction ===

impl LongestTransaction {
    pub(super) async fn watch(ground: &Ground) -> Result<Self, Box<dyn Error>> {
        let database = Database::new(ground.conninfo.clone(), database::Settings::default())?;
        let connection = database.connect("bgworker bench", None).await?;
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(longest_transaction(connection, stopped));
        Ok(Self { task, stop })
    }

    /// Stops watching, and returns how long the longest transaction lasted, in milliseconds.
    pub(super) async fn stop(self) -> Result<f64, Box<dyn Error>> {
        let _ = self.stop.send(());
        Ok(self.task.await??)
    }
}

async fn longest_transaction(
    connection: Connection,
    mut stopped: tokio::sync::oneshot::Receiver<()>,
) -> Result<f64, database::DatabaseError> {
    let sql = "SELECT coalesce(pg_catalog.max(extract(epoch FROM pg_catalog.clock_timestamp() \
               OPERATOR(pg_catalog.-) xact_start)), 0)::pg_catalog.float8 FROM pg_catalog.pg_stat_activity \
               WHERE query OPERATOR(pg_catalog.~~) '/* bgworker: %' AND state OPERATOR(pg_catalog.<>) 'idle'";
    let statement = connection.prepare("watch", sql).await?;
    let mut longest = 0_f64;
    while stopped.try_recv().is_err() {
        let rows = connection.query_prepared("watch", &statement).await?;
        longest = longest.max(rows.first().map_or(0.0, |row| row.get(0)));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    connection.close().await;
    Ok(longest * 1e3)
}
