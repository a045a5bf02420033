//! Errors between bgworker and the server, each with its whole cause and no secret.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::error::{ErrorPosition, Severity};

use super::TlsError;
use super::one_line::OneLine;
use super::sqlstate::SessionEnd;
use super::sqlstate::{self, ErrorClass};

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
        /// The server, and the database if one is named.
        target: String,
        /// The error, from the server or on the way to it.
        error: tokio_postgres::Error,
    },
    /// The server asks for a password, and none was given.
    #[error(
        "could not connect to {target}: fe_sendauth: no password supplied: give one in the connection settings, \
         by PGPASSWORD, or in a password file"
    )]
    NoPassword {
        /// The server, and the database if one is named.
        target: String,
    },
    /// No connection could be made in time.
    #[error("could not connect to {target} within {}", humantime::format_duration(*.after))]
    ConnectDeadline {
        /// The server, and the database if one is named.
        target: String,
        /// The deadline.
        after: Duration,
    },
    /// Another connection of a worker's own would take a file descriptor that is kept for the rest of the process.
    #[error(
        "Too many open files: this process may open {limit}, and keeps {kept} of them from workers' own connections, for its \
         endpoints and for shared connections: raise the limit (LimitNOFILE in systemd, ulimit -n in a shell)"
    )]
    NoDescriptors {
        /// Number of files that this process may open.
        limit: u64,
        /// Number of those that own connections leave free.
        kept: u64,
    },
    /// An error that concerns several workers at a home connection; each of them gets it.
    #[error(transparent)]
    Home(Arc<Self>),
    /// The server accepts connections, but is not of the kind that was asked for.
    #[error("could not connect to {target}: {why}")]
    Unsuitable {
        /// The server, and the database if one is named.
        target: String,
        /// Why it is not of that kind.
        why: &'static str,
    },
    /// A host's name could not be resolved. The sentence is libpq's.
    #[error("could not connect to {target}: could not translate host name to address: {error}")]
    Lookup {
        /// The server, and the database if one is named.
        target: String,
        /// What the system says.
        error: io::Error,
    },
    /// A statement may touch the session, and cannot run on a connection that other workers use.
    #[error(
        "a home connection takes SELECT, INSERT, UPDATE, DELETE, MERGE, WITH, VALUES and TABLE: for \
         anything else, open a connection of the worker's own"
    )]
    NotAtHome,
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(TlsError),
    /// The file with the password could not be read.
    #[error("could not read password file \"{}\": {error}", .file.display())]
    PasswordFile {
        /// The password file.
        file: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The files that the settings name could not be read in time.
    #[error(
        "could not read the files of the connection settings (password, certificates) within {}: does their file \
         system answer?",
        humantime::format_duration(*.after)
    )]
    FilesDeadline {
        /// The deadline.
        after: Duration,
    },
    /// Several attempts failed: at several hosts, or with and without encryption.
    #[error("{}", Each(.0))]
    EveryAttempt(
        /// The errors, in the order of the attempts.
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
    /// The connection was given up, since another server is the primary now. Whether the statement took effect on the old
    /// one no longer matters, unless that is made the primary again.
    #[error("{doing}: the connection was given up: the primary is now {by}")]
    Replaced {
        /// What was under way.
        doing: &'static str,
        /// The host that is the primary now.
        by: String,
    },
}

/// What comes before the detail of an error, which may quote rows.
pub(crate) const DETAIL: &str = "; DETAIL: ";

/// What comes before the hint of an error, after its detail. No detail holds it.
pub(crate) const HINT: &str = "; HINT: ";

/// Several errors, shown one after the other.
struct Each<'e>(&'e [DatabaseError]);

/// What a server reports, with its severity, SQLSTATE, detail and hint.
pub(super) struct Report<'r>(pub(super) &'r DbError);

/// An error of tokio-postgres with its whole cause.
pub(super) struct Cause<'e>(pub(super) &'e tokio_postgres::Error);

// === impl DatabaseError ===

