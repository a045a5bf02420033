//! A clock that stands still.

use std::time::Duration;

use tokio::time::Instant;

/// The clock of this thread, which stands still until there is nothing left to do: then it jumps to the
/// next time that somebody waits for.
///
/// An hour of naps takes no time at all. Not together with a real server: its answers take time, and every
/// deadline would pass at once. It goes on as ever when this is dropped.
#[derive(Debug)]
pub struct PausedClock(());

// === impl PausedClock ===

impl PausedClock {
    /// Stops the clock.
    ///
    /// # Panics
    ///
    /// If it stands still already, or this is not a thread of an actix System.
    #[must_use]
    pub fn pause() -> Self {
        tokio::time::pause();
        Self(())
    }

    /// Lets so much time pass, and everything happen that is due in it, each at its time.
    pub async fn advance(&self, time: Duration) {
        // A clock that is only moved would skip what is due in between.
        tokio::time::sleep(time).await;
    }

    /// What it shows.
    #[must_use]
    pub fn now(&self) -> Instant {
        Instant::now()
    }
}

impl Drop for PausedClock {
    fn drop(&mut self) {
        // Outside of its runtime there is no clock to go on.
        if tokio::runtime::Handle::try_current().is_ok() {
            tokio::time::resume();
        }
    }
}
