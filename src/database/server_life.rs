//! Whether a server that is reached again is still the one that a session was on, or has crashed or been restarted.
//!
//! A server whose process crashes ends all of its sessions and processes but the first, and starts them again. So its
//! start time stays, and its background processes are others. Every role may see both.

use std::time::SystemTime;

use tokio_postgres::Row;

use super::DatabaseError;
use super::connection::Connection;

/// What tells one life of a server from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerLife {
    started: SystemTime,
    /// The processes that serve no database.
    processes: Vec<i32>,
}

/// What became of a server between two looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Continuity {
    /// It has run all the time.
    Undisturbed,
    /// One of its processes crashed, so all others ended with it.
    Crashed,
    /// It was restarted, or is another server.
    Another,
}

// === impl ServerLife ===

impl ServerLife {
    /// One row, for [`read`](Self::read).
    pub(crate) const QUERY: &str = "SELECT pg_catalog.pg_postmaster_start_time(), \
        ARRAY(SELECT a.pid FROM pg_catalog.pg_stat_get_activity(NULL) AS a WHERE a.datid IS NULL)";

    /// The life of the server that this connection leads to.
    pub(super) async fn of(connection: &Connection) -> Result<Option<Self>, DatabaseError> {
        let rows = connection.query("ask for the server's start", Self::QUERY, &[]);
        Ok(rows.await?.first().map(Self::read))
    }

    /// Reads the row of [`QUERY`](Self::QUERY).
    pub(crate) fn read(row: &Row) -> Self {
        Self {
            started: row.get(0),
            processes: row.get(1),
        }
    }

    /// What became of the server since an earlier look.
    pub(crate) fn since(&self, earlier: &Self) -> Continuity {
        let lasts = |process| earlier.processes.contains(process);
        if self.started != earlier.started {
            Continuity::Another
        } else if self.processes.iter().any(lasts) {
            Continuity::Undisturbed
        } else {
            Continuity::Crashed
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_crash_keeps_the_start_and_no_process_and_a_restart_keeps_neither() {
        let life = |second, processes: &[i32]| ServerLife {
            started: SystemTime::UNIX_EPOCH + Duration::from_secs(second),
            processes: processes.to_vec(),
        };
        for (later, expected) in [
            (life(1, &[11, 12, 13]), Continuity::Undisturbed),
            (life(1, &[13, 14]), Continuity::Undisturbed),
            (life(1, &[21, 22, 23]), Continuity::Crashed),
            (life(2, &[11, 12, 13]), Continuity::Another),
            (life(2, &[21, 22, 23]), Continuity::Another),
        ] {
            assert_eq!(later.since(&life(1, &[11, 12, 13])), expected, "{later:?}");
        }
    }
}
