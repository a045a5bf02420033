//! Registration: what a background worker is, and which registrations are refused.
//!
//! Plain values, the counterpart of PostgreSQL's `bgworker.h`. Nothing here runs, waits or reads a
//! clock, and nothing here may know a runtime.

mod restart_time;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A worker's registration: its name, what it shares, when it starts and when it is restarted.
///
/// Mirrors PostgreSQL's `BackgroundWorker`. The setters build a registration; they do not change a
/// worker that is registered already.
///
/// ```
/// use std::time::Duration;
/// use bgworker::{Access, BackgroundWorker, RestartTime, StartTime};
///
/// let worker = BackgroundWorker::new("SPI worker 2")
///     .access(Access::Database)
///     .start_time(StartTime::RecoveryFinished)
///     .restart_time(RestartTime::After(Duration::from_secs(2)));
/// assert!(worker.check().is_ok());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct BackgroundWorker {
    /// Unique among the registered workers; 1 to [`NAME_MAX`](Self::NAME_MAX) bytes, no NUL.
    pub name: Arc<str>,
    /// What it shares with other workers. Not a configuration key: its function determines it.
    #[serde(skip)]
    pub access: Access,
    /// How far the server must have come before it starts.
    #[serde(default)]
    pub start_time: StartTime,
    /// When it is restarted after a failure.
    #[serde(default)]
    pub restart_time: RestartTime,
    /// How often it may be restarted after failures; without limit unless set.
    #[serde(default, rename = "max_restarts")]
    pub restart_limit: Option<RestartLimit>,
}

/// A level of the server: how far it must have come before a worker starts, or how far it has come.
///
/// Mirrors `BgWorkerStartTime`. It is an ordered level, so the rule of `bgworker_should_start_now`
/// is one comparison: a worker may start when `worker.start_time <= reached`.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum StartTime {
    /// As soon as the Postmaster runs, whatever the server does.
    PostmasterStart,
    /// As soon as the server answers read-only queries: a hot standby is enough.
    ConsistentState,
    /// As soon as the server accepts writes: recovery has finished.
    #[default]
    RecoveryFinished,
}

/// When a worker that failed starts again.
///
/// Mirrors `bgw_restart_time`. The time counts from the moment of the exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RestartTime {
    /// This long after each failure: more than zero, at most [`MAX`](Self::MAX).
    After(Duration),
    /// After a wait that grows with every failure in a row.
    Backoff(Backoff),
    /// Not at all: a worker that fails is unregistered (`BGW_NEVER_RESTART`).
    Never,
}

/// A wait that doubles with every failure in a row, less up to a quarter at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Backoff {
    /// The first wait: more than zero.
    #[serde(with = "crate::keys::duration::any")]
    #[schemars(with = "crate::keys::schema::Time")]
    pub initial: Duration,
    /// The longest wait: at least the first, at most [`RestartTime::MAX`].
    #[serde(with = "crate::keys::duration::any")]
    #[schemars(with = "crate::keys::schema::Time")]
    pub max: Duration,
    /// A worker that ran for at least this long before it failed begins with the first wait again: more
    /// than zero, at most [`RestartTime::MAX`].
    #[serde(with = "crate::keys::duration::any")]
    #[schemars(with = "crate::keys::schema::Time")]
    pub healthy_after: Duration,
}

/// How often a worker may be restarted after failures, before it is stopped for good.
///
/// Losing the database is not a failure, and never counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "restarts and a time, such as { restarts = 5, within = \"10m\" }")]
pub struct RestartLimit {
    /// The number of restarts allowed: at least 1.
    pub restarts: u32,
    /// The length of the window, which is any stretch of time: more than zero, at most [`RestartTime::MAX`].
    #[serde(with = "crate::keys::duration::any")]
    #[schemars(with = "crate::keys::schema::Time")]
    pub within: Duration,
}

