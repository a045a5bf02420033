//! What a stretch of time costs: processor, write-ahead log, memory, long transactions. Processor and memory are known
//! only if the server's processes are visible on this machine.

use std::error::Error;
use std::fs;
use std::time::Duration;

use bgworker::database::{self, Connection, Database};

use super::ground::Ground;

/// The kernel counts processor time in hundredths of a second.
const TICKS_PER_SECOND: f64 = 100.0;

/// What had been used at one moment.
pub(super) struct Usage {
    client: f64,
    /// Seconds of processor by process; `None` if the server is elsewhere.
    server: Option<Vec<(i32, f64)>>,
    wal: f64,
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
        let server: Option<Vec<_>> = pids
            .into_iter()
            .map(|pid| Some((pid, cpu(&pid.to_string())?)))
            .collect();
        let wal = "SELECT pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_insert_lsn(), '0/0')::pg_catalog.float8";
        Ok(Self {
            client: cpu("self").ok_or("there is no /proc to measure with")?,
            server,
            wal: ground.value(wal).await?,
        })
    }

    /// What was used since `then`, except by processes of the server that have ended.
    pub(super) fn since(&self, then: &Self) -> Used {
        let server = self.server.as_ref().zip(then.server.as_ref());
        let server = server.map(|(now, then)| {
            let used = now.iter().map(|(pid, now)| {
                let then = then.iter().find(|(known, _)| known == pid);
                now - then.map_or(0.0, |(_, then)| *then)
            });
            used.sum::<f64>()
        });
        Used {
            cpu: server.map(|server| server + self.client - then.client),
            wal: self.wal - then.wal,
        }
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
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, even a parenthesis.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut ticks = fields.split_whitespace().skip(11).take(2);
    let user: f64 = ticks.next()?.parse().ok()?;
    let system: f64 = ticks.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
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
