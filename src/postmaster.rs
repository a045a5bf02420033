//! The Postmaster actor: passes messages and the time to the state machine, and does what it asks.
//!
//! One funnel ([`Postmaster::advance`]), one `perform`, one timer. No rule of supervision may live
//! here: a handler unpacks its message and calls the machine.
//!
//! `actix::Supervisor` cannot do this work: it restarts the same value at once, knows no interval,
//! and a panic goes right through it.

mod handle;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message,
    MessageResult, SpawnHandle, System, WrapFuture,
};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tracing::{debug, error, info, warn};

pub use self::handle::{
    EndedWorker, NoSystem, PostmasterExit, PostmasterHandle, RequestError, Status, WorkerStatus,
};
use crate::background_worker::{BackgroundWorker, ExitStatus, Incarnation, StartTime, WorkerId};
use crate::context::{Main, Progress, WorkerContext};
use crate::database::{Database, ServerState};
use crate::latch::Latch;
use crate::supervision::{
    Action, Afterwards, Limits, RegisterError, Shutdown, Signal, StateMachine,
};
use crate::worker::{Reason, Sighup, Sigint, Sigquit, Sigterm, Worker, WorkerEvent, WorkerReport};

/// How many actions one turn performs before everything else on the thread has its own.
const ACTIONS_PER_TURN: usize = 64;

/// How many ended workers are remembered for status.
const ENDED_MAX: usize = 100;

/// The supervisor of all workers.
///
/// Mirrors PostgreSQL's postmaster: it starts workers one per tick according to their start time,
/// passes `Sighup` and `Sigterm` on, and applies restart times. It runs on the thread that started
/// it, and so do its workers.
#[derive(Debug)]
pub struct Postmaster {
    machine: StateMachine,
    /// By slot.
    children: Vec<Option<Child>>,
    ended: VecDeque<EndedWorker>,
    database: Option<Database>,
    /// Tells the task that watches the server to look at it now.
    suspect: Arc<Notify>,
    server_watch: Option<AbortHandle>,
    wakeup: Option<Wakeup>,
    aborted: Vec<Arc<str>>,
    exit: watch::Sender<Option<PostmasterExit>>,
}

/// A registered worker, as the Postmaster needs it to start it.
struct Child {
    id: WorkerId,
    worker: Arc<BackgroundWorker>,
    main: Arc<dyn Main>,
    progress: Arc<Progress>,
    /// How often it was started.
    starts: u64,
    running: Option<Addr<Worker>>,
    reason: Option<Reason>,
}

/// The one timer.
#[derive(Debug)]
enum Wakeup {
    /// The next tick follows as soon as everything else had its turn.
    NextTurn,
    /// The next tick is due at this time.
    At(Instant, SpawnHandle),
}

/// Registers a worker. See [`PostmasterHandle::register`].
#[derive(Message)]
#[rtype(result = "Result<WorkerId, RegisterError>")]
pub(crate) struct Register {
    pub(crate) worker: BackgroundWorker,
    pub(crate) main: Arc<dyn Main>,
}

/// Stops a worker for good. See [`PostmasterHandle::terminate`].
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Terminate(pub(crate) WorkerId);

/// Asks for counts and level.
#[derive(Debug, Message)]
#[rtype(result = "Status")]
pub(crate) struct GetStatus;

/// Asks for one worker, by its handle.
#[derive(Debug, Message)]
#[rtype(result = "Option<WorkerStatus>")]
pub(crate) struct GetWorker(pub(crate) WorkerId);

/// Asks for every registered worker, in registration order, and the last ones that ended.
#[derive(Debug, Message)]
#[rtype(result = "(Vec<WorkerStatus>, Vec<EndedWorker>)")]
pub(crate) struct GetWorkers;

/// How far the server has come. Sent by the task that watches it, on every change.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct ServerReached(ServerState);

// === impl Postmaster ===

