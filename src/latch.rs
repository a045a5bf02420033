//! The latch: a nap that can be woken, and the reason why it ended.
//!
//! The counterpart of `SetLatch` and `WaitLatch` with the flags that PostgreSQL's signal handlers
//! set beside them. Raising is synchronous and never waits. Nothing here knows what raises a latch.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// What a worker naps on. Clones are the same latch.
#[derive(Clone, Debug, Default)]
pub struct Latch(Arc<State>);

/// Why a nap ended. A main need only tell reasons to [stop](Self::is_stop) from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Wake {
    /// The time was up (`WL_TIMEOUT`).
    Timeout,
    /// Settings may have changed. Reported once for each `Sighup`, or once for several.
    Sighup,
    /// The worker is to begin nothing new, and to end. Every later nap reports it too.
    Sigterm,
    /// The worker is to cancel what it runs, and to end. Every later nap reports it too.
    Sigint,
    /// The Postmaster is gone (`WL_EXIT_ON_PM_DEATH`). Every later nap reports it too.
    PostmasterDeath,
}

#[derive(Debug, Default)]
struct State {
    raised: AtomicU8,
    notify: Notify,
}

const SIGHUP: u8 = 1;
const SIGTERM: u8 = 2;
const SIGINT: u8 = 4;
const POSTMASTER_DEATH: u8 = 8;
const STOP: u8 = SIGTERM | SIGINT | POSTMASTER_DEATH;

// === impl Wake ===

impl Wake {
    /// `true` if the worker must end now.
    #[must_use]
    pub fn is_stop(self) -> bool {
        match self {
            Self::Timeout | Self::Sighup => false,
            Self::Sigterm | Self::Sigint | Self::PostmasterDeath => true,
        }
    }

    fn bit(self) -> u8 {
        match self {
            Self::Timeout => 0,
            Self::Sighup => SIGHUP,
            Self::Sigterm => SIGTERM,
            Self::Sigint => SIGINT,
            Self::PostmasterDeath => POSTMASTER_DEATH,
        }
    }
}

// === impl Latch ===

impl Latch {
    /// Sets a flag and wakes every wait under way; later waits see the flag.
    pub(crate) fn raise(&self, wake: Wake) {
        self.0.raised.fetch_or(wake.bit(), Ordering::AcqRel);
        self.0.notify.notify_waiters();
    }

    /// Naps for `timeout` at most, and returns why the nap ended. Mirrors `WaitLatch`.
    ///
    /// A nap of zero length gives every other task on the thread its turn.
    pub async fn wait(&self, timeout: Duration) -> Wake {
        if timeout.is_zero() {
            // A timer would take up to a millisecond.
            tokio::task::yield_now().await;
            let raised = self.0.raised.load(Ordering::Acquire);
            return self.take(raised).unwrap_or(Wake::Timeout);
        }
        tokio::time::timeout(timeout, self.until(|raised| self.take(raised)))
            .await
            .unwrap_or(Wake::Timeout)
    }

    /// `true` if the worker is to end.
    #[must_use]
    pub fn is_stop_requested(&self) -> bool {
        self.0.raised.load(Ordering::Acquire) & STOP != 0
    }

    /// Waits until the worker is to end: by `Sigterm`, by `Sigint`, or because the Postmaster is
    /// gone.
    pub async fn stop_requested(&self) {
        self.until(|raised| (raised & STOP != 0).then_some(()))
            .await;
    }

    /// Waits until the worker is to cancel what it runs: by `Sigint`, or because the Postmaster is
    /// gone.
    pub async fn cancel_requested(&self) {
        self.until(|raised| (raised & (SIGINT | POSTMASTER_DEATH) != 0).then_some(()))
            .await;
    }

    /// What a nap returns for the raised flags. Only a `Sighup` is cleared when it is reported.
    fn take(&self, raised: u8) -> Option<Wake> {
        if raised & POSTMASTER_DEATH != 0 {
            Some(Wake::PostmasterDeath)
        } else if raised & SIGINT != 0 {
            Some(Wake::Sigint)
        } else if raised & SIGTERM != 0 {
            Some(Wake::Sigterm)
        } else if raised & SIGHUP != 0 {
            self.0.raised.fetch_and(!SIGHUP, Ordering::AcqRel);
            Some(Wake::Sighup)
        } else {
            None
        }
    }

    async fn until<T>(&self, mut answer: impl FnMut(u8) -> Option<T>) -> T {
        loop {
            let mut notified = pin!(self.0.notify.notified());
            // Listening begins before the flags are read, so that no wake is missed in between.
            notified.as_mut().enable();
            if let Some(answer) = answer(self.0.raised.load(Ordering::Acquire)) {
                return answer;
            }
            notified.await;
        }
    }
}
