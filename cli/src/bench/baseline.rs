//! What bgworker is compared with: the seed's own statement, or another, as the seed's worker runs it: prepared, on
//! a connection of its own, back to back.
//!
//! The seed's statement is PostgreSQL's, from `worker_spi.c`.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bgworker::database::{self, Connection, Database, Statement};
use bgworker::worker_spi::Table;
use tokio::time::Instant;

use super::ground::Ground;
use super::usage::{Usage, Used};

/// Clients that run the seed's statement, or another.
pub(super) struct Baseline {
    clients: Vec<(Connection, Statement)>,
}

// === impl Baseline ===

impl Baseline {
    /// Connects a client for each table, to run the seed's statement on it.
    pub(super) async fn on(ground: &Ground, tables: &[Table]) -> Result<Self, Box<dyn Error>> {
        let statements = tables.iter().map(|table| seed(&table.sql()));
        Self::of(ground, statements.collect()).await
    }

    /// Connects a client for each of these statements.
    pub(super) async fn of(
        ground: &Ground,
        statements: Vec<String>,
    ) -> Result<Self, Box<dyn Error>> {
        let settings = database::Settings::default().statement_timeout(Duration::from_secs(600));
        let database = Database::new(ground.conninfo.clone(), settings)?;
        let mut clients = Vec::new();
        for statement in statements {
            let connection = database.connect("bgworker bench baseline", None).await?;
            let statement = connection.prepare("prepare", &statement).await?;
            clients.push((connection, statement));
        }
        Ok(Self { clients })
    }

    /// Runs the first client's statement once, and returns how long that took.
    pub(super) async fn once(&self) -> Result<Duration, Box<dyn Error>> {
        let (connection, statement) = self.clients.first().ok_or("no client")?;
        let begin = Instant::now();
        connection
            .query_prepared("the seed's statement", statement)
            .await?;
        Ok(begin.elapsed())
    }

    /// Runs each client's statement back to back for `time`. Returns how many ran per second, and what they used.
    pub(super) async fn back_to_back(
        self,
        ground: &Ground,
        time: Duration,
    ) -> Result<(f64, Used), Box<dyn Error>> {
        let done = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let then = Usage::now(ground).await?;
        let begin = Instant::now();
        let tasks: Vec<_> = self
            .clients
            .into_iter()
            .map(|(connection, statement)| {
                let (done, stop) = (Arc::clone(&done), Arc::clone(&stop));
                tokio::spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        connection
                            .query_prepared("the seed's statement", &statement)
                            .await?;
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    connection.close().await;
                    Ok::<_, database::DatabaseError>(())
                })
            })
            .collect();
        tokio::time::sleep(time).await;
        let cycles = done.load(Ordering::Relaxed);
        let took = begin.elapsed();
        // Before the backends end: the usage of one that has ended would not count.
        let used = Usage::now(ground).await?.since(&then);
        stop.store(true, Ordering::Relaxed);
        for task in tasks {
            task.await??;
        }
        Ok((cycles as f64 / took.as_secs_f64(), used))
    }
}

/// Returns `worker_spi`'s statement for a table.
fn seed(table: &str) -> String {
    format!(
        "WITH deleted AS (DELETE FROM {table} WHERE type = 'delta' RETURNING value), \
         total AS (SELECT coalesce(sum(value), 0) as sum FROM deleted) \
         UPDATE {table} SET value = {table}.value + total.sum \
         FROM total WHERE type = 'total' RETURNING {table}.value"
    )
}
