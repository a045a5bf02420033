//! Why there is no private server: what was tried, on which path, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::binaries::BinariesError;
use super::{START_TIMEOUT, STOP_TIMEOUT};

/// Why there is no private server.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EmbeddedError {
    /// There are no binaries to make a server from.
    #[error(transparent)]
    Binaries(#[from] BinariesError),
    /// This process is root, which PostgreSQL refuses, and there is no other user to run the server as.
    #[error(
        "PostgreSQL cannot run as root, and this machine has no user \"postgres\" to run it as: \
         create one: useradd --system --user-group postgres"
    )]
    NoServerUser,
    /// An operation on a file or a process failed.
    #[error("could not {doing} \"{}\": {source}", .path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The path that it was tried on.
        path: PathBuf,
        /// What the system reported.
        #[source]
        source: io::Error,
    },
    /// Another process serves the data directory.
    #[error(
        "data directory \"{}\" is in use by another server: stop it, or choose another data_dir",
        .data_dir.display()
    )]
    InUse {
        /// The directory.
        data_dir: PathBuf,
    },
    /// The data directory is not empty and belongs to another user.
    #[error(
        "data directory \"{}\" belongs to another user than the one the server runs as: change its \
         owner, or choose another data_dir",
        .data_dir.display()
    )]
    OtherOwner {
        /// The directory.
        data_dir: PathBuf,
    },
    /// The data directory is not empty and is not a cluster.
    #[error(
        "data directory \"{}\" exists but is not a PostgreSQL cluster: empty it, or choose another data_dir",
        .data_dir.display()
    )]
    NotACluster {
        /// The directory.
        data_dir: PathBuf,
    },
    /// `initdb` failed.
    #[error("initdb could not make a cluster in \"{}\": {output}", .data_dir.display())]
    Initdb {
        /// The directory.
        data_dir: PathBuf,
        /// What `initdb` wrote to standard error.
        output: String,
    },
    /// The server ended by itself.
    #[error("the private server in \"{}\" has ended by itself: {log}", .data_dir.display())]
    Ended {
        /// Its directory.
        data_dir: PathBuf,
        /// The end of its log.
        log: String,
    },
    /// The server did not accept connections in time.
    #[error(
        "the server in \"{}\" did not accept connections within {}: {log}",
        .data_dir.display(),
        humantime::format_duration(START_TIMEOUT)
    )]
    StartDeadline {
        /// Its directory.
        data_dir: PathBuf,
        /// The end of its log.
        log: String,
    },
    /// The server did not stop in time; its watchdog keeps trying.
    #[error(
        "the server in \"{}\" did not stop within {}",
        .data_dir.display(),
        humantime::format_duration(STOP_TIMEOUT)
    )]
    StopDeadline {
        /// Its directory.
        data_dir: PathBuf,
    },
}

/// Adds to an error of the system what was tried, and on which path.
pub(super) fn io_error(
    doing: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> EmbeddedError {
    let path = path.to_owned();
    move |source| EmbeddedError::Io {
        doing,
        path,
        source,
    }
}