impl DatabaseError {
    /// The SQLSTATE, if the server sent one.
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
            | Self::Replaced { .. }
            | Self::Unsuitable { .. }
            | Self::Lookup { .. }
            | Self::NotAtHome
            | Self::NoDescriptors { .. }
            | Self::NoPassword { .. }
            | Self::PasswordFile { .. }
            | Self::FilesDeadline { .. }
            | Self::Tls(_) => None,
        }
    }

    /// Returns `true` if the server was lost or could not be reached, which is not the fault of the worker that asked.
    ///
    /// This covers SQLSTATE class 08 (unless its message means something else), 57P01 to 57P03, 57P05, 25P03, 25P04, a
    /// closed or refused connection, a server that is not of the kind asked for, a name that does not resolve, and a
    /// deadline that passed.
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.class() == ErrorClass::Away
    }

    /// Returns `true` if the server, a pooler or this process has no room for another connection. That is not the
    /// worker's fault, and says nothing about the connections that exist.
    ///
    /// This covers SQLSTATE 53300, what poolers say in its place, and a process or system without descriptors or
    /// similar.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.class() == ErrorClass::Full
    }

    /// The class of the error, which says what follows from it.
    pub(crate) fn class(&self) -> ErrorClass {
        match self {
            Self::ConnectDeadline { .. }
            | Self::StatementDeadline { .. }
            | Self::Replaced { .. }
            | Self::Unsuitable { .. }
            | Self::Lookup { .. } => ErrorClass::Away,
            Self::Lost {
                cause, sqlstate, ..
            } => {
                let code = sqlstate.as_deref().unwrap_or(sqlstate::LOST);
                ErrorClass::of_connection(code, cause)
            }
            Self::NoDescriptors { .. } => ErrorClass::Full,
            Self::NoPassword { .. } => ErrorClass::Refused,
            Self::Tls(_)
            | Self::PasswordFile { .. }
            | Self::FilesDeadline { .. }
            | Self::NotAtHome => ErrorClass::Ours,
            Self::Home(error) => error.class(),
            Self::EveryAttempt(errors) => {
                let classes = errors.iter().map(Self::class);
                classes.max().unwrap_or(ErrorClass::Away)
            }
            Self::Connect { error, .. } => class_of(error, |said| {
                ErrorClass::of_connection(said.code().code(), said.message())
            }),
            Self::Statement { error, .. } => class_of(error, |said| {
                let code = said.code().code();
                ErrorClass::of_statement(code, said.message(), said.routine())
            }),
        }
    }

    /// Returns `true` if some host gave no answer in time.
    pub(super) fn is_silence(&self) -> bool {
        match self {
            Self::ConnectDeadline { .. } => true,
            Self::EveryAttempt(errors) => errors.iter().any(Self::is_silence),
            _ => false,
        }
    }

    /// Returns `true` if the server says that only the statement failed: its session goes on, whatever the SQLSTATE is. A
    /// statement that calls another server may fail with the one of a lost connection. A pooler that says so names no
    /// place in the server's source: old ones call it an error that their server is gone, and close the connection.
    pub(crate) fn leaves_the_session(&self) -> bool {
        let Self::Statement { error, .. } = self else {
            return false;
        };
        let said = error.as_db_error();
        let is_the_servers = said.and_then(DbError::routine).is_some();
        is_the_servers && said.and_then(DbError::parsed_severity) == Some(Severity::Error)
    }

    /// What is known of the reason for which the session ended, if this error ended it. A deadline says nothing of it.
    pub(crate) fn session_end(&self) -> SessionEnd {
        match self {
            Self::Statement { error, .. } => {
                let said = error.as_db_error();
                said.map_or(SessionEnd::Silent, |said| {
                    sqlstate::session_end(said.code().code(), said.message())
                })
            }
            Self::Lost {
                cause, sqlstate, ..
            } => sqlstate::session_end(sqlstate.as_deref().unwrap_or(sqlstate::LOST), cause),
            _ => SessionEnd::Unrelated,
        }
    }

    /// The position, from 1, of the character of its statement that the server's error is about.
    pub(crate) fn position(&self) -> Option<usize> {
        let Self::Statement { error, .. } = self else {
            return None;
        };
        match error.as_db_error()?.position()? {
            ErrorPosition::Original(character) => usize::try_from(*character).ok(),
            ErrorPosition::Internal { .. } => None,
        }
    }

    /// The word and the sentence with which the statement undid itself; `None` if this is another error.
    pub(crate) fn undone(&self) -> Option<(&str, &str)> {
        let Self::Statement { error, .. } = self else {
            return None;
        };
        let said = error.as_db_error()?;
        sqlstate::undone(said.code().code(), said.message())
    }

    /// Returns `true` if a row may be at fault that the statement has met, whatever the SQLSTATE is: triggers raise any.
    pub(crate) fn may_be_of_a_row(&self) -> bool {
        let is_about_others = matches!(
            self.class(),
            ErrorClass::InTheWay
                | ErrorClass::OutOfDate
                | ErrorClass::ReadOnly
                | ErrorClass::Cancelled
        );
        self.leaves_the_session() && !is_about_others
    }

    /// Returns `true` if a message could not be encoded, such as a name with NUL in it: nothing was sent, and the fault
    /// is bgworker's alone.
    pub(super) fn is_ours(error: &tokio_postgres::Error) -> bool {
        io_error(error).is_some_and(|error| error.kind() == io::ErrorKind::InvalidInput)
    }

    /// The error of an attempt to connect.
    pub(super) fn of_attempt(target: String, error: tokio_postgres::Error) -> Self {
        // The client library has no kind for this error.
        if causes(&error).any(|cause| cause.to_string() == "password missing") {
            Self::NoPassword { target }
        } else {
            Self::Connect { target, error }
        }
    }

    /// The error of several attempts.
    pub(super) fn of_each(mut errors: Vec<Self>) -> Self {
        // If refused the same way with encryption and without, once is enough.
        errors.dedup_by_key(|error| error.to_string());
        match <[Self; 1]>::try_from(errors) {
            Ok([error]) => error,
            Err(errors) => Self::EveryAttempt(errors),
        }
    }
}

