//! Checked settings: what can be registered and connected to as it is.

use std::path::PathBuf;

use super::problem::Origin;
use super::sections::Http;
use crate::background_worker::BackgroundWorker;
use crate::database::{ConnInfo, Settings as DatabaseSettings};
use crate::functions::FunctionSettings;
use crate::supervision::Limits;

/// Everything that was set, checked.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Settings {
    /// The server that the workers use.
    pub server: Server,
    /// How the server is talked to: the other keys of `[database]`.
    pub database_settings: DatabaseSettings,
    /// The Postmaster's limits.
    pub limits: Limits,
    /// Where the Postmaster is served over HTTP.
    pub http: Http,
    /// The workers, in the order in which they are registered.
    pub workers: Vec<WorkerSettings>,
    /// Every setting in force, to be shown to people.
    pub shown: Vec<Setting>,
}

/// The server that the workers use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// A server that runs already.
    Given {
        /// Where it is, and how to connect to it.
        conninfo: Box<ConnInfo>,
        /// `true` if a private server was asked for as well, and is not started.
        instead_of_embedded: bool,
    },
    /// None is given, which only [`read_without_server`](super::read_without_server) allows.
    NotGiven,
    /// A private one, made from the binaries of this machine.
    Embedded {
        /// Where its files are; unless set, a default that depends on the user that runs it.
        data_dir: Option<PathBuf>,
    },
}

/// One worker, as it is registered and as it is run.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerSettings {
    /// The worker's registration.
    pub worker: BackgroundWorker,
    /// The function that it runs, with its settings.
    pub function: FunctionSettings,
}

/// One setting in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its key, with the section or the worker that it stands in.
    pub key: String,
    /// The worker that it is of, by its place in the configuration.
    pub worker: Option<usize>,
    /// Its function does not show its value to other people.
    pub is_hidden: bool,
    /// Its value, as TOML, without secrets.
    pub value: String,
    /// Where it comes from.
    pub origin: Origin,
}

// === impl Setting ===

impl Setting {
    /// Its key, without the section or the worker.
    #[must_use]
    pub fn name(&self) -> &str {
        self.key.rsplit('.').next().unwrap_or_default()
    }
}
