//! Whose turn it is: which session has the queue or the totals, when it is not this one for too long.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Row;

use super::settings::Settings;
use super::statement::Statements;
use crate::database::{DatabaseError, GRACE};
use crate::functions::advisory_lock::LockClass;
use crate::functions::folding::At;

/// Whether it is this session's turn to fold a queue.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// A delta that was left, by this session or another one; it is gone once it is folded.
    left: Option<Delta>,
    /// Another session has the queue.
    lost: Option<Lost>,
}

/// A queue that another session has.
#[derive(Debug)]
struct Lost {
    /// Since when the same session may have had it.
    since: Instant,
    holder: Option<Holder>,
    is_too_long: bool,
}

/// A version of a row: where it is, and the transaction that wrote it.
#[derive(Debug)]
struct Delta {
    place: String,
    writer: String,
}

/// A session, and what it has begun.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Holder {
    pid: i32,
    transaction: String,
}

/// How long a fold may take: what takes longer is stuck.
pub(super) fn longest(at: At<'_, Settings>) -> Duration {
    timeout(at) + GRACE
}

/// How long a statement may take on the server.
pub(super) fn timeout(at: At<'_, Settings>) -> Duration {
    let database = at.context.database();
    database.map_or(Duration::ZERO, |database| {
        database.settings().statement_timeout
    })
}

/// The sessions of other clients that may hold totals, for a report: ` (PID 1, 2)`; empty if none is found.
pub(super) async fn holders(
    at: At<'_, Settings>,
    statements: &Statements<'_>,
) -> Result<String, DatabaseError> {
    let sql = statements.holders_of_totals();
    let rows = at
        .session
        .query("look for who holds totals", &sql, Vec::new());
    let pids: Vec<_> = rows
        .await?
        .iter()
        .map(|row| row.get::<_, i32>(0).to_string())
        .collect();
    Ok(if pids.is_empty() {
        String::new()
    } else {
        format!(" (PID {})", pids.join(", "))
    })
}

/// Runs a query for one row.
async fn ask(at: At<'_, Settings>, sql: &str) -> Result<Option<Row>, DatabaseError> {
    let asking = at
        .session
        .query("look for who has the queue", sql, Vec::new());
    Ok(asking.await?.into_iter().next())
}

// === impl Turn ===

impl Turn {
    /// Records that it was this session's turn. What it left may still wait.
    pub(super) fn is_ours(&mut self) {
        self.lost = None;
    }

    /// Records that nothing was left.
    pub(super) fn is_over(&mut self) {
        *self = Self::default();
    }

    /// Records that another session had the queue, from this block on. Returns `true` if what was left before has been folded:
    /// otherwise to leave the deltas to that session is no success. If one transaction, or an idle session, has had the queue for
    /// longer than a fold may take, that is a reason to say; another instance that folds ends its transactions.
    pub(super) async fn is_not_ours(
        &mut self,
        at: At<'_, Settings>,
        statements: &Statements<'_>,
        from: u32,
    ) -> Result<bool, DatabaseError> {
        let now = Instant::now();
        let waits = match &self.left {
            Some(Delta { place, writer }) => {
                let this = statements.this_delta(place, writer);
                ask(at, &this).await?.is_some()
            }
            None => false,
        };
        let lost = self.lost.get_or_insert(Lost {
            since: now,
            holder: None,
            is_too_long: false,
        });
        if !waits {
            let first = ask(at, &statements.first_delta(from)).await?;
            self.left = first.map(|row| Delta {
                place: row.get("place"),
                writer: row.get("writer"),
            });
            (lost.holder, lost.is_too_long) = (None, false);
            return Ok(true);
        }
        if lost.holder.is_some() && !lost.is_too_long && now - lost.since <= longest(at) {
            return Ok(false);
        }
        let holder = ask(at, &statements.holder_of_queue()).await?;
        let holder = holder.map(|row| Holder {
            pid: row.get(0),
            transaction: row.get(1),
        });
        lost.is_too_long = holder.is_some() && lost.holder == holder;
        if !lost.is_too_long {
            (lost.holder, lost.since) = (holder, now);
        }
        Ok(false)
    }

    /// `true` if another session had the queue when it was last asked for.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.is_some()
    }

    /// Who has had the queue for too long, if one session has.
    pub(super) fn tell(&self, at: At<'_, Settings>) -> Option<String> {
        let lost = self.lost.as_ref().filter(|lost| lost.is_too_long)?;
        let pid = lost.holder.as_ref()?.pid;
        let (queue, longest) = (&at.settings.queue, humantime::format_duration(longest(at)));
        let key = LockClass::Queue;
        Some(format!(
            "another session has held the advisory lock of {queue} ({key}) for more than {longest}: its deltas wait; if that \
             session is stuck, this ends it: SELECT pg_terminate_backend({pid})"
        ))
    }
}
