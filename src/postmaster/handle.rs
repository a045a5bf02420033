//! The Postmaster as the rest of a program sees it: a handle, and the answers it gives.
//!
//! Nothing here decides or keeps state; every method is one message. A Postmaster that is gone is
//! an error value, never a wait without end.

use std::sync::Arc;

use actix::{Addr, MailboxError};
use thiserror::Error;
use tokio::sync::watch;

use super::{GetStatus, GetWorker, GetWorkers, OnReset, Postmaster, Register, Terminate};
use crate::background_worker::{BackgroundWorker, ExitStatus, StartTime, WorkerId};
use crate::context::{Main, Report};
use crate::supervision::{Counts, RegisterError, Shutdown, WorkerState};
use crate::worker::{Sighup, Sigint, Sigquit, Sigterm};

/// A running Postmaster. Clones are the same Postmaster, and can be sent to other threads.
#[derive(Clone, Debug)]
pub struct PostmasterHandle {
    postmaster: Addr<Postmaster>,
    exited: watch::Receiver<Option<PostmasterExit>>,
}

/// There is no actix System on this thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "no actix System on this thread: start the Postmaster inside #[actix::main] or System::new().block_on"
)]
pub struct NoSystem;

/// Why a request came to nothing.
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

/// How a Postmaster that was asked to shut down ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PostmasterExit {
    /// The names of the workers that did not end in time.
    pub aborted: Vec<Arc<str>>,
}

/// The Postmaster at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// How far the server has come.
    pub reached: StartTime,
    /// The shutdown under way.
    pub shutdown: Option<Shutdown>,
    /// How many workers are where.
    pub counts: Counts,
}

/// A registered worker at one moment.
#[derive(Clone, Debug)]
pub struct WorkerStatus {
    /// Its handle.
    pub id: WorkerId,
    /// The worker as it was registered.
    pub worker: Arc<BackgroundWorker>,
    /// Where it is.
    pub state: WorkerState,
    /// How often it was started.
    pub starts: u64,
    /// Why its last incarnation ended, if it did not finish.
    pub reason: Option<Arc<str>>,
    /// What it says of itself.
    pub report: Report,
}

/// A worker that was unregistered.
#[derive(Clone, Debug)]
pub struct EndedWorker {
    /// The handle it had.
    pub id: WorkerId,
    /// The name it had; it is free again.
    pub name: Arc<str>,
    /// How it ended.
    pub exit: ExitStatus,
    /// Whether it was stopped for good because it failed more often than its limit allows.
    pub gave_up: bool,
    /// Why, if it did not finish.
    pub reason: Option<Arc<str>>,
    /// How often it was started.
    pub starts: u64,
    /// What it said of itself last.
    pub report: Report,
}

// === impl PostmasterHandle ===

impl PostmasterHandle {
    pub(super) fn new(
        postmaster: Addr<Postmaster>,
        exited: watch::Receiver<Option<PostmasterExit>>,
    ) -> Self {
        Self { postmaster, exited }
    }

    /// Registers a worker with what it runs.
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
    ) -> Result<WorkerId, RequestError> {
        let main = Arc::new(main);
        Ok(self.postmaster.send(Register { worker, main }).await??)
    }

    /// Asks a worker to stop for good. A handle from before does nothing.
    ///
    /// # Errors
    ///
    /// If the Postmaster is gone.
    pub async fn terminate(&self, worker: WorkerId) -> Result<(), RequestError> {
        Ok(self.postmaster.send(Terminate(worker)).await?)
    }

    /// Sets what runs during a reset, after the last worker with access has stopped and before the
    /// first starts again: the place to make anew what a panic may have left broken.
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

    /// Every registered worker in registration order, and the last 100 that ended, oldest first.
    ///
    /// # Errors
    ///
    /// If the Postmaster is gone.
    pub async fn workers(&self) -> Result<(Vec<WorkerStatus>, Vec<EndedWorker>), RequestError> {
        Ok(self.postmaster.send(GetWorkers).await?)
    }

    /// Tells every running worker that settings may have changed.
    pub fn sighup(&self) {
        self.postmaster.do_send(Sighup);
    }

    /// Asks for a shutdown; [`exited`](Self::exited) waits for it.
    ///
    /// Asking again is allowed: for a stronger one, or for the same one to make it stronger.
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

impl From<MailboxError> for RequestError {
    /// A closed mailbox is a Postmaster that is gone. No request has a timeout of its own.
    fn from(_: MailboxError) -> Self {
        Self::PostmasterDied
    }
}
