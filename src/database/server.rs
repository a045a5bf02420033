//! A server as it is reached: where it is, how it is talked to, and what is known of it.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

#[cfg(feature = "config")]
use super::connection::Connection;
use super::conninfo::ConnInfo;
use super::tls::{LastConnector, TlsError};

/// How to reach a server.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) conninfo: ConnInfo,
    pub(super) settings: Settings,
    pub(super) last_connector: LastConnector,
    pub(super) begin: Instant,
    pub(super) housekeeping: Semaphore,
    /// The turn of a worker that waits for room for another connection.
    pub(super) room: Semaphore,
    /// The turns of jobs.
    #[cfg(feature = "config")]
    pub(super) jobs: Semaphore,
    /// Connections of jobs that have ended.
    #[cfg(feature = "config")]
    pub(super) kept: Mutex<Vec<Kept>>,
    /// The host that was last seen to have come furthest.
    pub(super) best_host: AtomicUsize,
    /// Notified where there is reason to doubt what the server was last seen to be.
    pub(super) suspect: Notify,
    /// Something kept the last look from asking the server.
    pub(super) is_in_doubt: AtomicBool,
    /// What was last said of the password file.
    pub(super) said: Mutex<Option<String>>,
}

/// A connection for jobs that waits for the next run.
#[cfg(feature = "config")]
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) connection: Connection,
    pub(super) dbname: Option<String>,
    /// How many runs it has had.
    pub(super) runs: u32,
}

/// How a server is talked to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "config", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "config", serde(default))]
#[non_exhaustive]
pub struct Settings {
    /// How long a connection as a whole may take: name lookup, socket, TLS, authentication.
    #[cfg_attr(feature = "config", serde(with = "crate::keys::duration"))]
    pub connect_timeout: Duration,
    /// How long one statement may take. The server counts its milliseconds in 31 bits.
    #[cfg_attr(
        feature = "config",
        serde(
            serialize_with = "crate::keys::duration::serialize",
            deserialize_with = "crate::keys::duration::at_most::<{ i32::MAX as u64 }, _>"
        )
    )]
    pub statement_timeout: Duration,
    /// A file that holds the password and nothing else.
    pub password_file: Option<PathBuf>,
    /// How many home connections the workers of one database share.
    #[cfg_attr(
        feature = "config",
        serde(deserialize_with = "crate::keys::number::positive")
    )]
    pub connections: usize,
    /// How many jobs run at once, each on a connection of its own.
    #[cfg_attr(
        feature = "config",
        serde(deserialize_with = "crate::keys::number::positive")
    )]
    pub jobs: usize,
    /// Whether statements are prepared, and sessions set up.
    pub prepare: bool,
}

// === impl Server ===

impl Server {
    pub(super) fn new(conninfo: ConnInfo, settings: Settings) -> Result<Self, TlsError> {
        let last_connector = LastConnector::default();
        // A mistake should be heard of at once, if it matters.
        if conninfo
            .hosts()
            .iter()
            .any(|host| conninfo.tls().is_required(host.is_socket()))
        {
            last_connector.get(conninfo.tls())?;
        }
        Ok(Self {
            conninfo,
            last_connector,
            begin: Instant::now(),
            housekeeping: Semaphore::new(1),
            room: Semaphore::new(1),
            #[cfg(feature = "config")]
            jobs: Semaphore::new(settings.jobs),
            #[cfg(feature = "config")]
            kept: Mutex::default(),
            settings,
            suspect: Notify::new(),
            is_in_doubt: AtomicBool::new(false),
            best_host: AtomicUsize::new(usize::MAX),
            said: Mutex::default(),
        })
    }

    /// A connection was made: if the last look could not ask the server, the next one can.
    pub(super) fn was_reached(&self) {
        if self.is_in_doubt.swap(false, Ordering::Relaxed) {
            self.suspect.notify_one();
        }
    }
}

// === impl Settings ===

impl Settings {
    /// Sets how long a connection as a whole may take; 10 s unless set.
    #[must_use]
    pub fn connect_timeout(mut self, connect_timeout: Duration) -> Self {
        self.connect_timeout = connect_timeout;
        self
    }

    /// Sets how long one statement may take; 60 s unless set. The server is told (`statement_timeout`);
    /// our side gives up one second later.
    #[must_use]
    pub fn statement_timeout(mut self, statement_timeout: Duration) -> Self {
        self.statement_timeout = statement_timeout;
        self
    }

    /// Sets a file that holds the password and nothing else; none unless set. It is read at every connect,
    /// and goes before every other password.
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

    /// Sets how many jobs run at once, each on a connection of its own; 8 unless set, and at least 1.
    #[must_use]
    pub fn jobs(mut self, jobs: usize) -> Self {
        self.jobs = jobs;
        self
    }

    /// Sets whether statements are prepared, and sessions set up; they are unless set. `false` is for
    /// poolers that hand out another session for each transaction.
    #[must_use]
    pub fn prepare(mut self, prepare: bool) -> Self {
        self.prepare = prepare;
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
        }
    }
}
