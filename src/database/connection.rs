//! One connection: made within a deadline, driven in a task of its own, and never waited for
//! without a deadline.
//!
//! After a deadline the statement is cancelled on the server and the connection given up: a
//! cancellation that comes late would hit the next statement.

use std::fmt;
use std::future::{Future, poll_fn};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_postgres::config::SslNegotiation;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, NoTls, Row};
use tracing::debug;

use super::conninfo::{Host, TargetSessionAttrs};
use super::error::Cause;
use super::tls::Attempt;
use super::{Database, DatabaseError, Server, TlsError, tls};

/// How much later than the server our side gives up on a statement.
const STATEMENT_SLACK: Duration = Duration::from_secs(1);

/// How long a cancelled statement, or a connection that ends, may take to say so.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// Longer than anybody waits: times beyond it would overflow the clock.
const FAR: Duration = Duration::from_secs(86_400_000);

/// What waits for a lock gives up after this time, and comes back: nobody stands in line behind
/// a client that holds a row.
const LOCK_TIMEOUT: Duration = Duration::from_millis(100);

/// A connection to the server. Dropping it closes it; what still runs is left for the server to end.
pub struct Connection {
    /// Taken by `close` alone.
    session: Option<Session>,
    cancel: tokio_postgres::CancelToken,
    /// `None` on a connection that is not encrypted.
    tls: Option<tls::Connector>,
    /// Whether statements may be prepared.
    prepare: bool,
    statement_deadline: Duration,
    /// A statement was sent and not answered.
    is_waiting: AtomicBool,
    /// How the connection ended, once it has.
    end: watch::Receiver<Option<End>>,
}

/// A statement that was prepared on a connection, where that is done, or is sent anew each time.
#[derive(Clone, Debug)]
pub struct Statement(Form);

#[derive(Clone, Debug)]
enum Form {
    Prepared(tokio_postgres::Statement),
    Text(Arc<str>),
}

/// Whether others wait for what runs on a connection.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sharing {
    Shared,
    Own,
}

/// Whether a session is one that was asked for.
enum Suits {
    Yes,
    /// If there is none that suits better.
    AtNeed,
    No(&'static str),
}

/// What a server is asked as soon as it is connected to, in the same time.
#[derive(Clone, Copy, Debug)]
pub(super) enum Question {
    None,
    /// Whether its sessions are of this kind.
    Suits(TargetSessionAttrs),
    /// Whether it is a primary: there is none that has come further.
    Recovery,
}

/// What a server says of itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Standing {
    pub(super) is_standby: bool,
    is_read_only: bool,
}

/// Why one attempt came to nothing.
enum AttemptError {
    Tls(TlsError),
    Client(tokio_postgres::Error),
}

/// The way to cancel what runs on a connection.
#[derive(Clone)]
pub struct CancelToken {
    token: tokio_postgres::CancelToken,
    tls: Option<tls::Connector>,
}

/// The two ends of a connection.
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

// === impl Database ===

impl Database {
    /// Connects within the deadline.
    ///
    /// `application_name` is what `pg_stat_activity` shows, unless the connection settings name
    /// one. `dbname` overrides the settings' database.
    ///
    /// # Errors
    ///
    /// If there is no connection by then.
    pub async fn connect(
        &self,
        application_name: &str,
        dbname: Option<&str>,
    ) -> Result<Connection, DatabaseError> {
        let sharing = Sharing::Own;
        self.server.connect(application_name, dbname, sharing).await
    }
}

// === impl Server ===

