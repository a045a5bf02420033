//! The Postmaster actor: passes messages and the time to the state machine, and does what it asks for.
//!
//! One funnel ([`Postmaster::advance`]), one `perform`, one timer. No rule of supervision may live
//! here: a handler unpacks its message and calls the machine.
//!
//! `actix::Supervisor` cannot do this work: it restarts the same value at once, has no restart
//! interval, and does not catch panics.

mod children;
mod event;
mod handle;
mod message;
mod repetition;
mod status;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Instant;

use actix::{
    Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Message, SpawnHandle,
    StreamHandler, System, WrapFuture,
};
use futures_util::Stream;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tracing::{error, info, warn};

use self::children::Children;
pub use self::event::{Event, EventKind, WaitError};
pub use self::handle::{NoSystem, PostmasterHandle, RequestError, WorkerHandle};
use self::message::ResetHook;
pub use self::status::{EndedWorker, PostmasterExit, Status, WorkerStatus, Workers};
use crate::background_worker::{ExitStatus, StartTime};
use crate::context::{WorkerEvent, WorkerReport};
use crate::database::{Database, ServerState, ServerStatus};
use crate::supervision::{Action, Limits, Shutdown, StateMachine};
use crate::worker::{Sighup, Sigint, Sigquit, Sigterm};

/// How many actions one turn performs before everything else on the thread gets its turn.
/// At least as many as one tick may start.
const ACTIONS_PER_TURN: usize = 128;

/// The supervisor of all workers.
///
/// Mirrors PostgreSQL's postmaster: it starts workers one per tick according to their start time,
/// passes `Sighup` and `Sigterm` on, and applies restart times. It runs on the thread that started
/// it, and so do its workers.
pub struct Postmaster {
    machine: StateMachine,
    children: Children,
    database: Option<Database>,
    /// `true` if workers wait for a server.
    has_server: bool,
    /// The server's state as last seen.
    server: ServerStatus,
    on_reset: Option<ResetHook>,
    server_watch: Option<AbortHandle>,
    wakeup: Option<Wakeup>,
    /// The names of the workers that had to be aborted during the shutdown.
    aborted: Vec<Arc<str>>,
    exit: watch::Sender<Option<PostmasterExit>>,
}

/// The reports of incarnations, as a stream. The channel stops at tokio's budget for one poll, so that a
/// flood of reports leaves everything else on the thread its turn.
#[derive(Debug)]
struct Reports(UnboundedReceiver<WorkerReport>);

impl Stream for Reports {
    type Item = WorkerReport;

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> Poll<Option<WorkerReport>> {
        self.0.poll_recv(cx)
    }
}

/// The one timer.
#[derive(Debug)]
enum Wakeup {
    /// The next tick follows as soon as everything else has had its turn.
    NextTurn,
    /// The next tick is due at this time.
    At(Instant, SpawnHandle),
}

/// How far the server has come, and why it cannot be asked. Sent by the task that watches it, on every
/// change.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct ServerReached(ServerState, Option<Arc<str>>);

// === impl Postmaster ===

impl Postmaster {
    /// Starts a Postmaster on this thread's actix System.
    ///
    /// With a database, workers wait until its server has come as far as their start time asks.
    /// Without one, the Postmaster is at [`StartTime::RecoveryFinished`] from the start. It runs
    /// until it is shut down, whether a handle to it is kept or not.
    ///
    /// # Errors
    ///
    /// If there is no actix System on this thread.
    pub fn launch(
        limits: Limits,
        database: Option<Database>,
    ) -> Result<PostmasterHandle, NoSystem> {
        let reached = match database {
            Some(_) => StartTime::PostmasterStart,
            None => StartTime::RecoveryFinished,
        };
        Self::launch_at(reached, limits, database)
    }

    /// Starts a Postmaster whose server is away until a handle's `server_is` says otherwise.
    #[cfg(feature = "testing")]
    pub(crate) fn launch_without_server(limits: Limits) -> Result<PostmasterHandle, NoSystem> {
        Self::launch_at(StartTime::PostmasterStart, limits, None)
    }

