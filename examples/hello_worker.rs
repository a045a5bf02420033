//! The smallest worker: says hello once a second, until Ctrl-C.

use std::time::Duration;

use bgworker::supervision::{Limits, Shutdown};
use bgworker::{BackgroundWorker, Postmaster, WorkerContext, WorkerError};

async fn hello(mut context: WorkerContext) -> Result<(), WorkerError> {
    context.ready();
    loop {
        println!("hello from {}", context.name());
        if context.nap(Duration::from_secs(1)).await.is_stop() {
            return Ok(());
        }
    }
}

#[actix::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let postmaster = Postmaster::launch(Limits::default(), None)?;
    postmaster
        .register(BackgroundWorker::new("hello"), hello)
        .await?;
    tokio::signal::ctrl_c().await?;
    postmaster.shut_down(Shutdown::Smart);
    postmaster.exited().await?;
    Ok(())
}
