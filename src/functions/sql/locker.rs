//! The transaction that locked the row of a job last: a claim leaves it there, also if it was undone.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::types::Type;

use crate::database::{DatabaseError, Parameters};
use crate::functions::session::Session;

/// How long a run that was undone is left to its instance, which records it as soon as it is told: a longer time that
/// it cannot reach the database counts as its end.
const RECORDED_WITHIN: Duration = Duration::from_secs(5);

/// A scalar: the `xmax` of a job's row, unless it is the transaction that wrote the row; then, and if there is none, NULL.
pub(super) const LOCKER: &str = "\
    CASE WHEN j.xmax OPERATOR(pg_catalog.<>) '0'::pg_catalog.xid AND j.xmax OPERATOR(pg_catalog.<>) j.xmin \
    THEN j.xmax::pg_catalog.text END";

/// Asks what became of the transaction with this `xid`. The server wants the full number, which is the newest one below the
/// next one; of one that it no longer knows, it says NULL. Several transactions that share a row have a number of their own
/// kind, of which this says nothing that is true for long.
const STATUS: &str = "\
    SELECT CASE WHEN f.id OPERATOR(pg_catalog.>) 2 AND f.id OPERATOR(pg_catalog.<) f.next \
    THEN pg_catalog.pg_xact_status(f.id::pg_catalog.text::pg_catalog.xid8) END \
    FROM (SELECT (OPERATOR(pg_catalog.-) ((OPERATOR(pg_catalog.-) ($1::pg_catalog.int8 \
    OPERATOR(pg_catalog.-) n.next)) OPERATOR(pg_catalog.&) 4294967295)) OPERATOR(pg_catalog.+) n.next AS id, n.next FROM (\
    SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::pg_catalog.text::pg_catalog.int8 AS next OFFSET 0) AS n \
    OFFSET 0) AS f";

/// The condition that no transaction has locked the row since it was written, but for the one that wrote it, or since it was
/// looked at; the parameter is [`Locker::claims_after`].
pub(super) const IS_THE_SAME: &str = "\
    (j.xmax OPERATOR(pg_catalog.=) '0'::pg_catalog.xid OR j.xmax OPERATOR(pg_catalog.=) j.xmin \
    OR j.xmax::pg_catalog.text OPERATOR(pg_catalog.=) $4)";

/// The transaction that locked the row of a job last.
#[derive(Clone, Debug)]
pub(super) struct Locker {
    /// Its `xid`, which is 0 if there is none.
    xid: String,
    /// Empty if nothing is known of it.
    status: String,
}

/// A claim of another session that was undone, and since when there is no record of it.
#[derive(Default)]
pub(super) struct Undone {
    found: Option<Unrecorded>,
    /// The last claim of this instance, of which it knows what became.
    own: Option<String>,
}

/// A transaction that was undone, and since when one was found at each look.
struct Unrecorded {
    xid: String,
    since: Instant,
    /// Its time was over at a look: the tick could be claimed.
    was_over: bool,
}

/// The `xid` of a transaction whose full number is given.
pub(super) fn xid(transaction: &str) -> String {
    let number = transaction.parse::<u64>().unwrap_or_default();
    (number & u64::from(u32::MAX)).to_string()
}

// === impl Locker ===

impl Locker {
    /// No transaction but the one that wrote the row.
    fn none() -> Self {
        Self {
            xid: "0".to_owned(),
            status: String::new(),
        }
    }

    /// Asks what became of the transaction that a look found by [`LOCKER`].
    pub(super) async fn found(session: &Session, xid: Option<&str>) -> Result<Self, DatabaseError> {
        let Some(xid) = xid else {
            return Ok(Self::none());
        };
        let number = Box::new(xid.parse::<i64>().unwrap_or_default());
        let parameters: Parameters = vec![(number, Type::INT8)];
        let rows = session
            .query("look for the last run", STATUS, parameters)
            .await?;
        let status = rows.first().and_then(|row| row.get::<_, Option<String>>(0));
        Ok(Self {
            xid: xid.to_owned(),
            status: status.unwrap_or_default(),
        })
    }

    /// The `xid` that the row still has when it is claimed. While the transaction is under way there is none, since what
    /// becomes of it is not known.
    pub(super) fn claims_after(&self) -> &str {
        match self.status.as_str() {
            "in progress" => "",
            _ => &self.xid,
        }
    }

    fn undone(&self) -> Option<&str> {
        (self.status == "aborted").then_some(&self.xid)
    }
}

// === impl Undone ===

impl Undone {
    /// `true` if the tick may be claimed after this transaction: if it was undone, no record of it is to be expected. Clients
    /// that lock the row and roll back again and again make no tick wait for longer than one of them does.
    pub(super) fn is_over(&mut self, locker: &Locker, now: Instant) -> bool {
        let undone = locker.undone();
        let Some(xid) = undone.filter(|undone| self.own.as_deref() != Some(undone)) else {
            self.found = None;
            return true;
        };
        let since = match &self.found {
            Some(found) if found.xid == xid || !found.was_over => found.since,
            _ => now,
        };
        let was_over = now.saturating_duration_since(since) >= RECORDED_WITHIN;
        let xid = xid.to_owned();
        self.found = Some(Unrecorded {
            xid,
            since,
            was_over,
        });
        was_over
    }

    /// This instance has claimed a tick in this transaction.
    pub(super) fn claimed(&mut self, transaction: &str) {
        self.own = Some(xid(transaction));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locker(xid: &str, status: &str) -> Locker {
        Locker {
            xid: xid.to_owned(),
            status: status.to_owned(),
        }
    }

    #[test]
    fn a_claim_that_was_undone_is_left_to_its_instance_for_a_while() {
        let mut undone = Undone::default();
        let begin = Instant::now();
        let aborted = |xid| locker(xid, "aborted");
        assert!(undone.is_over(&locker("7", "committed"), begin));
        assert!(!undone.is_over(&aborted("7"), begin));
        assert!(!undone.is_over(&aborted("7"), begin + RECORDED_WITHIN / 2));
        assert!(undone.is_over(&aborted("7"), begin + RECORDED_WITHIN));
        undone.claimed("4294967304");
        assert!(undone.is_over(&aborted("8"), begin));
        assert!(!undone.is_over(&aborted("7"), begin));
        // Another one is waited for no longer, unless the tick could have been claimed before.
        assert!(undone.is_over(&aborted("9"), begin + RECORDED_WITHIN));
        assert!(!undone.is_over(&aborted("10"), begin + RECORDED_WITHIN));
    }

    #[test]
    fn a_row_is_not_claimed_after_a_transaction_that_is_under_way() {
        assert_eq!(locker("7", "aborted").claims_after(), "7");
        assert_eq!(locker("7", "committed").claims_after(), "7");
        assert_eq!(locker("7", "in progress").claims_after(), "");
    }
}
