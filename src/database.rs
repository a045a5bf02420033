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
#[cfg(feature = "config")]
pub(crate) mod dbname;
mod error;
mod home;
#[cfg(feature = "config")]
mod jobs;
mod server;
mod server_state;
#[cfg(feature = "config")]
mod shared;
mod sqlstate;
mod tls;

use std::sync::Arc;

use tokio::sync::SemaphorePermit;

use self::connect::Sharing;
pub use self::connection::{CancelToken, Connection, Statement};
pub use self::conninfo::{ConnInfo, ConnInfoError};
pub use self::error::DatabaseError;
use self::home::Lines;
pub use self::home::{HomeConnection, HomeStatement, Parameters};
pub(crate) use self::home::{HomeProbe, Tid, probe_all};
#[cfg(feature = "config")]
pub(crate) use self::jobs::JobConnection;
use self::server::Server;
pub use self::server::Settings;
pub use self::server_state::{ServerState, ServerStatus};
#[cfg(feature = "config")]
pub(crate) use self::shared::Answer;
pub(crate) use self::sqlstate::{ErrorClass, is_made_already};
#[cfg(feature = "config")]
pub(crate) use self::sqlstate::{is_conflict, is_for_no_transaction, is_locked, is_of_a_row};
pub use self::tls::TlsError;

/// A server, and how it is talked to. Clones are the same.
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
    /// If the TLS library cannot be set up as the settings ask.
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

    /// How the server is talked to.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.server.settings
    }

    /// Connects within the deadline.
    ///
    /// `application_name` is what `pg_stat_activity` shows, unless the connection settings name
    /// one. `dbname` overrides the settings' database.
    ///
    /// # Errors
    ///
    /// If there is no connection by then.
    pub async fn connect(
        &self,
        application_name: &str,
        dbname: Option<&str>,
    ) -> Result<Connection, DatabaseError> {
        let sharing = Sharing::Own;
        self.server.connect(application_name, dbname, sharing).await
    }

    /// Waits for the turn of a job, of which a number run at once, and gets it a connection whose session is as any
    /// client has it. `None` if its turn does not come within ten seconds; one that does not count need not wait.
    ///
    /// # Errors
    ///
    /// If there is no connection within the deadline.
    #[cfg(feature = "config")]
    pub(crate) async fn job_connection(
        &self,
        application_name: &str,
        dbname: Option<&str>,
        counts: bool,
    ) -> Result<Option<JobConnection<'_>>, DatabaseError> {
        let server = &self.server;
        server
            .job_connection(application_name, dbname, counts)
            .await
    }

    /// Connects as soon as there is room for another connection, and calls `full` once if there is none.
    ///
    /// # Errors
    ///
    /// If it is not for a lack of room that there is no connection.
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

    /// The home connection of a worker in this slot. It is opened when a statement is first run.
    ///
    /// `dbname` overrides the settings' database. The connection belongs to the runtime that first uses
    /// it: where that is not driven, no statement is answered.
    #[must_use]
    pub fn home(&self, slot: usize, dbname: Option<&str>) -> HomeConnection {
        let other = dbname.filter(|dbname| Some(*dbname) != self.conninfo().dbname());
        HomeConnection::new(Arc::clone(&self.lines), other.map(str::to_owned), slot)
    }

    /// Lets go of every home connection: statements under way are answered, then it is closed. The
    /// next statement opens a new one.
    pub(crate) fn drop_home_connections(&self) {
        self.lines.drop_all();
    }

    /// Closes every home connection, and those that were kept for jobs, and waits until they are closed: the former for two
    /// seconds at most.
    pub async fn close(&self) {
        self.lines.close().await;
        #[cfg(feature = "config")]
        self.server.close_kept().await;
    }

    /// Looks at the server once: at every host, until one is a primary. The one that has come furthest
    /// counts, and connections go there first. The error, if any, is what kept us from asking it.
    pub async fn server_state(&self) -> (ServerState, Option<DatabaseError>) {
        self.server.look(ServerState::Primary).await
    }

    /// Looks at the server for ever, and tells `changed` what it is now: first of all, and then whenever that, or
    /// what keeps us from asking it, became something else.
    pub(crate) async fn watch_server_state(
        &self,
        changed: impl FnMut(ServerState, Option<Arc<str>>),
    ) {
        self.server.watch_state(changed).await;
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
