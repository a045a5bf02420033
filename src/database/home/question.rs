//! What a worker at home wants to know again and again, and how it is asked.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio_postgres::types::{FromSql, Type, accepts};

use super::groups::Asked;
use super::request::Ask;
use super::{HomeConnection, Lines};
use crate::database::DatabaseError;

/// What a worker wants to know again and again. It is asked together with the questions of neighbours that come at
/// the same moment.
///
/// Dropping it lets the server forget what was prepared.
pub(crate) struct HomeQuestion {
    question: Arc<Question>,
    forget: Arc<Lines>,
    dbname: Option<String>,
    slot: usize,
}

/// What a worker wants to know again and again: where there is a row of this kind, and of that.
#[derive(Debug)]
pub(super) struct Question {
    /// Which it is; no other one has it.
    pub(super) number: u64,
    /// Whose it is, as a comment has it.
    pub(super) asker: String,
    /// Scalar expressions of type `tid`.
    pub(super) scalars: Vec<String>,
}

/// What a question is answered: the value of each of its scalars.
pub(super) type Scalars = Vec<Option<Tid>>;

/// The place of a row in its table (`ItemPointerData`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tid {
    /// Which block, from 0.
    pub(crate) block: u32,
}

/// One statement that asks several questions, each the asker and the scalars: one row of one array of `tid`. It says
/// first whose they are.
pub(crate) fn ask_all<'q>(questions: impl Iterator<Item = (&'q str, &'q [String])>) -> String {
    let (askers, scalars): (Vec<_>, Vec<_>) = questions.unzip();
    let (askers, scalars) = (askers.join(", "), scalars.concat().join(", "));
    format!("/* bgworker: {askers} */ SELECT ARRAY[{scalars}]")
}

// === impl HomeConnection ===

impl HomeConnection {
    /// A question of some scalar expressions of type `tid`. `asker` is whose it is, as a comment can have it.
    pub(crate) fn question(&self, asker: String, scalars: Vec<String>) -> HomeQuestion {
        let lines = &self.database.lines;
        HomeQuestion {
            question: Arc::new(Question {
                number: lines.questions.fetch_add(1, Ordering::Relaxed),
                asker,
                scalars,
            }),
            forget: Arc::clone(lines),
            dbname: self.dbname.clone(),
            slot: self.slot,
        }
    }

    /// Asks a question, and returns the value of each of its scalars.
    pub(crate) async fn answer(
        &self,
        doing: &'static str,
        question: &HomeQuestion,
    ) -> Result<Scalars, DatabaseError> {
        let question = Arc::clone(&question.question);
        self.send(doing, |waiter| Ask::Evaluate(Asked { question, waiter }))
            .await
    }
}

// === impl HomeQuestion ===

impl Drop for HomeQuestion {
    fn drop(&mut self) {
        let number = self.question.number;
        self.forget
            .existing(self.dbname.as_ref(), self.slot, |line| {
                let _ = line.asks.send(Ask::ForgetQuestion(number));
            });
    }
}

// === impl Tid ===

impl<'a> FromSql<'a> for Tid {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        // The number of the block, then that of the row in it.
        let (block, _) = raw.split_first_chunk().ok_or("a tid has six bytes")?;
        let block = u32::from_be_bytes(*block);
        Ok(Self { block })
    }

    accepts!(TID);
}
