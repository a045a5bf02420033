//! Connections for the runs of jobs: a limited number at once, each kept for the next run.

use std::pin::pin;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::SemaphorePermit;
use tokio::time::Instant;
use tracing::warn;

use super::connect::Sharing;
use super::connection::Connection;
use super::error::DatabaseError;
use super::server::{Kept, Server};
use super::server_life::ServerLife;
use super::sqlstate::ErrorClass;

/// Number of runs after which a connection is closed, to end what no reset of its session reaches: dblink connections,
/// globals of languages, caches.
const RUNS_MAX: u32 = 1000;

/// Time after which a connection is no longer used for another run: what is set for a role or a database counts for
/// sessions that begin later.
const AGE_MAX: Duration = Duration::from_secs(180);

/// How often a job that waits for its turn is told its place.
const INTERVAL: Duration = Duration::from_secs(1);

/// The number of these intervals after which a wait is worth a line in the log.
const INTERVALS_UNTIL_WARNING: u32 = 10;

/// How long a turn is taken away for which the server had no room.
const TAKEN_AWAY_FOR: Duration = Duration::from_secs(30);

/// A connection for one run of a job, and the job's turn, if it counts.
#[derive(Debug)]
pub(crate) struct JobConnection<'s> {
    server: &'s Server,
    /// Held until the connection is kept or closed.
    _turn: Option<SemaphorePermit<'s>>,
    kept: Kept,
}

/// A job in the queue. Dropping it leaves the queue.
struct InQueue<'s> {
    server: &'s Server,
    number: u64,
}

// === impl Server ===

impl Server {
    /// Waits for the job's turn, if it counts, and gets a connection for it. While it waits, `waits` is called each
    /// second with its place in the queue, from 1.
    ///
    /// If the server has no room for another connection while other jobs have turns, there is one turn less for a while:
    /// jobs take turns on the connections that can be had, and none is left out.
    pub(super) async fn job_connection(
        &self,
        application_name: &str,
        dbname: Option<&str>,
        counts: bool,
        mut waits: impl FnMut(usize),
    ) -> Result<JobConnection<'_>, DatabaseError> {
        loop {
            let turn = if counts {
                self.turn(application_name, &mut waits).await
            } else {
                None
            };
            let opened = match self.take_kept(dbname) {
                Some(kept) => Ok(kept),
                None => {
                    let sharing = Sharing::Job { is_own: !counts };
                    // Rare, so boxed: it is large.
                    Box::pin(self.open(application_name, dbname, sharing)).await
                }
            };
            match (opened, turn) {
                (Err(error), Some(turn)) if error.class() == ErrorClass::Full => {
                    self.take_away(turn, error)?;
                }
                (opened, turn) => {
                    return Ok(JobConnection {
                        server: self,
                        _turn: turn,
                        kept: opened?,
                    });
                }
            }
        }
    }

    /// Takes away a turn for which the server has no room, unless no other job has one: then the error stands.
    fn take_away(
        &self,
        turn: SemaphorePermit<'_>,
        error: DatabaseError,
    ) -> Result<(), DatabaseError> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let not_had = queue.taken_away.len() + self.jobs.available_permits();
        if not_had + 1 >= self.settings.jobs {
            return Err(error);
        }
        let now = Instant::now();
        turn.forget();
        queue.taken_away.push_back(now);
        if queue.full.is_news(now.into_std()) {
            let jobs = self.settings.jobs;
            warn!(
                "the server has no room for {jobs} jobs at once (\"jobs\" in [database]), so they take turns on fewer \
                 connections: {error}"
            );
        }
        Ok(())
    }

    /// Gives turns back that were taken away long enough ago: there may be room now.
    fn give_back(&self) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = |at: &Instant| at.elapsed() >= TAKEN_AWAY_FOR;
        while queue.taken_away.front().is_some_and(is_over) {
            queue.taken_away.pop_front();
            self.jobs.add_permits(1);
        }
    }

    /// Waits for a turn. Turns come in the order in which jobs ask for them.
    async fn turn(
        &self,
        worker: &str,
        waits: &mut impl FnMut(usize),
    ) -> Option<SemaphorePermit<'_>> {
        self.give_back();
        let mut turn = pin!(self.jobs.acquire());
        let queued = InQueue::behind_others(self);
        let mut intervals = 0;
        loop {
            match tokio::time::timeout(INTERVAL, &mut turn).await {
                // The semaphore is never closed.
                Ok(turn) => return turn.ok(),
                Err(_) => waits(queued.place()),
            }
            self.give_back();
            intervals += 1;
            if intervals >= INTERVALS_UNTIL_WARNING && queued.is_news() {
                let jobs = self.settings.jobs;
                warn!(
                    worker,
                    "{worker}: its run waits for a connection, since {jobs} runs of other jobs use all of them: set \
                     \"jobs\" in [database] higher, or connection = \"own\" for those that take long"
                );
            }
        }
    }

    async fn open(
        &self,
        application_name: &str,
        dbname: Option<&str>,
        sharing: Sharing,
    ) -> Result<Kept, DatabaseError> {
        let generation = self.generation.load(Ordering::Relaxed);
        let connection = self.connect(application_name, dbname, sharing).await?;
        // A server that does not say how long it has run can still run jobs.
        let life = ServerLife::of(&connection).await.ok().flatten();
        Ok(Kept {
            connection,
            life,
            dbname: dbname.map(str::to_owned),
            opened: Instant::now(),
            generation,
            runs: 0,
        })
    }

    fn take_kept(&self, dbname: Option<&str>) -> Option<Kept> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|one| !one.connection.is_closed() && one.opened.elapsed() < AGE_MAX);
        let at = kept
            .iter()
            .position(|one| one.dbname.as_deref() == dbname)?;
        Some(kept.swap_remove(at))
    }

    /// Gives up all sessions of jobs that have begun so far: the kept ones at once, and those in use after their run.
    pub(super) fn give_up_kept(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
        let kept = self.kept.lock();
        kept.unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Closes the kept connections.
    pub(super) async fn close_kept(&self) {
        let kept = std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        for one in kept {
            one.connection.close().await;
        }
    }
}

