//! What a worker's main is given, what it returns, and what it says of itself meanwhile.
//!
//! This is all of bgworker that a worker sees. There is no actor here, and no way to the Postmaster
//! but the one word "ready".

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::background_worker::{BackgroundWorker, Incarnation, WorkerId};
use crate::database::{Connection, Database, DatabaseError};
use crate::latch::{Latch, Wake};

/// What a worker runs: an async function from its [`WorkerContext`].
///
/// Implemented by every `Fn(WorkerContext) -> impl Future<Output = Result<(), WorkerError>>` that
/// is `Send + Sync`; the future need not be. It is called once for each incarnation, inside the
/// worker's own task, so that a panic in it is a crash of that worker and of nobody else.
pub trait Main: Send + Sync + 'static {
    /// Begins one incarnation.
    fn call(&self, context: WorkerContext) -> MainFuture;
}

/// What [`Main::call`] returns.
pub type MainFuture = Pin<Box<dyn Future<Output = Result<(), WorkerError>>>>;

/// All that a worker's main is given.
#[derive(Debug)]
pub struct WorkerContext {
    worker: Arc<BackgroundWorker>,
    incarnation: Incarnation,
    latch: Latch,
    database: Option<Database>,
    progress: Arc<Progress>,
    ready: Option<oneshot::Sender<()>>,
}

/// Why a main ended before it was asked to.
///
/// Any error becomes one with `?`. If a lost or unreachable database is among its causes, it is
/// [`DatabaseAway`](Self::DatabaseAway), which is not held against the worker.
#[derive(Debug)]
pub enum WorkerError {
    /// The worker failed: it starts again after its restart time.
    Failed(Box<dyn Error + Send + Sync>),
    /// The database went away: the worker comes back as soon as it does.
    DatabaseAway(Box<dyn Error + Send + Sync>),
}

/// What a worker is doing and how it has fared, over all of its incarnations.
///
/// Written by its main, read by whoever asks for status: no message per cycle.
#[derive(Debug, Default)]
pub struct Progress(Mutex<Report>);

/// What [`Progress`] says at one moment.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Report {
    /// It naps. Otherwise it runs, if it is started at all.
    pub napping: bool,
    /// How many cycles have succeeded.
    pub cycles: u64,
    /// When the last of them did.
    pub last_success: Option<Instant>,
    /// How many failures there have been since then.
    pub consecutive_failures: u32,
    /// The last failure, with its whole cause.
    pub last_error: Option<Arc<str>>,
    /// How many rows were folded, by the built-in worker.
    pub rows: u64,
    /// The total after the last fold, by the built-in worker.
    pub total: Option<i64>,
}

// === impl Main ===

impl<F, M> Main for F
where
    F: Fn(WorkerContext) -> M + Send + Sync + 'static,
    M: Future<Output = Result<(), WorkerError>> + 'static,
{
    fn call(&self, context: WorkerContext) -> MainFuture {
        Box::pin(self(context))
    }
}

// === impl WorkerContext ===

impl WorkerContext {
    /// The context of one incarnation, and the receiver of its word "ready".
    pub(crate) fn new(
        worker: Arc<BackgroundWorker>,
        incarnation: Incarnation,
        latch: Latch,
        database: Option<Database>,
        progress: Arc<Progress>,
    ) -> (Self, oneshot::Receiver<()>) {
        let (ready, is_ready) = oneshot::channel();
        let context = Self {
            worker,
            incarnation,
            latch,
            database,
            progress,
            ready: Some(ready),
        };
        (context, is_ready)
    }

