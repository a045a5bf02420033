//! What was set, once it is checked: what may be registered and connected to, as it is.

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
    /// Which server.
    pub server: Server,
    /// How long it may take.
    pub database_settings: DatabaseSettings,
    /// What bounds the Postmaster.
    pub limits: Limits,
    /// Where the Postmaster is to be seen over HTTP.
    pub http: Http,
    /// The workers, in the order in which they are registered.
    pub workers: Vec<WorkerSettings>,
    /// Every setting in force, for people.
    pub shown: Vec<Setting>,
}

/// Which server the workers use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// One that runs somewhere.
    Given {
        /// Where it is, and how it is connected to.
        conninfo: Box<ConnInfo>,
        /// Whether a private server was asked for as well, and is not started.
        instead_of_embedded: bool,
    },
    /// A private one, made from the binaries of this machine.
    Embedded {
        /// Where its files lie; a default that depends on who runs it, unless set.
        data_dir: Option<PathBuf>,
    },
}

/// One worker, as it is registered and as it is run.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerSettings {
    /// What the Postmaster is told.
    pub worker: BackgroundWorker,
    /// What it runs, and how that is set.
    pub function: FunctionSettings,
}

/// One setting in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its key.
    pub key: String,
    /// Its value, as TOML, without secrets.
    pub value: String,
    /// Where it comes from.
    pub origin: Origin,
}
