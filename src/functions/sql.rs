//! The function `sql`: statements at the ticks of a job, or, on standbys as well, between naps.
//!
//! Knows SQL as far as it must to send a text one statement at a time. What a tick is, and that each is run once, is not
//! decided here.

mod settings;
mod statements;
mod work;

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;

pub use self::settings::Settings;
pub use self::statements::InvalidStatements;
use super::function::{Function, Mistake, Objects};
use super::runner;
use super::ticked::{self, Lasting, Napping, Scheduled, When};
use crate::background_worker::{Access, BackgroundWorker};
use crate::context::{Main, WorkerContext};

/// The function `sql` of a configuration file.
pub(super) struct Sql;

// === impl Sql ===

impl Function for Sql {
    const NAME: &'static str = "sql";
    // It uses nothing in this process that another worker's crash could have damaged.
    const ACCESS: Access = Access::None;
    const IN_PLACE: &'static [&'static str] = &[
        "missed",
        "attempts",
        "isolation",
        "timeout",
        "history",
        "connection",
    ];
    // Statements may hold anything.
    const HIDDEN: &'static [&'static str] = &["sql"];

    type Settings = Settings;

    fn schema() -> serde_json::Value {
        crate::keys::schema::of::<Settings>()
    }

    fn look_beside(&self, settings: &mut Settings, directory: &Path) {
        settings.look_beside(directory);
    }

    fn check(&self, settings: &mut Settings, worker: &BackgroundWorker) -> Vec<Mistake> {
        settings.check(worker)
    }

    fn objects(&self, settings: &Settings, role: &str) -> Objects {
        Objects {
            database: settings.database.clone(),
            statements: match settings.naptime {
                Some(_) => Vec::new(),
                None => ticked::objects(role),
            },
        }
    }

    fn needs_session(&self, settings: &Settings) -> Option<&'static str> {
        // A run outside of a transaction takes a lock of its session.
        (!settings.transaction).then_some("transaction")
    }

    fn when(&self, settings: &Settings) -> Option<When> {
        settings.when().ok()
    }

    fn main(&self, settings: watch::Receiver<Settings>) -> impl Main {
        let lasting = Arc::<Lasting>::default();
        move |context: WorkerContext| {
            let (settings, lasting) = (settings.clone(), Arc::clone(&lasting));
            async move {
                // Changing from one to the other makes it another worker.
                let naps = settings.borrow().naptime.is_some();
                if naps {
                    runner::run(context, settings, Settings::naps, Napping::default()).await
                } else {
                    let job = |settings: &Settings| settings.job().map(Arc::new);
                    runner::run(context, settings, job, Scheduled::new(lasting)).await
                }
            }
        }
    }
}
