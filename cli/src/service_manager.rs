//! What systemd is told, if it started the program: ready, reloading, stopping, alive. Nothing otherwise.

use std::cell::Cell;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
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
pub(crate) struct ServiceManager {
    feeding: AbortHandle,
    /// Set for good by `stopping`: a reload that ends later must not make the program ready again.
    is_stopping: Cell<bool>,
}

// === impl ServiceManager ===

impl ServiceManager {
    /// Says that the program is ready: its workers run, or wait for their server.
    pub(crate) fn ready(postmaster: &PostmasterHandle) -> Self {
        tell(&[NotifyState::Ready]);
        let postmaster = postmaster.clone();
        // That of another process is not ours to feed.
        let watchdog = sd_notify::watchdog_enabled().filter(|within| !within.is_zero());
        // Twice as often as it must be.
        let interval = watchdog.map_or(INTERVAL, |within| INTERVAL.min(within / 2));
        let feeding = async move {
            loop {
                // Fed by the Postmaster's answer alone: a timer would say that a stuck one is alive.
                let answer = tokio::time::timeout(ANSWER_TIMEOUT, postmaster.status()).await;
                if let Ok(Ok(status)) = &answer {
                    let line = line(status);
                    let alive = watchdog.map(|_| NotifyState::Watchdog);
                    let told = std::iter::once(NotifyState::Status(&line)).chain(alive);
                    tell(&told.collect::<Vec<_>>());
                }
                if let Ok(Err(RequestError::PostmasterDied)) = answer {
                    return;
                }
                tokio::time::sleep(interval).await;
            }
        };
        Self {
            feeding: actix::spawn(feeding).abort_handle(),
            is_stopping: Cell::new(false),
        }
    }

    /// Says that the configuration is read again, until `reloaded`.
    pub(crate) fn reloading(&self) {
        if self.is_stopping.get() {
            return;
        }
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(error) => debug!("no monotonic clock: {error}"),
        }
    }

    /// Says that it was read.
    pub(crate) fn reloaded(&self) {
        if !self.is_stopping.get() {
            tell(&[NotifyState::Ready]);
        }
    }

    /// Says that the program is about to end.
    pub(crate) fn stopping(&self) {
        self.is_stopping.set(true);
        tell(&[NotifyState::Stopping]);
    }
}

impl Drop for ServiceManager {
    fn drop(&mut self) {
        self.feeding.abort();
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
    if let Some(server) = &status.server
        && server.reason.is_some()
    {
        line += &format!(", server is {}", server.state);
    }
    line
}

fn tell(what: &[NotifyState<'_>]) {
    if let Err(error) = send(what) {
        debug!("could not tell the service manager: {error}");
    }
}

/// Sends to the socket that the service manager names. One without a file, whose name begins with "@", is unknown to
/// the library.
fn send(what: &[NotifyState<'_>]) -> io::Result<()> {
    let name = std::env::var_os("NOTIFY_SOCKET").unwrap_or_default();
    let Some(name) = name.as_bytes().strip_prefix(b"@") else {
        return sd_notify::notify(what);
    };
    let message: String = what.iter().map(|state| format!("{state}\n")).collect();
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&abstract_address(name)?)?;
    socket.send(message.as_bytes()).map(drop)
}

#[cfg(target_os = "linux")]
fn abstract_address(name: &[u8]) -> io::Result<SocketAddr> {
    <SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name)
}

#[cfg(not(target_os = "linux"))]
fn abstract_address(_: &[u8]) -> io::Result<SocketAddr> {
    Err(io::ErrorKind::Unsupported.into())
}
