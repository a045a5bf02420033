//! What a reload has to do: the difference between two settings, as values.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::sections::{DATABASE, HTTP};
use super::settings::{Server, Settings, WorkerSettings};
use crate::database::ConnInfo;
use crate::keys;
use crate::supervision::Limits;

/// The keys of every worker that can change while it runs; its function may have more.
const IN_PLACE: [&str; 2] = ["restart_time", "max_restarts"];

/// One thing that a reload has to do, or cannot.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A worker is new.
    Added(WorkerSettings),
    /// A worker is gone.
    Removed(Arc<str>),
    /// A worker has become another one: the old one ends after its cycle, the new one is registered.
    Replaced {
        /// The new worker, which has the old one's name.
        worker: WorkerSettings,
        /// The keys that make it another worker.
        keys: Vec<String>,
    },
    /// A worker goes on with new settings.
    InPlace {
        /// The worker with its new settings.
        worker: WorkerSettings,
        /// The keys that changed.
        keys: Vec<String>,
    },
    /// The Postmaster goes on with new limits.
    Limits {
        /// The new limits.
        limits: Limits,
        /// The keys that changed.
        keys: Vec<String>,
    },
    /// A parameter that cannot be changed while the process runs.
    NeedsRestart {
        /// Its key.
        parameter: String,
    },
}

/// What has to be done to get from `old` to `new`: first the parameters that need a restart, then the
/// Postmaster's limits, then the workers that go, then those that stay or come, in the order of `new`.
///
/// A worker that is renamed is removed and added.
#[must_use]
pub fn difference(old: &Settings, new: &Settings) -> Vec<Change> {
    let mut changes = Vec::new();
    let (is_embedded, data_dir) = embedded(&old.server);
    let (will_be_embedded, new_data_dir) = embedded(&new.server);
    let server = [
        ("embedded", is_embedded == will_be_embedded),
        ("data_dir", data_dir == new_data_dir),
        ("url", given(&old.server) == given(&new.server)),
    ];
    let server = server.into_iter().filter(|(_, is_same)| !is_same);
    let database = server
        .map(|(key, _)| key.to_owned())
        .chain(differing(&old.database_settings, &new.database_settings));
    let database = database.map(|key| format!("{DATABASE}.{key}"));
    let http = differing(&old.http, &new.http).into_iter();
    let http = http.map(|key| format!("{HTTP}.{key}"));
    let needs_restart = database.chain(http);
    changes.extend(needs_restart.map(|parameter| Change::NeedsRestart { parameter }));
    let keys = differing(&old.limits, &new.limits);
    if !keys.is_empty() {
        let limits = new.limits.clone();
        changes.push(Change::Limits { limits, keys });
    }
    let named = |workers: &[WorkerSettings], name: &str| {
        let worker = workers.iter().find(|worker| &*worker.worker.name == name);
        worker.cloned()
    };
    let gone = old.workers.iter().map(|worker| &worker.worker.name);
    let gone = gone.filter(|name| named(&new.workers, name).is_none());
    changes.extend(gone.cloned().map(Change::Removed));
    for worker in &new.workers {
        match named(&old.workers, &worker.worker.name) {
            None => changes.push(Change::Added(worker.clone())),
            Some(old) => changes.extend(worker_that_differs(&old, worker)),
        }
    }
    changes
}

/// Whether a server is a private one, and where its files are.
fn embedded(server: &Server) -> (bool, Option<&Path>) {
    match server {
        Server::Given { .. } | Server::NotGiven => (false, None),
        Server::Embedded { data_dir } => (true, data_dir.as_deref()),
    }
}

/// The connection settings of a server that runs already.
fn given(server: &Server) -> Option<&ConnInfo> {
    match server {
        Server::Given { conninfo, .. } => Some(conninfo),
        Server::Embedded { .. } | Server::NotGiven => None,
    }
}

fn worker_that_differs(old: &WorkerSettings, new: &WorkerSettings) -> Option<Change> {
    let worker = new.clone();
    let mut keys = differing(&old.worker, &new.worker);
    if old.function.name() == new.function.name() {
        let values = |worker: &WorkerSettings| worker.function.values().unwrap_or_default();
        keys.extend(keys::that_differ(&values(old), &values(new)));
    } else {
        keys.push("function".to_owned());
    }
    let is_in_place = |key: &String| IN_PLACE.contains(&&**key) || new.function.is_in_place(key);
    if keys.iter().all(is_in_place) {
        return (!keys.is_empty()).then_some(Change::InPlace { worker, keys });
    }
    keys.retain(|key| !is_in_place(key));
    Some(Change::Replaced { worker, keys })
}

/// The keys of a struct whose values differ.
fn differing<T: Serialize>(old: &T, new: &T) -> Vec<String> {
    // Both were shown when they were read, so their values can be listed.
    let values = |settings| keys::values(settings).unwrap_or_default();
    keys::that_differ(&values(old), &values(new))
}
