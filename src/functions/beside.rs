//! Work that a cycle does beside its session, on a connection opened for it, so that the runner can wait for it or
//! cancel it when the worker is asked to end.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::database::CancelToken;

/// The token that cancels such work, while it runs.
#[derive(Default)]
pub(super) struct Beside(Mutex<Option<CancelToken>>);

/// Marks such work as running until it is dropped.
pub(super) struct AtWork<'b>(&'b Beside);

// === impl Beside ===

impl Beside {
    /// Records that work runs which this token cancels.
    pub(super) fn begin(&self, cancel: CancelToken) -> AtWork<'_> {
        *self.lock() = Some(cancel);
        AtWork(self)
    }

    pub(super) fn is_at_work(&self) -> bool {
        self.lock().is_some()
    }

    pub(super) async fn cancel(&self) {
        let cancel = self.lock().clone();
        if let Some(cancel) = cancel {
            cancel.cancel().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<CancelToken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}
