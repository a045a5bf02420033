//! What a handle sends to the Postmaster.

use std::sync::Arc;

use actix::Message;
use tokio::sync::{broadcast, oneshot};

use super::event::{Event, Milestone, WaitError};
use super::handle::{End, EndedWorker, Status, WorkerStatus};
use crate::background_worker::{
    BackgroundWorker, InvalidWorker, RestartLimit, RestartTime, WorkerId,
};
use crate::context::Main;
use crate::supervision::{Limits, RegisterError};

/// Registers a worker. See [`PostmasterHandle::register`](super::PostmasterHandle::register).
#[derive(Message)]
#[rtype(result = "Result<Registered, RegisterError>")]
pub(super) struct Register {
    pub(super) worker: BackgroundWorker,
    pub(super) main: Arc<dyn Main>,
}

/// A worker that was registered, and where its end will be found.
pub(super) struct Registered {
    pub(super) id: WorkerId,
    pub(super) end: End,
}

/// Asks to be told when a worker has come so far, or that it will not.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Wait {
    pub(super) worker: WorkerId,
    pub(super) milestone: Milestone,
    pub(super) waiter: oneshot::Sender<Result<(), WaitError>>,
}

/// Asks for all that happens from now on.
#[derive(Debug, Message)]
#[rtype(result = "broadcast::Receiver<Event>")]
pub(super) struct Subscribe;

/// Stops a worker for good. See [`WorkerHandle::terminate`](super::WorkerHandle::terminate).
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Terminate(pub(super) WorkerId);

/// Sets other limits. See [`PostmasterHandle::set_limits`](super::PostmasterHandle::set_limits).
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct SetLimits(pub(super) Limits);

/// Sets other rules for a worker's restarts. See [`WorkerHandle::set_restart`](super::WorkerHandle::set_restart).
#[derive(Debug, Message)]
#[rtype(result = "Result<(), InvalidWorker>")]
pub(super) struct SetRestart {
    pub(super) worker: WorkerId,
    pub(super) restart_time: RestartTime,
    pub(super) restart_limit: Option<RestartLimit>,
}

/// Asks for counts and level.
#[derive(Debug, Message)]
#[rtype(result = "Status")]
pub(super) struct GetStatus;

/// Asks for one worker, by its handle.
#[derive(Debug, Message)]
#[rtype(result = "Option<WorkerStatus>")]
pub(super) struct GetWorker(pub(super) WorkerId);

/// Asks for every registered worker, in registration order, and the last ones that ended.
#[derive(Debug, Message)]
#[rtype(result = "(Vec<WorkerStatus>, Vec<EndedWorker>)")]
pub(super) struct GetWorkers;

/// Sets what runs between the last stop and the first start of a reset.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct OnReset(pub(super) ResetHook);

/// What an embedder runs to make anew what its workers share.
pub(super) type ResetHook = Box<dyn FnMut() + Send>;