    /// The worker's name. Mirrors `bgw_name` of `MyBgworkerEntry`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.worker.name
    }

    /// The worker's slot and generation.
    #[must_use]
    pub fn id(&self) -> WorkerId {
        self.incarnation.worker
    }

    /// Which start this is.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// What the worker naps on. Mirrors `MyLatch`.
    #[must_use]
    pub fn latch(&self) -> &Latch {
        &self.latch
    }

    /// What the worker says of itself.
    #[must_use]
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The Postmaster's database, if it has one.
    #[must_use]
    pub fn database(&self) -> Option<&Database> {
        self.database.as_ref()
    }

    /// Opens a connection of the worker's own. Mirrors
    /// `BackgroundWorkerInitializeConnection`.
    ///
    /// `dbname` overrides the database's name. The session's `application_name` is the worker's
    /// name, unless the connection settings name one.
    ///
    /// # Errors
    ///
    /// If the Postmaster has no database, or it cannot be connected to within its deadline.
    pub async fn connect(&self, dbname: Option<&str>) -> Result<Connection, WorkerError> {
        let database = self
            .database()
            .ok_or_else(|| WorkerError::failed("the Postmaster was started without a database"))?;
        Ok(database.connect(self.name(), dbname).await?)
    }

    /// Says that the worker is ready for its work, which is more than being started. Saying it
    /// again does nothing.
    pub fn ready(&mut self) {
        if let Some(ready) = self.ready.take() {
            // Nobody listens when the Postmaster is gone; then it does not matter.
            let _ = ready.send(());
        }
    }

    /// Naps for `naptime` at most, and says why it ended.
    pub async fn nap(&self, naptime: Duration) -> Wake {
        let _nap = Nap::begin(&self.progress);
        self.latch.wait(naptime).await
    }
}

/// A nap under way. However it ends, that is noted.
struct Nap<'p>(&'p Progress);

impl<'p> Nap<'p> {
    fn begin(progress: &'p Progress) -> Self {
        progress.write(|report| report.napping = true);
        Self(progress)
    }
}

impl Drop for Nap<'_> {
    fn drop(&mut self) {
        self.0.write(|report| report.napping = false);
    }
}

// === impl WorkerError ===

impl WorkerError {
    /// A failure that has no error of its own.
    pub fn failed(reason: impl Into<String>) -> Self {
        Self::Failed(reason.into().into())
    }

    fn cause(&self) -> &(dyn Error + Send + Sync + 'static) {
        match self {
            Self::Failed(cause) | Self::DatabaseAway(cause) => cause.as_ref(),
        }
    }

    /// The SQLSTATE, if a server's error is among the causes.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        causes(self.cause()).find_map(|cause| cause.downcast_ref::<DatabaseError>()?.sqlstate())
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for WorkerError {
    fn from(error: E) -> Self {
        let away = causes(&error).any(|cause| {
            cause
                .downcast_ref::<DatabaseError>()
                .is_some_and(DatabaseError::is_away)
        });
        if away {
            Self::DatabaseAway(Box::new(error))
        } else {
            Self::Failed(Box::new(error))
        }
    }
}

impl fmt::Display for WorkerError {
    /// The whole cause, from the outside in.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for cause in causes(self.cause()) {
            write!(f, "{separator}{cause}")?;
            separator = ": ";
        }
        Ok(())
    }
}

/// An error and its causes, from the outside in.
fn causes<'e>(
    error: &'e (dyn Error + 'static),
) -> impl Iterator<Item = &'e (dyn Error + 'static)> + 'e {
    std::iter::successors(Some(error), |&error| error.source())
}

// === impl Progress ===

impl Progress {
    /// What it says now.
    #[must_use]
    pub fn report(&self) -> Report {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// A cycle succeeded.
    pub fn succeeded(&self) {
        self.write(|report| {
            report.cycles += 1;
            report.last_success = Some(Instant::now());
            report.consecutive_failures = 0;
        });
    }

    /// A cycle folded this many rows, and the total is now this.
    pub fn folded(&self, rows: u64, total: i64) {
        self.write(|report| {
            report.rows += rows;
            report.total = Some(total);
        });
    }

    /// A cycle, or the worker, failed.
    pub fn failed(&self, error: impl Into<Arc<str>>) {
        let error = error.into();
        self.write(|report| {
            report.consecutive_failures = report.consecutive_failures.saturating_add(1);
            report.last_error = Some(error);
        });
    }

    pub(crate) fn write(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
