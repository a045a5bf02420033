//! The harness: a server per test process, a database per test, scripted workers, captured logs.

pub(crate) mod browser;
pub(crate) mod configuration;
pub(crate) mod daemon;
pub(crate) mod database;
pub(crate) mod example;
pub(crate) mod files;
pub(crate) mod histories;
pub(crate) mod jobs;
pub(crate) mod log;
pub(crate) mod proxy;
pub(crate) mod rollup;
pub(crate) mod server;
pub(crate) mod stage;
pub(crate) mod statements;
pub(crate) mod ticks;

use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bgworker::supervision::Limits;
use bgworker::{Postmaster, PostmasterHandle};

/// Longer than anything a test waits for takes, even on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// The longest that a busy machine takes for what an otherwise idle one does within this limit.
///
/// Where a promise names a time, a test names it too, and allows for the other tests that run beside it.
pub(crate) const fn busy(limit: Duration) -> Duration {
    limit.saturating_mul(4)
}

/// What a test holds that loads the machine, or measures a time which such a load would spoil.
#[must_use]
pub(crate) struct Machine {
    _held: MutexGuard<'static, ()>,
}

/// Waits until no other test holds the machine. All others go on beside it.
pub(crate) fn machine() -> Machine {
    static MACHINE: Mutex<()> = Mutex::new(());
    let _held = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    Machine { _held }
}

/// Interval at which a condition is checked at first, for how long, and then: each check costs what the others wait for.
const INTERVAL: Duration = Duration::from_millis(5);
const AT_FIRST: Duration = Duration::from_millis(250);
const INTERVAL_LATER: Duration = Duration::from_millis(25);

/// Launches a Postmaster without a database.
pub(crate) fn postmaster() -> PostmasterHandle {
    Postmaster::launch(Limits::default(), None).expect("tests run inside a System")
}

/// Waits until a condition holds, and panics if it does not within [`LONG`].
#[track_caller]
pub(crate) fn eventually<F, C>(what: &str, condition: C) -> impl Future<Output = ()>
where
    F: Future<Output = bool>,
    C: FnMut() -> F,
{
    waiting(LONG, what, condition)
}

/// Waits until a condition holds, and panics if it does not within this limit, or within what a [busy] machine takes.
#[track_caller]
pub(crate) fn within<F, C>(limit: Duration, what: &str, condition: C) -> impl Future<Output = ()>
where
    F: Future<Output = bool>,
    C: FnMut() -> F,
{
    waiting(busy(limit), what, condition)
}

#[track_caller]
fn waiting<F, C>(limit: Duration, what: &str, mut condition: C) -> impl Future<Output = ()>
where
    F: Future<Output = bool>,
    C: FnMut() -> F,
{
    let caller = std::panic::Location::caller();
    async move {
        let begin = Instant::now();
        let look = async {
            while !condition().await {
                let is_early = begin.elapsed() < AT_FIRST;
                tokio::time::sleep(if is_early { INTERVAL } else { INTERVAL_LATER }).await;
            }
        };
        if tokio::time::timeout(limit, look).await.is_err() {
            panic!("{caller}: not within {limit:?}: {what}");
        }
    }
}
