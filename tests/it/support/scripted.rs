//! Workers that do what a test says, and tell what happens to them.

use std::sync::Arc;
use std::time::Duration;

use bgworker::{Main, Wake, WorkerContext, WorkerError};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use super::LONG;

/// What a scripted worker does once it has said that it started.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Script {
    /// Naps for so long at a time, until it is asked to stop.
    NapUntilStopped(Duration),
    /// Returns `Ok` unasked, after this long.
    FinishAfter(Duration),
    /// Returns an error, after this long.
    FailAfter(Duration),
    /// Panics, after this long.
    PanicAfter(Duration),
    /// Panics when it is asked to stop.
    PanicWhenStopped,
    /// Says that its database went away, after this long.
    LoseDatabaseAfter(Duration),
    /// Never ends by itself, and hears nothing.
    IgnoreEverything,
}

/// What a scripted worker tells.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Said {
    Started { name: Arc<str>, at: Instant },
    Woke { name: Arc<str>, wake: Wake },
}

/// Hears what scripted workers tell.
pub(crate) struct Stage {
    heard: UnboundedReceiver<Said>,
    told: UnboundedSender<Said>,
}

/// Naps until it is asked to stop.
pub(crate) const NAPS: Script = Script::NapUntilStopped(Duration::from_secs(3600));

impl Stage {
    pub(crate) fn new() -> Self {
        let (told, heard) = unbounded_channel();
        Self { heard, told }
    }

    /// The main of a worker that follows a script, the same in each incarnation.
    pub(crate) fn main(&self, script: Script) -> impl Main {
        let told = self.told.clone();
        move |context| follow(context, script, told.clone())
    }

    /// The next thing that is told.
    #[track_caller]
    pub(crate) fn next(&mut self) -> impl Future<Output = Said> {
        let caller = std::panic::Location::caller();
        async move {
            match tokio::time::timeout(LONG * 1000, self.heard.recv()).await {
                Ok(Some(said)) => said,
                Ok(None) | Err(_) => panic!("{caller}: no worker says anything"),
            }
        }
    }

    /// The next start: who, and when.
    #[track_caller]
    pub(crate) fn started(&mut self) -> impl Future<Output = (String, Instant)> {
        let caller = std::panic::Location::caller();
        async move {
            match self.next().await {
                Said::Started { name, at } => (name.to_string(), at),
                said @ Said::Woke { .. } => panic!("{caller}: a start was due, but: {said:?}"),
            }
        }
    }

    /// Whatever has been told and not been heard yet.
    pub(crate) fn rest(&mut self) -> Vec<Said> {
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
