//! Signals of the operating system, from the moment the program installs its handlers.

use std::io;

use bgworker::supervision::Shutdown;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::info;

/// The signals that mean nothing to the program, and would end it by default.
const MEANINGLESS: [(&str, i32); 7] = [
    ("SIGUSR1", 10),
    ("SIGUSR2", 12),
    ("SIGALRM", 14),
    ("SIGVTALRM", 26),
    ("SIGPROF", 27),
    ("SIGIO", 29),
    ("SIGPWR", 30),
];

/// The signals that the program handles. Only the program does so; the library installs no handlers.
#[derive(Debug)]
pub(crate) struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
}

/// Catches the signals that mean nothing here, and logs each one.
fn ignore_the_rest() -> io::Result<()> {
    if cfg!(not(target_os = "linux")) {
        // The numbers differ there.
        return Ok(());
    }
    for (name, number) in MEANINGLESS {
        let mut ignored = signal(SignalKind::from_raw(number))?;
        actix::spawn(async move {
            while ignored.recv().await.is_some() {
                info!("received {name}, which has no effect");
            }
        });
    }
    Ok(())
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// SIGHUP: read the configuration again.
    Reload,
    /// SIGTERM, SIGINT, SIGQUIT: stop.
    ShutDown(Shutdown),
}

// === impl Signals ===

impl Signals {
    /// Installs the handlers. From here on none of these signals ends the program by itself.
    pub(crate) fn install() -> io::Result<Self> {
        ignore_the_rest()?;
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    /// Waits for the next signal.
    pub(crate) async fn next(&mut self) -> Request {
        tokio::select! {
            _ = self.quit.recv() => Request::ShutDown(Shutdown::Immediate),
            _ = self.interrupt.recv() => Request::ShutDown(Shutdown::Fast),
            _ = self.terminate.recv() => Request::ShutDown(Shutdown::Smart),
            _ = self.hangup.recv() => Request::Reload,
        }
    }

    /// Waits for a signal that asks to stop.
    pub(crate) async fn stop(&mut self) -> Shutdown {
        loop {
            if let Request::ShutDown(mode) = self.next().await {
                return mode;
            }
        }
    }
}
