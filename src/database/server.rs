//! A server: where it is, how to talk to it, and what is known about it.

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::connection::Connection;
use super::conninfo::ConnInfo;
use super::instance::Instance;
use super::server_life::ServerLife;
use super::tls::{LastConnector, TlsError};
use super::whereabouts::Whereabouts;
use crate::backoff::Spell;

/// How long a host that gave no answer is tried after all others.
const SILENT_FOR: Duration = Duration::from_secs(60);

/// A server: how to reach it, and what its connections share.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) conninfo: ConnInfo,
    pub(super) settings: Settings,
    pub(super) last_connector: LastConnector,
    /// The turn of a connection that reads its files.
    pub(super) files: Arc<Semaphore>,
    pub(super) begin: Instant,
    pub(super) housekeeping: Semaphore,
    /// The turn of a worker that waits for room for another connection.
    pub(super) room: Semaphore,
    /// The turns of jobs.
    pub(super) jobs: Semaphore,
    /// The jobs that wait for their turn.
    pub(super) queue: Mutex<Queue>,
    /// Connections of ended jobs, kept for the next run.
    pub(super) kept: Mutex<Vec<Kept>>,
    /// Raised to give up all sessions of jobs that have begun so far.
    pub(super) generation: AtomicU64,
    /// The host that was last seen to have come furthest.
    pub(super) best_host: AtomicUsize,
    /// When each host last gave no answer in time, unless it has answered since.
    pub(super) silent: Mutex<Vec<Option<Instant>>>,
    pub(super) whereabouts: Arc<Whereabouts>,
    /// `true` if something kept the last look from asking the server.
    pub(super) is_in_doubt: AtomicBool,
    pub(super) instance: Instance,
    /// The last warning about the password file.
    pub(super) said: Mutex<Option<String>>,
}

/// The jobs that wait for their turn.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Their numbers, which grow in the order in which they came.
    pub(super) waiting: BTreeSet<u64>,
    /// The number of the next one.
    pub(super) next: u64,
    /// Jobs wait for long.
    pub(super) crowded: Spell,
    /// When turns were taken away for which the server had no room, the oldest first.
    pub(super) taken_away: VecDeque<Instant>,
    /// The server has had no room for as many jobs as may run at once.
    pub(super) full: Spell,
}

/// A connection for jobs that waits for the next run.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) connection: Connection,
    /// The life of the server that it leads to, if the server says.
    pub(super) life: Option<ServerLife>,
    pub(super) dbname: Option<String>,
    pub(super) opened: Instant,
    /// The generation of sessions that it belongs to.
    pub(super) generation: u64,
    /// Number of runs it has served.
    pub(super) runs: u32,
}

/// Settings for talking to a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[non_exhaustive]
pub struct Settings {
    /// How long connecting may take as a whole: name lookup, socket, TLS, authentication.
    #[serde(with = "crate::keys::duration")]
    #[schemars(with = "crate::keys::schema::Time")]
    pub connect_timeout: Duration,
    /// How long one statement may take. The server counts its milliseconds in 31 bits.
    #[serde(
        serialize_with = "crate::keys::duration::serialize",
        deserialize_with = "crate::keys::duration::at_most::<{ i32::MAX as u64 }, _>"
    )]
    #[schemars(with = "crate::keys::schema::Time")]
    pub statement_timeout: Duration,
    /// A file that holds the password and nothing else.
    pub password_file: Option<PathBuf>,
    /// Number of home connections that the workers of one database share.
    #[serde(deserialize_with = "crate::keys::number::positive")]
    #[schemars(range(min = 1))]
    pub connections: usize,
    /// Number of jobs that run at once, each on its own connection.
    #[serde(deserialize_with = "crate::keys::number::positive")]
    #[schemars(range(min = 1))]
    pub jobs: usize,
    /// Whether statements are prepared, and sessions set up.
    pub prepare: bool,
    /// Roles whose tables are trusted, beside the role itself, superusers, and the owner of the database.
    pub trusted_owners: Vec<String>,
    /// What the names of jobs in the database begin with.
    #[serde(deserialize_with = "namespace")]
    pub namespace: Option<String>,
}

/// Reads a namespace. It stands before a slash, and identifiers have at most 63 bytes.
fn namespace<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    let namespace = String::deserialize(deserializer)?;
    let is_plain = |c: char| !c.is_control() && c != '/';
    if (1..=63).contains(&namespace.len()) && namespace.chars().all(is_plain) {
        return Ok(Some(namespace));
    }
    let message = "it must have 1 to 63 bytes, without slashes and control characters";
    Err(serde::de::Error::custom(message))
}

// === impl Server ===