impl Server {
    /// See [`Database::connect`].
    pub(super) async fn connect(
        &self,
        application_name: &str,
        dbname: Option<&str>,
        sharing: Sharing,
    ) -> Result<Connection, DatabaseError> {
        let conninfo = &self.conninfo;
        let mut order: Vec<usize> = (0..conninfo.hosts().len()).collect();
        if conninfo.load_balance_hosts() {
            fastrand::shuffle(&mut order);
        } else {
            // Where the server was last seen to have come furthest.
            let best = self.best_host.load(Ordering::Relaxed);
            order.sort_by_key(|host| *host != best);
        }
        // A host that is silent is not to use up the time of the next one.
        let hosts = u32::try_from(order.len()).unwrap_or(u32::MAX);
        let share = self.settings.connect_timeout / hosts.max(1);
        let wanted = conninfo.target_session_attrs();
        let mut errors = Vec::new();
        let mut second_best = None;
        for host in order {
            let as_whom = (application_name, dbname, sharing);
            let question = match wanted {
                TargetSessionAttrs::Any => Question::None,
                wanted => Question::Suits(wanted),
            };
            for tried in self.connect_to_host(host, as_whom, share, question).await {
                let (connection, standing) = match tried {
                    Ok(connected) => connected,
                    Err(error) if error.is_away() => {
                        errors.push(error);
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                match standing.suits(wanted) {
                    Suits::Yes => return Ok(connection),
                    Suits::AtNeed => second_best = second_best.or(Some(connection)),
                    Suits::No(why) => {
                        let target = conninfo.target_of(&conninfo.hosts()[host], dbname);
                        errors.push(DatabaseError::Unsuitable { target, why });
                    }
                }
            }
        }
        match second_best {
            Some(connection) => Ok(connection),
            None => Err(DatabaseError::of_each(errors)),
        }
    }

    /// Connects to one host: to each of its addresses in turn, until one of them will do; each has an
    /// equal share of the time, and in it, it is also asked what it is.
    pub(super) async fn connect_to_host(
        &self,
        host: usize,
        as_whom: (&str, Option<&str>, Sharing),
        share: Duration,
        question: Question,
    ) -> Vec<Result<(Connection, Standing), DatabaseError>> {
        let conninfo = &self.conninfo;
        let host = &conninfo.hosts()[host];
        let target = conninfo.target_of(host, as_whom.1);
        let after = conninfo
            .connect_timeout()
            .map_or(share, |own| own.min(share));
        let addresses = match tokio::time::timeout(after, host.resolve()).await {
            Ok(Ok(addresses)) => addresses,
            Ok(Err(error)) => return vec![Err(DatabaseError::Lookup { target, error })],
            Err(_) => return vec![Err(DatabaseError::ConnectDeadline { target, after })],
        };
        let many = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
        let after = after / many.max(1);
        let mut tried = Vec::new();
        for address in &addresses {
            let connecting = async {
                let connection = self.connect_to_address(address, as_whom, after).await?;
                let standing = match question {
                    Question::None => Standing::default(),
                    Question::Suits(_) | Question::Recovery => connection.standing().await?,
                };
                Ok((connection, standing))
            };
            let target = target.clone();
            let connected = match tokio::time::timeout(after, connecting).await {
                Ok(connected) => connected,
                Err(_) => Err(DatabaseError::ConnectDeadline { target, after }),
            };
            let is_enough = match (&connected, question) {
                (Ok(_), Question::None) => true,
                (Ok((_, standing)), Question::Suits(wanted)) => {
                    matches!(standing.suits(wanted), Suits::Yes)
                }
                (Ok((_, standing)), Question::Recovery) => !standing.is_standby,
                (Err(error), _) => !error.is_away(),
            };
            tried.push(connected);
            if is_enough {
                break;
            }
        }
        tried
    }

    /// Connects to one address, in each way that its `sslmode` allows.
    async fn connect_to_address(
        &self,
        host: &Host,
        (application_name, dbname, sharing): (&str, Option<&str>, Sharing),
        after: Duration,
    ) -> Result<Connection, DatabaseError> {
        let conninfo = &self.conninfo;
        let mut config = conninfo.client_config(host, application_name, dbname);
        config.connect_timeout(after);
        if let Some(file) = &self.settings.password_file {
            config.password(read_password(file)?);
        }
        if let Some(options) = self.session_options(sharing) {
            config.options(options);
        }
        if conninfo.tls().is_direct() {
            config.ssl_negotiation(SslNegotiation::Direct);
        }
        let mut errors = Vec::new();
        for attempt in conninfo.tls().attempts(host.is_socket()) {
            config.ssl_mode((*attempt).into());
            match self.attempt(&config, *attempt).await {
                Ok(connection) => return Ok(connection),
                // The other way may need none.
                Err(AttemptError::Tls(error)) => errors.push(DatabaseError::Tls(error)),
                Err(AttemptError::Client(error)) => {
                    let may_go_on = is_about_encryption(&error);
                    let target = conninfo.target_of(host, dbname);
                    errors.push(DatabaseError::Connect { target, error });
                    if !may_go_on {
                        break;
                    }
                }
            }
        }
        Err(DatabaseError::of_each(errors))
    }

    async fn attempt(
        &self,
        config: &tokio_postgres::Config,
        attempt: Attempt,
    ) -> Result<Connection, AttemptError> {
        let tls = match attempt {
            Attempt::Plain => None,
            Attempt::EncryptedIfOffered | Attempt::Encrypted => {
                Some(self.conninfo.tls().connector(&self.last_connector)?)
            }
        };
        let (ended, end) = watch::channel(None);
        let (client, driver) = match &tls {
            Some(tls) => {
                let (client, connection) = config.connect(tls.0.clone()).await?;
                (client, tokio::spawn(drive(connection, ended)))
            }
            None => {
                let (client, connection) = config.connect(NoTls).await?;
                (client, tokio::spawn(drive(connection, ended)))
            }
        };
        let driver = driver.abort_handle();
        Ok(Connection {
            cancel: client.cancel_token(),
            session: Some(Session { client, driver }),
            is_waiting: AtomicBool::new(false),
            tls,
            prepare: self.settings.prepare,
            statement_deadline: self.settings.statement_timeout.min(FAR) + STATEMENT_SLACK,
            end,
        })
    }

    /// What every session of ours sets. Ours come last, so that they win; but for the lock timeout of
    /// a connection that nobody shares.
    fn session_options(&self, sharing: Sharing) -> Option<String> {
        let theirs = self.conninfo.options().unwrap_or_default();
        if !self.settings.prepare {
            return Some(theirs.to_owned()).filter(|theirs| !theirs.is_empty());
        }
        // A server takes 31 bits of milliseconds, and 0 for no timeout at all.
        let statement_timeout = self.settings.statement_timeout.as_millis();
        let statement_timeout = statement_timeout.clamp(1, i32::MAX as u128);
        let lock_timeout = format!("-c lock_timeout={}", LOCK_TIMEOUT.as_millis());
        let (before, after) = match sharing {
            Sharing::Shared => ("", lock_timeout.as_str()),
            Sharing::Own => (lock_timeout.as_str(), ""),
        };
        Some(format!(
            "{before} {theirs} {after} \
             -c default_transaction_isolation=read\\ committed \
             -c statement_timeout={statement_timeout} \
             -c client_connection_check_interval=5000 \
             -c jit=off"
        ))
    }
}

/// A password that lies in a file of its own: all of it, but for the end of its line.
fn read_password(file: &Path) -> Result<String, DatabaseError> {
    let text = std::fs::read_to_string(file).map_err(|error| DatabaseError::PasswordFile {
        file: file.to_owned(),
        error,
    })?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// Whether the same host may be reached with, or without, encryption instead: its handshake failed, or
/// the server refuses us as we come.
fn is_about_encryption(error: &tokio_postgres::Error) -> bool {
    // But for a wrong password, which is as wrong the other way.
    let refused = error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION);
    refused || tls::is_handshake(error)
}

impl From<TlsError> for AttemptError {
    fn from(error: TlsError) -> Self {
        Self::Tls(error)
    }
}

impl From<tokio_postgres::Error> for AttemptError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Client(error)
    }
}

