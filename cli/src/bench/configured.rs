//! Workers that a bench measures, written as in a configuration file.

use std::error::Error;

use bgworker::Postmaster;
use bgworker::PostmasterHandle;
use bgworker::config::{self, ConfigFile, Functions, Sources};
use bgworker::database::{self, Database};
use bgworker::reload::InForce;
use bgworker::supervision::{Limits, Shutdown};

use super::ground::Ground;

/// Running workers.
pub(super) struct Configured {
    pub(super) postmaster: PostmasterHandle,
    _in_force: InForce,
}

// === impl Configured ===

impl Configured {
    /// Starts the workers that a piece of configuration describes, with these database settings.
    pub(super) async fn start(
        ground: &Ground,
        workers: &str,
        database: database::Settings,
    ) -> Result<Self, Box<dyn Error>> {
        let sources = Sources {
            file: Some(ConfigFile {
                path: "workers of the bench".into(),
                text: format!(
                    "[database]\nurl = \"postgresql://\"\n[postmaster]\nmax_workers = 20000\n{workers}"
                ),
            }),
            ..Sources::default()
        };
        let settings = config::read(&sources, &Functions::built_in())?;
        let database = Database::new(ground.conninfo.clone(), database)?;
        let limits = Limits::default()
            .max_workers(settings.workers.len())
            .starts_per_tick(Limits::STARTS_PER_TICK_MAX);
        let postmaster = Postmaster::launch(limits, Some(database))?;
        Ok(Self {
            _in_force: InForce::register(settings, postmaster.clone()).await?,
            postmaster,
        })
    }

    pub(super) async fn stop(self) -> Result<(), Box<dyn Error>> {
        self.postmaster.shut_down(Shutdown::Smart);
        self.postmaster.exited().await?;
        Ok(())
    }
}
