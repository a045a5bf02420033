//! One connection, driven in its own task; no answer is awaited without a deadline.
//!
//! When a deadline passes, the statement is cancelled on the server and the connection is given up: a late cancellation
//! would hit the next statement.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_postgres::error::Severity;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Row, SimpleQueryMessage, SimpleQueryRow};

use super::cancel::CancelToken;
use super::conninfo::Host;
use super::error::{Cause, Report};
use super::notices::Notices;
use super::prepared::Prepared;
use super::whereabouts::{Lookout, Origin, Whereabouts};
use super::{DatabaseError, sqlstate, tls};

/// How long a cancellation, a cancelled statement, or a connection that ends may take.
pub(crate) const GRACE: Duration = Duration::from_secs(1);

/// A statement that takes longer casts doubt on its server, again and again: one that is frozen would be as quiet.
pub(super) const QUIET: Duration = Duration::from_secs(2);

/// A connection to the server. Dropping it closes it; the server is left to end what still runs.
pub struct Connection {
    /// `Some` until `close` takes it.
    session: Option<Session>,
    cancel: tokio_postgres::CancelToken,
    /// `None` on a connection that is not encrypted.
    tls: Option<tls::Connector>,
    /// Whether statements may be prepared.
    prepare: bool,
    /// What batches call by name.
    prepared: Prepared,
    statement_deadline: Duration,
    /// `true` if a statement was sent and not answered.
    is_waiting: AtomicBool,
    /// Where the server's notices are logged.
    notices: Arc<Notices>,
    /// The major version of the server, as far as it is known.
    server_version: Option<u32>,
    /// How the connection ended, once it has.
    end: watch::Receiver<Option<End>>,
    /// Its host, with the address.
    host: Host,
    /// When its server began, once it has said so.
    begun: Arc<OnceLock<SystemTime>>,
    whereabouts: Arc<Whereabouts>,
}

/// What every connection to a host is made with.
pub(super) struct Terms {
    pub(super) host: Host,
    pub(super) tls: Option<tls::Connector>,
    pub(super) prepare: bool,
    pub(super) statement_deadline: Duration,
    pub(super) whereabouts: Arc<Whereabouts>,
}

/// A statement: prepared on a connection, or, where that is not done, sent as text each time.
#[derive(Clone, Debug)]
pub struct Statement(Form);

#[derive(Clone, Debug)]
enum Form {
    Prepared(tokio_postgres::Statement),
    Text(Arc<str>),
}

/// An answer to be waited for. Boxed, since each worker has room for whatever may be asked on its connection: in place, an answer
/// would take kilobytes of each worker that waits for the next nap.
pub(super) type Answering<'a, R> =
    Pin<Box<dyn Future<Output = Result<R, tokio_postgres::Error>> + Send + 'a>>;

/// The client of a connection, and the task that drives it.
struct Session {
    client: Client,
    driver: AbortHandle,
}

/// What ended a connection.
#[derive(Clone, Debug)]
enum End {
    Lost {
        cause: String,
        sqlstate: Option<String>,
    },
    /// It was given up, since this host is the primary now.
    Replaced(Host),
}

