//! The function `rollup`: totals by key. Applications insert deltas into a queue; the worker folds them into the totals
//! of their keys, and a view shows both together, exact at every moment.
//!
//! The sample is a roll-up without a key, and `folding` holds what both share. This module adds the keys: a statement
//! that folds deltas of any number of keys exactly, a look at tables that are the application's, and the handling of a
//! key that cannot be folded.

mod by_key;
mod check;
mod columns;
mod halving;
mod in_parts;
mod judge;
mod look;
mod objects;
mod poison;
mod ranges;
mod relations;
mod sample;
mod settings;
mod shape;
mod statement;
mod tables;
mod turn;
mod view;
mod width;

use tokio::sync::watch;

use self::by_key::ByKey;
pub use self::settings::{OnPoison, Settings};
use self::shape::Number;
use super::folding::{Folding, Known};
use super::function::{Claim, Function, Mistake, Objects};
use super::runner;
use crate::background_worker::BackgroundWorker;
use crate::context::{Main, WorkerContext};

/// The figure that counts the rows that a roll-up has folded.
pub const ROWS_FOLDED: &str = super::folding::ROWS_FOLDED;

/// The figure that counts the rows that were moved to the table for poison.
pub const ROWS_REJECTED: &str = "rows_rejected";

/// The figure that counts the totals that folds have added to: a total counts once per fold.
pub const KEYS: &str = "keys";

/// The figure that estimates how many rows wait to be folded.
pub const PENDING_ESTIMATE: &str = "pending_estimate";

/// The function `rollup` of a configuration file.
pub(super) struct Rollup;

// === impl Rollup ===

impl Function for Rollup {
    const NAME: &'static str = "rollup";
    const IN_PLACE: &'static [&'static str] = &["naptime", "batch", "fold_time", "vacuum_after"];

    type Settings = Settings;

    fn schema() -> serde_json::Value {
        crate::keys::schema::of::<Settings>()
    }

    fn check(&self, settings: &mut Settings, worker: &BackgroundWorker) -> Vec<Mistake> {
        settings.check(worker)
    }

    fn claims(&self, settings: &Settings) -> Vec<Claim> {
        let mut totals = Claim::table("totals", settings.database.as_deref(), &settings.totals);
        if settings.view.is_some() {
            totals = totals
                .alone("it adds to them too, and a view that knows one queue would not be exact");
        }
        let queue = Claim::table("queue", settings.database.as_deref(), &settings.queue);
        vec![
            queue.alone("it takes its rows too, and each would get a part of them"),
            totals,
        ]
    }

    fn objects(&self, settings: &Settings, role: &str) -> Objects {
        let rejected = settings.rejected();
        let rejected = rejected.map(|rejected| objects::create_rejected(settings, &rejected));
        let view = settings.view.iter();
        let view = view.flat_map(|view| view::create(settings, view, Number::BigInt));
        let mut statements: Vec<_> = rejected.into_iter().chain(view).collect();
        statements.extend(objects::grant(settings, role));
        Objects {
            database: settings.database.clone(),
            statements,
        }
    }

    fn main(&self, settings: watch::Receiver<Settings>) -> impl Main {
        let known = Known::default();
        move |context: WorkerContext| {
            let folding = Folding::new(ByKey::default(), known.clone());
            runner::run(context, settings.clone(), Clone::clone, folding)
        }
    }
}
