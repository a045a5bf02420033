//! What an incarnation reports to its Postmaster.

use std::sync::Arc;

use crate::background_worker::{ExitStatus, Incarnation};

/// A report of an incarnation: `Ready` at most once, by its main; `Exited` exactly once and
/// last, by its actor.
///
/// Not an actix message: a mailbox is drained within one poll, and a fleet that ends all at once
/// would keep everything else on the thread waiting. A tokio channel stops at its budget.
#[derive(Debug)]
pub(crate) struct WorkerReport {
    pub(crate) incarnation: Incarnation,
    pub(crate) event: WorkerEvent,
}

#[derive(Debug)]
pub(crate) enum WorkerEvent {
    Ready,
    Exited {
        exit: ExitStatus,
        /// Why it ended, unless it finished.
        reason: Option<Reason>,
    },
}

/// Why an incarnation ended.
#[derive(Clone, Debug)]
pub(crate) struct Reason {
    pub(crate) text: Arc<str>,
    pub(crate) sqlstate: Option<Arc<str>>,
    /// Its main panicked, which is a fault even if the worker was asked to stop.
    pub(crate) panicked: bool,
}
