//! What can go wrong between us and the server, told with its whole cause and without a secret.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio_postgres::error::SqlState;

use super::TlsError;

/// A connection or a statement that failed.
///
/// Its text holds the whole cause: the server's severity, message, SQLSTATE, detail and hint, or
/// the operating system's words.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DatabaseError {
    /// No connection could be made.
    #[error("could not connect to {target}: {}{}", Cause(.error), hint(.error))]
    Connect {
        /// Which server.
        target: String,
        /// What it or the way to it said.
        error: tokio_postgres::Error,
    },
    /// The server asks for a password, and none was given.
    #[error(
        "could not connect to {target}: fe_sendauth: no password supplied: give one in the connection settings, \
         by PGPASSWORD, or in a password file"
    )]
    NoPassword {
        /// Which server.
        target: String,
    },
    /// No connection could be made in time.
    #[error("could not connect to {target} within {}", humantime::format_duration(*.after))]
    ConnectDeadline {
        /// Which server.
        target: String,
        /// The deadline.
        after: Duration,
    },
    /// What went wrong for several workers at a home connection; said to each of them.
    #[error(transparent)]
    Home(Arc<Self>),
    /// The server can be connected to, but is not of the kind that was asked for.
    #[error("could not connect to {target}: {why}")]
    Unsuitable {
        /// Which server.
        target: String,
        /// What it is.
        why: &'static str,
    },
    /// A host's name leads nowhere. The sentence is libpq's.
    #[error("could not connect to {target}: could not translate host name to address: {error}")]
    Lookup {
        /// Which server.
        target: String,
        /// What the system says.
        error: io::Error,
    },
    /// A statement that may touch the session is not for a connection that others use.
    #[error(
        "a home connection takes SELECT, INSERT, UPDATE, DELETE, MERGE, WITH, VALUES and TABLE alone: for \
         anything else open a connection of the worker's own"
    )]
    NotAtHome,
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(TlsError),
    /// The file with the password could not be read.
    #[error("could not read password file \"{}\": {error}", .file.display())]
    PasswordFile {
        /// Which.
        file: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// Several attempts failed: at several hosts, or with and without encryption.
    #[error("{}", Each(.0))]
    EveryAttempt(
        /// Why, one by one.
        Vec<Self>,
    ),
    /// The server refused a statement.
    #[error("{doing}: {}", Cause(.error))]
    Statement {
        /// What the statement was for.
        doing: &'static str,
        /// What the server said.
        error: tokio_postgres::Error,
    },
    /// The server did not answer a statement in time. The connection was given up.
    #[error("{doing}: no answer within {}", humantime::format_duration(*.after))]
    StatementDeadline {
        /// What the statement was for.
        doing: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// The connection was lost.
    #[error("{doing}: connection to server was lost: {cause}")]
    Lost {
        /// What was under way.
        doing: &'static str,
        /// What ended the connection.
        cause: String,
        /// The SQLSTATE with which the server ended it, if it did.
        sqlstate: Option<String>,
    },
}

/// Errors in a row.
struct Each<'e>(&'e [DatabaseError]);

/// An error of tokio-postgres with its whole cause.
pub(super) struct Cause<'e>(pub(super) &'e tokio_postgres::Error);

// === impl DatabaseError ===

