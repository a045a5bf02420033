//! A worker that is an actix actor: its main passes on the Postmaster's signals, as the same messages.

use std::time::Duration;

use actix::{Actor, ActorContext, Addr, AsyncContext, Context, Handler};
use bgworker::supervision::{Limits, Shutdown};
use bgworker::{BackgroundWorker, Postmaster, Sighup, Sigterm, Wake, WorkerContext, WorkerError};

/// Counts on an interval of its own.
#[derive(Default)]
struct Counter {
    count: u32,
}

impl Actor for Counter {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(Duration::from_millis(100), |counter, _| counter.count += 1);
    }
}

impl Handler<Sighup> for Counter {
    type Result = ();

    fn handle(&mut self, Sighup: Sighup, _: &mut Self::Context) {
        println!("got sighup! at {}", self.count);
        self.count = 0;
    }
}

impl Handler<Sigterm> for Counter {
    type Result = ();

    fn handle(&mut self, Sigterm: Sigterm, ctx: &mut Self::Context) {
        println!("got sigterm! at {}", self.count);
        ctx.stop();
    }
}

/// Stands between the Postmaster and the actor. If the actor dies, the worker fails, and the Postmaster
/// starts a new one after the restart time.
async fn counter(mut context: WorkerContext) -> Result<(), WorkerError> {
    let actor: Addr<Counter> = Counter::default().start();
    context.ready();
    loop {
        match context.nap(Duration::from_secs(1)).await {
            Wake::Sighup => actor.send(Sighup).await?,
            wake if wake.is_stop() => return Ok(actor.send(Sigterm).await?),
            _ if actor.connected() => {}
            _ => return Err(WorkerError::failed("the actor has died")),
        }
    }
}

#[actix::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let postmaster = Postmaster::launch(Limits::default(), None)?;
    let worker = postmaster
        .register(BackgroundWorker::new("counter"), counter)
        .await?;
    worker.ready().await?;
    tokio::time::sleep(Duration::from_millis(350)).await;
    postmaster.sighup();
    tokio::time::sleep(Duration::from_millis(350)).await;
    postmaster.shut_down(Shutdown::Smart);
    postmaster.exited().await?;
    println!("all have ended");
    Ok(())
}