// === impl InQueue ===

impl<'s> InQueue<'s> {
    fn behind_others(server: &'s Server) -> Self {
        let mut queue = server.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let number = queue.next;
        queue.next += 1;
        queue.waiting.insert(number);
        Self { server, number }
    }

    /// Its place, from 1.
    fn place(&self) -> usize {
        let queue = self.server.queue.lock();
        let queue = queue.unwrap_or_else(PoisonError::into_inner);
        queue.waiting.range(..=self.number).count()
    }

    /// Records that jobs wait for long. `true` if that is to be reported.
    fn is_news(&self) -> bool {
        let queue = self.server.queue.lock();
        let mut queue = queue.unwrap_or_else(PoisonError::into_inner);
        queue.crowded.is_news(Instant::now().into_std())
    }
}

impl Drop for InQueue<'_> {
    fn drop(&mut self) {
        let queue = self.server.queue.lock();
        let mut queue = queue.unwrap_or_else(PoisonError::into_inner);
        queue.waiting.remove(&self.number);
    }
}

// === impl JobConnection ===

impl JobConnection<'_> {
    pub(crate) fn connection(&self) -> &Connection {
        &self.kept.connection
    }

    /// The life of the server that the connection leads to, if the server says.
    pub(crate) fn server_life(&self) -> Option<&ServerLife> {
        self.kept.life.as_ref()
    }

    /// Keeps the connection for another run. Its session must have been reset, and no transaction may be under way.
    pub(crate) async fn keep(self) {
        let Self {
            server,
            _turn,
            mut kept,
        } = self;
        kept.runs += 1;
        if kept.runs >= RUNS_MAX || kept.generation != server.generation.load(Ordering::Relaxed) {
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
