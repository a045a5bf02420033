//! A clock that stands still.

use std::time::Duration;

use tokio::time::Instant;

/// The clock of this thread, which stands still until nothing is left to do, and then jumps to the
/// next time that a task waits for.
///
/// An hour of naps takes no time at all. Do not use it with a real server: the server's answers take time,
/// and every deadline would pass at once. The clock runs again when this is dropped.
#[derive(Debug)]
pub struct PausedClock(());

// === impl PausedClock ===

impl PausedClock {
    /// Stops the clock.
    ///
    /// # Panics
    ///
    /// If the clock stands still already, or this is not a thread of an actix System.
    #[must_use]
    pub fn pause() -> Self {
        tokio::time::pause();
        Self(())
    }

    /// Lets `time` pass; everything that is due within it happens, each at its time.
    pub async fn advance(&self, time: Duration) {
        // A clock that is only moved would skip what is due in between.
        tokio::time::sleep(time).await;
    }

    /// The time that the clock shows.
    #[must_use]
    pub fn now(&self) -> Instant {
        Instant::now()
    }
}

impl Drop for PausedClock {
    fn drop(&mut self) {
        // Outside its runtime there is no clock that could run again.
        if tokio::runtime::Handle::try_current().is_ok() {
            tokio::time::resume();
        }
    }
}