    fn launch_at(
        reached: StartTime,
        limits: Limits,
        database: Option<Database>,
    ) -> Result<PostmasterHandle, NoSystem> {
        System::try_current().ok_or(NoSystem)?;
        let (exit, exited) = watch::channel(None);
        let (reports, reported) = unbounded_channel();
        let mut machine = StateMachine::new(now(), limits);
        machine.reached(now(), reached);
        let postmaster = Self::create(|ctx| {
            ctx.add_stream(Reports(reported));
            Self {
                machine,
                children: Children::new(reports),
                database,
                has_server: reached == StartTime::PostmasterStart,
                server: ServerStatus::unknown(),
                on_reset: None,
                server_watch: None,
                wakeup: None,
                aborted: Vec::new(),
                exit,
            }
        });
        Ok(PostmasterHandle::new(postmaster, exited))
    }

    /// Passes one event to the machine, then carries out the actions that follow.
    fn advance<R>(
        &mut self,
        ctx: &mut Context<Self>,
        event: impl FnOnce(&mut StateMachine, Instant) -> R,
    ) -> R {
        let result = event(&mut self.machine, now());
        for _ in 0..ACTIONS_PER_TURN {
            let Some(action) = self.machine.poll_action() else {
                break;
            };
            self.perform(action);
        }
        self.rearm(ctx);
        result
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Start(incarnation) => {
                self.children.start(incarnation, self.database.clone());
            }
            Action::Signal {
                incarnation,
                signal,
            } => self.children.signal(incarnation, signal),
            Action::Abort(incarnation) => {
                let name = self.children.abort(incarnation);
                if self.machine.shutdown().is_some() {
                    self.aborted.extend(name);
                }
            }
            Action::Exited {
                incarnation,
                exit,
                afterwards,
            } => {
                if let (ExitStatus::DatabaseAway, Some(database)) = (exit, &self.database) {
                    database.suspect();
                }
                self.children.exited(incarnation, exit, afterwards);
            }
            Action::Unregister { worker, exit } => self.children.unregister(worker, exit),
            Action::Parked { workers } => {
                let server = self.server.state;
                info!(workers, %server, "server is {server}: parks {workers} background workers");
            }
            Action::Unparked { workers } => {
                let server = self.server.state;
                info!(workers, %server, "server is {server}: {workers} background workers come back");
            }
            Action::Reset => warn!("terminating any other active background workers"),
            Action::ResetShared => self.reset_shared(),
            Action::Exit => self.exit(),
        }
    }

    /// Keeps exactly one timer, set to the machine's next deadline.
    ///
    /// A deadline that has passed becomes a turn of the loop: the next tick comes after every
    /// other task and the I/O driver had their turn. A message to self is not enough, since actix
    /// drains a mailbox within one poll; a timer of zero costs a millisecond.
    fn rearm(&mut self, ctx: &mut Context<Self>) {
        let deadline = self.machine.poll_timeout();
        match (&self.wakeup, deadline) {
            (Some(Wakeup::NextTurn), _) => return,
            (Some(Wakeup::At(at, _)), Some(deadline)) if *at == deadline => return,
            (Some(Wakeup::At(_, timer)), _) => {
                ctx.cancel_future(*timer);
            }
            (None, _) => {}
        }
        self.wakeup = deadline.map(|deadline| {
            let wait = deadline.saturating_duration_since(now());
            if wait.is_zero() {
                let turn = tokio::task::yield_now().into_actor(self);
                ctx.spawn(turn.map(|(), postmaster, ctx| postmaster.tick(ctx)));
                Wakeup::NextTurn
            } else {
                let timer = ctx.run_later(wait, Self::tick);
                Wakeup::At(deadline, timer)
            }
        });
    }

    fn shut_down(&mut self, ctx: &mut Context<Self>, mode: Shutdown) {
        self.children.release_waiters();
        self.advance(ctx, |machine, now| machine.shut_down(now, mode));
    }

    /// Drops the home connections, and runs the embedder's hook, which recreates what its workers share. A
    /// panic of the hook is logged, and does not end the Postmaster.
    fn reset_shared(&mut self) {
        if let Some(database) = &self.database {
            database.drop_home_connections();
        }
        let Some(on_reset) = &mut self.on_reset else {
            return;
        };
        if catch_unwind(AssertUnwindSafe(on_reset)).is_err() {
            error!("the hook that follows a reset panicked");
        }
    }

    /// Reports that every worker has ended, once the connections that they shared are closed.
    fn exit(&mut self) {
        // From here on only handles keep the actor alive: they may still ask.
        self.children.close();
        self.stop_watching();
        let aborted = std::mem::take(&mut self.aborted);
        let exit = self.exit.clone();
        let database = self.database.take();
        let closing = async move {
            if let Some(database) = database {
                database.close().await;
            }
            exit.send_replace(Some(PostmasterExit { aborted }));
        };
        actix_rt::spawn(closing);
    }

    fn tick(&mut self, ctx: &mut Context<Self>) {
        self.wakeup = None;
        self.advance(ctx, StateMachine::handle_timeout);
    }

    fn stop_watching(&mut self) {
        if let Some(watch) = self.server_watch.take() {
            watch.abort();
        }
    }

    /// Watches the server until the Postmaster exits or is gone.
    fn watch_server(&mut self, ctx: &mut Context<Self>) {
        let Some(database) = self.database.clone() else {
            return;
        };
        // A weak address: a strong one would keep the Postmaster alive, with nothing left to stop the watch.
        let postmaster = ctx.address().downgrade();
        let watch = actix_rt::spawn(async move {
            let changed = |state, reason| {
                if let Some(postmaster) = postmaster.upgrade() {
                    postmaster.do_send(ServerReached(state, reason));
                }
            };
            database.watch_server_state(changed).await;
        });
        self.server_watch = Some(watch.abort_handle());
    }
}