/// Drives a connection to its end, and keeps what the end was.
async fn drive<S, T>(
    mut connection: tokio_postgres::Connection<S, T>,
    ended: watch::Sender<Option<End>>,
) where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
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
                    cause: "closed by us".to_owned(),
                    sqlstate: None,
                };
            }
        }
    };
    // The socket closes before anybody hears of it.
    drop(connection);
    ended.send_replace(Some(end));
}

// === impl Standing ===

impl Standing {
    /// Whether it is one of those that `target_session_attrs` asks for. The sentences are libpq's.
    fn suits(self, wanted: TargetSessionAttrs) -> Suits {
        let (suits, why) = match wanted {
            TargetSessionAttrs::Any => (true, ""),
            TargetSessionAttrs::ReadWrite => (!self.is_read_only, "session is read-only"),
            TargetSessionAttrs::ReadOnly => (self.is_read_only, "session is not read-only"),
            TargetSessionAttrs::Primary => (!self.is_standby, "server is in hot standby mode"),
            TargetSessionAttrs::Standby => (self.is_standby, "server is not in hot standby mode"),
            TargetSessionAttrs::PreferStandby if self.is_standby => (true, ""),
            TargetSessionAttrs::PreferStandby => return Suits::AtNeed,
        };
        if suits { Suits::Yes } else { Suits::No(why) }
    }
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
    /// Prepares a statement. `doing` says what for, in an error.
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

