//! The Postmaster's answers at one moment, asked for once and shared by all requests that came before.
//!
//! The Postmaster is kept from its own work as little as possible: one question at a time, with a rest after each. What is
//! made of an answer is made once, on a thread that serves no connection.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use actix_web::web::Bytes;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::metrics;
use super::snapshot::Snapshot;
use crate::postmaster::{PostmasterHandle, RequestError, Status, Workers};

/// How many times longer than a question the rest after it is: the Postmaster spends at most a tenth of its time on
/// questions.
const REST: u32 = 9;

/// Longest rest: a Postmaster that was slow for another reason is soon asked again.
const REST_MAX: Duration = Duration::from_millis(100);

/// Asks a Postmaster. Clones share the answers.
#[derive(Clone)]
pub(super) struct Moments {
    pub(super) postmaster: PostmasterHandle,
    last: Arc<Mutex<Last>>,
    /// The number of questions that were asked.
    asked: Arc<AtomicU64>,
}

/// The last answer, if a request still uses it, and when the next question may be asked.
#[derive(Default)]
struct Last {
    number: u64,
    moment: Weak<Moment>,
    rests_until: Option<Instant>,
}

/// What a Postmaster answered at one moment, and what was made of it.
pub(super) struct Moment {
    pub(super) status: Status,
    pub(super) workers: Workers,
    pub(super) now: Instant,
    snapshot: OnceLock<Snapshot>,
    json: OnceLock<Bytes>,
    metrics: OnceLock<Bytes>,
}

// === impl Moments ===

impl Moments {
    pub(super) fn new(postmaster: PostmasterHandle) -> Self {
        Self {
            postmaster,
            last: Arc::default(),
            asked: Arc::default(),
        }
    }

    /// A moment that is not before this call.
    pub(super) async fn take(&self) -> Result<Arc<Moment>, RequestError> {
        let asked = self.asked.load(Ordering::SeqCst);
        let mut last = self.last.lock().await;
        if last.number > asked
            && let Some(moment) = last.moment.upgrade()
        {
            return Ok(moment);
        }
        if let Some(rests_until) = last.rests_until {
            tokio::time::sleep_until(rests_until).await;
        }
        let number = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let begin = Instant::now();
        let status = self.postmaster.status().await?;
        let workers = self.postmaster.workers().await?;
        let now = Instant::now();
        let moment = Arc::new(Moment {
            status,
            workers,
            now,
            snapshot: OnceLock::new(),
            json: OnceLock::new(),
            metrics: OnceLock::new(),
        });
        *last = Last {
            number,
            moment: Arc::downgrade(&moment),
            rests_until: Some(now + ((now - begin) * REST).min(REST_MAX)),
        };
        Ok(moment)
    }
}

// === impl Moment ===

impl Moment {
    pub(super) fn snapshot(&self) -> &Snapshot {
        let snapshot = || Snapshot::of(&self.status, &self.workers, self.now);
        self.snapshot.get_or_init(snapshot)
    }

    /// The snapshot as JSON.
    pub(super) fn json(&self) -> Bytes {
        // Nothing in a snapshot can fail to be JSON.
        let json = || {
            serde_json::to_vec(self.snapshot())
                .unwrap_or_default()
                .into()
        };
        self.json.get_or_init(json).clone()
    }

    /// The metrics as text.
    pub(super) fn metrics(&self) -> Bytes {
        let text = || metrics::render(self.snapshot()).into();
        self.metrics.get_or_init(text).clone()
    }

    /// Makes something of this moment, on a thread that serves no connection. `None` if the runtime ends meanwhile.
    pub(super) async fn make<T: Send + 'static>(
        self: Arc<Self>,
        make: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Option<T> {
        tokio::task::spawn_blocking(move || make(&self)).await.ok()
    }
}
