//! The words for where a worker is. What is done about it is the state machine's.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a registered worker is, or how one has ended; a word in JSON, such as `backing off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "&'static str", try_from = "String")]
pub enum State {
    /// The server has not come far enough yet, or its turn has not come.
    Registered,
    /// It was started, and has not said that it is ready.
    Starting,
    /// It is ready, and in its first cycle.
    Ready,
    /// It naps.
    Napping,
    /// It is in a cycle.
    Running,
    /// It ran, and waits until the server has come far enough again.
    Parked,
    /// It failed, and waits for its restart time.
    BackingOff,
    /// It was asked to end.
    Stopping,
    /// It has ended: its main returned.
    Finished,
    /// It has ended by an error.
    Failed,
    /// It has ended by a panic.
    Crashed,
    /// It has ended because it was asked to.
    Stopped,
}

// === impl State ===

impl State {
    /// Those of a registered worker, in the order of its life.
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
        let mut states = Self::REGISTERED.into_iter().chain(Self::ENDED);
        let state = states.find(|state| state.word() == word);
        state.ok_or_else(|| format!("\"{word}\" is not a state of a worker"))
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}
