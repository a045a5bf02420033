//! What the Postmaster keeps of each registered worker: its main, its actor, and how it has fared.
//!
//! Carries out and reports; decides nothing. Old handles find nothing here.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use actix::Addr;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{broadcast, oneshot};
use tokio::time::Instant;
use tracing::field::display;
use tracing::{debug, error, info, warn};

use super::event::{Event, EventKind, Milestone, WaitError, Waiters};
use super::repetition::Repetition;
use super::status::{End, EndedWorker, WorkerStatus, Workers};
use crate::background_worker::{ExitStatus, Incarnation, RestartLimit, WorkerId};
use crate::context::{Histograms, Main, Progress, Reason, WorkerContext, WorkerReport};
use crate::database::Database;
use crate::supervision::{Afterwards, Signal, StateMachine, WorkerState};
use crate::worker::{Sighup, Sigint, Sigquit, Sigterm, Worker};

/// How many ended workers status remembers.
const ENDED_MAX: usize = 100;

/// How many events a subscriber may lag behind before it misses some.
const EVENTS_MAX: usize = 1024;

/// The registered workers, by slot, and the last ones that ended.
#[derive(Debug)]
pub(super) struct Children {
    slots: Vec<Option<Child>>,
    ended: VecDeque<EndedWorker>,
    histograms: Arc<Histograms>,
    /// Where subscribers receive events; `None` after the exit, when nothing happens any longer.
    events: Option<broadcast::Sender<Event>>,
    /// Where incarnations report to; `None` after the exit, when none can be started.
    reports: Option<UnboundedSender<WorkerReport>>,
}

struct Child {
    id: WorkerId,
    name: Arc<str>,
    main: Arc<dyn Main>,
    progress: Arc<Progress>,
    /// How often it was started.
    starts: u64,
    /// How often it was started again after an end that was not asked for.
    restarts: u64,
    /// `true` if its next start is a restart: its last incarnation was not asked to end, and did more than to find that
    /// there is no database.
    restarts_next: bool,
    /// The last of its incarnations that was ready.
    ready: Option<Incarnation>,
    running: Option<Addr<Worker>>,
    /// When it was registered, started, became ready or exited, whichever came last.
    since: Instant,
    /// Why its last incarnation ended.
    reason: Option<Reason>,
    repetition: Repetition,
    /// `true` if it failed more often than its limit allows.
    gave_up: bool,
    waiters: Waiters,
    /// Its end, which its handles keep.
    end: End,
}

// === impl Children ===

impl Children {
    pub(super) fn new(reports: UnboundedSender<WorkerReport>) -> Self {
        let (events, _) = broadcast::channel(EVENTS_MAX);
        Self {
            reports: Some(reports),
            slots: Vec::new(),
            ended: VecDeque::new(),
            histograms: Arc::default(),
            events: Some(events),
        }
    }

    /// Closes both channels: from here on no worker is started, and nothing happens.
    pub(super) fn close(&mut self) {
        self.reports = None;
        self.events = None;
    }

    /// The events from now on.
    pub(super) fn subscribe(&self) -> broadcast::Receiver<Event> {
        match &self.events {
            Some(events) => events.subscribe(),
            // A stream that has ended.
            None => broadcast::channel(1).1,
        }
    }

    /// Keeps a worker that has just been registered; returns where its end will be found.
    pub(super) fn insert(&mut self, id: WorkerId, name: Arc<str>, main: Arc<dyn Main>) -> End {
        let end = End::default();
        if self.slots.len() <= id.slot() {
            self.slots.resize_with(id.slot() + 1, || None);
        }
        self.slots[id.slot()] = Some(Child {
            id,
            name,
            main,
            progress: Arc::new(Progress::new(Arc::clone(&self.histograms))),
            starts: 0,
            restarts: 0,
            restarts_next: false,
            ready: None,
            running: None,
            since: Instant::now(),
            reason: None,
            repetition: Repetition::default(),
            gave_up: false,
            waiters: Waiters::default(),
            end: Arc::clone(&end),
        });
        self.tell(id, EventKind::Registered);
        end
    }

    /// Starts an incarnation: its main in a task, and its actor.
    pub(super) fn start(&mut self, incarnation: Incarnation, database: Option<Database>) {
        let Some(reports) = self.reports.clone() else {
            return;
        };
        let Some(child) = self.get_mut(incarnation.worker) else {
            return;
        };
        child.starts += 1;
        child.restarts += u64::from(std::mem::take(&mut child.restarts_next));
        child.since = Instant::now();
        let worker = &child.name;
        let (slot, generation) = (child.id.slot(), child.id.generation());
        if child.starts == 1 {
            info!(%worker, slot, generation, "starting background worker \"{worker}\"");
        } else {
            debug!(%worker, slot, generation, "starting background worker \"{worker}\"");
        }
        let context = WorkerContext::new(
            Arc::clone(&child.name),
            incarnation,
            database,
            Arc::clone(&child.progress),
            reports.clone(),
        );
        let main = Arc::clone(&child.main);
        child.running = Some(Worker::spawn(main, context, reports));
        child.waiters.reached(Milestone::Started);
        self.tell(incarnation.worker, EventKind::Started(incarnation));
    }

