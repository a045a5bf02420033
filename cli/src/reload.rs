//! Settings in force: registered at the start, changed by a reload, while the workers run.

use std::collections::HashMap;
use std::sync::Arc;

use bgworker::config::{Change, Settings, WorkerSettings, difference};
use bgworker::{PostmasterHandle, RequestError, WorkerHandle, worker_spi};
use tokio::sync::watch;
use tracing::{info, warn};

/// The settings in force, and the workers that were registered by them.
#[derive(Debug)]
pub(crate) struct InForce {
    settings: Settings,
    postmaster: PostmasterHandle,
    workers: HashMap<Arc<str>, Registered>,
}

/// A worker, and the way by which its settings reach it.
#[derive(Debug)]
struct Registered {
    handle: WorkerHandle,
    settings: watch::Sender<worker_spi::Settings>,
}

// === impl InForce ===

impl InForce {
    /// Registers every worker of the settings.
    pub(crate) async fn register(
        settings: Settings,
        postmaster: PostmasterHandle,
    ) -> Result<Self, RequestError> {
        let mut in_force = Self {
            workers: HashMap::new(),
            postmaster,
            settings: settings.clone(),
        };
        for worker in &settings.workers {
            in_force.add(worker).await?;
        }
        Ok(in_force)
    }

    /// Applies what has changed, and says in one line each what did and what could not.
    pub(crate) async fn reload(&mut self, mut new: Settings) -> Result<(), RequestError> {
        for change in difference(&self.settings, &new) {
            self.apply(change).await?;
        }
        // What needs a restart is still what it was, and is to be named again.
        new.server = self.settings.server.clone();
        new.http_listen = self.settings.http_listen;
        new.database_settings = self.settings.database_settings.clone();
        self.settings = new;
        self.postmaster.sighup();
        Ok(())
    }

    async fn apply(&mut self, change: Change) -> Result<(), RequestError> {
        match change {
            Change::NeedsRestart { parameter } => {
                warn!("parameter \"{parameter}\" cannot be changed without restarting");
            }
            Change::Limits { limits, keys } => {
                info!("parameters of the postmaster changed: {}", keys.join(", "));
                self.postmaster.set_limits(limits);
            }
            Change::Removed(name) => {
                info!(worker = %name, "worker \"{name}\" removed");
                if let Some(removed) = self.workers.remove(&name) {
                    removed.handle.terminate();
                }
            }
            Change::Added(worker) => {
                let name = &worker.worker.name;
                info!(worker = %name, "worker \"{name}\" added");
                self.add(&worker).await?;
            }
            Change::Replaced { worker, keys } => {
                let name = Arc::clone(&worker.worker.name);
                let keys = keys.join(", ");
                info!(worker = %name, "worker \"{name}\" replaced, since it has another {keys}");
                if let Some(replaced) = self.workers.remove(&name) {
                    replaced.handle.terminate();
                    // It ends after its cycle, or is aborted: this does not take for ever.
                    let _ = replaced.handle.stopped().await;
                }
                self.add(&worker).await?;
            }
            Change::InPlace { worker, keys } => {
                let WorkerSettings { worker, spi } = worker;
                let name = &worker.name;
                info!(worker = %name, "parameters of worker \"{name}\" changed: {}", keys.join(", "));
                if let Some(registered) = self.workers.get(name) {
                    let (restart_time, limit) = (worker.restart_time, worker.restart_limit);
                    registered.handle.set_restart(restart_time, limit).await?;
                    registered.settings.send_replace(spi);
                }
            }
        }
        Ok(())
    }

    async fn add(&mut self, worker: &WorkerSettings) -> Result<(), RequestError> {
        let (settings, receiver) = watch::channel(worker.spi.clone());
        let main = worker_spi::main(receiver);
        let registered = self.postmaster.register(worker.worker.clone(), main).await;
        let handle = match registered {
            Ok(handle) => handle,
            // The Postmaster has said so already; the others are not to suffer for it.
            Err(RequestError::Refused(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        let name = Arc::clone(&worker.worker.name);
        self.workers.insert(name, Registered { handle, settings });
        Ok(())
    }
}
