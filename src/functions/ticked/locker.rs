//! The transaction that locked the row of a job last: a claim leaves it there, also if it was undone.
//!
//! What became of it is asked once the row is claimed: then it has ended.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::types::{ToSql, Type};

use crate::database::{Connection, DatabaseError};

/// How long a run that was undone is left to its instance, which records it as soon as it is told: a longer time that
/// it cannot reach the database counts as its end.
const RECORDED_WITHIN: Duration = Duration::from_secs(5);

/// A scalar: the `xmax` of a job's row, unless it is the transaction that wrote the row; then, and if there is none, NULL.
pub(super) const LOCKER: &str = "\
    CASE WHEN j.xmax OPERATOR(pg_catalog.<>) '0'::pg_catalog.xid AND j.xmax OPERATOR(pg_catalog.<>) j.xmin \
    THEN j.xmax::pg_catalog.text END";

/// Whether the transaction with this `xid`, which has ended, was undone. The server wants the full number, which is the newest
/// one below the next one; that is above the numbers in the snapshot, and above that of the transaction that asks.
///
/// Several transactions that share a row have a number of their own kind, which may be that of any transaction: a tick may then
/// be left for a while without need.
const WAS_UNDONE: &str = "\
    SELECT coalesce(f.id OPERATOR(pg_catalog.>) 2 AND f.id OPERATOR(pg_catalog.<) f.next \
    AND pg_catalog.pg_xact_status(f.id::pg_catalog.text::pg_catalog.xid8) OPERATOR(pg_catalog.=) 'aborted', false) \
    FROM (SELECT n.next OPERATOR(pg_catalog.+) (((($1::pg_catalog.int8 OPERATOR(pg_catalog.-) n.next) \
    OPERATOR(pg_catalog.+) 2147483648) OPERATOR(pg_catalog.&) 4294967295) OPERATOR(pg_catalog.-) 2147483648) AS id, n.next \
    FROM (SELECT greatest($2::pg_catalog.int8 OPERATOR(pg_catalog.+) 1, \
    pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::pg_catalog.text::pg_catalog.int8) AS next OFFSET 0) AS n \
    OFFSET 0) AS f";

/// A claim of another session that was undone, of which there is no record.
#[derive(Default)]
pub(super) struct UndoneClaim {
    /// The number of the job's recorded runs when one was found, and when that was.
    found: Option<(i64, Instant)>,
}

/// The last claim of this instance, by its `xid`: the instance knows what became of it, also if a run was dropped because its
/// server was no longer the primary.
#[derive(Debug, Default)]
pub(super) struct OwnClaim(Mutex<Option<String>>);

/// The `xid` of a transaction whose full number is given.
fn xid(transaction: &str) -> String {
    let number = transaction.parse::<u64>().unwrap_or_default();
    (number & u64::from(u32::MAX)).to_string()
}

/// Asks whether the last locker of a row that this transaction has claimed was undone.
pub(super) async fn was_undone(
    connection: &Connection,
    locker: &str,
    transaction: &str,
) -> Result<bool, DatabaseError> {
    let number = |text: &str| text.parse::<i64>().unwrap_or_default();
    let (locker, own) = (number(locker), number(transaction));
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&locker, Type::INT8), (&own, Type::INT8)];
    let asking = connection.query("look for the last run", WAS_UNDONE, &parameters);
    Ok(asking.await?.first().is_some_and(|row| row.get(0)))
}

// === impl UndoneClaim ===

impl UndoneClaim {
    /// Since when a claim has been known to be undone, if the job has recorded no run since.
    fn since(&self, runs: i64) -> Option<Instant> {
        let (_, since) = self.found.filter(|(found, _)| *found == runs)?;
        Some(since)
    }

    /// `true` while the tick is left to the instance whose claim was undone.
    pub(super) fn may_be_recorded(&self, runs: i64, now: Instant) -> bool {
        self.since(runs)
            .is_some_and(|since| now.saturating_duration_since(since) < RECORDED_WITHIN)
    }

    /// `true` if no record of that claim is to be expected any longer. Clients that lock the row and roll back again and again
    /// make no tick wait for longer than one of them does.
    pub(super) fn is_over(&self, runs: i64, now: Instant) -> bool {
        self.since(runs).is_some() && !self.may_be_recorded(runs, now)
    }

    /// A claim was found to be undone.
    pub(super) fn found(&mut self, runs: i64, now: Instant) {
        self.found = Some((runs, self.since(runs).unwrap_or(now)));
    }
}

// === impl OwnClaim ===

impl OwnClaim {
    /// This instance claims a tick in this transaction. Returns the `xid` of its claim before.
    pub(super) fn replace(&self, transaction: &str) -> Option<String> {
        let mut own = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        own.replace(xid(transaction))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_that_was_undone_is_left_to_its_instance_for_a_while() {
        let mut undone = UndoneClaim::default();
        let begin = Instant::now();
        let is = |undone: &UndoneClaim, runs, after| {
            let now = begin + after;
            (undone.may_be_recorded(runs, now), undone.is_over(runs, now))
        };
        assert_eq!(is(&undone, 7, Duration::ZERO), (false, false));
        undone.found(7, begin);
        assert_eq!(is(&undone, 7, RECORDED_WITHIN / 2), (true, false));
        // Another one is waited for no longer.
        undone.found(7, begin + RECORDED_WITHIN / 2);
        assert_eq!(is(&undone, 7, RECORDED_WITHIN), (false, true));
        // A run was recorded: what is found now is another one.
        assert_eq!(is(&undone, 8, RECORDED_WITHIN), (false, false));
        undone.found(8, begin + RECORDED_WITHIN);
        assert_eq!(is(&undone, 8, RECORDED_WITHIN), (true, false));
    }
}
