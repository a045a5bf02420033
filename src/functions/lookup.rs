//! The table of functions, by name: the built-in ones, and those of the program that embeds bgworker.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::function::{Entry, Function};
use super::rollup::Rollup;
use super::sql::Sql;
use super::worker_spi::WorkerSpi;

/// The functions that a worker can run, by name.
///
/// ```
/// use bgworker::config::Functions;
///
/// let functions = Functions::built_in(); // .with(Prune::new(pool)), and so on
/// assert!(functions.names().any(|name| name == "worker_spi"));
/// ```
#[derive(Clone)]
pub struct Functions(BTreeMap<&'static str, Arc<dyn Entry>>);

// === impl Functions ===

impl Functions {
    /// The function that a worker runs unless it names another.
    pub(crate) const DEFAULT: &'static str = WorkerSpi::NAME;

    /// The built-in functions.
    #[must_use]
    pub fn built_in() -> Self {
        Self(BTreeMap::new()).with(Rollup).with(Sql).with(WorkerSpi)
    }

    /// Adds a function. It replaces one of the same name.
    #[must_use]
    pub fn with<F: Function>(mut self, function: F) -> Self {
        self.0.insert(F::NAME, Arc::new(function));
        self
    }

    /// The names, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.keys().copied()
    }

    /// The function of this name. Mirrors `LookupBackgroundWorkerFunction`.
    pub(crate) fn lookup(&self, name: &str) -> Option<Arc<dyn Entry>> {
        self.0.get(name).cloned()
    }
}

impl Default for Functions {
    fn default() -> Self {
        Self::built_in()
    }
}

impl fmt::Debug for Functions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}