impl DatabaseError {
    /// The SQLSTATE, if the server said one.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Connect { error, .. } | Self::Statement { error, .. } => {
                error.code().map(SqlState::code)
            }
            Self::Home(error) => error.sqlstate(),
            Self::EveryAttempt(errors) => errors.iter().rev().find_map(Self::sqlstate),
            Self::Lost { sqlstate, .. } => sqlstate.as_deref(),
            Self::ConnectDeadline { .. }
            | Self::StatementDeadline { .. }
            | Self::Unsuitable { .. }
            | Self::Lookup { .. }
            | Self::NotAtHome
            | Self::NoPassword { .. }
            | Self::PasswordFile { .. }
            | Self::Tls(_) => None,
        }
    }

    /// Whether what was to be sent could not be written down, such as a name with NUL in it: nothing was
    /// sent, and nobody but we is to blame.
    pub(super) fn is_ours(error: &tokio_postgres::Error) -> bool {
        causes(error)
            .filter_map(|cause| cause.downcast_ref::<io::Error>())
            .any(|cause| cause.kind() == io::ErrorKind::InvalidInput)
    }

    /// Whether a server is there, and does not let us in.
    pub(super) fn is_refused(&self) -> bool {
        match self {
            Self::NoPassword { .. } => true,
            Self::EveryAttempt(errors) => errors.iter().any(Self::is_refused),
            error => !error.is_away() && error.sqlstate().is_some(),
        }
    }

    /// What an attempt to connect came to.
    pub(super) fn of_attempt(target: String, error: tokio_postgres::Error) -> Self {
        // It has no kind of its own.
        if causes(&error).any(|cause| cause.to_string() == "password missing") {
            Self::NoPassword { target }
        } else {
            Self::Connect { target, error }
        }
    }

    /// What several attempts came to.
    pub(super) fn of_each(mut errors: Vec<Self>) -> Self {
        // Refused the same way with encryption and without: once is enough.
        errors.dedup_by_key(|error| error.to_string());
        match <[Self; 1]>::try_from(errors) {
            Ok([error]) => error,
            Err(errors) => Self::EveryAttempt(errors),
        }
    }

    /// Whether the server was lost or could not be reached: not the fault of who asked.
    ///
    /// That is SQLSTATE class 08, 57P01 to 57P03, 57P05 and 53300, a closed or refused connection,
    /// a name that does not resolve, and a deadline that passed.
    #[must_use]
    pub fn is_away(&self) -> bool {
        match self {
            Self::ConnectDeadline { .. }
            | Self::StatementDeadline { .. }
            | Self::Unsuitable { .. }
            | Self::Lookup { .. }
            | Self::Lost { .. } => true,
            Self::Tls(_)
            | Self::NoPassword { .. }
            | Self::PasswordFile { .. }
            | Self::NotAtHome => false,
            Self::Home(error) => error.is_away(),
            Self::EveryAttempt(errors) => errors.iter().all(Self::is_away),
            Self::Connect { error, .. } | Self::Statement { error, .. } => match error.code() {
                Some(code) => is_away_code(code),
                None => error.is_closed() || (is_io(error) && !Self::is_ours(error)),
            },
        }
    }
}

/// What to do about a refusal that has a name here.
fn hint(error: &tokio_postgres::Error) -> &'static str {
    let refused = error.as_db_error().map_or("", |refused| refused.message());
    if refused.starts_with("unsupported startup parameter") {
        "; HINT: a pooler that hands out another session for each transaction needs prepare = false"
    } else {
        ""
    }
}

fn is_away_code(code: &SqlState) -> bool {
    code.code().starts_with("08")
        || [
            &SqlState::ADMIN_SHUTDOWN,
            &SqlState::CRASH_SHUTDOWN,
            &SqlState::CANNOT_CONNECT_NOW,
            &SqlState::IDLE_SESSION_TIMEOUT,
            &SqlState::TOO_MANY_CONNECTIONS,
        ]
        .contains(&code)
}

/// Whether the way to the server failed, at whatever depth of the cause: a socket that closes during
/// the TLS handshake is an error of TLS on top.
fn is_io(error: &tokio_postgres::Error) -> bool {
    causes(error).any(|cause| {
        cause.downcast_ref::<io::Error>().is_some() || cause.to_string().contains("unexpected EOF")
    })
}

/// What is behind an error of tokio-postgres, from the outside in.
pub(super) fn causes(
    error: &tokio_postgres::Error,
) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(error.source(), |&cause| cause.source())
}

// === impl Each ===

impl fmt::Display for Each<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for error in self.0 {
            write!(f, "{separator}{error}")?;
            separator = "; ";
        }
        Ok(())
    }
}

// === impl Cause ===

impl fmt::Display for Cause<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(db) = self.0.as_db_error() {
            write!(
                f,
                "{}: {} (SQLSTATE {})",
                db.severity(),
                db.message(),
                db.code().code()
            )?;
            for (label, text) in [("DETAIL", db.detail()), ("HINT", db.hint())] {
                if let Some(text) = text {
                    write!(f, "; {label}: {text}")?;
                }
            }
            return Ok(());
        }
        write!(f, "{}", self.0)?;
        causes(self.0).try_for_each(|cause| write!(f, ": {cause}"))
    }
}
