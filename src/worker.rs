//! The Worker actor: one incarnation of one worker.
//!
//! It turns messages into its latch, runs its main in a task of its own, and makes sure that the
//! end of that main is reported exactly once. It decides nothing, and does not know the
//! Postmaster: it reports to a channel.
//!
//! The two tasks are deliberate. The main's may panic; the actor's awaits it, turns its end (value, error,
//! panic) into one report, and lives on until then, even when the Postmaster is gone.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use actix::fut::{ActorFutureExt, wrap_future};
use actix::{Actor, Addr, AsyncContext, Context, Handler, Message};
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::{AbortHandle, JoinError, JoinHandle};

use crate::background_worker::{ExitStatus, Incarnation};
use crate::context::{Main, Reason, WorkerContext, WorkerError, WorkerEvent, WorkerReport};
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

/// How a main ended, and why.
type End = (ExitStatus, Option<Reason>);

/// One incarnation of one worker.
#[derive(Debug)]
pub(crate) struct Worker {
    incarnation: Incarnation,
    latch: Latch,
    abort: AbortHandle,
    reports: UnboundedSender<WorkerReport>,
}

// === impl Worker ===

impl Worker {
    /// Starts the main in its task, and the actor.
    pub(crate) fn spawn(
        main: Arc<dyn Main>,
        context: WorkerContext,
        reports: UnboundedSender<WorkerReport>,
    ) -> Addr<Self> {
        let incarnation = context.incarnation();
        let latch = context.latch().clone();
        // An error's text comes from its author's code as well: it is formatted in here, where it may panic.
        let main = actix_rt::spawn(async move { returned(main.call(context).await) });
        Self::create(|ctx| {
            let abort = main.abort_handle();
            // The actor lives as long as it awaits the main, whether it has an address or not.
            let reap = wrap_future::<_, Self>(reap(main, latch.clone(), reports.clone()));
            ctx.spawn(reap.map(|end, worker, _| worker.report(end)));
            Self {
                incarnation,
                latch,
                abort,
                reports,
            }
        })
    }

    fn report(&self, end: Result<End, JoinError>) {
        let (exit, reason) = ended(end);
        // If the Postmaster is gone, nothing needs the report.
        let _ = self.reports.send(WorkerReport {
            incarnation: self.incarnation,
            event: WorkerEvent::Exited { exit, reason },
        });
    }
}

/// Waits for a main's end. If the Postmaster dies first, the main is woken, and aborted if it still runs
/// after [`ORPHAN_TIMEOUT`].
async fn reap(
    mut main: JoinHandle<End>,
    latch: Latch,
    reports: UnboundedSender<WorkerReport>,
) -> Result<End, JoinError> {
    tokio::select! {
        biased;
        end = &mut main => return end,
        () = reports.closed() => latch.raise(Wake::PostmasterDeath),
    }
    // Boxed: it is rare, and not every worker should pay for its size.
    let patience = Box::pin(tokio::time::sleep(ORPHAN_TIMEOUT));
    tokio::select! {
        biased;
        end = &mut main => return end,
        () = patience => main.abort(),
    }
    main.await
}

/// Maps what a main returned, as PostgreSQL maps the exit codes 0 and 1.
fn returned(result: Result<(), WorkerError>) -> End {
    let Err(error) = result else {
        return (ExitStatus::Finished, None);
    };
    let exit = match error {
        WorkerError::Failed(_) => ExitStatus::Failed,
        WorkerError::DatabaseAway(_) => ExitStatus::DatabaseAway,
    };
    let reason = Reason {
        text: error.to_string().into(),
        sqlstate: error.sqlstate().map(Arc::from),
        panicked: false,
    };
    (exit, Some(reason))
}

/// Maps the end of a main's task: what the main returned, an abort, or a panic, which stands for PostgreSQL's
/// other exit codes.
fn ended(end: Result<End, JoinError>) -> End {
    let (exit, text) = match end {
        Ok(end) => return end,
        Err(end) if end.is_cancelled() => (ExitStatus::Failed, "aborted".to_owned()),
        Err(end) => (ExitStatus::Crashed, panic_text(end.into_panic())),
    };
    let reason = Reason {
        text: text.into(),
        sqlstate: None,
        panicked: exit == ExitStatus::Crashed,
    };
    (exit, Some(reason))
}

fn panic_text(payload: Box<dyn Any + Send>) -> String {
    if let Some(text) = payload.downcast_ref::<String>() {
        return text.clone();
    }
    if let Some(text) = payload.downcast_ref::<&str>() {
        return (*text).to_owned();
    }
    // The value is foreign, and so is the code that drops it, which must not end the actor.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(payload)));
    "panicked with a value that is not a string".to_owned()
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
        self.abort.abort();
    }
}