/// What a worker shares with other workers.
///
/// Takes the place of PostgreSQL's two flag bits, so that the combination it refuses
/// (a database connection without shared memory) cannot be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Nothing.
    #[default]
    None,
    /// State in this process (`BGWORKER_SHMEM_ACCESS`).
    Shared,
    /// The server, and with it all that is shared (`BGWORKER_BACKEND_DATABASE_CONNECTION`).
    Database,
}

/// One registration: a slot, and the generation that tells it from earlier ones in that slot.
///
/// Mirrors `BackgroundWorkerHandle`. Generations count registrations, so sorting by
/// `WorkerId` is sorting by registration order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId {
    // First, so that the derived order is the order of registration.
    generation: u64,
    slot: usize,
}

/// One start of one worker.
///
/// Takes the place of a process id, but is never reused: the exit of an earlier incarnation may
/// arrive at any time, and changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation {
    /// The worker that was started.
    pub worker: WorkerId,
    /// Counts the starts of one Postmaster from 1.
    pub number: u64,
}

/// How an incarnation of a worker ended.
///
/// Takes the place of the exit codes 0, 1 and others that `CleanupBackend` tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// Its main returned `Ok` unasked: it is done for good.
    Finished,
    /// Its main returned an error.
    Failed,
    /// Its main panicked.
    Crashed,
    /// It lost its server, or could not reach it, which is not the worker's fault.
    DatabaseAway,
    /// It ended because it was asked to, however it put it.
    Stopped,
}

/// Why a worker cannot be registered.
///
/// The messages are those of PostgreSQL's `SanityCheckBackgroundWorker` where it has one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InvalidWorker {
    /// The name is empty, too long, or has a NUL in it.
    #[error(
        "background worker {name:?}: invalid name: it must be 1 to {} bytes long, without NUL",
        BackgroundWorker::NAME_MAX
    )]
    Name {
        /// The name that was refused.
        name: Arc<str>,
    },
    /// Database access was requested for a start time at which there is no database yet.
    #[error(
        "background worker \"{name}\": cannot request database access if starting at postmaster start"
    )]
    DatabaseAtPostmasterStart {
        /// The worker that was refused.
        name: Arc<str>,
    },
    /// The restart time is zero, or too long.
    #[error(
        "background worker \"{name}\": invalid restart interval: it must be more than 0 and at most {}s",
        RestartTime::MAX.as_secs()
    )]
    RestartTime {
        /// The worker that was refused.
        name: Arc<str>,
    },
    /// The first wait of a backoff is longer than its longest.
    #[error(
        "background worker \"{name}\": invalid restart interval: its first wait is longer than its longest"
    )]
    Backoff {
        /// The worker that was refused.
        name: Arc<str>,
    },
    /// The limit on restarts allows none, or looks back too far.
    #[error(
        "background worker \"{name}\": invalid restart limit: it must allow at least 1 restart, within \
         more than 0 and at most {}s",
        RestartTime::MAX.as_secs()
    )]
    RestartLimit {
        /// The worker that was refused.
        name: Arc<str>,
    },
}

// === impl BackgroundWorker ===

impl BackgroundWorker {
    /// The longest name, in bytes. PostgreSQL truncates an `application_name` to this length.
    pub const NAME_MAX: usize = 63;

