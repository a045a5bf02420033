//! Gives the room of folded deltas back: a probe reads past all that are dead until somebody does.
//!
//! On a connection of its own that is closed afterwards, one table at a time for each server, so that
//! nobody waits for it but the server's disks.

use tokio::task::AbortHandle;
use tracing::debug;

use crate::database::{Database, DatabaseError};

/// What a worker has folded since its table was last vacuumed, and the vacuum that may be under way.
#[derive(Debug, Default)]
pub(super) struct Vacuum {
    folded: u64,
    under_way: Option<AbortHandle>,
}

// === impl Vacuum ===

impl Vacuum {
    /// Counts what was folded.
    pub(super) fn count(&mut self, folded: u64) {
        self.folded = self.folded.saturating_add(folded);
    }

    /// Whether this many deltas were folded since the last one, and none is under way.
    pub(super) fn is_due(&self, after: Option<u64>) -> bool {
        let is_idle = self.under_way.as_ref().is_none_or(AbortHandle::is_finished);
        is_idle && after.is_some_and(|after| self.folded >= after)
    }

    /// Begins one. Its failure is nobody's: the next one may do better.
    pub(super) fn begin(
        &mut self,
        database: Database,
        worker: String,
        dbname: Option<String>,
        sql: String,
    ) {
        self.folded = 0;
        let vacuuming = async move {
            match vacuum(&database, &worker, dbname.as_deref(), &sql).await {
                Ok(()) => debug!(worker, "{worker}: vacuumed its table"),
                Err(error) => debug!(worker, "{worker}: could not vacuum its table: {error}"),
            }
        };
        self.under_way = Some(tokio::spawn(vacuuming).abort_handle());
    }
}

impl Drop for Vacuum {
    fn drop(&mut self) {
        if let Some(under_way) = &self.under_way {
            under_way.abort();
        }
    }
}

async fn vacuum(
    database: &Database,
    worker: &str,
    dbname: Option<&str>,
    sql: &str,
) -> Result<(), DatabaseError> {
    let _turn = database.housekeeping().await;
    let connection = database.connect(worker, dbname).await?;
    let vacuumed = connection.batch_execute("vacuum", sql).await;
    connection.close().await;
    vacuumed
}
