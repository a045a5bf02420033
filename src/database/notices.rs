//! What a server says beside its answers, in the log: for debugging, or under the name of the worker whose statements
//! made the server say it.

use std::sync::{Mutex, PoisonError};

use tracing::{debug, info, warn};

/// How many notices of one run are logged under a worker's name.
const NOTICES_MAX: u32 = 20;

/// Where the notices of a session are logged.
#[derive(Debug, Default)]
pub(super) struct Notices(Mutex<Option<Logged>>);

/// Notices that are logged under a worker's name.
#[derive(Debug)]
struct Logged {
    worker: String,
    /// How many more are.
    left: u32,
}

// === impl Notices ===

impl Notices {
    /// Logs the notices under the name of a worker from now on, a limited number of them; with `None`, as messages for
    /// debugging.
    pub(super) fn of(&self, worker: Option<&str>) {
        let logged = worker.map(|worker| Logged {
            worker: worker.to_owned(),
            left: NOTICES_MAX,
        });
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = logged;
    }

    pub(super) fn log(&self, is_warning: bool, report: &str) {
        let mut logged = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Logged { worker, left }) = &mut *logged else {
            debug!("{report}");
            return;
        };
        let worker = worker.as_str();
        let Some(rest) = left.checked_sub(1) else {
            debug!(worker, "{worker}: {report}");
            return;
        };
        *left = rest;
        if is_warning {
            warn!(worker, "{worker}: {report}");
        } else {
            info!(worker, "{worker}: {report}");
        }
        if rest == 0 {
            info!(
                worker,
                "{worker}: further notices of this run are not logged"
            );
        }
    }
}
