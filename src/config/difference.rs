//! What a reload has to do: the difference of two settings, as values.

use std::path::Path;
use std::sync::Arc;

use super::settings::{Server, Settings, WorkerSettings};
use crate::background_worker::BackgroundWorker;
use crate::database::{ConnInfo, Settings as DatabaseSettings};
use crate::functions::worker_spi;
use crate::supervision::Limits;

/// One thing that a reload has to do, or cannot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A worker is there that was not.
    Added(WorkerSettings),
    /// A worker is not there that was.
    Removed(Arc<str>),
    /// A worker is another one now: the old one ends after its cycle, the new one is registered.
    Replaced {
        /// The new one; the name is that of the old one too.
        worker: WorkerSettings,
        /// The keys that make it another one.
        keys: Vec<&'static str>,
    },
    /// A worker goes on with other settings.
    InPlace {
        /// With these.
        worker: WorkerSettings,
        /// The keys that changed.
        keys: Vec<&'static str>,
    },
    /// The Postmaster goes on with other limits.
    Limits {
        /// With these.
        limits: Limits,
        /// The keys that changed.
        keys: Vec<&'static str>,
    },
    /// A parameter that cannot be changed while the process runs.
    NeedsRestart {
        /// Its key.
        parameter: &'static str,
    },
}

/// What has to be done to come from one to the other: the Postmaster's limits first, then what
/// goes, then what stays and what comes, in the order of the new settings.
///
/// A worker that is renamed is removed and added.
#[must_use]
pub fn difference(old: &Settings, new: &Settings) -> Vec<Change> {
    let mut changes = Vec::new();
    let DatabaseSettings {
        connect_timeout,
        statement_timeout,
        password_file,
        connections,
        prepare,
    } = &old.database_settings;
    let database = &new.database_settings;
    let (is_embedded, data_dir) = embedded(&old.server);
    let (will_be_embedded, new_data_dir) = embedded(&new.server);
    let needs_restart = those_that_differ([
        ("database.embedded", is_embedded == will_be_embedded),
        ("database.data_dir", data_dir == new_data_dir),
        ("database.url", given(&old.server) == given(&new.server)),
        (
            "database.connect_timeout",
            *connect_timeout == database.connect_timeout,
        ),
        (
            "database.statement_timeout",
            *statement_timeout == database.statement_timeout,
        ),
        (
            "database.password_file",
            *password_file == database.password_file,
        ),
        ("database.connections", *connections == database.connections),
        ("database.prepare", *prepare == database.prepare),
        ("http.listen", old.http_listen == new.http_listen),
    ]);
    let needs_restart = needs_restart.into_iter();
    changes.extend(needs_restart.map(|parameter| Change::NeedsRestart { parameter }));
    let keys = limits_that_differ(&old.limits, &new.limits);
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

/// Whether a server is a private one, and where its files lie.
fn embedded(server: &Server) -> (bool, Option<&Path>) {
    match server {
        Server::Given { .. } => (false, None),
        Server::Embedded { data_dir } => (true, data_dir.as_deref()),
    }
}

/// Where a server is that runs somewhere.
fn given(server: &Server) -> Option<&ConnInfo> {
    match server {
        Server::Given { conninfo, .. } => Some(conninfo),
        Server::Embedded { .. } => None,
    }
}

fn limits_that_differ(old: &Limits, new: &Limits) -> Vec<&'static str> {
    let Limits {
        max_workers,
        starts_per_tick,
        shutdown_timeout,
    } = old;
    those_that_differ([
        ("max_workers", *max_workers == new.max_workers),
        ("starts_per_tick", *starts_per_tick == new.starts_per_tick),
        (
            "shutdown_timeout",
            *shutdown_timeout == new.shutdown_timeout,
        ),
    ])
}

fn worker_that_differs(old: &WorkerSettings, new: &WorkerSettings) -> Option<Change> {
    // Taken apart whole, so that a new field cannot be forgotten.
    let BackgroundWorker {
        name: _,
        access,
        start_time,
        restart_time,
        restart_limit,
    } = &old.worker;
    let worker_spi::Settings {
        table,
        naptime,
        batch,
        fold,
        vacuum_after,
        database,
        connection,
        initial_total,
    } = &old.spi;
    let keys = those_that_differ([
        ("access", *access == new.worker.access),
        ("start_time", *start_time == new.worker.start_time),
        ("schema", table.schema() == new.spi.table.schema()),
        ("table", table.name() == new.spi.table.name()),
        ("database", *database == new.spi.database),
        ("connection", *connection == new.spi.connection),
        ("fold", *fold == new.spi.fold),
        ("initial_total", *initial_total == new.spi.initial_total),
    ]);
    let worker = new.clone();
    if !keys.is_empty() {
        return Some(Change::Replaced { worker, keys });
    }
    let keys = those_that_differ([
        ("restart_time", *restart_time == new.worker.restart_time),
        ("max_restarts", *restart_limit == new.worker.restart_limit),
        ("naptime", *naptime == new.spi.naptime),
        ("batch", *batch == new.spi.batch),
        ("vacuum_after", *vacuum_after == new.spi.vacuum_after),
    ]);
    (!keys.is_empty()).then_some(Change::InPlace { worker, keys })
}

fn those_that_differ<const N: usize>(keys: [(&'static str, bool); N]) -> Vec<&'static str> {
    let differ = keys.into_iter().filter(|(_, same)| !same);
    differ.map(|(key, _)| key).collect()
}