    /// Notes that an incarnation is ready.
    pub(super) fn ready(&mut self, incarnation: Incarnation) {
        if let Some(child) = self.get_mut(incarnation.worker) {
            child.since = Instant::now();
            child.ready = Some(incarnation);
            child.waiters.reached(Milestone::Ready);
        }
        self.tell(incarnation.worker, EventKind::Ready(incarnation));
    }

    /// Adds a waiter for a milestone of a worker, and answers it at once if the outcome is known.
    pub(super) fn wait(
        &mut self,
        id: WorkerId,
        milestone: Milestone,
        waiter: oneshot::Sender<Result<(), WaitError>>,
        machine: &StateMachine,
    ) {
        let ended = self.ended.iter().find(|ended| ended.id == id);
        let ended = ended.map_or(ExitStatus::Stopped, |ended| ended.exit);
        let state = machine.state(id);
        let mut waiters = Waiters::default();
        let waiters = match self.get_mut(id) {
            Some(child) => &mut child.waiters,
            None => &mut waiters,
        };
        waiters.push(milestone, waiter);
        match state {
            None => {
                waiters.give_up(WaitError::Ended(ended));
                waiters.reached(Milestone::Unregistered);
            }
            Some(WorkerState::Running) => waiters.reached(Milestone::Ready),
            Some(WorkerState::Starting) => waiters.reached(Milestone::Started),
            Some(_) => {}
        }
        if machine.shutdown().is_some() {
            waiters.give_up(WaitError::ShuttingDown);
        }
    }

    /// Releases every waiter for a worker to start or to be ready.
    pub(super) fn release_waiters(&mut self) {
        for child in self.slots.iter_mut().flatten() {
            child.waiters.give_up(WaitError::ShuttingDown);
        }
    }

    pub(super) fn signal(&mut self, incarnation: Incarnation, signal: Signal) {
        let child = self.get_mut(incarnation.worker);
        let Some(running) = child.and_then(|child| child.running.as_ref()) else {
            return;
        };
        match signal {
            Signal::Sighup => running.do_send(Sighup),
            Signal::Sigterm => running.do_send(Sigterm),
            Signal::Sigint => running.do_send(Sigint),
        }
    }

    /// Aborts an incarnation; returns the name of its worker.
    pub(super) fn abort(&mut self, incarnation: Incarnation) -> Option<Arc<str>> {
        let child = self.get_mut(incarnation.worker)?;
        child.running.as_ref()?.do_send(Sigquit);
        let name = Arc::clone(&child.name);
        warn!(worker = %name, "aborting background worker \"{name}\"");
        Some(name)
    }

    /// Keeps why an incarnation ended, until the machine has decided what follows.
    pub(super) fn set_reason(&mut self, incarnation: Incarnation, reason: Option<Reason>) {
        if let Some(child) = self.get_mut(incarnation.worker) {
            child.reason = reason;
        }
    }

    /// Lets go of an incarnation that has ended, and reports its end.
    pub(super) fn exited(
        &mut self,
        incarnation: Incarnation,
        exit: ExitStatus,
        afterwards: Afterwards,
    ) {
        if let Some(child) = self.get_mut(incarnation.worker) {
            child.running = None;
            child.since = Instant::now();
            child.gave_up = matches!(afterwards, Afterwards::GiveUp(_));
            let unasked = exit != ExitStatus::Stopped;
            // To try again what never reached the database is a part of one start.
            child.restarts_next =
                unasked && (exit != ExitStatus::DatabaseAway || child.ready == Some(incarnation));
            // That a worker had to be aborted after it was asked to stop is no failure of its work.
            let failure = child.reason.as_ref();
            if let Some(reason) = failure.filter(|why| unasked || why.panicked) {
                child.progress.failed(Arc::clone(&reason.text));
            }
            child.log_exit(exit, afterwards);
            let reason = child.reason.as_ref().map(|reason| Arc::clone(&reason.text));
            let restart_in = match afterwards {
                Afterwards::Restart(wait) => Some(wait),
                Afterwards::Unregister | Afterwards::GiveUp(_) => None,
            };
            let kind = EventKind::Exited {
                incarnation,
                exit,
                reason,
                restart_in,
            };
            self.tell(incarnation.worker, kind);
        }
    }

