//! Shutdown: its modes, which may only get stronger, and its deadlines.

use std::time::{Duration, Instant};

use super::limits::Limits;
use super::sweep::Sweep;

/// How urgently to shut down. Mirrors `SmartShutdown`, `FastShutdown` and `ImmediateShutdown`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shutdown {
    /// Running work may finish; the deadline is [`Limits::shutdown_timeout`].
    Smart,
    /// Running work is cancelled; the deadline is [`Limits::FAST_SHUTDOWN_TIMEOUT`].
    Fast,
    /// Workers are aborted.
    Immediate,
}

/// A shutdown that has been requested.
#[derive(Debug)]
pub(super) struct ShutdownUnderWay {
    mode: Shutdown,
    since: Instant,
    /// When the next mode takes over; `None` after the last.
    deadline: Option<Instant>,
    /// The pass that signals the workers; `None` once it is through.
    pub(super) sweep: Option<Sweep>,
    /// The machine has handed out `Action::Exit`.
    pub(super) exited: bool,
}

// === impl Shutdown ===

impl Shutdown {
    /// A repeated request within this time is the same request.
    const REPEAT_AFTER: Duration = Duration::from_millis(300);

    fn next(self) -> Self {
        match self {
            Self::Smart => Self::Fast,
            Self::Fast | Self::Immediate => Self::Immediate,
        }
    }

    fn patience(self, limits: &Limits) -> Option<Duration> {
        match self {
            Self::Smart => Some(limits.shutdown_timeout),
            Self::Fast => Some(Limits::FAST_SHUTDOWN_TIMEOUT),
            Self::Immediate => None,
        }
    }
}

// === impl ShutdownUnderWay ===

impl ShutdownUnderWay {
    pub(super) fn new(now: Instant, mode: Shutdown, limits: &Limits) -> Self {
        Self {
            mode,
            since: now,
            // A patience too long to add to the time never ends.
            deadline: mode
                .patience(limits)
                .and_then(|patience| now.checked_add(patience)),
            sweep: Some(Sweep::default()),
            exited: false,
        }
    }

    pub(super) fn mode(&self) -> Shutdown {
        self.mode
    }

    /// The stronger mode that another request leads to, if any.
    pub(super) fn after_request(&self, now: Instant, requested: Shutdown) -> Option<Shutdown> {
        let next = if requested == self.mode && now >= self.since + Shutdown::REPEAT_AFTER {
            self.mode.next()
        } else {
            requested
        };
        (next > self.mode && !self.exited).then_some(next)
    }

    /// The stronger mode that takes over once the deadline has passed.
    pub(super) fn after_deadline(&self, now: Instant) -> Option<Shutdown> {
        let has_passed = self.deadline.is_some_and(|deadline| deadline <= now);
        (has_passed && !self.exited).then(|| self.mode.next())
    }

    /// When there is something to do next.
    pub(super) fn timeout(
        &self,
        now: Instant,
        any_running: bool,
        any_unstarted: bool,
    ) -> Option<Instant> {
        if self.sweep.is_some() || any_unstarted || !(any_running || self.exited) {
            return Some(now);
        }
        self.deadline.filter(|_| any_running)
    }
}