/// Drives a connection to its end, and publishes how it ended.
async fn drive<S, T>(
    mut connection: tokio_postgres::Connection<S, T>,
    lookout: Lookout,
    notices: Arc<Notices>,
    ended: watch::Sender<Option<End>>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut replaced = pin!(lookout.replaced());
    // What the server has announced as a warning, before it ends the session without an error.
    let mut announced = None;
    let end = loop {
        let message = tokio::select! {
            biased;
            message = poll_fn(|cx| connection.poll_message(cx)) => message,
            // The server may be frozen: nothing is told to it, and no answer is awaited.
            by = &mut replaced => break End::Replaced(by),
        };
        match message {
            Some(Ok(AsyncMessage::Notice(notice))) => {
                let report = Report(&notice).to_string();
                let code = notice.code().code();
                let severity = notice.parsed_severity();
                notices.log(matches!(severity, Some(Severity::Warning)), &report);
                announced = sqlstate::is_crash_of_another(code).then(|| End::Lost {
                    cause: report,
                    sqlstate: Some(code.to_owned()),
                });
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                let sqlstate = error.code().map(|code| code.code().to_owned());
                let announced = announced.filter(|_| sqlstate.is_none());
                break announced.unwrap_or_else(|| End::Lost {
                    cause: Cause(&error).to_string(),
                    sqlstate,
                });
            }
            None => break End::lost("closed by bgworker"),
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
        terms: Terms,
    ) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Terms {
            host,
            tls,
            prepare,
            statement_deadline,
            whereabouts,
        } = terms;
        let (ended, end) = watch::channel(None);
        let begun = Arc::new(OnceLock::new());
        let lookout = whereabouts.lookout(host.clone(), Arc::clone(&begun));
        let notices = Arc::<Notices>::default();
        let server_version = connection.parameter("server_version").and_then(major);
        let driving = drive(connection, lookout, Arc::clone(&notices), ended);
        let driver = tokio::spawn(driving).abort_handle();
        Self {
            notices,
            server_version,
            cancel: client.cancel_token(),
            session: Some(Session { client, driver }),
            is_waiting: AtomicBool::new(false),
            tls,
            prepare,
            prepared: Prepared::default(),
            statement_deadline,
            end,
            host,
            begun,
            whereabouts,
        }
    }

    /// Records when the server began. The first call counts.
    pub(super) fn server_began(&self, at: SystemTime) {
        let _ = self.begun.set(at);
    }

    /// The server that it leads to.
    pub(super) fn origin(&self) -> Origin {
        Origin {
            host: self.host.clone(),
            begun: self.begun.get().copied(),
            timeline: None,
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
        let prepared = self.within_deadline(doing, Box::pin(self.client().prepare(sql)));
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
                self.within_deadline(doing, Box::pin(self.client().query(statement, &[])))
                    .await
            }
            Statement(Form::Text(sql)) => self.query(doing, sql, &[]).await,
        }
    }

    /// Prepares statements that are called in batches from now on, where statements may be prepared and these are not yet.
    pub(crate) async fn prepare_once(
        &self,
        doing: &'static str,
        statements: &[&'static str],
    ) -> Result<(), DatabaseError> {
        if self.prepare
            && let Some(new) = self.prepared.prepare(statements)
        {
            self.batch_execute(doing, &new).await?;
            self.prepared.are(statements);
        }
        Ok(())
    }

    /// SQL that runs a statement with these arguments, each of which is SQL: by its name where it is prepared, or else in
    /// full.
    pub(crate) fn call(&self, statement: &str, arguments: &[String]) -> String {
        self.prepared.call(statement, arguments)
    }

    /// `true` if the names of what the session has prepared, as the text of an array, are those of what is called in batches.
    pub(crate) fn has_prepared_only(&self, names: &str) -> bool {
        self.prepared.are_all(names)
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
        self.within_deadline(doing, Box::pin(self.client().query_typed(sql, parameters)))
            .await
    }

    /// Runs one statement, discards its rows, and returns their number. The client waits for `deadline` at most.
    ///
    /// # Errors
    ///
    /// If the server refuses it, does not answer in time, or is lost.
    pub(crate) async fn execute_within(
        &self,
        doing: &'static str,
        sql: &str,
        deadline: Duration,
    ) -> Result<u64, DatabaseError> {
        self.within(
            deadline,
            doing,
            Box::pin(self.client().execute_typed(sql, &[])),
        )
        .await
    }

    /// Runs statements as one transaction, and returns their rows.
    pub(crate) async fn simple_query(
        &self,
        doing: &'static str,
        sql: &str,
    ) -> Result<Vec<SimpleQueryRow>, DatabaseError> {
        self.within_deadline(doing, Box::pin(simple_query(self.client(), sql)))
            .await
    }

    /// Runs statements without results as one transaction.
    ///
    /// # Errors
    ///
    /// If the server refuses one of them, does not answer in time, or is lost.
    pub async fn batch_execute(&self, doing: &'static str, sql: &str) -> Result<(), DatabaseError> {
        self.within_deadline(doing, Box::pin(self.client().batch_execute(sql)))
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
            host: self.host.clone(),
            tls: self.tls.clone(),
        }
    }

    /// Ends the session, and waits until the connection is closed. If a statement is unanswered, the server is not
    /// waited for.
    pub async fn close(mut self) {
        if self.is_at_work() {
            self.abort();
        }
        let Some(Session { client, driver }) = self.session.take() else {
            return;
        };
        drop(client);
        wait_for_end(self.end.clone()).await;
        // By now it is closed, or its time is up.
        driver.abort();
    }

    /// The major version of the server. `None` for a server or pooler that does not report one.
    pub(crate) fn server_version(&self) -> Option<u32> {
        self.server_version
    }

    /// Logs the server's notices under the name of a worker from now on, a limited number of them; with `None`, as
    /// messages for debugging.
    pub(crate) fn log_notices_of(&self, worker: Option<&str>) {
        self.notices.of(worker);
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
        wait_for_end(self.end.clone()).await.to_string()
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
        answer: Answering<'_, R>,
    ) -> Result<R, DatabaseError> {
        self.within(self.statement_deadline, doing, answer).await
    }

    /// Waits for an answer until the deadline, and finds the cause if there is none.
    pub(super) async fn within<R>(
        &self,
        after: Duration,
        doing: &'static str,
        mut answer: Answering<'_, R>,
    ) -> Result<R, DatabaseError> {
        self.is_waiting.store(true, Ordering::Relaxed);
        let answered = self.answered(after, &mut answer).await;
        if answered.is_some() {
            self.is_waiting.store(false, Ordering::Relaxed);
        }
        match answered {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(error)) => Err(self.explain(doing, error).await),
            None => {
                self.cancel_token().cancel().await;
                // An answer that comes now is too late, but the statement may still end cleanly.
                let _ = tokio::time::timeout(GRACE, answer).await;
                self.abort();
                Err(DatabaseError::StatementDeadline { doing, after })
            }
        }
    }

    /// Waits for an answer until the deadline, and casts doubt on the server while there is none.
    async fn answered<A: Future + Unpin>(
        &self,
        after: Duration,
        mut answer: A,
    ) -> Option<A::Output> {
        let deadline = Instant::now() + after;
        loop {
            let until = deadline.min(Instant::now() + QUIET);
            match tokio::time::timeout_at(until, &mut answer).await {
                Ok(answer) => return Some(answer),
                Err(_) if until == deadline => return None,
                Err(_) => self.whereabouts.quiet.notify_one(),
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
            if is_out_of_step(&error) {
                self.abort();
            }
            return DatabaseError::Statement { doing, error };
        }
        match wait_for_end(self.end.clone()).await {
            End::Lost { cause, sqlstate } => DatabaseError::Lost {
                doing,
                cause,
                sqlstate,
            },
            End::Replaced(by) => DatabaseError::Replaced {
                doing,
                by: by.to_string(),
            },
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.is_at_work() {
            self.abort();
        }
    }
}

/// `true` if the server has sent something that a statement's answer does not hold, such as a request for the data of
/// `COPY FROM STDIN`: it may wait for something that never comes, or its next answer may belong to another statement.
fn is_out_of_step(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_none() && error.to_string().starts_with("unexpected message")
}

/// The first number of a version such as `16.4 (Debian 16.4-1)` or `17beta1`.
fn major(version: &str) -> Option<u32> {
    let digits = version.bytes().take_while(u8::is_ascii_digit).count();
    version[..digits].parse().ok()
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
    end.unwrap_or_else(|| End::lost("no cause was reported"))
}

// === impl End ===

impl End {
    fn lost(cause: &str) -> Self {
        Self::Lost {
            cause: cause.to_owned(),
            sqlstate: None,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost { cause, .. } => f.write_str(cause),
            Self::Replaced(by) => write!(f, "given up: the primary is now {by}"),
        }
    }
}
