//! The Postmaster as the rest of a program sees it: a handle, and the answers it gives.
//!
//! Nothing here decides or keeps state; every method is one message. A Postmaster that is gone is
//! an error value, never an endless wait.

use std::sync::Arc;

use actix::{Addr, MailboxError};
use thiserror::Error;
use tokio::sync::{broadcast, oneshot, watch};

use super::Postmaster;
use super::event::{Event, Milestone, WaitError};
use super::message::{
    GetStatus, GetWorker, GetWorkers, OnReset, Register, Registered, SetLimits, SetRestart,
    Subscribe, Terminate, Wait,
};
use super::status::{End, EndedWorker, PostmasterExit, Status, WorkerStatus, Workers};
use crate::background_worker::{BackgroundWorker, RestartLimit, RestartTime, WorkerId};
use crate::context::Main;
use crate::supervision::{Limits, RegisterError, Shutdown};
use crate::worker::{Sighup, Sigint, Sigquit, Sigterm};

/// A running Postmaster. Clones are the same Postmaster, and can be sent to other threads.
#[derive(Clone, Debug)]
pub struct PostmasterHandle {
    postmaster: Addr<Postmaster>,
    exited: watch::Receiver<Option<PostmasterExit>>,
}

/// A registered worker, and how it ended. Clones are the same worker.
///
/// Mirrors `BackgroundWorkerHandle`. It outlives the worker, and never comes to mean another one.
#[derive(Clone, Debug)]
pub struct WorkerHandle {
    id: WorkerId,
    end: End,
    postmaster: Addr<Postmaster>,
}

/// There is no actix System on this thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "no actix System on this thread: start the Postmaster inside #[actix::main] or System::new().block_on"
)]
pub struct NoSystem;

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The Postmaster refused it.
    #[error(transparent)]
    Refused(#[from] RegisterError),
    /// The Postmaster is gone (`BGWH_POSTMASTER_DIED`).
    #[error("the Postmaster has died")]
    PostmasterDied,
}

// === impl PostmasterHandle ===

impl PostmasterHandle {
    pub(super) fn new(
        postmaster: Addr<Postmaster>,
        exited: watch::Receiver<Option<PostmasterExit>>,
    ) -> Self {
        Self { postmaster, exited }
    }

    /// Registers a worker, together with the main that it runs.
    ///
    /// It starts when the server has come as far as its start time asks, one worker per tick, the
    /// first registered first. Mirrors `RegisterBackgroundWorker` before the start and
    /// `RegisterDynamicBackgroundWorker` after it.
    ///
    /// # Errors
    ///
    /// If the Postmaster refuses the worker, or is gone.
    pub async fn register(
        &self,
        worker: BackgroundWorker,
        main: impl Main,
    ) -> Result<WorkerHandle, RequestError> {
        let main = Arc::new(main);
        let Registered { id, end } = self.postmaster.send(Register { worker, main }).await??;
        Ok(WorkerHandle {
            id,
            end,
            postmaster: self.postmaster.clone(),
        })
    }

    /// Sets new limits. Registered workers stay, even if they are now too many.
    pub fn set_limits(&self, limits: Limits) {
        self.postmaster.do_send(SetLimits(limits));
    }

    /// Subscribes to all events of workers from now on. A subscriber that lags 1,024 events behind misses
    /// the oldest, and its receiver says how many; the stream ends when the last worker has ended after a
    /// shutdown request, or with the Postmaster.
    ///
    /// # Errors
    ///
    /// If the Postmaster is gone.
    pub async fn subscribe(&self) -> Result<broadcast::Receiver<Event>, RequestError> {
        Ok(self.postmaster.send(Subscribe).await?)
    }

    /// Asks a worker to stop for good. An old handle does nothing.
    ///
    /// # Errors
    ///
    /// If the Postmaster is gone.
    pub async fn terminate(&self, worker: WorkerId) -> Result<(), RequestError> {
        Ok(self.postmaster.send(Terminate(worker)).await?)
    }

    /// Sets the hook that runs during a reset, after the last worker with access has stopped and before the
    /// first starts again: the place to recreate what a panic may have left broken.
    ///
    /// It runs on the Postmaster's thread and must not block. A panic in it is logged.
    ///
    /// # Errors
    ///
    /// If the Postmaster is gone.
    pub async fn on_reset(&self, hook: impl FnMut() + Send + 'static) -> Result<(), RequestError> {
        Ok(self.postmaster.send(OnReset(Box::new(hook))).await?)
    }

    /// Counts and level, at a cost that does not depend on the number of workers.
    ///
    /// # Errors
    ///
    /// If the Postmaster is gone.
    pub async fn status(&self) -> Result<Status, RequestError> {
        Ok(self.postmaster.send(GetStatus).await?)
    }

