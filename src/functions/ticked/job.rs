//! A job: its work, and by which schedule and rules it is done.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::work::Work;
use crate::background_worker::{Backoff, RestartTime};
use crate::functions::session::{ConnectionKind, Place};
use crate::schedule::Schedule;

/// The time after its timeout within which a run releases its row, even if its instance is frozen.
const LET_GO_WITHIN: Duration = Duration::from_secs(15);

/// Work that is done at each tick of a schedule, by one of the instances that have it.
///
/// Its name in `bgworker.job` is that of the worker that runs it, behind the `namespace` of the database's settings.
#[derive(Clone)]
pub struct Job {
    pub(super) schedule: Schedule,
    pub(super) work: Arc<dyn Work>,
    /// The isolation level of the transaction that has the work and its mark; `None` if the work is not done in one.
    pub(super) transaction: Option<Isolation>,
    /// A digest of the schedule, and one of what the job does.
    pub(super) declared: String,
    pub(super) missed: Missed,
    pub(super) attempts: u32,
    pub(super) restart_time: RestartTime,
    pub(super) timeout: Duration,
    pub(super) history: u32,
    pub(super) connection: ConnectionKind,
    pub(super) database: Option<String>,
    /// Its work ends within the timeout by itself.
    pub(super) ends_in_time: bool,
    /// Its work reads where its window begins, so that a window that is left out is worth a line.
    pub(super) has_windows: bool,
}

/// What becomes of missed ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Missed {
    /// All of them are one run, with the newest tick.
    #[default]
    Once,
    /// They are dropped.
    Skip,
    /// Each is run, the oldest first: at most the last 1,000.
    Each,
}

/// The isolation level of a run's transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Isolation {
    /// Each statement finds what was committed before it.
    #[default]
    #[serde(rename = "read committed")]
    ReadCommitted,
    /// All statements find what was committed before the run.
    #[serde(rename = "repeatable read")]
    RepeatableRead,
    /// The run is as if no other transaction ran at the same time.
    #[serde(rename = "serializable")]
    Serializable,
}

// === impl Isolation ===

impl Isolation {
    /// The level in SQL.
    pub(super) fn sql(self) -> &'static str {
        match self {
            Self::ReadCommitted => "READ COMMITTED",
            Self::RepeatableRead => "REPEATABLE READ",
            Self::Serializable => "SERIALIZABLE",
        }
    }
}

// === impl Job ===

impl Job {
    /// The number of attempts at a tick, unless set.
    pub const ATTEMPTS: u32 = 3;

    /// How long a run may take, unless set: an hour.
    pub const TIMEOUT: Duration = Duration::from_secs(3_600);

    /// How many runs are kept, unless set.
    pub const HISTORY: u32 = 20;

    /// A job whose work is done in the transaction that marks the tick: what it writes there and the mark are committed
    /// together, or neither is.
    ///
    /// `version` tells what the job does, in any words, and is to be changed with it: while instances of two versions run,
    /// the last one that declared the job has it, and the others stand by.
    pub fn in_transaction(
        schedule: Schedule,
        isolation: Isolation,
        version: &str,
        work: impl Work,
    ) -> Self {
        Self::new(schedule, Some(isolation), version, work)
    }

    /// A job whose work is done outside of a transaction, under a lock of its session: a run that is interrupted counts as an
    /// attempt. With one attempt a tick is run at most once; with more, at least once unless it is given up.
    ///
    /// `version` is what it is for [`in_transaction`](Self::in_transaction).
    pub fn outside(schedule: Schedule, version: &str, work: impl Work) -> Self {
        Self::new(schedule, None, version, work)
    }

    fn new(
        schedule: Schedule,
        transaction: Option<Isolation>,
        version: &str,
        work: impl Work,
    ) -> Self {
        let does = format!("{} {version}", transaction.is_some());
        Self {
            declared: format!("{}-{}", digest(&schedule.declaration()), digest(&does)),
            schedule,
            work: Arc::new(work),
            transaction,
            missed: Missed::default(),
            attempts: Self::ATTEMPTS,
            restart_time: RestartTime::default(),
            timeout: Self::TIMEOUT,
            history: Self::HISTORY,
            connection: ConnectionKind::default(),
            database: None,
            ends_in_time: false,
            has_windows: false,
        }
    }

    /// Sets what becomes of ticks that came due while the job ran, or that no instance could begin within a minute.
    #[must_use]
    pub fn missed(mut self, missed: Missed) -> Self {
        self.missed = missed;
        self
    }

    /// Sets how often a tick is tried before the job goes on with the next one, at least once, and how long it waits between
    /// two attempts.
    #[must_use]
    pub fn attempts(mut self, attempts: u32, restart_time: RestartTime) -> Self {
        self.attempts = attempts.max(1);
        self.restart_time = restart_time;
        self
    }

    /// Sets how long a run may take, and each of its statements.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets how many runs are kept in `bgworker.job_run`.
    #[must_use]
    pub fn history(mut self, history: u32) -> Self {
        self.history = history;
        self
    }

    /// Sets the connection of a run, and the database, if not the one of the connection settings.
    #[must_use]
    pub fn on(mut self, connection: ConnectionKind, database: Option<String>) -> Self {
        self.connection = connection;
        self.database = database;
        self
    }

    /// The work ends within the timeout by itself. `has_windows` if it reads where its window begins.
    pub(in crate::functions) fn of_statements(mut self, has_windows: bool) -> Self {
        self.ends_in_time = true;
        self.has_windows = has_windows;
        self
    }

    /// The schedule of its ticks.
    #[must_use]
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// `true` if what was declared has another schedule: the digest of the schedule comes first.
    pub(super) fn is_of_another_schedule(&self, declared: &str) -> bool {
        let schedule = |declared: &str| declared.split('-').next().map(str::to_owned);
        schedule(&self.declared) != schedule(declared)
    }

    /// The name of a worker's job in the database.
    pub(super) fn name(worker: &str, namespace: Option<&str>) -> String {
        match namespace {
            Some(namespace) => format!("{namespace}/{worker}"),
            None => worker.to_owned(),
        }
    }

    /// Where its looks run; its work runs on another connection.
    pub(super) fn place(&self) -> Place<'_> {
        Place {
            dbname: self.database.as_deref(),
            ..Place::HOME
        }
    }

    /// `true` if all statements of its transaction find the same snapshot.
    pub(super) fn has_one_snapshot(&self) -> bool {
        let level = self.transaction;
        level.is_some_and(|level| level != Isolation::ReadCommitted)
    }

    /// The longest time in which a run ends and releases its row, even if its instance is frozen.
    pub(super) fn longest_run(&self) -> Duration {
        self.timeout.saturating_add(LET_GO_WITHIN)
    }

    /// How long after a failed attempt the next one follows; `None` if it was the last.
    pub(super) fn retry_in(&self, attempt: u32) -> Option<Duration> {
        let wait = match self.restart_time {
            RestartTime::After(interval) => interval,
            RestartTime::Backoff(Backoff { initial, max, .. }) => {
                crate::backoff::doubled(initial, attempt.saturating_sub(1), max)
            }
            RestartTime::Never => return None,
        };
        (attempt < self.attempts).then_some(wait)
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut job = f.debug_struct("Job");
        job.field("schedule", &self.schedule);
        job.field("declared", &self.declared);
        job.finish_non_exhaustive()
    }
}

/// Sixteen hexadecimal digits that tell one text from another.
pub(super) fn digest(text: &str) -> String {
    let bytes = Sha256::digest(text.as_bytes());
    bytes
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
