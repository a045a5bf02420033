//! PostgreSQL's background workers, outside the server.
//!
//! PostgreSQL's postmaster runs *background workers*: it starts them when the server has come far
//! enough, one per turn of its loop, passes them SIGHUP and SIGTERM, and restarts them after an
//! interval when they fail. Its sample, `worker_spi`, folds `delta` rows into a `total` row. All of
//! that runs inside the server, which managed PostgreSQL does not allow.
//!
//! This crate brings that model outside the server, on [actix] actors: a [`Postmaster`] starts
//! workers, passes them [`Sighup`] and [`Sigterm`], and applies restart times; the built-in worker
//! ([`worker_spi`]) folds deltas over an ordinary connection to any PostgreSQL.
//!
//! Not re-implemented: shared memory, processes (a worker is a task), and anything that needs code
//! in the server.
//!
//! # Theory of operation
//!
//! Deciding is kept apart from doing. [`supervision::StateMachine`] decides which worker starts,
//! stops or is forgotten, and when to look again; it has no clock, no task and no I/O. The
//! [`Postmaster`] actor is a funnel in front of it: every message becomes an input, every resulting
//! action is carried out, and one timer waits for the machine's next deadline. Each start of
//! a worker is an actor that turns messages into the worker's [`Latch`], and a task that runs its
//! [`Main`], which never sees an actor. However a main ends, its end is reported once.
//!
//! | its main | is | and then |
//! |---|---|---|
//! | returns `Ok` unasked | finished | unregistered, never restarted |
//! | returns [`WorkerError::Failed`] | failed | restarted after its restart time, or unregistered with [`RestartTime::Never`] |
//! | panics | crashed | as failed |
//! | returns [`WorkerError::DatabaseAway`] | not to blame | started again, at once the first time |
//! | ends after it was asked to stop | stopped | unregistered |
//!
//! A worker starts when the server has come as far as its [`StartTime`] asks for, by default one worker per
//! turn of the Postmaster's loop. A worker with [`Access`] to something shared is restarted when another such
//! worker crashes. If the server goes away or becomes a standby, workers that need more are parked until it
//! is back.
//!
//! The library installs no signal handler, no tracing subscriber and no panic hook, and reads no
//! file and no environment variable unless the program asks it to.
//!
//! # Example
//!
//! ```
//! use std::time::Duration;
//! use bgworker::supervision::{Limits, Shutdown};
//! use bgworker::{BackgroundWorker, Postmaster, WorkerContext, WorkerError};
//!
//! /// A worker's main is a plain async function.
//! async fn hello(mut context: WorkerContext) -> Result<(), WorkerError> {
//!     context.ready();
//!     loop {
//!         // … one cycle of work …
//!         if context.nap(Duration::from_secs(1)).await.is_stop() {
//!             return Ok(());
//!         }
//!     }
//! }
//!
//! # fn run() -> Result<(), Box<dyn std::error::Error>> {
//! actix::System::new().block_on(async {
//!     let postmaster = Postmaster::launch(Limits::default(), None)?;
//!     postmaster.register(BackgroundWorker::new("hello"), hello).await?;
//!     postmaster.shut_down(Shutdown::Smart);
//!     postmaster.exited().await?;
//!     Ok(())
//! })
//! # }
//! # run().unwrap();
//! ```
//!
//! # Where to go from here
//!
//! - What a worker is: [`BackgroundWorker`], and what its main is given: [`WorkerContext`].
//! - How to run and watch workers: [`Postmaster::launch`], [`PostmasterHandle`], [`WorkerHandle`],
//!   [`Event`].
//! - How workers reach a server, on a few shared connections or on connections of their own: [`database`].
//! - The built-in worker: [`worker_spi`].
//! - Workers from a configuration file: [`config`]; a function of your own in it: [`config::Function`]. What a reload does:
//!   [`reload`].
//! - The rules, without a clock: [`supervision`].
//!
//! | feature | brings |
//! |---|---|
//! | `embedded` | a private server from the PostgreSQL binaries of this machine |
//! | `http` | the page and the endpoints, to mount in an actix-web application |
//! | `testing` | for your tests: scripted workers, a probe that receives what they report, a clock that stands still |

#![warn(clippy::print_stdout, clippy::print_stderr)]

mod background_worker;
mod backoff;
pub mod config;
mod context;
pub mod database;
#[cfg(feature = "embedded")]
pub mod embedded;
mod functions;
#[cfg(feature = "http")]
pub mod http;
mod keys;
mod latch;
mod postmaster;
mod regular_file;
pub mod reload;
pub mod schedule;
mod spelling;
pub mod supervision;
#[cfg(feature = "testing")]
pub mod testing;
mod worker;

pub use self::background_worker::{
    Access, BackgroundWorker, Backoff, ExitStatus, Incarnation, InvalidWorker, RestartLimit,
    RestartTime, StartTime, WorkerId,
};
pub use self::context::{
    Figure, Histogram, JobReport, JobState, Main, MainFuture, Progress, Report, Run, RunUnderWay,
    UnderWay, WorkerContext, WorkerError,
};
pub use self::functions::{rollup, sql, ticked, worker_spi};
pub use self::latch::{Latch, Wake};
pub use self::postmaster::{
    EndedWorker, Event, EventKind, NoSystem, Postmaster, PostmasterExit, PostmasterHandle,
    RequestError, Status, WaitError, WorkerHandle, WorkerStatus, Workers,
};
pub use self::worker::{Sighup, Sigint, Sigquit, Sigterm};

/// The examples of the README and of `docs/`, compiled.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../docs/embedding.md")]
    struct Embedding;
    #[doc = include_str!("../docs/testing.md")]
    struct Testing;
}
