//! One connection, driven in its own task; no answer is awaited without a deadline.
//!
//! When a deadline passes, the statement is cancelled on the server and the connection is given up: a late cancellation
//! would hit the next statement.

use std::fmt;
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, NoTls, Row, SimpleQueryMessage, SimpleQueryRow};
use tracing::debug;

use super::error::Cause;
use super::{DatabaseError, tls};

/// How long a cancellation, a cancelled statement, or a connection that ends may take.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// A connection to the server. Dropping it closes it; the server is left to end what still runs.
pub struct Connection {
    /// `Some` until `close` takes it.
    session: Option<Session>,
    cancel: tokio_postgres::CancelToken,
    /// `None` on a connection that is not encrypted.
    tls: Option<tls::Connector>,
    /// Whether statements may be prepared.
    prepare: bool,
    statement_deadline: Duration,
    /// `true` if a statement was sent and not answered.
    is_waiting: AtomicBool,
    /// How the connection ended, once it has.
    end: watch::Receiver<Option<End>>,
}

/// A statement: prepared on a connection, or, where that is not done, sent as text each time.
#[derive(Clone, Debug)]
pub struct Statement(Form);

#[derive(Clone, Debug)]
enum Form {
    Prepared(tokio_postgres::Statement),
    Text(Arc<str>),
}

/// A handle to cancel what runs on a connection.
#[derive(Clone)]
pub struct CancelToken {
    token: tokio_postgres::CancelToken,
    tls: Option<tls::Connector>,
}

/// The client of a connection, and the task that drives it.
struct Session {
    client: Client,
    driver: AbortHandle,
}

/// What ended a connection.
#[derive(Clone, Debug)]
struct End {
    cause: String,
    sqlstate: Option<String>,
}

/// Drives a connection to its end, and publishes how it ended.
async fn drive<S, T>(
    mut connection: tokio_postgres::Connection<S, T>,
    ended: watch::Sender<Option<End>>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    let end = loop {
        match poll_fn(|cx| connection.poll_message(cx)).await {
            Some(Ok(AsyncMessage::Notice(notice))) => debug!("{notice}"),
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                break End {
                    cause: Cause(&error).to_string(),
                    sqlstate: error.code().map(|code| code.code().to_owned()),
                };
            }
            None => {
                break End {
                    cause: "closed by bgworker".to_owned(),
                    sqlstate: None,
                };
            }
        }
    };
    // The socket closes before any waiter is notified.
    drop(connection);
    ended.send_replace(Some(end));
}

