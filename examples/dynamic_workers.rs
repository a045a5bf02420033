//! Workers that come and go while the program runs: registered, watched, terminated, replaced.

use std::time::Duration;

use bgworker::supervision::{Limits, Shutdown};
use bgworker::{BackgroundWorker, EventKind, Postmaster, RestartTime, WorkerContext, WorkerError};

/// Naps until it is asked to stop.
async fn naps(mut context: WorkerContext) -> Result<(), WorkerError> {
    context.ready();
    while !context.nap(Duration::from_secs(60)).await.is_stop() {}
    Ok(())
}

/// Fails a moment after each start.
async fn fails(context: WorkerContext) -> Result<(), WorkerError> {
    tokio::time::sleep(Duration::from_millis(100)).await;
    Err(WorkerError::failed(format!(
        "start {} failed",
        context.incarnation().number
    )))
}

#[actix::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let postmaster = Postmaster::launch(Limits::default(), None)?;

    // A subscriber receives every event from then on.
    let mut events = postmaster.subscribe().await?;
    let watching = actix::spawn(async move {
        while let Ok(event) = events.recv().await {
            match event.kind {
                EventKind::Ready(_) => println!("{} is ready", event.name),
                EventKind::Exited { exit, reason, .. } => {
                    println!(
                        "{} has {exit}: {}",
                        event.name,
                        reason.as_deref().unwrap_or("no reason")
                    );
                }
                EventKind::Unregistered(_) => println!("{} is unregistered", event.name),
                _ => {}
            }
        }
    });

    // A handle is one registration. It can wait until the worker has started, is ready, or has stopped.
    let napping = postmaster
        .register(BackgroundWorker::new("naps"), naps)
        .await?;
    napping.ready().await?;
    let soon = RestartTime::After(Duration::from_millis(200));
    let worker = BackgroundWorker::new("fails").restart_time(soon);
    let failing = postmaster.register(worker, fails).await?;
    failing.started().await?;

    // A name and a slot are free again once their worker is unregistered; the old handle remembers its end.
    napping.terminate();
    let ended = napping.stopped().await?;
    println!("{} was started {} time(s)", ended.name, ended.starts);
    let again = postmaster
        .register(BackgroundWorker::new("naps"), naps)
        .await?;
    again.ready().await?;
    assert_eq!(again.id().slot(), napping.id().slot());
    assert_ne!(again.id(), napping.id());

    // The failing worker is restarted until the program has seen enough of it.
    while postmaster
        .worker(failing.id())
        .await?
        .is_some_and(|worker| worker.starts < 3)
    {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    failing.terminate();
    failing.stopped().await?;

    postmaster.shut_down(Shutdown::Smart);
    postmaster.exited().await?;
    drop(postmaster);
    watching.await?;
    println!("all have ended");
    Ok(())
}
