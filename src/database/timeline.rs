//! The timeline of a server that accepts writes: of two of one system, the one on the older timeline has been replaced.
//!
//! A primary that froze, or was cut off, may come back after another server was promoted, and accept writes that no other
//! server will ever have.

use tokio_postgres::Row;

/// The timeline of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timeline {
    /// What a server has in common with those that were made from it.
    system: i64,
    /// Each promotion begins another one, with a higher number.
    number: u32,
}

// === impl Timeline ===

impl Timeline {
    /// One row, for [`read`](Self::read). The number is the first eight digits of the name of the file that the primary writes
    /// its log to.
    pub(super) const QUERY: &str = "SELECT (SELECT s.system_identifier FROM pg_catalog.pg_control_system() AS s) AS system, \
        pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()) AS file";

    /// Reads the row of [`QUERY`](Self::QUERY). `None` if it does not say.
    pub(super) fn read(row: &Row) -> Option<Self> {
        let digits = row.try_get::<_, &str>("file").ok()?.get(..8)?;
        Some(Self {
            system: row.try_get("system").ok()?,
            number: u32::from_str_radix(digits, 16).ok()?,
        })
    }

    /// `true` if the server on this timeline is no longer the primary of its system, since the other one is.
    pub(super) fn was_replaced_by(self, other: Self) -> bool {
        self.system == other.system && self.number < other.number
    }
}
