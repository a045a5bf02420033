//! What happens to workers, as those hear it who subscribed, and as those wait for it who hold a
//! handle.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::oneshot;

use crate::background_worker::{ExitStatus, Incarnation, WorkerId};

/// Something happened to a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// To which.
    pub worker: WorkerId,
    /// Its name.
    pub name: Arc<str>,
    /// What happened to it.
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// It was registered.
    Registered,
    /// An incarnation was started.
    Started(Incarnation),
    /// An incarnation said that it is ready.
    Ready(Incarnation),
    /// An incarnation has ended.
    Exited {
        /// The incarnation that has ended.
        incarnation: Incarnation,
        /// How it ended; stopped whatever it said, if it was asked to.
        exit: ExitStatus,
        /// Why, if it did not finish.
        reason: Option<Arc<str>>,
        /// After how long it starts again, if it does.
        restart_in: Option<Duration>,
    },
    /// It was unregistered.
    Unregistered(ExitStatus),
}

/// What a handle can wait for. Later ones include the earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Milestone {
    Started,
    Ready,
    Unregistered,
}

/// Why a worker did not come as far as somebody waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WaitError {
    /// The worker was unregistered before.
    #[error("the background worker has {0}")]
    Ended(ExitStatus),
    /// A shutdown was requested before.
    #[error("the Postmaster is shutting down")]
    ShuttingDown,
    /// The Postmaster is gone (`BGWH_POSTMASTER_DIED`).
    #[error("the Postmaster has died")]
    PostmasterDied,
}

/// Those who wait for a worker to come so far.
#[derive(Debug, Default)]
pub(super) struct Waiters(Vec<(Milestone, oneshot::Sender<Result<(), WaitError>>)>);

// === impl Waiters ===

impl Waiters {
    pub(super) fn push(
        &mut self,
        milestone: Milestone,
        waiter: oneshot::Sender<Result<(), WaitError>>,
    ) {
        self.0.push((milestone, waiter));
    }

    /// The worker has come so far.
    pub(super) fn reached(&mut self, milestone: Milestone) {
        self.answer(|wanted| wanted <= milestone, Ok(()));
    }

    /// The worker will not come as far as some wait for.
    pub(super) fn give_up(&mut self, error: WaitError) {
        self.answer(|wanted| wanted < Milestone::Unregistered, Err(error));
    }

    fn answer(&mut self, whom: impl Fn(Milestone) -> bool, answer: Result<(), WaitError>) {
        for (_, waiter) in self.0.extract_if(.., |(wanted, _)| whom(*wanted)) {
            // Whoever does not wait any more needs no answer.
            let _ = waiter.send(answer);
        }
    }
}
