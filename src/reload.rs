//! Settings in force: the workers of a configuration, registered with a Postmaster and changed while they run.
//!
//! Decides nothing: what a reload has to do is a [`difference`]. Reads no file and handles no signal: the embedding
//! program says when to reload.

use std::collections::HashMap;
use std::sync::Arc;

use tracing::{info, warn};

use crate::config::{Change, Settings, WorkerSettings, difference};
use crate::functions::SettingsSender;
use crate::postmaster::{PostmasterHandle, RequestError, WorkerHandle};

/// The settings in force, and the workers that were registered from them.
///
/// ```no_run
/// use bgworker::config::{self, Functions, Sources};
/// use bgworker::reload::InForce;
/// use bgworker::{Postmaster, PostmasterHandle};
///
/// async fn serve(sources: Sources, postmaster: PostmasterHandle) -> Result<(), Box<dyn std::error::Error>> {
///     let functions = Functions::built_in();
///     let mut in_force = InForce::register(config::read(&sources, &functions)?, postmaster).await?;
///     // … at a SIGHUP, with the file read again:
///     in_force.reload(config::read(&sources, &functions)?).await?;
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct InForce {
    settings: Settings,
    postmaster: PostmasterHandle,
    workers: HashMap<Arc<str>, Registered>,
}

/// A worker, and the channel by which new settings reach its main.
#[derive(Debug)]
struct Registered {
    handle: WorkerHandle,
    settings: SettingsSender,
}

// === impl InForce ===

impl InForce {
    /// Registers every worker of the settings. A worker that the Postmaster refuses is left out; the refusal is logged.
    ///
    /// # Errors
    ///
    /// If the Postmaster is gone.
    pub async fn register(
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

    /// Applies what has changed, logs one line for each change and for each that needs a restart, and passes a Sighup
    /// to all workers. A worker that was stopped for good, since it failed more often than its limit allows, begins again.
    ///
    /// A worker that is replaced ends after its cycle first, or is aborted after `shutdown_timeout`.
    ///
    /// # Errors
    ///
    /// If the Postmaster is gone.
    pub async fn reload(&mut self, mut new: Settings) -> Result<(), RequestError> {
        for change in difference(&self.settings, &new) {
            self.apply(change).await?;
        }
        for worker in &new.workers {
            self.add_again(worker).await?;
        }
        // What needs a restart stays as it was, and is reported again at the next reload.
        new.server = self.settings.server.clone();
        new.http = self.settings.http.clone();
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
                // Nothing may have been meant to be removed: a file that is read while it is written ends early.
                warn!(worker = %name, "worker \"{name}\" removed: it ends, since the configuration no longer has it");
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
                    // It ends after its cycle, or is aborted: this wait has an end.
                    let _ = replaced.handle.stopped().await;
                }
                self.add(&worker).await?;
            }
            Change::InPlace { worker, keys } => {
                let WorkerSettings { worker, function } = worker;
                let name = &worker.name;
                info!(worker = %name, "parameters of worker \"{name}\" changed: {}", keys.join(", "));
                if let Some(registered) = self.workers.get(name) {
                    let (restart_time, limit) = (worker.restart_time, worker.restart_limit);
                    registered.handle.set_restart(restart_time, limit).await?;
                    registered.settings.send(&function);
                }
            }
        }
        Ok(())
    }

    /// Registers a worker again that was stopped for good: a reload says that what was wrong has been seen to.
    async fn add_again(&mut self, worker: &WorkerSettings) -> Result<(), RequestError> {
        let name = &worker.worker.name;
        let ended = (self.workers.get(name)).and_then(|registered| registered.handle.ended());
        if ended.is_some_and(|ended| ended.gave_up) {
            info!(worker = %name, "worker \"{name}\" begins again, after it was stopped for good");
            self.add(worker).await?;
        }
        Ok(())
    }

    async fn add(&mut self, worker: &WorkerSettings) -> Result<(), RequestError> {
        let (main, settings) = worker.function.launch();
        let registered = self.postmaster.register(worker.worker.clone(), main).await;
        let handle = match registered {
            Ok(handle) => handle,
            // The Postmaster has logged it already; the other workers must not suffer for it.
            Err(RequestError::Refused(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        let name = Arc::clone(&worker.worker.name);
        self.workers.insert(name, Registered { handle, settings });
        Ok(())
    }
}
