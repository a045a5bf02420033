//! A query that several workers ask at the same moment is run once, and all of them get its answer.
//!
//! The query must be the same whichever worker asks it. Its answer is never older than the worker that gets it allows.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Row;

use super::error::DatabaseError;

/// How long a worker waits for another worker's query before it asks by itself.
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
pub(super) struct Answers(Mutex<HashMap<Question, Arc<Latest>>>);

/// A database, and what is asked there.
type Question = (Option<String>, &'static str);

/// The latest answer to one query. The holder of the lock is asking.
type Latest = tokio::sync::Mutex<Option<Arc<Answer>>>;

// === impl Answers ===

impl Answers {
    /// Returns the answer to a query that was asked at `not_before` or later. If there is none, the query is asked now.
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
        let Ok(mut latest) = tokio::time::timeout(PATIENCE, latest.lock()).await else {
            return answer(ask).await;
        };
        match &*latest {
            Some(answer) if answer.asked >= not_before => Ok(Arc::clone(answer)),
            _ => {
                let answer = answer(ask).await?;
                *latest = Some(Arc::clone(&answer));
                Ok(answer)
            }
        }
    }

    fn latest(&self, dbname: Option<&String>, sql: &'static str) -> Arc<Latest> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry((dbname.cloned(), sql)).or_default())
    }
}

async fn answer<A>(ask: impl FnOnce() -> A) -> Result<Arc<Answer>, DatabaseError>
where
    A: Future<Output = Result<Vec<Row>, DatabaseError>>,
{
    let asked = Instant::now();
    let rows = ask().await?;
    Ok(Arc::new(Answer { asked, rows }))
}
