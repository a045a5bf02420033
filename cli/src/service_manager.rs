//! What the program reports to systemd, if systemd started it: ready, reloading, stopping, alive. Otherwise nothing.

use std::cell::Cell;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bgworker::{PostmasterHandle, RequestError, Status};
use sd_notify::NotifyState;
use tokio::task::AbortHandle;
use tracing::{debug, warn};

/// How often the status line is sent, unless the watchdog is fed more often.
const INTERVAL: Duration = Duration::from_secs(5);

/// How long the Postmaster may take to answer before it counts as stuck.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Reports on a Postmaster until this value is dropped.
pub(crate) struct ServiceManager {
    feeding: AbortHandle,
    /// Set by `stopping`, and never reset: a reload that ends later must not make the program ready again.
    is_stopping: Cell<bool>,
}

// === impl ServiceManager ===

impl ServiceManager {
    /// Reports that the program is ready: its workers run, or wait for their server.
    pub(crate) fn ready(postmaster: &PostmasterHandle) -> Self {
        tell(&[NotifyState::Ready]);
        let postmaster = postmaster.clone();
        // `None` without a watchdog, or if it is meant for another process.
        let watchdog = sd_notify::watchdog_enabled().filter(|within| !within.is_zero());
        // Twice as often as required.
        let interval = watchdog.map_or(INTERVAL, |within| INTERVAL.min(within / 2));
        let feeding = async move {
            loop {
                // Fed by the Postmaster's answer alone: a timer would report a stuck Postmaster as alive.
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

    /// Reports that the configuration is being read again, until `reloaded` is called.
    pub(crate) fn reloading(&self) {
        if self.is_stopping.get() {
            return;
        }
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(error) => debug!("no monotonic clock: {error}"),
        }
    }

    /// Reports that the configuration was read.
    pub(crate) fn reloaded(&self) {
        if !self.is_stopping.get() {
            tell(&[NotifyState::Ready]);
        }
    }

    /// Reports that the program is about to end.
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

/// The line that `systemctl status` shows.
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
    static IS_KNOWN: AtomicBool = AtomicBool::new(false);
    if let Err(error) = send(what) {
        if IS_KNOWN.swap(true, Ordering::Relaxed) {
            debug!("could not tell the service manager: {error}");
        } else {
            // Once: it is told every few seconds.
            warn!(
                "could not tell the service manager at NOTIFY_SOCKET: {error}: it takes this program for one that is \
                 never ready, and may end it"
            );
        }
    }
}

/// Sends to the socket that the service manager names. The library does not know sockets without a file, whose names
/// begin with "@".
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
