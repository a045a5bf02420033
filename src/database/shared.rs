//! A query that several workers ask at the same moment is run once, and all of them get its answer.
//!
//! The query must be the same whichever worker asks it. Its answer is never older than the worker that gets it allows.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_postgres::Row;

use super::error::DatabaseError;

/// How long a query is waited for before one more worker asks it.
const PATIENCE: Duration = Duration::from_secs(1);

/// The answer to a query.
#[derive(Debug)]
pub(crate) struct Answer {
    /// When it was asked: the answer may lack what was committed later.
    pub(crate) asked: Instant,
    pub(crate) rows: Vec<Row>,
}

/// The latest answer to each query.
#[derive(Debug, Default)]
pub(super) struct Answers(Mutex<HashMap<Question, watch::Sender<Latest>>>);

/// A database, and what is asked there.
type Question = (Option<String>, &'static str);

/// What is known of one query.
#[derive(Debug, Default)]
struct Latest {
    answer: Option<Arc<Answer>>,
    /// When it was asked last, if that has not ended.
    under_way: Option<Instant>,
}

/// A worker asks a query, until this is dropped.
struct Asking<'l> {
    latest: &'l watch::Sender<Latest>,
    since: Instant,
}

// === impl Answers ===

impl Answers {
    /// Returns the answer to a query that was asked at `not_before` or later. If there is none, the query is asked now.
    ///
    /// While an answer takes long, one more worker a second asks: so a connection that hangs holds up no other worker for
    /// longer, and a server that is slow is not asked by every worker.
    pub(super) async fn get<A>(
        &self,
        dbname: Option<&String>,
        sql: &'static str,
        not_before: Instant,
        ask: impl FnOnce() -> A,
    ) -> Result<Arc<Answer>, DatabaseError>
    where
        A: Future<Output = Result<Vec<Row>, DatabaseError>>,
    {
        let latest = self.latest(dbname, sql);
        let mut changes = latest.subscribe();
        loop {
            let now = Instant::now();
            let under_way = {
                let latest = changes.borrow_and_update();
                if let Some(answer) = latest.answer_from(not_before) {
                    return Ok(answer);
                }
                latest.under_way
            };
            if let Some(asking) = Asking::begin(&latest, not_before, now) {
                let rows = ask().await?;
                return Ok(asking.ends(rows));
            }
            // Whether something has changed or time is up, the loop finds out.
            let until = under_way.unwrap_or(now) + PATIENCE;
            let _ = tokio::time::timeout_at(until, changes.changed()).await;
        }
    }

    fn latest(&self, dbname: Option<&String>, sql: &'static str) -> watch::Sender<Latest> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry((dbname.cloned(), sql)).or_default().clone()
    }
}

// === impl Latest ===

impl Latest {
    /// The answer, if it was asked at this time or later.
    fn answer_from(&self, not_before: Instant) -> Option<Arc<Answer>> {
        let answer = self.answer.as_ref();
        answer.filter(|answer| answer.asked >= not_before).cloned()
    }

    /// `true` if one more worker is to ask, now.
    fn is_to_be_asked(&self, not_before: Instant, now: Instant) -> bool {
        let is_awaited = (self.under_way).is_some_and(|since| now < since + PATIENCE);
        !is_awaited && self.answer_from(not_before).is_none()
    }

    /// Keeps an answer, unless there is a later one.
    fn keep(&mut self, answer: &Arc<Answer>) {
        let latest = self.answer.as_ref().map(|latest| latest.asked);
        if latest < Some(answer.asked) {
            self.answer = Some(Arc::clone(answer));
        }
    }
}

// === impl Asking ===

impl<'l> Asking<'l> {
    /// Begins to ask, unless another worker asks or has asked.
    fn begin(latest: &'l watch::Sender<Latest>, not_before: Instant, now: Instant) -> Option<Self> {
        let mut is_to_be_asked = false;
        // This is no news for those that wait, so none is woken.
        latest.send_if_modified(|latest| {
            is_to_be_asked = latest.is_to_be_asked(not_before, now);
            if is_to_be_asked {
                latest.under_way = Some(now);
            }
            false
        });
        is_to_be_asked.then(|| Self { latest, since: now })
    }

    /// Hands out the answer, also to those that wait, who are woken when this is dropped.
    fn ends(self, rows: Vec<Row>) -> Arc<Answer> {
        let asked = self.since;
        let answer = Arc::new(Answer { asked, rows });
        self.latest.send_if_modified(|latest| {
            latest.keep(&answer);
            false
        });
        answer
    }
}

impl Drop for Asking<'_> {
    /// Wakes those that wait, also if the worker that asked was stopped or got an error.
    fn drop(&mut self) {
        self.latest.send_modify(|latest| {
            if latest.under_way == Some(self.since) {
                latest.under_way = None;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_an_answer_takes_long_one_more_worker_a_second_asks() {
        let (latest, begin) = (watch::Sender::new(Latest::default()), Instant::now());
        let mut asking = Vec::new();
        for tenth in 0..35 {
            let now = begin + Duration::from_millis(100) * tenth;
            asking.extend((0..1_000).filter_map(|_| Asking::begin(&latest, begin, now)));
        }
        assert_eq!(asking.len(), 4);
        asking.swap_remove(0).ends(Vec::new());
        let now = begin + Duration::from_secs(60);
        assert!(Asking::begin(&latest, begin, now).is_none());
        // The answer may lack what was committed after it was asked.
        let later = begin + Duration::from_millis(1);
        assert!(Asking::begin(&latest, later, now).is_some());
    }

    #[test]
    fn after_a_worker_that_was_stopped_the_next_one_asks_at_once() {
        let (latest, now) = (watch::Sender::new(Latest::default()), Instant::now());
        let stopped = Asking::begin(&latest, now, now);
        assert!(stopped.is_some() && Asking::begin(&latest, now, now).is_none());
        drop(stopped);
        assert!(Asking::begin(&latest, now, now).is_some());
    }

    #[test]
    fn an_answer_that_comes_after_a_later_one_is_not_kept() {
        let (mut latest, now) = (Latest::default(), Instant::now());
        let later = now + PATIENCE;
        for asked in [later, now] {
            let rows = Vec::new();
            latest.keep(&Arc::new(Answer { asked, rows }));
        }
        assert!(latest.answer_from(later).is_some());
    }
}