impl Postmaster {
    /// Starts a Postmaster on this thread's actix System.
    ///
    /// With a database, workers wait until its server has come as far as their start time asks.
    /// Without one, the Postmaster is at [`StartTime::RecoveryFinished`] from the start.
    ///
    /// # Errors
    ///
    /// If there is no actix System on this thread.
    pub fn launch(
        limits: Limits,
        database: Option<Database>,
    ) -> Result<PostmasterHandle, NoSystem> {
        System::try_current().ok_or(NoSystem)?;
        let (exit, exited) = watch::channel(None);
        let mut machine = StateMachine::new(now(), limits);
        if database.is_none() {
            machine.reached(now(), StartTime::RecoveryFinished);
        }
        let postmaster = Self {
            machine,
            children: Vec::new(),
            ended: VecDeque::new(),
            database,
            suspect: Arc::new(Notify::new()),
            server_watch: None,
            wakeup: None,
            aborted: Vec::new(),
            exit,
        };
        Ok(PostmasterHandle::new(postmaster.start(), exited))
    }

    /// Passes one event to the machine, then carries out what follows from it.
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
            self.perform(action, ctx);
        }
        self.rearm(ctx);
        result
    }

    fn perform(&mut self, action: Action, ctx: &mut Context<Self>) {
        match action {
            Action::Start(incarnation) => self.start_worker(incarnation, ctx),
            Action::Signal {
                incarnation,
                signal,
            } => self.signal(incarnation, signal),
            Action::Abort(incarnation) => self.abort(incarnation),
            Action::Exited {
                incarnation,
                exit,
                afterwards,
            } => self.exited(incarnation, exit, afterwards),
            Action::Unregister { worker, exit } => self.unregister(worker, exit),
            Action::Exit => {
                let aborted = std::mem::take(&mut self.aborted);
                self.exit.send_replace(Some(PostmasterExit { aborted }));
            }
        }
    }

    /// Keeps exactly one timer, set to the machine's next deadline.
    ///
    /// A deadline that has passed becomes a turn of the loop: the next tick comes after every
    /// other task and the I/O driver had theirs. A message to self would not do, since actix
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

    fn tick(&mut self, ctx: &mut Context<Self>) {
        self.wakeup = None;
        self.advance(ctx, StateMachine::handle_timeout);
    }

    fn child(&mut self, id: WorkerId) -> Option<&mut Child> {
        let child = self.children.get_mut(id.slot())?.as_mut()?;
        (child.id == id).then_some(child)
    }

    fn start_worker(&mut self, incarnation: Incarnation, ctx: &mut Context<Self>) {
        let database = self.database.clone();
        let Some(child) = self.child(incarnation.worker) else {
            return;
        };
        child.starts += 1;
        let worker = &child.worker.name;
        let (slot, generation) = (child.id.slot(), child.id.generation());
        if child.starts == 1 {
            info!(%worker, slot, generation, "starting background worker \"{worker}\"");
        } else {
            debug!(%worker, slot, generation, "starting background worker \"{worker}\"");
        }
        let (context, is_ready) = WorkerContext::new(
            Arc::clone(&child.worker),
            incarnation,
            Latch::default(),
            database,
            Arc::clone(&child.progress),
        );
        let reports = ctx.address().recipient();
        let main = Arc::clone(&child.main);
        child.running = Some(Worker::spawn(main, context, is_ready, reports));
    }

    fn signal(&mut self, incarnation: Incarnation, signal: Signal) {
        let Some(running) = self.running(incarnation) else {
            return;
        };
        match signal {
            Signal::Sighup => running.do_send(Sighup),
            Signal::Sigterm => running.do_send(Sigterm),
            Signal::Sigint => running.do_send(Sigint),
        }
    }

    fn abort(&mut self, incarnation: Incarnation) {
        let Some(child) = self.child(incarnation.worker) else {
            return;
        };
        let name = Arc::clone(&child.worker.name);
        if let Some(running) = &child.running {
            running.do_send(Sigquit);
            warn!(worker = %name, "background worker \"{name}\" did not end in time: aborted");
            self.aborted.push(name);
        }
    }

    fn running(&mut self, incarnation: Incarnation) -> Option<&Addr<Worker>> {
        self.child(incarnation.worker)?.running.as_ref()
    }

    fn exited(&mut self, incarnation: Incarnation, exit: ExitStatus, afterwards: Afterwards) {
        if exit == ExitStatus::DatabaseAway {
            self.suspect.notify_one();
        }
        let Some(child) = self.child(incarnation.worker) else {
            return;
        };
        child.running = None;
        log_exit(child, exit, afterwards);
    }

    fn unregister(&mut self, id: WorkerId, exit: ExitStatus) {
        if self.child(id).is_none() {
            return;
        }
        let Some(child) = self.children[id.slot()].take() else {
            return;
        };
        let name = Arc::clone(&child.worker.name);
        debug!(worker = %name, "unregistering background worker \"{name}\"");
        if self.ended.len() == ENDED_MAX {
            self.ended.pop_front();
        }
        self.ended.push_back(EndedWorker {
            id,
            name,
            exit,
            reason: child.reason.map(|reason| reason.text),
            starts: child.starts,
            report: child.progress.report(),
        });
    }

    /// Watches the server until the Postmaster is gone.
    fn watch_server(&mut self, ctx: &mut Context<Self>) {
        let Some(database) = self.database.clone() else {
            return;
        };
        let suspect = Arc::clone(&self.suspect);
        let postmaster = ctx.address();
        let watch = actix_rt::spawn(async move {
            database
                .watch_server_state(&suspect, |state| postmaster.do_send(ServerReached(state)))
                .await;
        });
        self.server_watch = Some(watch.abort_handle());
    }

    fn worker_status(&self, child: &Child) -> Option<WorkerStatus> {
        Some(WorkerStatus {
            id: child.id,
            worker: Arc::clone(&child.worker),
            state: self.machine.state(child.id)?,
            starts: child.starts,
            reason: child.reason.as_ref().map(|reason| Arc::clone(&reason.text)),
            report: child.progress.report(),
        })
    }
}

