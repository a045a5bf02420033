//! What a job does at a tick: given the tick and a connection, and told when to stop.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use jiff::Timestamp;

use super::failure::Failure;
use crate::database::Connection;
use crate::latch::Latch;

/// What a job does at each of its ticks.
///
/// Implemented by every `async` closure from a [`Tick`] that is `Send + Sync`; its future need not be. A run that is
/// stopped, or takes too long, is dropped where it awaits.
pub trait Work: Send + Sync + 'static {
    /// Does it once. Returns how many rows it has written, as the history shows them.
    ///
    /// Must neither begin nor end a transaction on the connection of a tick that is in one.
    fn run<'r>(&'r self, tick: &'r Tick<'_>) -> WorkFuture<'r>;
}

/// What [`Work::run`] returns.
pub type WorkFuture<'r> = Pin<Box<dyn Future<Output = Result<u64, Failure>> + 'r>>;

/// A tick that this instance has claimed.
#[derive(Debug)]
pub struct Tick<'r> {
    pub(super) name: &'r str,
    pub(super) tick: Timestamp,
    pub(super) previous: Timestamp,
    pub(super) attempt: u32,
    pub(super) in_transaction: bool,
    pub(super) timeout: Duration,
    pub(super) connection: &'r Connection,
    pub(super) latch: &'r Latch,
}

// === impl Work ===

impl<F> Work for F
where
    F: AsyncFn(&Tick<'_>) -> Result<u64, Failure> + Send + Sync + 'static,
{
    fn run<'r>(&'r self, tick: &'r Tick<'_>) -> WorkFuture<'r> {
        Box::pin(self(tick))
    }
}

// === impl Tick ===

impl<'r> Tick<'r> {
    /// The name of the job.
    #[must_use]
    pub fn name(&self) -> &'r str {
        self.name
    }

    /// The tick: a point in time of the schedule, at or before now.
    #[must_use]
    pub fn tick(&self) -> Timestamp {
        self.tick
    }

    /// The last tick whose work was done, or the time at which the job was declared: where the window of this one begins.
    #[must_use]
    pub fn previous_tick(&self) -> Timestamp {
        self.previous
    }

    /// Which attempt this is, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// How long the run may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// `true` if what the connection writes is committed together with the mark of the tick.
    #[must_use]
    pub fn is_in_transaction(&self) -> bool {
        self.in_transaction
    }

    /// The connection that has claimed the tick. No other client uses it meanwhile.
    #[must_use]
    pub fn connection(&self) -> &'r Connection {
        self.connection
    }

    /// Completes when the worker is asked to stop. Work that does not return soon after is dropped, and its transaction undone.
    pub async fn stop_requested(&self) {
        self.latch.stop_requested().await;
    }
}
