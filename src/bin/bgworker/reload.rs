//! What a reload may change while the workers run: their naptimes.

use std::collections::HashMap;
use std::sync::Arc;

use bgworker::config::{Settings, WorkerSettings};
use bgworker::worker_spi;
use tokio::sync::watch;
use tracing::{info, warn};

/// The settings in force, and the way to the workers that read theirs.
#[derive(Debug)]
pub(crate) struct InForce {
    settings: Settings,
    workers: HashMap<Arc<str>, watch::Sender<worker_spi::Settings>>,
}

// === impl InForce ===

impl InForce {
    pub(crate) fn new(settings: Settings) -> Self {
        let workers = settings
            .workers
            .iter()
            .map(|WorkerSettings { worker, spi }| {
                let (sender, _) = watch::channel(spi.clone());
                (Arc::clone(&worker.name), sender)
            });
        Self {
            workers: workers.collect(),
            settings,
        }
    }

    /// The workers, each with the way by which its settings reach it.
    pub(crate) fn workers(
        &self,
    ) -> impl Iterator<Item = (&WorkerSettings, watch::Receiver<worker_spi::Settings>)> {
        self.settings.workers.iter().filter_map(|worker| {
            let sender = self.workers.get(&worker.worker.name)?;
            Some((worker, sender.subscribe()))
        })
    }

    /// Applies what may change, and says in one line each what did and what could not.
    pub(crate) fn apply(&mut self, new: Settings) {
        for worker in &mut self.settings.workers {
            let name = &worker.worker.name;
            let with_name = |new: &&WorkerSettings| new.worker.name == *name;
            let Some(new) = new.workers.iter().find(with_name) else {
                warn!(worker = %name, "worker \"{name}\" cannot be removed without restarting");
                continue;
            };
            if worker.spi.naptime != new.spi.naptime {
                worker.spi.naptime = new.spi.naptime;
                let naptime = humantime::format_duration(new.spi.naptime);
                info!(worker = %name, "parameter \"naptime\" changed to \"{naptime}\"");
                if let Some(sender) = self.workers.get(name) {
                    sender.send_modify(|spi| spi.naptime = new.spi.naptime);
                }
            }
            if worker != new {
                warn!(worker = %name, "worker \"{name}\" cannot be changed without restarting");
            }
        }
        for new in &new.workers {
            let name = &new.worker.name;
            if !self.workers.contains_key(name) {
                warn!(worker = %name, "worker \"{name}\" cannot be added without restarting");
            }
        }
        for (parameter, same) in [
            ("database", self.settings.server == new.server),
            ("deadlines", self.settings.deadlines == new.deadlines),
            ("postmaster", self.settings.limits == new.limits),
        ] {
            if !same {
                warn!("parameter \"{parameter}\" cannot be changed without restarting");
            }
        }
    }
}