/// Reports the end of an incarnation: what the operator must see at the level where it is seen.
fn log_exit(child: &Child, exit: ExitStatus, afterwards: Afterwards) {
    let worker = &child.worker.name;
    let (slot, generation) = (child.id.slot(), child.id.generation());
    let reason = child.reason.as_ref().map(|reason| &*reason.text);
    let sqlstate = child
        .reason
        .as_ref()
        .and_then(|reason| reason.sqlstate.as_deref());
    let restart_in = match afterwards {
        Afterwards::Restart(wait) => Some(humantime::format_duration(wait).to_string()),
        Afterwards::Unregister => None,
    };
    let restart_in = restart_in.as_deref();
    macro_rules! exited {
        ($level:ident) => {
            $level!(
                %worker, slot, generation, %exit, reason, sqlstate, restart_in,
                "background worker \"{worker}\" exited"
            )
        };
    }
    match exit {
        ExitStatus::Crashed => exited!(error),
        ExitStatus::Failed | ExitStatus::DatabaseAway => exited!(warn),
        ExitStatus::Finished => exited!(info),
        ExitStatus::Stopped => exited!(debug),
    }
}

/// The time. Only actors ask for it; tokio's clock, so that tests can stop it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl std::fmt::Debug for Child {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Child")
            .field("id", &self.id)
            .field("worker", &self.worker)
            .field("starts", &self.starts)
            .finish_non_exhaustive()
    }
}

impl Actor for Postmaster {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // An actor that is dropped before its first turn is started while it stops: there is
        // nothing left then that could run a task.
        if ctx.state() == actix::ActorState::Running {
            self.watch_server(ctx);
        }
    }
}

impl Drop for Postmaster {
    /// Its workers notice by themselves: their addresses go with it.
    fn drop(&mut self) {
        if let Some(watch) = &self.server_watch {
            watch.abort();
        }
    }
}

impl Handler<Register> for Postmaster {
    type Result = Result<WorkerId, RegisterError>;

