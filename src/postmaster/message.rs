//! The messages that handles send to the Postmaster, and their handlers, which do as little as they can.

use std::sync::Arc;

use actix::{Handler, Message, MessageResult};
use tokio::sync::{broadcast, oneshot};
use tracing::{debug, warn};

use super::Postmaster;
use super::event::{Event, Milestone, WaitError};
use super::status::{End, Status, WorkerStatus, Workers};
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

impl Handler<Register> for Postmaster {
    type Result = Result<Registered, RegisterError>;

    fn handle(
        &mut self,
        Register { worker, main }: Register,
        ctx: &mut Self::Context,
    ) -> Self::Result {
        let name = Arc::clone(&worker.name);
        debug!(worker = %name, "registering background worker \"{name}\"");
        let registered = self.advance(ctx, |machine, now| machine.register(now, worker));
        let id = registered.inspect_err(|refusal| warn!(worker = %name, "{refusal}"))?;
        let end = self.children.insert(id, name, main);
        Ok(Registered { id, end })
    }
}

/// A worker that was registered, with the place where its end will be found.
pub(super) struct Registered {
    pub(super) id: WorkerId,
    pub(super) end: End,
}

/// Asks for an answer when a worker has reached a milestone, or will not reach it.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Wait {
    pub(super) worker: WorkerId,
    pub(super) milestone: Milestone,
    pub(super) waiter: oneshot::Sender<Result<(), WaitError>>,
}

impl Handler<Wait> for Postmaster {
    type Result = ();

    fn handle(&mut self, wait: Wait, _: &mut Self::Context) {
        let Wait {
            worker,
            milestone,
            waiter,
        } = wait;
        self.children.wait(worker, milestone, waiter, &self.machine);
    }
}

/// Asks for all events from now on.
#[derive(Debug, Message)]
#[rtype(result = "broadcast::Receiver<Event>")]
pub(super) struct Subscribe;

impl Handler<Subscribe> for Postmaster {
    type Result = MessageResult<Subscribe>;

    fn handle(&mut self, Subscribe: Subscribe, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.children.subscribe())
    }
}

/// Stops a worker for good. See [`WorkerHandle::terminate`](super::WorkerHandle::terminate).
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Terminate(pub(super) WorkerId);

impl Handler<Terminate> for Postmaster {
    type Result = ();

    fn handle(&mut self, Terminate(id): Terminate, ctx: &mut Self::Context) {
        self.advance(ctx, |machine, now| machine.terminate(now, id));
    }
}

/// Sets new limits. See [`PostmasterHandle::set_limits`](super::PostmasterHandle::set_limits).
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct SetLimits(pub(super) Limits);

impl Handler<SetLimits> for Postmaster {
    type Result = ();

    fn handle(&mut self, SetLimits(limits): SetLimits, ctx: &mut Self::Context) {
        self.advance(ctx, |machine, now| machine.set_limits(now, limits));
    }
}

/// Sets new rules for a worker's restarts. See [`WorkerHandle::set_restart`](super::WorkerHandle::set_restart).
#[derive(Debug, Message)]
#[rtype(result = "Result<(), InvalidWorker>")]
pub(super) struct SetRestart {
    pub(super) worker: WorkerId,
    pub(super) restart_time: RestartTime,
    pub(super) restart_limit: Option<RestartLimit>,
}

impl Handler<SetRestart> for Postmaster {
    type Result = Result<(), InvalidWorker>;

    fn handle(&mut self, set: SetRestart, ctx: &mut Self::Context) -> Self::Result {
        let SetRestart {
            worker,
            restart_time,
            restart_limit,
        } = set;
        self.advance(ctx, |machine, now| {
            machine.set_restart(now, worker, restart_time, restart_limit)
        })
    }
}

/// Asks for counts and level.
#[derive(Debug, Message)]
#[rtype(result = "Status")]
pub(super) struct GetStatus;

impl Handler<GetStatus> for Postmaster {
    type Result = MessageResult<GetStatus>;

    fn handle(&mut self, GetStatus: GetStatus, _: &mut Self::Context) -> Self::Result {
        MessageResult(Status {
            reached: self.machine.level(),
            server: self.has_server.then(|| self.server.clone()),
            shutdown: self.machine.shutdown(),
            counts: self.machine.counts(),
        })
    }
}

/// Asks for one worker, by its handle.
#[derive(Debug, Message)]
#[rtype(result = "Option<WorkerStatus>")]
pub(super) struct GetWorker(pub(super) WorkerId);

impl Handler<GetWorker> for Postmaster {
    type Result = MessageResult<GetWorker>;

    fn handle(&mut self, GetWorker(id): GetWorker, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.children.status(id, &self.machine))
    }
}

/// Asks for every registered worker, in registration order, and the last ones that ended.
#[derive(Debug, Message)]
#[rtype(result = "Workers")]
pub(super) struct GetWorkers;

impl Handler<GetWorkers> for Postmaster {
    type Result = MessageResult<GetWorkers>;

    fn handle(&mut self, GetWorkers: GetWorkers, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.children.statuses(&self.machine))
    }
}

/// Sets the hook that runs between the last stop and the first start of a reset.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct OnReset(pub(super) ResetHook);

impl Handler<OnReset> for Postmaster {
    type Result = ();

    fn handle(&mut self, OnReset(hook): OnReset, _: &mut Self::Context) {
        self.on_reset = Some(hook);
    }
}

/// The hook by which an embedder recreates what its workers share.
pub(super) type ResetHook = Box<dyn FnMut() + Send>;
