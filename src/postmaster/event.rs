//! Worker lifecycle events, for subscribers, and the milestones that a
//! [`WorkerHandle`](super::WorkerHandle) can wait for.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::oneshot;

use crate::background_worker::{ExitStatus, Incarnation, WorkerId};

/// An event in the life of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// The worker that it happened to.
    pub worker: WorkerId,
    /// The worker's name.
    pub name: Arc<str>,
    /// What happened to it.
    pub kind: EventKind,
}

/// What happened to a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// It was registered.
    Registered,
    /// An incarnation was started.
    Started(Incarnation),
    /// An incarnation reported that it is ready.
    Ready(Incarnation),
    /// An incarnation has ended.
    Exited {
        /// The incarnation that has ended.
        incarnation: Incarnation,
        /// How it ended; stopped however its main ended, if it was asked to stop.
        exit: ExitStatus,
        /// Why, if it did not finish.
        reason: Option<Arc<str>>,
        /// How long after its exit it starts again, if it does.
        restart_in: Option<Duration>,
    },
    /// It was unregistered.
    Unregistered(ExitStatus),
}

/// What a handle can wait for. Later milestones include the earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Milestone {
    Started,
    Ready,
    Unregistered,
}

/// Why a worker did not reach the milestone that a handle waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WaitError {
    /// The worker was unregistered first.
    #[error("the background worker has {0}")]
    Ended(ExitStatus),
    /// A shutdown was requested first.
    #[error("the Postmaster is shutting down")]
    ShuttingDown,
    /// The Postmaster is gone (`BGWH_POSTMASTER_DIED`).
    #[error("the Postmaster has died")]
    PostmasterDied,
}

/// The waiters for milestones of one worker.
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

    /// Answers the waiters for a milestone that the worker has reached.
    pub(super) fn reached(&mut self, milestone: Milestone) {
        self.answer(|wanted| wanted <= milestone, Ok(()));
    }

    /// Tells waiters for a start or for readiness that the worker will not get there.
    pub(super) fn give_up(&mut self, error: WaitError) {
        self.answer(|wanted| wanted < Milestone::Unregistered, Err(error));
    }

    fn answer(&mut self, whom: impl Fn(Milestone) -> bool, answer: Result<(), WaitError>) {
        for (_, waiter) in self.0.extract_if(.., |(wanted, _)| whom(*wanted)) {
            // A waiter that has given up needs no answer.
            let _ = waiter.send(answer);
        }
    }
}