    /// One worker; `None` if it was unregistered.
    ///
    /// # Errors
    ///
    /// If the Postmaster is gone.
    pub async fn worker(&self, worker: WorkerId) -> Result<Option<WorkerStatus>, RequestError> {
        Ok(self.postmaster.send(GetWorker(worker)).await?)
    }

    /// Every registered worker, and the last ones that ended.
    ///
    /// # Errors
    ///
    /// If the Postmaster is gone.
    pub async fn workers(&self) -> Result<Workers, RequestError> {
        Ok(self.postmaster.send(GetWorkers).await?)
    }

    /// Sets the server's state, for a Postmaster that watches no server.
    #[cfg(feature = "testing")]
    pub(crate) fn server_is(&self, state: crate::database::ServerState, reason: Option<Arc<str>>) {
        self.postmaster.do_send(super::ServerReached(state, reason));
    }

    /// Signals every running worker that settings may have changed.
    pub fn sighup(&self) {
        self.postmaster.do_send(Sighup);
    }

    /// Asks for a shutdown; [`exited`](Self::exited) waits for it.
    ///
    /// Asking again is allowed: for a stronger shutdown, or for the same one, which makes it stronger.
    pub fn shut_down(&self, mode: Shutdown) {
        match mode {
            Shutdown::Smart => self.postmaster.do_send(Sigterm),
            Shutdown::Fast => self.postmaster.do_send(Sigint),
            Shutdown::Immediate => self.postmaster.do_send(Sigquit),
        }
    }

    /// Waits until every worker has ended after a shutdown request.
    ///
    /// # Errors
    ///
    /// If the Postmaster dies instead.
    pub async fn exited(&self) -> Result<PostmasterExit, RequestError> {
        let mut exited = self.exited.clone();
        let exit = exited.wait_for(Option::is_some).await;
        exit.ok()
            .and_then(|exit| exit.clone())
            .ok_or(RequestError::PostmasterDied)
    }
}

// === impl WorkerHandle ===

impl WorkerHandle {
    /// The worker's slot and generation.
    #[must_use]
    pub fn id(&self) -> WorkerId {
        self.id
    }

    /// How the worker ended; `None` until it is unregistered.
    #[must_use]
    pub fn ended(&self) -> Option<&EndedWorker> {
        self.end.get().map(Box::as_ref)
    }

    /// Waits until the worker has been started. Mirrors `WaitForBackgroundWorkerStartup`.
    ///
    /// # Errors
    ///
    /// If it ended first, or the Postmaster is shutting down or gone.
    pub async fn started(&self) -> Result<(), WaitError> {
        self.wait(Milestone::Started).await
    }

    /// Waits until the worker has reported that it is ready. While the server is away that may take long: to
    /// bound it, use `tokio::time::timeout`.
    ///
    /// # Errors
    ///
    /// If it ended first, or the Postmaster is shutting down or gone.
    pub async fn ready(&self) -> Result<(), WaitError> {
        self.wait(Milestone::Ready).await
    }

    /// Waits until the worker was unregistered. Mirrors `WaitForBackgroundWorkerShutdown`, which also
    /// returns when a worker is only about to be restarted.
    ///
    /// # Errors
    ///
    /// If the Postmaster is gone first.
    pub async fn stopped(&self) -> Result<EndedWorker, WaitError> {
        if let Some(ended) = self.ended() {
            return Ok(ended.clone());
        }
        self.wait(Milestone::Unregistered).await?;
        self.ended().cloned().ok_or(WaitError::PostmasterDied)
    }

    /// Asks the worker to stop for good; [`stopped`](Self::stopped) waits for that. Mirrors
    /// `TerminateBackgroundWorker`. A worker that has stopped, or was asked before, is not asked again.
    pub fn terminate(&self) {
        self.postmaster.do_send(Terminate(self.id));
    }

    /// Sets new rules for the worker's restarts, from its next failure on.
    ///
    /// # Errors
    ///
    /// If the Postmaster refuses them, or is gone.
    pub async fn set_restart(
        &self,
        restart_time: RestartTime,
        restart_limit: Option<RestartLimit>,
    ) -> Result<(), RequestError> {
        let set = SetRestart {
            worker: self.id,
            restart_time,
            restart_limit,
        };
        let set = self.postmaster.send(set).await?;
        Ok(set.map_err(RegisterError::from)?)
    }

    async fn wait(&self, milestone: Milestone) -> Result<(), WaitError> {
        let (waiter, answer) = oneshot::channel();
        let wait = Wait {
            worker: self.id,
            milestone,
            waiter,
        };
        let died = WaitError::PostmasterDied;
        self.postmaster.send(wait).await.map_err(|_| died)?;
        answer.await.unwrap_or(Err(died))
    }
}

impl From<MailboxError> for RequestError {
    /// A closed mailbox means that the Postmaster is gone. No request has a timeout of its own.
    fn from(_: MailboxError) -> Self {
        Self::PostmasterDied
    }
}