    fn handle(
        &mut self,
        Register { worker, main }: Register,
        ctx: &mut Self::Context,
    ) -> Self::Result {
        let name = Arc::clone(&worker.name);
        debug!(worker = %name, "registering background worker \"{name}\"");
        let shared = Arc::new(worker.clone());
        let id = self.advance(ctx, |machine, now| machine.register(now, worker))?;
        if self.children.len() <= id.slot() {
            self.children.resize_with(id.slot() + 1, || None);
        }
        self.children[id.slot()] = Some(Child {
            id,
            worker: shared,
            main,
            progress: Arc::new(Progress::default()),
            starts: 0,
            running: None,
            reason: None,
        });
        Ok(id)
    }
}

impl Handler<Terminate> for Postmaster {
    type Result = ();

    fn handle(&mut self, Terminate(id): Terminate, ctx: &mut Self::Context) {
        self.advance(ctx, |machine, now| machine.terminate(now, id));
    }
}

impl Handler<WorkerReport> for Postmaster {
    type Result = ();

    fn handle(&mut self, report: WorkerReport, ctx: &mut Self::Context) {
        let WorkerReport { incarnation, event } = report;
        match event {
            WorkerEvent::Ready => {
                self.advance(ctx, |machine, now| machine.worker_ready(now, incarnation));
            }
            WorkerEvent::Exited { exit, reason } => {
                if let Some(child) = self.child(incarnation.worker) {
                    if let Some(reason) = &reason {
                        child.progress.failed(Arc::clone(&reason.text));
                    }
                    child.reason = reason;
                }
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

    fn handle(&mut self, ServerReached(state): ServerReached, ctx: &mut Self::Context) {
        self.advance(ctx, |machine, now| machine.reached(now, state.reached()));
    }
}

impl Handler<Sighup> for Postmaster {
    type Result = ();

    fn handle(&mut self, Sighup: Sighup, ctx: &mut Self::Context) {
        self.advance(ctx, StateMachine::sighup);
    }
}

impl Handler<Sigterm> for Postmaster {
    type Result = ();

    fn handle(&mut self, Sigterm: Sigterm, ctx: &mut Self::Context) {
        info!("received smart shutdown request");
        self.advance(ctx, |machine, now| machine.shut_down(now, Shutdown::Smart));
    }
}

impl Handler<Sigint> for Postmaster {
    type Result = ();

    fn handle(&mut self, Sigint: Sigint, ctx: &mut Self::Context) {
        info!("received fast shutdown request");
        info!("aborting any active transactions");
        self.advance(ctx, |machine, now| machine.shut_down(now, Shutdown::Fast));
    }
}

impl Handler<Sigquit> for Postmaster {
    type Result = ();

    fn handle(&mut self, Sigquit: Sigquit, ctx: &mut Self::Context) {
        info!("received immediate shutdown request");
        self.advance(ctx, |machine, now| {
            machine.shut_down(now, Shutdown::Immediate);
        });
    }
}

impl Handler<GetStatus> for Postmaster {
    type Result = MessageResult<GetStatus>;

    fn handle(&mut self, GetStatus: GetStatus, _: &mut Self::Context) -> Self::Result {
        MessageResult(Status {
            reached: self.machine.level(),
            shutdown: self.machine.shutdown(),
            counts: self.machine.counts(),
        })
    }
}

impl Handler<GetWorker> for Postmaster {
    type Result = MessageResult<GetWorker>;

    fn handle(&mut self, GetWorker(id): GetWorker, _: &mut Self::Context) -> Self::Result {
        let child = self.children.get(id.slot()).and_then(Option::as_ref);
        let child = child.filter(|child| child.id == id);
        MessageResult(child.and_then(|child| self.worker_status(child)))
    }
}

impl Handler<GetWorkers> for Postmaster {
    type Result = MessageResult<GetWorkers>;

    fn handle(&mut self, GetWorkers: GetWorkers, _: &mut Self::Context) -> Self::Result {
        let children = self.children.iter().flatten();
        let mut workers: Vec<_> = children
            .filter_map(|child| self.worker_status(child))
            .collect();
        workers.sort_unstable_by_key(|worker| worker.id);
        MessageResult((workers, self.ended.iter().cloned().collect()))
    }
}
