//! Gives the room of folded deltas back: until a vacuum, a probe reads past all dead ones.
//!
//! Runs on a connection of its own that is closed afterwards, one table at a time for each server, so that no worker
//! waits for it: it costs only the server's disks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::AbortHandle;
use tracing::{debug, warn};

use super::statement;
use crate::database::{Database, DatabaseError};
use crate::functions::relation::Relation;

/// A table that has more blocks than this after a vacuum (32 MB in blocks of 8 kB) is reported.
const LARGE: i64 = 4_096;

/// What a worker has folded since its table was last vacuumed, and the vacuum that may be under way.
#[derive(Debug, Default)]
pub(super) struct Vacuum {
    folded: u64,
    under_way: Option<AbortHandle>,
    /// The last vacuum left a large table, and that was reported.
    told: Arc<AtomicBool>,
}

// === impl Vacuum ===

impl Vacuum {
    /// Counts what was folded.
    pub(super) fn count(&mut self, folded: u64) {
        self.folded = self.folded.saturating_add(folded);
    }

    /// `true` if this many deltas were folded since the last vacuum, and none is under way.
    pub(super) fn is_due(&self, after: Option<u64>) -> bool {
        let is_idle = self.under_way.as_ref().is_none_or(AbortHandle::is_finished);
        is_idle && after.is_some_and(|after| self.folded >= after)
    }

    /// Begins a vacuum. If it fails, the worker does not: the next one may succeed.
    pub(super) fn begin(
        &mut self,
        database: Database,
        worker: String,
        dbname: Option<String>,
        table: Relation,
    ) {
        self.folded = 0;
        let told = Arc::clone(&self.told);
        let vacuuming = async move {
            match vacuum(&database, &worker, dbname.as_deref(), &table).await {
                Ok(blocks) => {
                    debug!(worker, "{worker}: vacuumed its table");
                    let is_large = blocks > LARGE;
                    if is_large && !told.load(Ordering::Relaxed) {
                        let megabytes = blocks / 128;
                        warn!(
                            worker,
                            "{worker}: {table} takes {megabytes} MB, though its deltas are folded: while a client holds \
                             an old snapshot (backend_xmin in pg_stat_activity), no room is given back; \
                             afterwards VACUUM FULL {table} reclaims all of it"
                        );
                    }
                    told.store(is_large, Ordering::Relaxed);
                }
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

/// Vacuums the table, and returns how many blocks it has then.
async fn vacuum(
    database: &Database,
    worker: &str,
    dbname: Option<&str>,
    table: &Relation,
) -> Result<i64, DatabaseError> {
    let _turn = database.housekeeping().await;
    let connection = database.connect(worker, dbname).await?;
    let vacuumed = connection
        .batch_execute("vacuum", &statement::vacuum(worker, table))
        .await;
    let size = statement::count_blocks(worker, table);
    let blocks = match vacuumed {
        Ok(()) => connection.query("look at its size", &size, &[]).await,
        Err(error) => Err(error),
    };
    connection.close().await;
    Ok(blocks?.first().map_or(0, |row| row.get(0)))
}
