//! What the state machine asks for: plain values, carried out by whoever owns it.

use std::time::Duration;

use crate::background_worker::{ExitStatus, Incarnation, RestartLimit, WorkerId};

/// What the caller must do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start this incarnation of its worker.
    Start(Incarnation),
    /// Pass a signal to a running incarnation.
    Signal {
        /// The incarnation that is told.
        incarnation: Incarnation,
        /// What it is told.
        signal: Signal,
    },
    /// End a running incarnation without asking it.
    Abort(Incarnation),
    /// Report that an incarnation has ended, and what follows.
    Exited {
        /// The incarnation that has ended.
        incarnation: Incarnation,
        /// How it ended; [`ExitStatus::Stopped`] whatever it said, if it was asked to.
        exit: ExitStatus,
        /// What follows.
        afterwards: Afterwards,
    },
    /// Forget a worker: its slot and its name are free.
    Unregister {
        /// The worker that is forgotten.
        worker: WorkerId,
        /// How its last incarnation ended.
        exit: ExitStatus,
    },
    /// Report that the server fell below the level of so many workers that ran: they are stopped
    /// without prejudice, and come back when it rises.
    Parked {
        /// How many.
        workers: usize,
    },
    /// Report that the server has come far enough again for so many parked workers.
    Unparked {
        /// How many.
        workers: usize,
    },
    /// Report that a crash is followed by a reset: every other worker with access is stopped.
    Reset,
    /// Make anew what workers with access share: all of them have stopped, and none starts before.
    ResetShared,
    /// Every worker has ended after a shutdown request. Comes once; nobody is started after it.
    Exit,
}

/// What follows the end of an incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Afterwards {
    /// It starts again, this long after its exit.
    Restart(Duration),
    /// It is unregistered.
    Unregister,
    /// It is unregistered, since it was restarted as often as its limit allows.
    GiveUp(RestartLimit),
}

/// What a running worker can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signal {
    /// Settings may have changed: look at them now.
    Sighup,
    /// Begin nothing new, finish what runs, and end.
    Sigterm,
    /// Cancel what runs, and end.
    Sigint,
}
