//! A kit for tests of what is built on workers: scripted workers, a probe that receives what they report, a
//! clock that stands still, and a server whose state the test sets.
//!
//! Feature `testing`, for `[dev-dependencies]`. A program must not depend on it.
//!
//! ```
//! use std::time::Duration;
//! use bgworker::testing::{PausedClock, Probe, Script};
//! use bgworker::supervision::Limits;
//! use bgworker::{BackgroundWorker, Postmaster, RestartTime};
//!
//! # fn run() -> Result<(), Box<dyn std::error::Error>> {
//! actix::System::new().block_on(async {
//!     let clock = PausedClock::pause();
//!     let mut probe = Probe::new();
//!     let postmaster = Postmaster::launch(Limits::default(), None)?;
//!     let worker = BackgroundWorker::new("fails")
//!         .restart_time(RestartTime::After(Duration::from_secs(60)));
//!     postmaster.register(worker, probe.main(Script::FailAfter(Duration::ZERO))).await?;
//!     let (name, first) = probe.started().await;
//!     let (_, second) = probe.started().await; // a minute later, at once
//!     assert_eq!((&*name, (second - first).as_secs()), ("fails", 60));
//!     clock.advance(Duration::from_secs(3630)).await;
//!     assert_eq!(probe.rest().len(), 60);
//!     Ok(())
//! })
//! # }
//! # run().unwrap();
//! ```

mod fake_server;
mod paused_clock;
mod probe;

pub use self::fake_server::FakeServer;
pub use self::paused_clock::PausedClock;
pub use self::probe::{Probe, Said, Script};
