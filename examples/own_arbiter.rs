//! A Postmaster on a thread of its own, for mains that compute: on the System's thread they would hold up
//! everything else there.

use std::time::{Duration, Instant};

use actix::Arbiter;
use bgworker::supervision::{Limits, Shutdown};
use bgworker::{BackgroundWorker, Postmaster, WorkerContext, WorkerError};
use tokio::sync::oneshot;

/// Computes for a while without ever yielding, and is done.
async fn computes(mut context: WorkerContext) -> Result<(), WorkerError> {
    context.ready();
    let begin = Instant::now();
    let mut rounds = 0_u64;
    while begin.elapsed() < Duration::from_millis(500) {
        rounds = rounds.wrapping_add(1);
    }
    println!("computed {rounds} rounds");
    Ok(())
}

#[actix::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // A Postmaster and its workers live where it is launched; its handle can be used from anywhere.
    let arbiter = Arbiter::new();
    let (launched, postmaster) = oneshot::channel();
    arbiter.spawn(async move {
        let _ = launched.send(Postmaster::launch(Limits::default(), None));
    });
    let postmaster = postmaster.await??;

    let worker = postmaster
        .register(BackgroundWorker::new("computes"), computes)
        .await?;
    let mut ticks = 0;
    let ticking = async {
        loop {
            tokio::time::sleep(Duration::from_millis(10)).await;
            ticks += 1;
        }
    };
    tokio::select! {
        stopped = worker.stopped() => drop(stopped?),
        () = ticking => {}
    }
    println!("this thread ticked {ticks} times meanwhile");

    postmaster.shut_down(Shutdown::Smart);
    postmaster.exited().await?;
    arbiter.stop();
    arbiter.join().map_err(|_| "the Postmaster's thread died")?;
    Ok(())
}
