//! Requests to a home connection, and the waiters for their answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::oneshot;
use tokio_postgres::{Row, SimpleQueryRow};

use super::Parameters;
use super::groups::Batch;
use super::probe::{Asked, Scalars};
use crate::database::DatabaseError;

/// A request to a line.
pub(super) enum Ask {
    Run(Request),
    Probe(Asked<Waiter<Scalars>>),
    /// Lets the server forget what was prepared for this text.
    Forget(Arc<str>),
    /// The probe with this number is no longer asked.
    ForgetProbe(u64),
    /// Continues in a new session, since what is fixed when a session begins may be what is wrong.
    Renew,
}

/// A statement, and the waiter for its rows.
pub(super) struct Request {
    pub(super) work: Work,
    pub(super) waiter: Waiter<Rows>,
}

pub(super) enum Work {
    /// Prepared when it is first run.
    Prepared(Arc<str>),
    Once {
        sql: String,
        parameters: Parameters,
    },
    /// Several statements as one transaction.
    Batch(String),
}

/// The rows of an answer.
pub(super) enum Rows {
    Typed(Vec<Row>),
    /// Those of a batch, whose values are text.
    Text(Vec<SimpleQueryRow>),
}

/// A caller that waits for an answer.
pub(super) struct Waiter<T> {
    /// The purpose of the statement, for an error.
    pub(super) doing: &'static str,
    /// Set when the statement is sent.
    sent: Arc<AtomicBool>,
    answer: oneshot::Sender<Result<T, DatabaseError>>,
}

/// What is sent as one statement.
pub(super) enum Message {
    Request(Request),
    Probes(Batch<Waiter<Scalars>>),
}

// === impl Waiter ===

impl<T> Waiter<T> {
    pub(super) fn new(
        doing: &'static str,
        sent: Arc<AtomicBool>,
    ) -> (Self, oneshot::Receiver<Result<T, DatabaseError>>) {
        let (answer, answered) = oneshot::channel();
        let waiter = Self {
            doing,
            sent,
            answer,
        };
        (waiter, answered)
    }

    /// Returns `true` if the caller no longer waits.
    pub(super) fn is_gone(&self) -> bool {
        self.answer.is_closed()
    }

    pub(super) fn mark_sent(&self) {
        self.sent.store(true, Ordering::Release);
    }

    /// Sends the answer; a caller that no longer waits needs none.
    pub(super) fn answer(self, answer: Result<T, DatabaseError>) {
        let _ = self.answer.send(answer);
    }

    fn refuse(self, error: impl Fn(&'static str) -> DatabaseError) {
        let error = error(self.doing);
        self.answer(Err(error));
    }
}

// === impl Rows ===

impl Rows {
    /// The rows of a single statement; none if it was a batch.
    pub(super) fn typed(self) -> Vec<Row> {
        match self {
            Self::Typed(rows) => rows,
            Self::Text(_) => Vec::new(),
        }
    }

    /// The rows of a batch; none if it was a single statement.
    pub(super) fn text(self) -> Vec<SimpleQueryRow> {
        match self {
            Self::Text(rows) => rows,
            Self::Typed(_) => Vec::new(),
        }
    }
}

// === impl Message ===

impl Message {
    /// Returns `true` if no caller waits for it any longer.
    pub(super) fn is_withdrawn(&self) -> bool {
        match self {
            Self::Request(request) => request.waiter.is_gone(),
            Self::Probes(batch) => batch.asked.iter().all(|(_, asked)| asked.waiter.is_gone()),
        }
    }

    /// Returns `true` if its statement holds several probes.
    pub(super) fn is_of_several(&self) -> bool {
        match self {
            Self::Request(_) => false,
            Self::Probes(batch) => !batch.is_of_one,
        }
    }

    /// The text to prepare for it, if any.
    pub(super) fn to_prepare(&self) -> Option<&Arc<str>> {
        match self {
            Self::Request(Request {
                work: Work::Prepared(sql),
                ..
            }) => Some(sql),
            Self::Request(_) => None,
            Self::Probes(batch) => Some(&batch.sql),
        }
    }

    pub(super) fn mark_sent(&self) {
        match self {
            Self::Request(request) => request.waiter.mark_sent(),
            Self::Probes(batch) => batch
                .asked
                .iter()
                .for_each(|(_, asked)| asked.waiter.mark_sent()),
        }
    }

    /// The purpose of the statement, for an error.
    pub(super) fn doing(&self) -> &'static str {
        match self {
            Self::Request(request) => request.waiter.doing,
            Self::Probes(batch) => batch
                .asked
                .first()
                .map_or("ask", |(_, asked)| asked.waiter.doing),
        }
    }

    /// Gives the answer to every caller that waits for it.
    pub(super) fn answer(self, rows: Rows) {
        let batch = match self {
            Self::Request(Request { waiter, .. }) => return waiter.answer(Ok(rows)),
            Self::Probes(batch) => batch,
        };
        let rows = rows.typed();
        let values = rows.first().map(|row| row.try_get::<_, Scalars>(0));
        // Without the array that was asked for, the callers get no answer, and take the connection for lost.
        if let Some(Ok(values)) = values {
            for (place, Asked { probe, waiter }) in batch.asked {
                let scalars = values.iter().skip(place).take(probe.scalars.len());
                waiter.answer(Ok(scalars.copied().collect()));
            }
        }
    }

    /// Reports an error to every caller that waits for it.
    pub(super) fn refuse(self, error: impl Fn(&'static str) -> DatabaseError) {
        match self {
            Self::Request(Request { waiter, .. }) => waiter.refuse(&error),
            Self::Probes(batch) => {
                let waiters = batch.asked.into_iter().map(|(_, asked)| asked.waiter);
                waiters.for_each(|waiter| waiter.refuse(&error));
            }
        }
    }

    /// Like [`refuse`](Self::refuse), where there is only one error for all.
    pub(super) fn fail(self, error: DatabaseError) {
        let mut waiters: Vec<_> = match self {
            Self::Request(Request { waiter, .. }) => return waiter.answer(Err(error)),
            Self::Probes(batch) => {
                let waiters = batch.asked.into_iter().map(|(_, asked)| asked.waiter);
                waiters.filter(|waiter| !waiter.is_gone()).collect()
            }
        };
        match waiters.pop() {
            Some(waiter) if waiters.is_empty() => waiter.answer(Err(error)),
            last => {
                let error = Arc::new(error);
                for waiter in waiters.into_iter().chain(last) {
                    waiter.answer(Err(DatabaseError::Home(Arc::clone(&error))));
                }
            }
        }
    }
}
