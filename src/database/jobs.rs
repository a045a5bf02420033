//! Connections for the runs of jobs: a limited number at once, each kept for the next run.

use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::SemaphorePermit;

use super::connect::Sharing;
use super::connection::Connection;
use super::error::DatabaseError;
use super::server::{Kept, Server};

/// Number of runs after which a connection is closed, to end what no reset of its session reaches: dblink connections,
/// globals of languages, caches.
const RUNS_MAX: u32 = 100;

/// Longest wait for a job's turn.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection for one run of a job, and the job's turn, if it counts.
#[derive(Debug)]
pub(crate) struct JobConnection<'s> {
    server: &'s Server,
    /// Held until the connection is kept or closed.
    _turn: Option<SemaphorePermit<'s>>,
    kept: Kept,
}

// === impl Server ===

impl Server {
    /// Waits for the job's turn, if it counts, and gets a connection for it. Returns `None` if the turn does not come
    /// in time.
    pub(super) async fn job_connection(
        &self,
        application_name: &str,
        dbname: Option<&str>,
        counts: bool,
    ) -> Result<Option<JobConnection<'_>>, DatabaseError> {
        let turn = if counts {
            match tokio::time::timeout(PATIENCE, self.jobs.acquire()).await {
                // The semaphore is never closed.
                Ok(turn) => turn.ok(),
                Err(_) => return Ok(None),
            }
        } else {
            None
        };
        let kept = match self.take_kept(dbname) {
            Some(kept) => kept,
            None => Kept {
                connection: self.connect(application_name, dbname, Sharing::Job).await?,
                dbname: dbname.map(str::to_owned),
                runs: 0,
            },
        };
        Ok(Some(JobConnection {
            server: self,
            _turn: turn,
            kept,
        }))
    }

    fn take_kept(&self, dbname: Option<&str>) -> Option<Kept> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|one| !one.connection.is_closed());
        let at = kept
            .iter()
            .position(|one| one.dbname.as_deref() == dbname)?;
        Some(kept.swap_remove(at))
    }

    /// Closes the kept connections.
    pub(super) async fn close_kept(&self) {
        let kept = std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        for one in kept {
            one.connection.close().await;
        }
    }
}

// === impl JobConnection ===

impl JobConnection<'_> {
    pub(crate) fn connection(&self) -> &Connection {
        &self.kept.connection
    }

    /// Keeps the connection for another run. Its session must have been reset, and no transaction may be under way.
    pub(crate) async fn keep(self) {
        let Self {
            server,
            _turn,
            mut kept,
        } = self;
        kept.runs += 1;
        if kept.runs >= RUNS_MAX {
            kept.connection.close().await;
        } else {
            let mut all = server.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if all.len() < server.settings.jobs {
                all.push(kept);
            }
        }
    }

    pub(crate) async fn close(self) {
        self.kept.connection.close().await;
    }
}
