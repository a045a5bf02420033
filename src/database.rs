//! The server, as bgworker talks to it: where it is, how to connect, how far it has come.
//!
//! A [`ConnInfo`] is libpq's connection settings, a [`Database`] is a server as it is reached by them. A worker
//! gets at it through its [`WorkerContext`](crate::WorkerContext): either a [`Connection`] of its own, on which it may do as it
//! likes, or a [`HomeConnection`], which it shares with others and on which it runs one statement at a time.
//! Nothing here waits without a deadline.
//!
//! ```no_run
//! use bgworker::{WorkerContext, WorkerError};
//!
//! /// Counts the rows of a table once, over a connection that it shares.
//! async fn counts(context: WorkerContext) -> Result<(), WorkerError> {
//!     let home = context.home(None)?;
//!     let count = home.statement("SELECT count(*) FROM shop.sales")?;
//!     let rows = home.run("count the sales", &count).await?;
//!     let count: i64 = rows[0].get(0);
//!     println!("{count} sales");
//!     Ok(())
//! }
//! ```
//!
//! A façade: no SQL of any worker may live here.

mod connect;
mod connection;
pub mod conninfo;
mod error;
mod home;
mod server_state;
mod sqlstate;
mod tls;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::Instant;

pub use self::connection::{CancelToken, Connection, Statement};
pub use self::conninfo::{ConnInfo, ConnInfoError};
pub use self::error::DatabaseError;
use self::home::Lines;
pub use self::home::{HomeConnection, HomeStatement, Parameters};
pub(crate) use self::home::{HomeQuestion, Tid, ask_all};
pub use self::server_state::{ServerState, ServerStatus};
pub(crate) use self::sqlstate::{ErrorClass, is_made_already};
use self::tls::LastConnector;
pub use self::tls::TlsError;

/// A server, and how it is talked to. Clones are the same.
#[derive(Clone, Debug)]
pub struct Database {
    server: Arc<Server>,
    lines: Arc<Lines>,
}

/// How to reach a server.
#[derive(Debug)]
struct Server {
    conninfo: ConnInfo,
    settings: Settings,
    last_connector: LastConnector,
    begin: Instant,
    housekeeping: Semaphore,
    /// The turn of a worker that waits for room for another connection.
    room: Semaphore,
    /// The host that was last seen to have come furthest.
    best_host: AtomicUsize,
    /// Notified where there is reason to doubt what the server was last seen to be.
    suspect: Notify,
    /// Something kept the last look from asking the server.
    is_in_doubt: AtomicBool,
    /// What was last said of the password file.
    said: Mutex<Option<String>>,
}

/// How a server is talked to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// How long a connection as a whole may take: name lookup, socket, TLS, authentication.
    pub connect_timeout: Duration,
    /// How long one statement may take.
    pub statement_timeout: Duration,
    /// A file that holds the password and nothing else.
    pub password_file: Option<PathBuf>,
    /// How many home connections the workers of one database share.
    pub connections: usize,
    /// Whether statements are prepared, and sessions set up.
    pub prepare: bool,
}

// === impl Database ===

impl Database {
    /// Remembers how to reach a server; connects to nothing.
    ///
    /// # Errors
    ///
    /// If the TLS library cannot be set up as the settings ask.
    pub fn new(conninfo: ConnInfo, settings: Settings) -> Result<Self, TlsError> {
        let last_connector = LastConnector::default();
        // Whoever is mistaken should hear it at once, if it matters.
        if conninfo
            .hosts()
            .iter()
            .any(|host| conninfo.tls().is_required(host.is_socket()))
        {
            conninfo.tls().connector(&last_connector)?;
        }
        let server = Arc::new(Server {
            conninfo,
            settings,
            last_connector,
            begin: Instant::now(),
            housekeeping: Semaphore::new(1),
            room: Semaphore::new(1),
            suspect: Notify::new(),
            is_in_doubt: AtomicBool::new(false),
            best_host: AtomicUsize::new(usize::MAX),
            said: Mutex::default(),
        });
        let lines = Arc::new(Lines::new(Arc::clone(&server)));
        Ok(Self { server, lines })
    }

    /// The settings that connections are made with.
    #[must_use]
    pub fn conninfo(&self) -> &ConnInfo {
        &self.server.conninfo
    }

    /// How the server is talked to.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.server.settings
    }

    /// Waits for the turn of what only one at a time should do to a server.
    pub(crate) async fn housekeeping(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.server.housekeeping.acquire().await.ok()
    }

    /// Says that there is reason to doubt what the server was last seen to be.
    pub(crate) fn suspect(&self) {
        self.server.suspect.notify_one();
    }
}

// === impl Server ===

impl Server {
    /// A connection was made: if the last look could not ask the server, the next one can.
    fn was_reached(&self) {
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
            prepare: true,
        }
    }
}
