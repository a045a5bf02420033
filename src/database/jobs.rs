//! Connections for the runs of jobs: so many at once, and kept for the next run.

use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::SemaphorePermit;

use super::connect::Sharing;
use super::connection::Connection;
use super::error::DatabaseError;
use super::server::{Kept, Server};

/// What no reset reaches in a session (connections of dblink, globals of languages, caches) ends after this many runs.
const RUNS_MAX: u32 = 100;

/// How long a job waits for its turn before it says so.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection for a run, and the right to have one.
#[derive(Debug)]
pub(crate) struct JobConnection<'s> {
    server: &'s Server,
    /// Held until the connection was kept or closed.
    _turn: Option<SemaphorePermit<'s>>,
    kept: Kept,
}

// === impl Server ===

impl Server {
    /// Waits for the turn of a job, if it counts, and gets it a connection. `None` if its turn does not come.
    pub(super) async fn job_connection(
        &self,
        application_name: &str,
        dbname: Option<&str>,
        counts: bool,
    ) -> Result<Option<JobConnection<'_>>, DatabaseError> {
        let turn = if counts {
            match tokio::time::timeout(PATIENCE, self.jobs.acquire()).await {
                // It is never closed.
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

    /// Closes what was kept.
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

    /// Keeps the connection for another run: its session was reset, and no transaction is under way.
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
