//! The words for the states of a worker. What follows from a state is for the state machine to decide.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The state of a registered worker, or how a worker ended; in JSON a word, such as `backing off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "&'static str", try_from = "String")]
pub enum State {
    /// The server has not come far enough yet, or its turn has not come.
    Registered,
    /// It was started, and has not yet reported that it is ready.
    Starting,
    /// It is ready, and none of its cycles has succeeded yet.
    Ready,
    /// It naps.
    Napping,
    /// It is in a cycle.
    Running,
    /// It ran, and waits for the server to come far enough again, or for its turn.
    Parked,
    /// It failed or lost its database, and waits out its restart time.
    BackingOff,
    /// It was asked to stop.
    Stopping,
    /// It has ended: its main returned `Ok` unasked.
    Finished,
    /// It has ended with an error.
    Failed,
    /// It has ended with a panic.
    Crashed,
    /// It has ended because it was asked to.
    Stopped,
}

// === impl State ===

impl State {
    /// The states of a registered worker, in the order of its life.
    pub(super) const REGISTERED: [Self; 8] = [
        Self::Registered,
        Self::Starting,
        Self::Ready,
        Self::Napping,
        Self::Running,
        Self::Parked,
        Self::BackingOff,
        Self::Stopping,
    ];

    const ENDED: [Self; 4] = [Self::Finished, Self::Failed, Self::Crashed, Self::Stopped];

    /// Each state.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        Self::REGISTERED.into_iter().chain(Self::ENDED)
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Registered => "registered",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Napping => "napping",
            Self::Running => "running",
            Self::Parked => "parked",
            Self::BackingOff => "backing off",
            Self::Stopping => "stopping",
            Self::Finished => "finished",
            Self::Failed => "failed",
            Self::Crashed => "crashed",
            Self::Stopped => "stopped",
        }
    }
}

impl From<State> for &'static str {
    fn from(state: State) -> Self {
        state.word()
    }
}

impl TryFrom<String> for State {
    type Error = String;

    fn try_from(word: String) -> Result<Self, Self::Error> {
        let state = Self::all().find(|state| state.word() == word);
        state.ok_or_else(|| format!("\"{word}\" is not a state of a worker"))
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}
