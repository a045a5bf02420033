//! A Postmaster on a thread of its own, for mains that compute: on the System's thread they would block
//! everything else there.

use std::time::Duration;

use actix::Arbiter;
use bgworker::supervision::{Limits, Shutdown};
use bgworker::{BackgroundWorker, Postmaster, WorkerContext, WorkerError};
use tokio::sync::oneshot;

/// Counts primes without ever yielding, and finishes.
async fn computes(mut context: WorkerContext) -> Result<(), WorkerError> {
    context.ready();
    let is_prime = |n: u32| {
        (2..n)
            .take_while(|d| d * d <= n)
            .all(|d| !n.is_multiple_of(d))
    };
    let primes = (2..300_000).filter(|n| is_prime(*n)).count();
    println!("found {primes} primes");
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
