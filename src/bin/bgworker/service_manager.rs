//! What systemd is told, if it started the program: ready, reloading, stopping, alive. Nothing otherwise.

use std::time::Duration;

use bgworker::{PostmasterHandle, RequestError, Status};
use sd_notify::NotifyState;
use tokio::task::AbortHandle;
use tracing::debug;

/// How often the status line is looked at, unless the watchdog is fed more often.
const INTERVAL: Duration = Duration::from_secs(5);

/// How long the Postmaster may take to answer before it counts as stuck.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Tells of a Postmaster while it is kept.
pub(crate) struct ServiceManager(AbortHandle);

// === impl ServiceManager ===

impl ServiceManager {
    /// Says that the program is ready: its workers run, or wait for their server.
    pub(crate) fn ready(postmaster: &PostmasterHandle) -> Self {
        tell(&[NotifyState::Ready]);
        let postmaster = postmaster.clone();
        let watchdog = sd_notify::watchdog_enabled();
        // Twice as often as it must be.
        let interval = watchdog.map_or(INTERVAL, |within| INTERVAL.min(within / 2));
        let feeding = async move {
            loop {
                // Fed by the Postmaster's answer alone: a timer would say that a stuck one is alive.
                let answer = tokio::time::timeout(ANSWER_TIMEOUT, postmaster.status()).await;
                if let Ok(Ok(status)) = &answer {
                    tell(&[NotifyState::Status(&line(status)), NotifyState::Watchdog]);
                }
                if let Ok(Err(RequestError::PostmasterDied)) = answer {
                    return;
                }
                tokio::time::sleep(interval).await;
            }
        };
        Self(actix::spawn(feeding).abort_handle())
    }

    /// Says that the configuration is read again, until `reloaded`.
    pub(crate) fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(error) => debug!("no monotonic clock: {error}"),
        }
    }

    /// Says that it was read.
    pub(crate) fn reloaded(&self) {
        tell(&[NotifyState::Ready]);
    }

    /// Says that the program is about to end.
    pub(crate) fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }
}

impl Drop for ServiceManager {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What `systemctl status` shows.
fn line(status: &Status) -> String {
    let counts = status.counts;
    let mut line = format!(
        "{} of {} background workers run",
        counts.running, counts.registered
    );
    for (count, what) in [
        (counts.backing_off, "back off"),
        (counts.parked, "are parked"),
    ] {
        if count > 0 {
            line += &format!(", {count} {what}");
        }
    }
    line
}

fn tell(what: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(what) {
        debug!("could not tell the service manager: {error}");
    }
}