    /// Runs statements without results as one transaction.
    ///
    /// # Errors
    ///
    /// If the server refuses one of them, does not answer in time, or is lost.
    pub async fn batch_execute(&self, doing: &'static str, sql: &str) -> Result<(), DatabaseError> {
        self.within_deadline(doing, self.client().batch_execute(sql))
            .await
    }

    async fn standing(&self) -> Result<Standing, DatabaseError> {
        let doing = "ask what the session can do";
        let sql = "SELECT pg_is_in_recovery(), \
                   current_setting('default_transaction_read_only')::bool";
        let rows = self.query(doing, sql, &[]).await?;
        let is_standby = rows.first().is_some_and(|row| row.get(0));
        let is_read_only = is_standby || rows.first().is_some_and(|row| row.get(1));
        Ok(Standing {
            is_standby,
            is_read_only,
        })
    }

    /// Whether the server is in recovery: a standby, or not yet a primary.
    ///
    /// # Errors
    ///
    /// If the server does not answer in time, or is lost.
    pub async fn is_in_recovery(&self) -> Result<bool, DatabaseError> {
        let doing = "ask whether the server is in recovery";
        let rows = self.query(doing, "SELECT pg_is_in_recovery()", &[]).await?;
        Ok(rows.first().is_some_and(|row| row.get(0)))
    }

    /// The way to cancel what runs on this connection, while something does.
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
        // By now it is closed, or it has had its time.
        driver.abort();
    }

    /// Whether a statement was sent and has not been answered.
    pub(crate) fn is_at_work(&self) -> bool {
        self.is_waiting.load(Ordering::Relaxed)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.client().is_closed()
    }

    /// Waits for the end of the connection, for ever.
    pub(super) fn ended(&self) -> impl Future<Output = ()> + use<> {
        let mut end = self.end.clone();
        async move {
            // An error is an end too: nobody drives it any more.
            let _ = end.wait_for(Option::is_some).await;
        }
    }

    /// What ended it, once it has.
    pub(super) async fn cause_of_end(&self) -> String {
        wait_for_end(self.end.clone()).await.cause
    }

    /// Gives it up without a word.
    pub(super) fn abort(&self) {
        if let Some(session) = &self.session {
            session.driver.abort();
        }
    }

    /// How long our side waits for an answer.
    pub(super) fn statement_deadline(&self) -> Duration {
        self.statement_deadline
    }

    pub(super) fn client(&self) -> &Client {
        let session = self.session.as_ref();
        &session
            .expect("only close takes it, and nothing follows that")
            .client
    }

    /// Waits for an answer, but not for ever, and finds the cause where there is none.
    async fn within_deadline<R>(
        &self,
        doing: &'static str,
        answer: impl Future<Output = Result<R, tokio_postgres::Error>>,
    ) -> Result<R, DatabaseError> {
        let mut answer = std::pin::pin!(answer);
        let after = self.statement_deadline;
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
                // Whatever comes now, it is too late; but it may still end cleanly.
                let _ = tokio::time::timeout(GRACE, answer).await;
                self.abort();
                Err(DatabaseError::StatementDeadline { doing, after })
            }
        }
    }

    /// What a statement's error means: where the connection was lost, what ended it.
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
    /// Asks the server to cancel what runs. The connection is of no use afterwards.
    pub async fn cancel(&self) {
        let cancelling = async {
            match &self.tls {
                Some(tls) => self.token.cancel_query(tls.0.clone()).await,
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

/// How a connection ended; it has [`GRACE`] to do so.
async fn wait_for_end(mut end: watch::Receiver<Option<End>>) -> End {
    let ended = tokio::time::timeout(GRACE, end.wait_for(Option::is_some)).await;
    let end = ended
        .ok()
        .and_then(Result::ok)
        .and_then(|end| (*end).clone());
    end.unwrap_or_else(|| End {
        cause: "it does not say why".to_owned(),
        sqlstate: None,
    })
}