/// The class of a client library error: from what the server said, or else from what happened to the connection.
fn class_of(
    error: &tokio_postgres::Error,
    of_server: impl FnOnce(&DbError) -> ErrorClass,
) -> ErrorClass {
    if let Some(said) = error.as_db_error() {
        of_server(said)
    } else if let Some(error) = io_error(error) {
        match error.kind() {
            io::ErrorKind::InvalidInput => ErrorClass::Ours,
            _ => ErrorClass::of_system(error),
        }
    } else if error.is_closed() || is_unexpected_end(error) {
        ErrorClass::Away
    } else {
        // The client and the server cannot agree: encryption, authentication.
        ErrorClass::Refused
    }
}

/// What to do about a refusal that is recognized here.
fn hint(error: &tokio_postgres::Error) -> &'static str {
    let refused = error.as_db_error().map_or("", DbError::message);
    if refused.starts_with("unsupported startup parameter") {
        "; HINT: a pooler that hands out another session for each transaction needs prepare = false"
    } else {
        ""
    }
}

/// The system's error, at any depth of the causes.
fn io_error(error: &tokio_postgres::Error) -> Option<&io::Error> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

/// Returns `true` if a socket closed during the TLS handshake, which surfaces as a TLS error.
fn is_unexpected_end(error: &tokio_postgres::Error) -> bool {
    causes(error).any(|cause| cause.to_string().contains("unexpected EOF"))
}

/// Returns `true` if a connection failed in its TLS handshake.
pub(super) fn is_handshake(error: &tokio_postgres::Error) -> bool {
    causes(error).any(|cause| cause.downcast_ref::<native_tls::Error>().is_some())
}

/// The causes of a tokio-postgres error, from the outside in.
fn causes(
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
        if let Some(reported) = self.0.as_db_error() {
            return Report(reported).fmt(f);
        }
        write!(f, "{}", self.0)?;
        causes(self.0).try_for_each(|cause| write!(f, ": {cause}"))
    }
}

// === impl Report ===

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(reported) = self;
        let (severity, message) = (OneLine(reported.severity()), OneLine(reported.message()));
        let code = reported.code().code();
        write!(f, "{severity}: {message} (SQLSTATE {code})")?;
        if let Some(detail) = reported.detail() {
            let detail = detail.replace(HINT, ", HINT: ");
            write!(f, "{DETAIL}{}", OneLine(&detail))?;
        }
        if let Some(hint) = reported.hint() {
            write!(f, "{HINT}{}", OneLine(hint))?;
        }
        Ok(())
    }
}
