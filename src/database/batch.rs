//! Statements that are sent together, in one message with one answer.

use std::time::Duration;

use futures_util::TryStreamExt;
use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};

use super::{Connection, DatabaseError};

/// Why a batch broke off.
#[derive(Debug)]
pub(crate) struct BrokeOff {
    /// How many of its statements were done.
    pub(crate) done: usize,
    pub(crate) error: DatabaseError,
}

impl Connection {
    /// Runs statements one after the other, and returns the rows of all, whose values are text. They may take this much longer
    /// than other statements. What was done is counted by statements, so an element that is compared with that must be one.
    pub(crate) async fn batch(
        &self,
        doing: &'static str,
        statements: &[&str],
        longer: Duration,
    ) -> Result<Vec<SimpleQueryRow>, BrokeOff> {
        let (sql, mut done, mut rows) = (statements.join(";\n"), 0, Vec::new());
        let running = async {
            let mut messages = Box::pin(self.client().simple_query_raw(&sql).await?);
            while let Some(message) = messages.try_next().await? {
                match message {
                    SimpleQueryMessage::Row(row) => rows.push(row),
                    SimpleQueryMessage::CommandComplete(_) => done += 1,
                    _ => {}
                }
            }
            Ok(())
        };
        let deadline = self.statement_deadline().saturating_add(longer);
        match self.within(deadline, doing, Box::pin(running)).await {
            Ok(()) => Ok(rows),
            Err(error) => Err(BrokeOff { done, error }),
        }
    }
}
