//! The server, as bgworker talks to it: where it is, how to connect, how far it has come.
//!
//! A façade: connection settings come in as a [`ConnInfo`], connections go out. No SQL of any
//! worker may live here.

mod connection;
pub mod conninfo;
mod error;
mod server_state;
mod tls;

use std::sync::Arc;
use std::time::Duration;

pub use self::connection::{CancelToken, Connection};
pub use self::conninfo::{ConnInfo, ConnInfoError};
pub use self::error::DatabaseError;
pub use self::server_state::ServerState;
pub use self::tls::TlsError;

/// A server, and the deadlines within which it must answer. Clones are the same.
#[derive(Clone, Debug)]
pub struct Database(Arc<Reach>);

/// How to reach a server.
#[derive(Debug)]
struct Reach {
    conninfo: ConnInfo,
    deadlines: Deadlines,
    tls: tls::Connector,
}

/// How long the server may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// For a connection as a whole: name lookup, socket, TLS, authentication. 10 s by default.
    pub connect: Duration,
    /// For one statement. 60 s by default. Set on the server; our side gives up one second later.
    pub statement: Duration,
}

// === impl Database ===

impl Database {
    /// Remembers how to reach a server; connects to nothing.
    ///
    /// # Errors
    ///
    /// If the TLS library cannot be set up as the settings ask.
    pub fn new(conninfo: ConnInfo, deadlines: Deadlines) -> Result<Self, TlsError> {
        let tls = tls::connector()?;
        Ok(Self(Arc::new(Reach {
            conninfo,
            deadlines,
            tls,
        })))
    }

    /// The settings that connections are made with.
    #[must_use]
    pub fn conninfo(&self) -> &ConnInfo {
        &self.0.conninfo
    }

    /// How long the server may take.
    #[must_use]
    pub fn deadlines(&self) -> &Deadlines {
        &self.0.deadlines
    }
}

// === impl Deadlines ===

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            statement: Duration::from_secs(60),
        }
    }
}
