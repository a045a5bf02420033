//! The Worker actor: one incarnation of one worker.
//!
//! It turns messages into its latch, runs its main in a task of its own, and sees to it that the
//! end of that main is reported exactly once. It decides nothing, and does not know the
//! Postmaster: it reports to a channel.
//!
//! Two tasks on purpose. The inner one runs the main and may panic; the outer one awaits it, turns
//! its end (value, error, panic) into one report, and outlives the actor.

use std::any::Any;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Addr, Context, Handler, Message};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot::{self, error::RecvError};
use tokio::task::{AbortHandle, JoinError, JoinHandle};

use crate::background_worker::{ExitStatus, Incarnation};
use crate::context::{Main, WorkerContext, WorkerError};
use crate::latch::{Latch, Wake};

/// How long a main may go on after the Postmaster's death before it is aborted.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(5);

/// To the Postmaster: settings may have changed, tell every running worker.
/// To a Worker: the same, for itself.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Sighup;

/// To the Postmaster: a smart shutdown. To a Worker: begin nothing new, and end.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Sigterm;

/// To the Postmaster: a fast shutdown. To a Worker: cancel what runs, and end.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Sigint;

/// To the Postmaster: an immediate shutdown. To a Worker: it is aborted.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Sigquit;

/// What an incarnation has to say. Sent by its outer task: `Ready` at most once, `Exited` exactly
/// once and last.
///
/// Not a message of actix: a mailbox is drained within one poll, and a fleet that ends all at once
/// would keep everybody else on the thread waiting. A channel of tokio stops at its budget.
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
        /// Why, unless it finished.
        reason: Option<Reason>,
    },
}

/// Why an incarnation ended.
#[derive(Clone, Debug)]
pub(crate) struct Reason {
    pub(crate) text: Arc<str>,
    pub(crate) sqlstate: Option<Arc<str>>,
    /// Its main panicked, which is a fault even in one that was asked to stop.
    pub(crate) panicked: bool,
}

/// One incarnation of one worker.
#[derive(Debug)]
pub(crate) struct Worker {
    latch: Latch,
    main: AbortHandle,
    /// Dropped with the actor, whatever ends it: the outer task takes that as the Postmaster's
    /// death, unless the main has ended.
    _alive: oneshot::Sender<Infallible>,
}

// === impl Worker ===

impl Worker {
    /// Starts the main in its task, and the actor.
    pub(crate) fn spawn(
        main: Arc<dyn Main>,
        context: WorkerContext,
        is_ready: oneshot::Receiver<()>,
        reports: UnboundedSender<WorkerReport>,
    ) -> Addr<Self> {
        let incarnation = context.incarnation();
        let latch = context.latch().clone();
        let main = actix_rt::spawn(async move { main.call(context).await });
        let abort = main.abort_handle();
        let (alive, is_alive) = oneshot::channel();
        actix_rt::spawn(reap(
            incarnation,
            main,
            is_ready,
            is_alive,
            latch.clone(),
            reports,
        ));
        let worker = Self {
            latch,
            main: abort,
            _alive: alive,
        };
        worker.start()
    }
}

/// The outer task: waits for the main's end and reports it.
async fn reap(
    incarnation: Incarnation,
    mut main: JoinHandle<Result<(), WorkerError>>,
    is_ready: oneshot::Receiver<()>,
    is_alive: oneshot::Receiver<Infallible>,
    latch: Latch,
    reports: UnboundedSender<WorkerReport>,
) {
    // Where the Postmaster is gone, nobody needs a report.
    let report = |event| drop(reports.send(WorkerReport { incarnation, event }));
    let mut is_ready = Some(is_ready);
    let mut is_alive = Some(is_alive);
    let end = loop {
        tokio::select! {
            biased;
            said = once(&mut is_ready) => {
                if said.is_ok() {
                    report(WorkerEvent::Ready);
                }
            }
            end = &mut main => break end,
            _ = once(&mut is_alive) => {
                latch.raise(Wake::PostmasterDeath);
                if let Ok(end) = tokio::time::timeout(ORPHAN_TIMEOUT, &mut main).await {
                    break end;
                }
                main.abort();
            }
        }
    };
    let (exit, reason) = ended(end);
    report(WorkerEvent::Exited { exit, reason });
}

/// Awaits a receiver that is used up by its first answer; for ever after that.
async fn once<T>(receiver: &mut Option<oneshot::Receiver<T>>) -> Result<T, RecvError> {
    match receiver {
        Some(waiting) => {
            let answer = waiting.await;
            *receiver = None;
            answer
        }
        None => std::future::pending().await,
    }
}

/// Maps the end of a main to PostgreSQL's exit codes 0, 1 and others.
fn ended(end: Result<Result<(), WorkerError>, JoinError>) -> (ExitStatus, Option<Reason>) {
    let (exit, text, sqlstate) = match end {
        Ok(Ok(())) => return (ExitStatus::Finished, None),
        Ok(Err(error)) => {
            let exit = match error {
                WorkerError::Failed(_) => ExitStatus::Failed,
                WorkerError::DatabaseAway(_) => ExitStatus::DatabaseAway,
            };
            (exit, error.to_string(), error.sqlstate().map(Arc::from))
        }
        Err(end) if end.is_cancelled() => (ExitStatus::Failed, "aborted".to_owned(), None),
        Err(end) => (ExitStatus::Crashed, panic_text(end.into_panic()), None),
    };
    let reason = Reason {
        text: text.into(),
        sqlstate,
        panicked: exit == ExitStatus::Crashed,
    };
    (exit, Some(reason))
}

fn panic_text(payload: Box<dyn Any + Send>) -> String {
    payload
        .downcast::<String>()
        .map(|text| *text)
        .or_else(|payload| payload.downcast::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|_| "panicked with a value that is not a text".to_owned())
}

impl Actor for Worker {
    type Context = Context<Self>;
}

impl Handler<Sighup> for Worker {
    type Result = ();

    fn handle(&mut self, Sighup: Sighup, _: &mut Self::Context) {
        self.latch.raise(Wake::Sighup);
    }
}

impl Handler<Sigterm> for Worker {
    type Result = ();

    fn handle(&mut self, Sigterm: Sigterm, _: &mut Self::Context) {
        self.latch.raise(Wake::Sigterm);
    }
}

impl Handler<Sigint> for Worker {
    type Result = ();

    fn handle(&mut self, Sigint: Sigint, _: &mut Self::Context) {
        self.latch.raise(Wake::Sigint);
    }
}

impl Handler<Sigquit> for Worker {
    type Result = ();

    fn handle(&mut self, Sigquit: Sigquit, _: &mut Self::Context) {
        self.main.abort();
    }
}