impl Server {
    pub(super) fn new(conninfo: ConnInfo, settings: Settings) -> Result<Self, TlsError> {
        let last_connector = LastConnector::default();
        // A mistake should surface at once, if it matters.
        if conninfo
            .hosts()
            .iter()
            .any(|host| conninfo.tls().is_required(host.is_socket()))
        {
            last_connector.get(conninfo.tls())?;
        }
        let silent = vec![None; conninfo.hosts().len()];
        Ok(Self {
            conninfo,
            last_connector,
            files: Arc::new(Semaphore::new(1)),
            begin: Instant::now(),
            housekeeping: Semaphore::new(1),
            room: Semaphore::new(1),
            jobs: Semaphore::new(settings.jobs),
            queue: Mutex::default(),
            kept: Mutex::default(),
            generation: AtomicU64::default(),
            settings,
            silent: Mutex::new(silent),
            whereabouts: Arc::new(Whereabouts::new()),
            is_in_doubt: AtomicBool::new(false),
            best_host: AtomicUsize::new(usize::MAX),
            instance: Instance::new(),
            said: Mutex::default(),
        })
    }

    /// Records that a connection was made: if the last look could not ask the server, the next one can.
    pub(super) fn was_reached(&self) {
        if self.is_in_doubt.swap(false, Ordering::Relaxed) {
            self.whereabouts.suspect.notify_one();
        }
    }

    /// The hosts, in the order in which to try them: the one that was last seen to have come furthest is the first, unless
    /// the order is random, and those that gave no answer lately are the last.
    pub(super) fn hosts_in_order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.conninfo.hosts().len()).collect();
        if self.conninfo.load_balance_hosts() {
            fastrand::shuffle(&mut order);
        } else {
            let best = self.best_host.load(Ordering::Relaxed);
            order.sort_by_key(|host| *host != best);
        }
        let silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        order.sort_by_key(|host| {
            let since = silent.get(*host).copied().flatten();
            since.is_some_and(|since| since.elapsed() < SILENT_FOR)
        });
        order
    }

    /// Records whether a host answered in time.
    pub(super) fn host_answered(&self, host: usize, in_time: bool) {
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(silent) = silent.get_mut(host) {
            *silent = (!in_time).then(Instant::now);
        }
    }

    /// The share of the time for connecting that each host has: a silent one must not use up the time of the next.
    pub(super) fn share(&self) -> Duration {
        let hosts = u32::try_from(self.conninfo.hosts().len()).unwrap_or(u32::MAX);
        self.settings.connect_timeout / hosts.max(1)
    }
}

// === impl Settings ===

impl Settings {
    /// Sets how long connecting may take as a whole; 10 s unless set.
    #[must_use]
    pub fn connect_timeout(mut self, connect_timeout: Duration) -> Self {
        self.connect_timeout = connect_timeout;
        self
    }

    /// Sets how long one statement may take; 60 s unless set. The server enforces it where sessions are set up
    /// (`statement_timeout`); bgworker gives up one second later.
    #[must_use]
    pub fn statement_timeout(mut self, statement_timeout: Duration) -> Self {
        self.statement_timeout = statement_timeout;
        self
    }

    /// Sets a file that holds the password and nothing else; none unless set. It is read at every connect, and takes
    /// precedence over every other password.
    #[must_use]
    pub fn password_file(mut self, password_file: impl Into<PathBuf>) -> Self {
        self.password_file = Some(password_file.into());
        self
    }

    /// Sets how many home connections the workers of one database share; 8 unless set, and at least 1.
    #[must_use]
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections;
        self
    }

    /// Sets how many jobs run at once, each on its own connection; 8 unless set. It must be at least 1.
    #[must_use]
    pub fn jobs(mut self, jobs: usize) -> Self {
        self.jobs = jobs;
        self
    }

    /// Sets whether statements are prepared, and sessions set up; `true` unless set. `false` is for poolers that hand
    /// out another session for each transaction.
    #[must_use]
    pub fn prepare(mut self, prepare: bool) -> Self {
        self.prepare = prepare;
        self
    }

    /// Sets which roles may own the tables that bgworker writes to and did not make itself, beside the role that it
    /// connects as, superusers, and, unless that role is a superuser, the owner of the database. None unless set.
    #[must_use]
    pub fn trusted_owners(mut self, owners: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.trusted_owners = owners.into_iter().map(Into::into).collect();
        self
    }

    /// Sets what the names of jobs in the database begin with, before a slash; nothing unless set. Instances that differ in it
    /// have different jobs.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            statement_timeout: Duration::from_secs(60),
            password_file: None,
            connections: 8,
            jobs: 8,
            prepare: true,
            trusted_owners: Vec::new(),
            namespace: None,
        }
    }
}