    /// A worker without access, started once recovery has finished and restarted after
    /// [`RestartTime::DEFAULT`].
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            access: Access::default(),
            start_time: StartTime::default(),
            restart_time: RestartTime::default(),
            restart_limit: None,
        }
    }

    /// Sets what it shares with other workers; nothing unless set.
    #[must_use]
    pub fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Sets how far the server must have come; [`StartTime::RecoveryFinished`] unless set.
    #[must_use]
    pub fn start_time(mut self, start_time: StartTime) -> Self {
        self.start_time = start_time;
        self
    }

    /// Sets when it is restarted after a failure; [`RestartTime::DEFAULT`] unless set.
    #[must_use]
    pub fn restart_time(mut self, restart_time: RestartTime) -> Self {
        self.restart_time = restart_time;
        self
    }

    /// Sets how often it may be restarted after failures; without limit unless set.
    #[must_use]
    pub fn restart_limit(mut self, restart_limit: RestartLimit) -> Self {
        self.restart_limit = Some(restart_limit);
        self
    }

    /// Checks whether this worker may be registered. Mirrors `SanityCheckBackgroundWorker`.
    ///
    /// # Errors
    ///
    /// The first rule that it breaks.
    pub fn check(&self) -> Result<(), InvalidWorker> {
        self.mistakes().into_iter().next().map_or(Ok(()), Err)
    }

    /// Every rule that it breaks.
    pub(crate) fn mistakes(&self) -> Vec<InvalidWorker> {
        let mut mistakes = Vec::new();
        let name = || Arc::clone(&self.name);
        if self.name.is_empty() || self.name.len() > Self::NAME_MAX || self.name.contains('\0') {
            mistakes.push(InvalidWorker::Name { name: name() });
        }
        if self.access == Access::Database && self.start_time == StartTime::PostmasterStart {
            mistakes.push(InvalidWorker::DatabaseAtPostmasterStart { name: name() });
        }
        let waits = self.restart_time.waits();
        if !waits.into_iter().all(is_restart_interval) {
            mistakes.push(InvalidWorker::RestartTime { name: name() });
        }
        if let RestartTime::Backoff(Backoff { initial, max, .. }) = self.restart_time
            && initial > max
        {
            mistakes.push(InvalidWorker::Backoff { name: name() });
        }
        if let Some(RestartLimit { restarts, within }) = self.restart_limit
            && (restarts == 0 || !is_restart_interval(within))
        {
            mistakes.push(InvalidWorker::RestartLimit { name: name() });
        }
        mistakes
    }
}

fn is_restart_interval(interval: Duration) -> bool {
    !interval.is_zero() && interval <= RestartTime::MAX
}

// === impl RestartTime ===

impl RestartTime {
    /// PostgreSQL's suggestion for workers without a preference: `BGW_DEFAULT_RESTART_INTERVAL`.
    pub const DEFAULT: Self = Self::After(Duration::from_secs(60));

    /// The longest interval: 1,000 days.
    ///
    /// PostgreSQL means to refuse more than a day but compares seconds with milliseconds. The
    /// bound that it really enforces is kept, since configurations may rely on it.
    pub const MAX: Duration = Duration::from_secs(86_400_000);

    /// Every duration in this restart time.
    fn waits(self) -> Vec<Duration> {
        match self {
            Self::After(interval) => vec![interval],
            Self::Backoff(Backoff {
                initial,
                max,
                healthy_after,
            }) => vec![initial, max, healthy_after],
            Self::Never => Vec::new(),
        }
    }
}

impl Default for RestartTime {
    fn default() -> Self {
        Self::DEFAULT
    }
}

// === impl WorkerId ===

impl WorkerId {
    pub(crate) fn new(slot: usize, generation: u64) -> Self {
        Self { generation, slot }
    }

    /// The slot: an index from 0, reused after its worker was unregistered.
    #[must_use]
    pub fn slot(self) -> usize {
        self.slot
    }

    /// The generation: counts the registrations of one Postmaster from 1.
    #[must_use]
    pub fn generation(self) -> u64 {
        self.generation
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.slot, self.generation)
    }
}

// === impl ExitStatus ===

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Finished => "finished",
            Self::Failed => "failed",
            Self::Crashed => "crashed",
            Self::DatabaseAway => "database away",
            Self::Stopped => "stopped",
        })
    }
}

// === impl StartTime ===

impl fmt::Display for StartTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PostmasterStart => "postmaster start",
            Self::ConsistentState => "consistent state",
            Self::RecoveryFinished => "recovery finished",
        })
    }
}
