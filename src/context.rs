//! What a worker's main is given, what it returns, and what it reports about itself meanwhile.
//!
//! This is all of bgworker that a worker sees. There is no actor here, and no way to the Postmaster
//! except the one word "ready".

mod histogram;
mod job_state;
mod progress;
mod seldom;
mod worker_report;

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

pub use self::histogram::Histogram;
pub(crate) use self::histogram::Histograms;
pub use self::job_state::{JobReport, JobState};
pub use self::progress::{Figure, Progress, Report, Run, RunUnderWay, UnderWay};
pub(crate) use self::worker_report::{Reason, WorkerEvent, WorkerReport};
use crate::background_worker::{Incarnation, WorkerId};
use crate::database::{Connection, Database, DatabaseError, HomeConnection};
use crate::latch::{Latch, Wake};

/// What a worker runs: an async function from its [`WorkerContext`].
///
/// Implemented by every `Fn(WorkerContext) -> impl Future<Output = Result<(), WorkerError>>` that
/// is `Send + Sync`; the future need not be. It is called once for each incarnation, inside the
/// worker's own task, so a panic in it crashes that worker and no other.
pub trait Main: Send + Sync + 'static {
    /// Begins one incarnation.
    fn call(&self, context: WorkerContext) -> MainFuture;
}

/// What [`Main::call`] returns.
pub type MainFuture = Pin<Box<dyn Future<Output = Result<(), WorkerError>>>>;

/// All that a worker's main is given.
#[derive(Debug)]
pub struct WorkerContext {
    name: Arc<str>,
    incarnation: Incarnation,
    latch: Latch,
    database: Option<Database>,
    progress: Arc<Progress>,
    /// Where "ready" is reported; `None` once it has been.
    reports: Option<UnboundedSender<WorkerReport>>,
}

/// Why a main ended before it was asked to.
///
/// Any error becomes one with `?`. If a database that is lost, cannot be reached or has no room for another
/// connection is among its causes, it is [`DatabaseAway`](Self::DatabaseAway), which is not held against the worker.
#[derive(Debug)]
pub enum WorkerError {
    /// The worker failed: it starts again after its restart time.
    Failed(Box<dyn Error + Send + Sync>),
    /// The database went away: the worker comes back as soon as it does.
    DatabaseAway(Box<dyn Error + Send + Sync>),
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
    /// The context of one incarnation.
    pub(crate) fn new(
        name: Arc<str>,
        incarnation: Incarnation,
        database: Option<Database>,
        progress: Arc<Progress>,
        reports: UnboundedSender<WorkerReport>,
    ) -> Self {
        Self {
            name,
            incarnation,
            latch: Latch::default(),
            database,
            progress,
            reports: Some(reports),
        }
    }

    /// The worker's name. Mirrors `bgw_name` of `MyBgworkerEntry`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The worker's slot and generation.
    #[must_use]
    pub fn id(&self) -> WorkerId {
        self.incarnation.worker
    }

    /// This start of the worker.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// What the worker naps on. Mirrors `MyLatch`.
    #[must_use]
    pub fn latch(&self) -> &Latch {
        &self.latch
    }

    /// What the worker reports about itself.
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
        let database = self.database_or_error()?;
        Ok(Box::pin(database.connect(self.name(), dbname)).await?)
    }

    /// The worker's place on a connection that it shares with other workers. Nothing is opened yet.
    ///
    /// `dbname` overrides the database's name.
    ///
    /// # Errors
    ///
    /// If the Postmaster has no database.
    pub fn home(&self, dbname: Option<&str>) -> Result<HomeConnection, WorkerError> {
        let slot = self.id().slot();
        Ok(self.database_or_error()?.home(slot, dbname))
    }

    fn database_or_error(&self) -> Result<&Database, WorkerError> {
        self.database()
            .ok_or_else(|| WorkerError::failed("the Postmaster was started without a database"))
    }

    /// Reports that the worker is ready for its work, which is more than having been started. Further
    /// calls do nothing.
    pub fn ready(&mut self) {
        if let Some(reports) = self.reports.take() {
            // If the Postmaster is gone, nothing listens, and it does not matter.
            let _ = reports.send(WorkerReport {
                incarnation: self.incarnation,
                event: WorkerEvent::Ready,
            });
        }
    }

    /// Naps for `naptime` at most, and returns why the nap ended.
    pub async fn nap(&self, naptime: Duration) -> Wake {
        let _nap = Nap::begin(&self.progress);
        self.latch.wait(naptime).await
    }
}

/// A nap under way. Its end is noted, however it comes about.
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
    /// A failure that is a text alone.
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
                .is_some_and(|error| error.is_away() || error.is_full())
        });
        if away {
            Self::DatabaseAway(Box::new(error))
        } else {
            Self::Failed(Box::new(error))
        }
    }
}

impl fmt::Display for WorkerError {
    /// The error and its causes, from the outside in.
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
