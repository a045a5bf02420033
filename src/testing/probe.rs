//! Workers that follow a script, and a probe that receives what they report.

#![expect(
    clippy::panic,
    reason = "a script may say so, and a test whose probe hears nothing fails"
)]

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use crate::context::{Main, WorkerContext, WorkerError};
use crate::latch::Wake;

/// How long a probe listens before it gives up; a clock that stands still skips it.
const PATIENCE: Duration = Duration::from_secs(60_000);

/// What a scripted worker does once it has reported its start.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Script {
    /// Naps for this long at a time, until it is asked to stop.
    NapUntilStopped(Duration),
    /// Returns `Ok` unasked, after this long.
    FinishAfter(Duration),
    /// Returns an error, after this long.
    FailAfter(Duration),
    /// Panics, after this long.
    PanicAfter(Duration),
    /// Panics when it is asked to stop.
    PanicWhenStopped,
    /// Reports that its database went away, after this long.
    LoseDatabaseAfter(Duration),
    /// Never ends by itself, and ignores every signal but an abort.
    IgnoreEverything,
}

/// What a scripted worker reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// An incarnation has started.
    Started {
        /// The worker's name.
        name: Arc<str>,
        /// When it started, on the clock of the test.
        at: Instant,
    },
    /// A nap has ended.
    Woke {
        /// The worker's name.
        name: Arc<str>,
        /// What the nap was woken by.
        wake: Wake,
    },
}

/// Receives what scripted workers report.
#[derive(Debug)]
pub struct Probe {
    heard: UnboundedReceiver<Said>,
    told: UnboundedSender<Said>,
}

// === impl Script ===

impl Script {
    /// Naps for an hour at a time, until it is asked to stop.
    pub const NAPS: Self = Self::NapUntilStopped(Duration::from_secs(3600));
}

// === impl Probe ===

impl Default for Probe {
    fn default() -> Self {
        Self::new()
    }
}

impl Probe {
    /// A probe that has received nothing.
    #[must_use]
    pub fn new() -> Self {
        let (told, heard) = unbounded_channel();
        Self { heard, told }
    }

    /// The main of a worker that follows a script, the same in each incarnation.
    pub fn main(&self, script: Script) -> impl Main {
        let told = self.told.clone();
        move |context| follow(context, script, told.clone())
    }

    /// The next report.
    ///
    /// # Panics
    ///
    /// If none comes for a very long time.
    #[track_caller]
    pub fn said(&mut self) -> impl Future<Output = Said> {
        let caller = std::panic::Location::caller();
        async move {
            match tokio::time::timeout(PATIENCE, self.heard.recv()).await {
                Ok(Some(said)) => said,
                Ok(None) | Err(_) => panic!("{caller}: no worker says anything"),
            }
        }
    }

    /// The next start: the worker's name, and the time.
    ///
    /// # Panics
    ///
    /// If another report comes first, or none for a very long time.
    #[track_caller]
    pub fn started(&mut self) -> impl Future<Output = (String, Instant)> {
        let caller = std::panic::Location::caller();
        async move {
            match self.said().await {
                Said::Started { name, at } => (name.to_string(), at),
                said @ Said::Woke { .. } => panic!("{caller}: a start was due, but: {said:?}"),
            }
        }
    }

    /// All reports that have arrived and were not taken yet.
    pub fn rest(&mut self) -> Vec<Said> {
        std::iter::from_fn(|| self.heard.try_recv().ok()).collect()
    }
}

async fn follow(
    mut context: WorkerContext,
    script: Script,
    told: UnboundedSender<Said>,
) -> Result<(), WorkerError> {
    let name: Arc<str> = Arc::from(context.name());
    let tell = |said| drop(told.send(said));
    tell(Said::Started {
        name: Arc::clone(&name),
        at: Instant::now(),
    });
    context.ready();
    match script {
        Script::NapUntilStopped(naptime) => loop {
            let wake = context.nap(naptime).await;
            tell(Said::Woke {
                name: Arc::clone(&name),
                wake,
            });
            if wake.is_stop() {
                return Ok(());
            }
        },
        Script::FinishAfter(wait) => {
            tokio::time::sleep(wait).await;
            Ok(())
        }
        Script::FailAfter(wait) => {
            tokio::time::sleep(wait).await;
            Err(WorkerError::failed("the script says so"))
        }
        Script::PanicAfter(wait) => {
            tokio::time::sleep(wait).await;
            panic!("the script of \"{name}\" says so");
        }
        Script::PanicWhenStopped => {
            context.latch().stop_requested().await;
            panic!("the script of \"{name}\" says so");
        }
        Script::LoseDatabaseAfter(wait) => {
            tokio::time::sleep(wait).await;
            Err(WorkerError::DatabaseAway("the script says so".into()))
        }
        Script::IgnoreEverything => std::future::pending().await,
    }
}