/// The time, by tokio's clock, so that tests can stop it. Only actors ask for it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl fmt::Debug for Postmaster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postmaster")
            .field("machine", &self.machine)
            .finish_non_exhaustive()
    }
}

impl Actor for Postmaster {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // An actor that is dropped before its first turn is started while it stops: then nothing is
        // left that could run a task.
        if ctx.state() == actix::ActorState::Running {
            self.watch_server(ctx);
        }
    }
}

impl Drop for Postmaster {
    /// Its workers notice by themselves: the channel of their reports is dropped with it.
    fn drop(&mut self) {
        self.stop_watching();
    }
}

impl StreamHandler<WorkerReport> for Postmaster {
    /// Every worker has ended, so no report is left to come. Handles may still ask.
    fn finished(&mut self, _: &mut Self::Context) {}

    fn handle(&mut self, report: WorkerReport, ctx: &mut Self::Context) {
        let WorkerReport { incarnation, event } = report;
        match event {
            WorkerEvent::Ready => {
                self.children.ready(incarnation);
                self.advance(ctx, |machine, now| machine.worker_ready(now, incarnation));
            }
            WorkerEvent::Exited { exit, reason } => {
                self.children.set_reason(incarnation, reason);
                let jitter = fastrand::f64();
                self.advance(ctx, |machine, now| {
                    machine.worker_exited(now, incarnation, exit, jitter);
                });
            }
        }
    }
}

impl Handler<ServerReached> for Postmaster {
    type Result = ();

    fn handle(&mut self, ServerReached(state, reason): ServerReached, ctx: &mut Self::Context) {
        self.server.saw(state, reason);
        self.advance(ctx, |machine, now| machine.reached(now, state.reached()));
    }
}

impl Handler<Sighup> for Postmaster {
    type Result = ();

    fn handle(&mut self, Sighup: Sighup, ctx: &mut Self::Context) {
        if let Some(database) = &self.database {
            database.renew_job_sessions();
        }
        self.advance(ctx, StateMachine::sighup);
    }
}

impl Handler<Sigterm> for Postmaster {
    type Result = ();

    fn handle(&mut self, Sigterm: Sigterm, ctx: &mut Self::Context) {
        info!("received smart shutdown request");
        self.shut_down(ctx, Shutdown::Smart);
    }
}

impl Handler<Sigint> for Postmaster {
    type Result = ();

    fn handle(&mut self, Sigint: Sigint, ctx: &mut Self::Context) {
        info!("received fast shutdown request");
        info!("aborting any active transactions");
        self.shut_down(ctx, Shutdown::Fast);
    }
}

impl Handler<Sigquit> for Postmaster {
    type Result = ();

    fn handle(&mut self, Sigquit: Sigquit, ctx: &mut Self::Context) {
        info!("received immediate shutdown request");
        self.shut_down(ctx, Shutdown::Immediate);
    }
}
