//! What the state machine asks for: plain values, carried out by its owner.

use std::time::Duration;

use crate::background_worker::{ExitStatus, Incarnation, RestartLimit, WorkerId};

/// What the caller must do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start this incarnation of its worker.
    Start(Incarnation),
    /// Pass a signal to a running incarnation.
    Signal {
        /// The incarnation that gets it.
        incarnation: Incarnation,
        /// The signal to pass on.
        signal: Signal,
    },
    /// End a running incarnation without asking it.
    Abort(Incarnation),
    /// Report that an incarnation has ended, and what follows.
    Exited {
        /// The incarnation that has ended.
        incarnation: Incarnation,
        /// How it ended; [`ExitStatus::Stopped`] however its main ended, if it was asked to stop.
        exit: ExitStatus,
        /// What follows its end.
        afterwards: Afterwards,
    },
    /// Forget a worker: its slot and its name are free.
    Unregister {
        /// The worker that is forgotten.
        worker: WorkerId,
        /// How its last incarnation ended.
        exit: ExitStatus,
    },
    /// Report that the server fell below the level of this many workers that run or ran: they are stopped
    /// without prejudice, and come back when it rises.
    Parked {
        /// The number of workers.
        workers: usize,
    },
    /// Report that the server has come far enough again for this many parked workers.
    Unparked {
        /// The number of workers.
        workers: usize,
    },
    /// Report that a crash is followed by a reset: every other worker with access is stopped.
    Reset,
    /// Recreate what workers with access share: all of them have stopped, and none starts before that is done.
    ResetShared,
    /// Every worker has ended after a shutdown request. Comes once; no worker is started after it.
    Exit,
}

/// What follows the end of an incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Afterwards {
    /// The worker starts again, this long after its exit.
    Restart(Duration),
    /// The worker is unregistered.
    Unregister,
    /// The worker is unregistered, because it was restarted as often as its limit allows.
    GiveUp(RestartLimit),
}

/// What a running worker can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signal {
    /// Settings may have changed: look at them now.
    Sighup,
    /// Begin nothing new, finish what runs, and end.
    Sigterm,
    /// Cancel what runs, and end.
    Sigint,
}
