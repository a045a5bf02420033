//! The PostgreSQL server that bgworker talks to: where it is, how to connect to it, and how far it has come.
//!
//! A [`ConnInfo`] holds libpq's connection settings; a [`Database`] is a server reached with them. A worker uses it
//! through its [`WorkerContext`](crate::WorkerContext): either with a [`Connection`] of its own, on which it may run
//! anything, or with a [`HomeConnection`], which it shares with other workers and on which it runs one statement at a
//! time. No answer of the server is awaited without a deadline.
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
//! This is a façade: it must not hold the SQL of any worker.

mod batch;
mod cancel;
mod connect;
mod connection;
pub mod conninfo;
pub(crate) mod dbname;
mod descriptors;
mod error;
mod home;
mod instance;
mod jobs;
mod notices;
mod one_line;
mod prepared;
mod server;
mod server_life;
mod server_state;
mod shared;
mod sqlstate;
mod timeline;
mod tls;
mod whereabouts;

use std::sync::Arc;

use tokio::sync::SemaphorePermit;

pub(crate) use self::batch::BrokeOff;
pub use self::cancel::CancelToken;
use self::connect::Sharing;
pub(crate) use self::connection::GRACE;
pub use self::connection::{Connection, Statement};
pub use self::conninfo::{ConnInfo, ConnInfoError};
pub use self::error::DatabaseError;
#[cfg(feature = "http")]
pub(crate) use self::error::{DETAIL, HINT};
use self::home::Lines;
pub use self::home::{HomeConnection, HomeStatement, Parameters};
pub(crate) use self::home::{HomeProbe, Tid, probe_all};
pub(crate) use self::instance::{Instance, News, TELL_CHANGES_EVERY};
pub(crate) use self::jobs::JobConnection;
pub(crate) use self::one_line::OneLine;
pub(crate) use self::prepared::in_full;
use self::server::Server;
pub use self::server::Settings;
pub(crate) use self::server_life::{Continuity, ServerLife};
pub use self::server_state::{ServerState, ServerStatus};
pub(crate) use self::shared::Answer;
pub(crate) use self::sqlstate::{
    CANCELLED, Fault, SessionEnd, UNDONE, is_conflict, is_denied, is_for_no_transaction, is_locked,
    is_missing, is_of_prepared, is_of_savepoint, undone,
};
pub(crate) use self::sqlstate::{
    ErrorClass, is_made_already, is_of_a_row, is_of_columns, is_stale,
};
pub use self::tls::TlsError;

/// A server, and the settings for talking to it. Clones share the server and its home connections.
#[derive(Clone, Debug)]
pub struct Database {
    server: Arc<Server>,
    lines: Arc<Lines>,
}

// === impl Database ===

impl Database {
    /// Remembers how to reach a server; connects to nothing.
    ///
    /// # Errors
    ///
    /// If a host requires TLS, and TLS cannot be set up as the settings ask.
    pub fn new(conninfo: ConnInfo, settings: Settings) -> Result<Self, TlsError> {
        let server = Arc::new(Server::new(conninfo, settings)?);
        let lines = Arc::new(Lines::new(Arc::clone(&server)));
        Ok(Self { server, lines })
    }

    /// The settings that connections are made with.
    #[must_use]
    pub fn conninfo(&self) -> &ConnInfo {
        &self.server.conninfo
    }

    /// The settings for talking to the server.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.server.settings
    }

    /// This process, as other instances know it.
    pub(crate) fn instance(&self) -> &Instance {
        &self.server.instance
    }

    /// `true` if a session is this connection's alone and stays as it was set up; `false` behind a pooler that hands out another
    /// one for each transaction.
    pub(crate) fn sessions_are_ours(&self) -> bool {
        self.server.settings.prepare
    }

    /// Connects within the deadline.
    ///
    /// `application_name` is what `pg_stat_activity` shows, unless the connection settings name
    /// one. `dbname` overrides the settings' database.
    ///
    /// # Errors
    ///
    /// If no connection can be made within the deadline.
    pub async fn connect(
        &self,
        application_name: &str,
        dbname: Option<&str>,
    ) -> Result<Connection, DatabaseError> {
        let sharing = Sharing::Apart;
        self.server.connect(application_name, dbname, sharing).await
    }

    /// Waits for a job's turn, since only a limited number of jobs run at once, and returns a connection whose session
    /// is like any other client's. A job for which `counts` is `false` does not wait for a turn. While one waits,
    /// `waits` is called each second with its place in the queue, from 1.
    ///
    /// # Errors
    ///
    /// If no connection can be made within the deadline.
    pub(crate) async fn job_connection(
        &self,
        application_name: &str,
        dbname: Option<&str>,
        counts: bool,
        waits: impl FnMut(usize),
    ) -> Result<JobConnection<'_>, DatabaseError> {
        let server = &self.server;
        let connecting = server.job_connection(application_name, dbname, counts, waits);
        connecting.await
    }

    /// Connects as soon as there is room for another connection, and calls `full` once if there is none.
    ///
    /// # Errors
    ///
    /// If connecting fails for another reason than a lack of room.
    pub(crate) async fn connect_when_there_is_room(
        &self,
        application_name: &str,
        dbname: Option<&str>,
        full: impl FnOnce(&DatabaseError),
    ) -> Result<Connection, DatabaseError> {
        let server = &self.server;
        let connecting = server.connect_when_there_is_room(application_name, dbname, full);
        connecting.await
    }

    /// Returns the home connection of the worker in this slot. It is opened when a statement first runs on it.
    ///
    /// `dbname` overrides the settings' database. The connection belongs to the runtime that first uses it: while that
    /// runtime is not driven, no statement is answered.
    #[must_use]
    pub fn home(&self, slot: usize, dbname: Option<&str>) -> HomeConnection {
        let other = dbname.filter(|dbname| Some(*dbname) != self.conninfo().dbname());
        HomeConnection::new(Arc::clone(&self.lines), other.map(str::to_owned), slot)
    }

    /// Releases every home connection: each answers the statements under way, then closes. The next statement opens a
    /// new one.
    pub(crate) fn drop_home_connections(&self) {
        self.lines.drop_all();
    }

    /// Makes jobs run in new sessions from now on, in which what has been set for the role or the database counts.
    pub(crate) fn renew_job_sessions(&self) {
        self.server.give_up_kept();
    }

    /// Closes every home connection and every connection kept for jobs, and waits until they are closed. Home
    /// connections have two seconds at most.
    pub async fn close(&self) {
        self.lines.close().await;
        self.server.close_kept().await;
    }

    /// Looks at the server once: at each host, until one is a primary. The host that has come furthest counts, and
    /// connections try it first, unless hosts are tried in random order. The error, if any, is what kept bgworker from
    /// asking the server.
    pub async fn server_state(&self) -> (ServerState, Option<DatabaseError>) {
        self.server.look(ServerState::Away).await.into_parts()
    }

    /// Watches the server indefinitely. Calls `changed` after the first look, and then whenever the server's state
    /// changes, or what keeps bgworker from asking it.
    pub(crate) async fn watch_server_state(
        &self,
        changed: impl FnMut(ServerState, Option<Arc<str>>),
    ) {
        self.server.watch_state(changed).await;
    }

    /// Waits for the turn to do what only one worker at a time should do to a server.
    pub(crate) async fn housekeeping(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.server.housekeeping.acquire().await.ok()
    }

    /// Reports a reason to doubt the state in which the server was last seen.
    pub(crate) fn suspect(&self) {
        self.server.whereabouts.suspect.notify_one();
    }
}