// === impl Connection ===

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let closed = self.client().is_closed();
        f.debug_struct("Connection")
            .field("closed", &closed)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Drives a new connection in its own task.
    pub(super) fn new<S, T>(
        client: Client,
        connection: tokio_postgres::Connection<S, T>,
        tls: Option<tls::Connector>,
        prepare: bool,
        statement_deadline: Duration,
    ) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (ended, end) = watch::channel(None);
        let driver = tokio::spawn(drive(connection, ended)).abort_handle();
        Self {
            cancel: client.cancel_token(),
            session: Some(Session { client, driver }),
            is_waiting: AtomicBool::new(false),
            tls,
            prepare,
            statement_deadline,
            end,
        }
    }

    /// Prepares a statement. `doing` names its purpose in an error.
    ///
    /// # Errors
    ///
    /// If the server refuses it, does not answer in time, or is lost.
    pub async fn prepare(
        &self,
        doing: &'static str,
        sql: &str,
    ) -> Result<Statement, DatabaseError> {
        if !self.prepare {
            return Ok(Statement(Form::Text(sql.into())));
        }
        let prepared = self.within_deadline(doing, self.client().prepare(sql));
        Ok(Statement(Form::Prepared(prepared.await?)))
    }

    /// Runs a prepared statement, and returns its rows.
    ///
    /// # Errors
    ///
    /// If the server refuses it, does not answer in time, or is lost.
    pub async fn query_prepared(
        &self,
        doing: &'static str,
        statement: &Statement,
    ) -> Result<Vec<Row>, DatabaseError> {
        match statement {
            Statement(Form::Prepared(statement)) => {
                self.within_deadline(doing, self.client().query(statement, &[]))
                    .await
            }
            Statement(Form::Text(sql)) => self.query(doing, sql, &[]).await,
        }
    }

    /// Runs a statement once, in one round trip, and returns its rows.
    ///
    /// # Errors
    ///
    /// If the server refuses it, does not answer in time, or is lost.
    pub async fn query(
        &self,
        doing: &'static str,
        sql: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, DatabaseError> {
        self.within_deadline(doing, self.client().query_typed(sql, parameters))
            .await
    }

    /// Runs one statement, discards its rows, and returns their number. The client waits for `deadline` at most.
    ///
    /// # Errors
    ///
    /// If the server refuses it, does not answer in time, or is lost.
    #[cfg(feature = "config")]
    pub(crate) async fn execute_within(
        &self,
        doing: &'static str,
        sql: &str,
        deadline: Duration,
    ) -> Result<u64, DatabaseError> {
        self.within(deadline, doing, self.client().execute_typed(sql, &[]))
            .await
    }

    /// Runs statements as one transaction, and returns their rows.
    pub(crate) async fn simple_query(
        &self,
        doing: &'static str,
        sql: &str,
    ) -> Result<Vec<SimpleQueryRow>, DatabaseError> {
        self.within_deadline(doing, simple_query(self.client(), sql))
            .await
    }

    /// Runs statements without results as one transaction.
    ///
    /// # Errors
    ///
    /// If the server refuses one of them, does not answer in time, or is lost.
    pub async fn batch_execute(&self, doing: &'static str, sql: &str) -> Result<(), DatabaseError> {
        self.within_deadline(doing, self.client().batch_execute(sql))
            .await
    }

    /// Whether the server is in recovery: a standby, or not yet a primary.
    ///
    /// # Errors
    ///
    /// If the server does not answer in time, or is lost.
    pub async fn is_in_recovery(&self) -> Result<bool, DatabaseError> {
        let doing = "ask whether the server is in recovery";
        let rows = self
            .query(doing, "SELECT pg_catalog.pg_is_in_recovery()", &[])
            .await?;
        Ok(rows.first().is_some_and(|row| row.get(0)))
    }

    /// Returns a handle to cancel what runs on this connection, while something does.
    #[must_use]
    pub fn cancel_token(&self) -> CancelToken {
        CancelToken {
            token: self.cancel.clone(),
            tls: self.tls.clone(),
        }
    }

    /// Ends the session, and waits until the connection is closed.
    pub async fn close(mut self) {
        let Some(Session { client, driver }) = self.session.take() else {
            return;
        };
        drop(client);
        wait_for_end(self.end.clone()).await;
        // By now it is closed, or its time is up.
        driver.abort();
    }

    /// Returns `true` if a statement was sent and has not been answered.
    pub(crate) fn is_at_work(&self) -> bool {
        self.is_waiting.load(Ordering::Relaxed)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.client().is_closed()
    }

    /// Waits indefinitely for the end of the connection.
    pub(super) fn ended(&self) -> impl Future<Output = ()> + use<> {
        let mut end = self.end.clone();
        async move {
            // An error is an end too: the connection is no longer driven.
            let _ = end.wait_for(Option::is_some).await;
        }
    }

    /// Returns what ended the connection; waits for [`GRACE`] at most.
    pub(super) async fn cause_of_end(&self) -> String {
        wait_for_end(self.end.clone()).await.cause
    }

    /// Gives the connection up without telling the server.
    pub(crate) fn abort(&self) {
        if let Some(session) = &self.session {
            session.driver.abort();
        }
    }

    /// How long bgworker waits for an answer.
    pub(super) fn statement_deadline(&self) -> Duration {
        self.statement_deadline
    }

    pub(super) fn client(&self) -> &Client {
        let session = self.session.as_ref();
        &session
            .expect("only close takes it, and nothing follows that")
            .client
    }

    async fn within_deadline<R>(
        &self,
        doing: &'static str,
        answer: impl Future<Output = Result<R, tokio_postgres::Error>>,
    ) -> Result<R, DatabaseError> {
        self.within(self.statement_deadline, doing, answer).await
    }

    /// Waits for an answer until the deadline, and finds the cause if there is none.
    async fn within<R>(
        &self,
        after: Duration,
        doing: &'static str,
        answer: impl Future<Output = Result<R, tokio_postgres::Error>>,
    ) -> Result<R, DatabaseError> {
        let mut answer = std::pin::pin!(answer);
        self.is_waiting.store(true, Ordering::Relaxed);
        let answered = tokio::time::timeout(after, &mut answer).await;
        if answered.is_ok() {
            self.is_waiting.store(false, Ordering::Relaxed);
        }
        match answered {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.explain(doing, error).await),
            Err(_) => {
                self.cancel_token().cancel().await;
                // An answer that comes now is too late, but the statement may still end cleanly.
                let _ = tokio::time::timeout(GRACE, answer).await;
                self.abort();
                Err(DatabaseError::StatementDeadline { doing, after })
            }
        }
    }

    /// Explains a statement's error: if the connection was lost, by what ended it.
    pub(super) async fn explain(
        &self,
        doing: &'static str,
        error: tokio_postgres::Error,
    ) -> DatabaseError {
        if !error.is_closed() {
            return DatabaseError::Statement { doing, error };
        }
        let end = wait_for_end(self.end.clone()).await;
        DatabaseError::Lost {
            doing,
            cause: end.cause,
            sqlstate: end.sqlstate,
        }
    }
}

// === impl CancelToken ===

impl CancelToken {
    /// Asks the server to cancel what runs. The connection must not be used for another statement afterwards.
    pub async fn cancel(&self) {
        let cancelling = async {
            match &self.tls {
                Some(tls) => self.token.cancel_query(tls.clone()).await,
                None => self.token.cancel_query(NoTls).await,
            }
        };
        match tokio::time::timeout(GRACE, cancelling).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(error = %Cause(&error), "could not cancel a statement"),
            Err(_) => debug!("could not cancel a statement within its deadline"),
        }
    }
}

impl fmt::Debug for CancelToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelToken").finish_non_exhaustive()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.is_at_work() {
            self.abort();
        }
    }
}

/// Runs statements as one transaction, and returns their rows.
pub(super) async fn simple_query(
    client: &Client,
    sql: &str,
) -> Result<Vec<SimpleQueryRow>, tokio_postgres::Error> {
    let messages = client.simple_query(sql).await?.into_iter();
    Ok(messages
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        })
        .collect())
}

/// Returns how a connection ended; waits for [`GRACE`] at most.
async fn wait_for_end(mut end: watch::Receiver<Option<End>>) -> End {
    let ended = tokio::time::timeout(GRACE, end.wait_for(Option::is_some)).await;
    let end = ended
        .ok()
        .and_then(Result::ok)
        .and_then(|end| (*end).clone());
    end.unwrap_or_else(|| End {
        cause: "no cause was reported".to_owned(),
        sqlstate: None,
    })
}