    /// Forgets a worker, except for its end.
    pub(super) fn unregister(&mut self, id: WorkerId, exit: ExitStatus) {
        if self.get(id).is_none() {
            return;
        }
        self.tell(id, EventKind::Unregistered(exit));
        let Some(mut child) = self.slots[id.slot()].take() else {
            return;
        };
        let name = Arc::clone(&child.name);
        debug!(worker = %name, "unregistering background worker \"{name}\"");
        let ended = EndedWorker {
            id,
            name,
            exit,
            since: child.since,
            gave_up: child.gave_up,
            reason: child.reason.map(|reason| reason.text),
            starts: child.starts,
            restarts: child.restarts,
            report: child.progress.report(),
        };
        // Nothing else sets it.
        let _ = child.end.set(Box::new(ended.clone()));
        child.waiters.give_up(WaitError::Ended(exit));
        child.waiters.reached(Milestone::Unregistered);
        if self.ended.len() == ENDED_MAX {
            self.ended.pop_front();
        }
        self.ended.push_back(ended);
    }

    /// One worker, with its state in the machine.
    pub(super) fn status(&self, id: WorkerId, machine: &StateMachine) -> Option<WorkerStatus> {
        let child = self.get(id)?;
        Some(WorkerStatus {
            id,
            worker: machine.worker(id)?.clone(),
            state: machine.state(id)?,
            since: child.since,
            starts: child.starts,
            restarts: child.restarts,
            has_been_ready: child.ready.is_some(),
            reason: child.reason.as_ref().map(|reason| Arc::clone(&reason.text)),
            report: child.progress.report(),
            #[cfg(feature = "http")]
            progress: Arc::clone(&child.progress),
        })
    }

    /// All registered workers in registration order, and the last ones that ended, oldest first.
    pub(super) fn statuses(&self, machine: &StateMachine) -> Workers {
        let children = self.slots.iter().flatten();
        let mut registered: Vec<_> = children
            .filter_map(|child| self.status(child.id, machine))
            .collect();
        registered.sort_unstable_by_key(|worker| worker.id);
        Workers {
            registered,
            ended: self.ended.iter().cloned().collect(),
            histograms: self.histograms.all(),
        }
    }

    /// Sends an event to the subscribers, if there are any.
    fn tell(&self, worker: WorkerId, kind: EventKind) {
        let events = self.events.as_ref();
        let Some(events) = events.filter(|events| events.receiver_count() > 0) else {
            return;
        };
        if let Some(child) = self.get(worker) {
            let name = Arc::clone(&child.name);
            let _ = events.send(Event { worker, name, kind });
        }
    }

    fn get(&self, id: WorkerId) -> Option<&Child> {
        let child = self.slots.get(id.slot())?.as_ref();
        child.filter(|child| child.id == id)
    }

    fn get_mut(&mut self, id: WorkerId) -> Option<&mut Child> {
        let child = self.slots.get_mut(id.slot())?.as_mut();
        child.filter(|child| child.id == id)
    }
}

// === impl Child ===

impl Child {
    /// Logs the end of an incarnation, at the level that fits it.
    fn log_exit(&mut self, exit: ExitStatus, afterwards: Afterwards) {
        let worker = &self.name;
        let (slot, generation) = (self.id.slot(), self.id.generation());
        let reason = self.reason.as_ref();
        let sqlstate = reason.and_then(|reason| reason.sqlstate.as_deref());
        let panicked = reason.is_some_and(|reason| reason.panicked);
        // Not quoted: the text may hold a statement that a reader of the log wants to copy.
        let reason = reason.map(|reason| display(&reason.text));
        let restart_in = match afterwards {
            Afterwards::Restart(wait) => Some(humantime::format_duration(wait).to_string()),
            Afterwards::Unregister | Afterwards::GiveUp(_) => None,
        };
        let restart_in = restart_in.as_deref();
        let counted = (self.repetition).count(super::now(), exit, self.reason.as_ref());
        let times = Some(counted.unwrap_or_else(|times| times)).filter(|times| *times > 1);
        // The level of an event is part of its place in the code.
        macro_rules! exited {
            ($level:ident) => {
                $level!(
                    %worker, slot, generation, %exit, times, reason, sqlstate, restart_in,
                    "background worker \"{worker}\" exited"
                )
            };
        }
        match exit {
            // An exit that no restart follows is logged at its own level, even if it repeats.
            _ if counted.is_err() && restart_in.is_some() => exited!(debug),
            ExitStatus::Crashed => exited!(error),
            ExitStatus::Stopped if panicked => exited!(error),
            ExitStatus::Failed | ExitStatus::DatabaseAway => exited!(warn),
            ExitStatus::Finished => exited!(info),
            ExitStatus::Stopped => exited!(debug),
        }
        if let Afterwards::GiveUp(RestartLimit { restarts, within }) = afterwards {
            let within = humantime::format_duration(within);
            error!(
                %worker, slot, generation, restarts, %within,
                "background worker \"{worker}\" is stopped for good: it was restarted {restarts} \
                 times within {within}"
            );
        }
    }
}

impl fmt::Debug for Child {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Child")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("starts", &self.starts)
            .finish_non_exhaustive()
    }
}
