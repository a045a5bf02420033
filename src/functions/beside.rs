//! What a cycle runs beside its session, on a connection that it opened for that: what is to be waited for, or cancelled,
//! when the worker is asked to end.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::database::CancelToken;

/// The way to cancel it, while it runs.
#[derive(Default)]
pub(super) struct Beside(Mutex<Option<CancelToken>>);

/// Lasts as long as it runs.
#[cfg(feature = "config")]
pub(super) struct AtWork<'b>(&'b Beside);

// === impl Beside ===

impl Beside {
    /// Something runs that can be cancelled so.
    #[cfg(feature = "config")]
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

#[cfg(feature = "config")]
impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}
