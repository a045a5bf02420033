//! Home connections: a few connections that many workers share.
//!
//! Each database has M home connections, and the worker in slot *i* is at home on connection *i* mod M. It runs one
//! statement there at a time, outside any transaction. No client is handed out, and only statements that read or write
//! rows are accepted, so that no worker can begin a transaction around a neighbour's statement, or `SET` what a
//! neighbour runs under.
//!
//! The built-in workers ask their recurring questions as *probes*: probes that arrive at the same moment become one
//! statement.

mod groups;
mod in_flight;
mod inbox;
mod line;
mod probe;
mod request;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Row, SimpleQueryRow};

use self::probe::{Asked, Probe, Scalars};
pub(crate) use self::probe::{Tid, probe_all};
use self::request::{Ask, Request, Rows, Waiter, Work};
use super::error::DatabaseError;
use super::server::Server;
use super::shared::{Answer, Answers};

/// How long the lines may take to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The values for `$1`, `$2`, … of a statement, and their types.
pub type Parameters = Vec<(Box<dyn ToSql + Sync + Send>, Type)>;

/// A worker's place at home: its connection, and the database.
#[derive(Clone)]
struct Seat {
    lines: Arc<Lines>,
    dbname: Option<String>,
    slot: usize,
    /// `true` if the last statement was sent, and has not been answered.
    sent: Arc<AtomicBool>,
}

/// A worker's place on a home connection.
///
/// Dropping the future of one of its methods withdraws the statement if it has not been sent yet. A statement that was
/// sent runs to its end, and its answer is discarded.
pub struct HomeConnection {
    seat: Seat,
}

/// A statement that a home connection prepares when it first runs it, and again when necessary.
///
/// Dropping it lets the server forget what was prepared.
pub struct HomeStatement {
    sql: Arc<str>,
    seat: Seat,
}

/// A recurring question of a worker. It is asked together with the probes of neighbours that arrive at the same moment.
///
/// Dropping it lets the server forget what was prepared.
pub(crate) struct HomeProbe {
    probe: Arc<Probe>,
    seat: Seat,
}

/// The home connections opened so far, for every database.
#[derive(Debug)]
pub(super) struct Lines {
    server: Arc<Server>,
    lines: Mutex<HashMap<Option<String>, Vec<Option<Line>>>>,
    /// Number of probes created so far.
    probes: AtomicU64,
    /// Answers to queries that workers ask together.
    answers: Answers,
}

/// A handle to one home connection.
#[derive(Debug)]
struct Line {
    asks: mpsc::UnboundedSender<Ask>,
    given_up: Arc<Notify>,
    task: JoinHandle<()>,
}

/// Returns `true` if a statement, judged by its first word, reads or writes rows and leaves the session alone.
fn is_about_rows(sql: &str) -> bool {
    let mut rest = sql.trim_start();
    while let Some(comment) = rest.strip_prefix("/*") {
        rest = comment
            .split_once("*/")
            .map_or("", |(_, rest)| rest.trim_start());
    }
    let end = rest
        .find(|c: char| !c.is_ascii_alphabetic())
        .unwrap_or(rest.len());
    let word = rest[..end].to_ascii_uppercase();
    [
        "SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "WITH", "VALUES", "TABLE",
    ]
    .contains(&word.as_str())
}

// === impl Seat ===

impl Seat {
    /// Calls `then` with the seat's line, which is begun if there is none.
    fn line(&self, then: impl FnOnce(&Line)) {
        self.lines.with(self.dbname.as_ref(), self.slot, then);
    }

    /// Calls `then` with the seat's line, if there is one.
    fn existing_line(&self, then: impl FnOnce(&Line)) {
        self.lines.existing(self.dbname.as_ref(), self.slot, then);
    }

    /// Sends a request to the line, and waits for the answer.
    async fn send<T>(
        &self,
        doing: &'static str,
        ask: impl FnOnce(Waiter<T>) -> Ask,
    ) -> Result<T, DatabaseError> {
        let (waiter, answered) = Waiter::new(doing, Arc::clone(&self.sent));
        let ask = ask(waiter);
        self.line(|line| {
            // A line ends only when nothing can reach it any longer, or with its runtime. Then the sender of the answer
            // is dropped with the request.
            let _ = line.asks.send(ask);
        });
        let answer = answered.await;
        self.sent.store(false, Ordering::Release);
        answer.unwrap_or_else(|_| Err(in_flight::given_up_on(doing)))
    }

    /// Sends a request that needs no answer to the line; does nothing if the line has not begun.
    fn tell(&self, what: Ask) {
        self.existing_line(|line| {
            let _ = line.asks.send(what);
        });
    }
}

// === impl HomeConnection ===

impl HomeConnection {
    pub(super) fn new(lines: Arc<Lines>, dbname: Option<String>, slot: usize) -> Self {
        Self {
            seat: Seat {
                lines,
                dbname,
                slot,
                sent: Arc::default(),
            },
        }
    }

    /// Returns a statement without parameters, to be run again and again.
    ///
    /// It may begin with a comment. A function that it calls must leave the session as it is: other workers use it
    /// next.
    ///
    /// # Errors
    ///
    /// If it is not one of `SELECT`, `INSERT`, `UPDATE`, `DELETE`, `MERGE`, `WITH`, `VALUES` and `TABLE`.
    pub fn statement(&self, sql: impl Into<Arc<str>>) -> Result<HomeStatement, DatabaseError> {
        let sql = sql.into();
        if !is_about_rows(&sql) {
            return Err(DatabaseError::NotAtHome);
        }
        let seat = self.seat.clone();
        Ok(HomeStatement { sql, seat })
    }

    /// Runs a statement, and returns its rows. `doing` names its purpose in an error.
    ///
    /// # Errors
    ///
    /// If the server refuses it, does not answer in time, or is lost or away.
    pub async fn run(
        &self,
        doing: &'static str,
        statement: &HomeStatement,
    ) -> Result<Vec<Row>, DatabaseError> {
        let work = Work::Prepared(Arc::clone(&statement.sql));
        self.ask(doing, work).await.map(Rows::typed)
    }

    /// Runs a statement once, and returns its rows.
    pub(crate) async fn query(
        &self,
        doing: &'static str,
        sql: &str,
        parameters: Parameters,
    ) -> Result<Vec<Row>, DatabaseError> {
        let sql = sql.to_owned();
        let work = Work::Once { sql, parameters };
        self.ask(doing, work).await.map(Rows::typed)
    }

    /// Returns the answer to a query that the workers of a database ask together: one of them asked it, at `not_before`
    /// or later.
    pub(crate) async fn query_together(
        &self,
        doing: &'static str,
        sql: &'static str,
        not_before: tokio::time::Instant,
    ) -> Result<Arc<Answer>, DatabaseError> {
        let ask = || self.query(doing, sql, Vec::new());
        let (answers, dbname) = (&self.seat.lines.answers, self.seat.dbname.as_ref());
        answers.get(dbname, sql, not_before, ask).await
    }

    /// Runs statements as one transaction, and returns their rows. They must not begin or end one themselves.
    pub(crate) async fn simple_query(
        &self,
        doing: &'static str,
        sql: &str,
    ) -> Result<Vec<SimpleQueryRow>, DatabaseError> {
        let work = Work::Batch(sql.to_owned());
        self.ask(doing, work).await.map(Rows::text)
    }

    /// Creates a probe of scalar expressions of type `tid`. `prober` is the name of its worker, fit for a comment.
    pub(crate) fn prepare_probe(&self, prober: String, scalars: Vec<String>) -> HomeProbe {
        let lines = &self.seat.lines;
        HomeProbe {
            probe: Arc::new(Probe {
                number: lines.probes.fetch_add(1, Ordering::Relaxed),
                prober,
                scalars,
            }),
            seat: self.seat.clone(),
        }
    }

    /// Time since the last *beat*: a common clock tick, one per `beat`, that workers use to wake together. Even
    /// connections share one phase, and odd connections run half a beat apart from them, so that the whole fleet never
    /// wakes at once.
    pub(crate) fn since_beat(&self, beat: Duration) -> Duration {
        let server = &self.seat.lines.server;
        let line = self.seat.slot % server.settings.connections.max(1);
        let turn = if line.is_multiple_of(2) {
            Duration::ZERO
        } else {
            beat / 2
        };
        let age = server.begin.elapsed() + turn;
        let since = age.as_nanos().checked_rem(beat.as_nanos()).unwrap_or(0);
        Duration::from_nanos(u64::try_from(since).unwrap_or(u64::MAX))
    }

    /// Returns `true` if a statement was sent and has not been answered.
    pub(crate) fn is_at_work(&self) -> bool {
        self.seat.sent.load(Ordering::Acquire)
    }

    /// Gives up the connection, and cancels what runs on it, whichever worker it belongs to. The next statement opens a
    /// new connection.
    pub(crate) fn give_up(&self) {
        self.seat.existing_line(|line| line.given_up.notify_one());
    }

    /// Asks for a new session, unless this one is only a few seconds old. Statements in flight are answered first;
    /// neighbours notice nothing.
    pub(crate) fn renew(&self) {
        self.seat.tell(Ask::Renew);
    }

    async fn ask(&self, doing: &'static str, work: Work) -> Result<Rows, DatabaseError> {
        let run = |waiter| Ask::Run(Request { work, waiter });
        self.seat.send(doing, run).await
    }
}

impl fmt::Debug for HomeConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HomeConnection")
            .field("dbname", &self.seat.dbname)
            .field("slot", &self.seat.slot)
            .finish_non_exhaustive()
    }
}

// === impl HomeStatement ===

impl fmt::Debug for HomeStatement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HomeStatement").field(&self.sql).finish()
    }
}

impl Drop for HomeStatement {
    fn drop(&mut self) {
        self.seat.tell(Ask::Forget(Arc::clone(&self.sql)));
    }
}

// === impl HomeProbe ===

impl HomeProbe {
    /// Runs the probe, and returns the value of each of its scalars.
    pub(crate) async fn run(&self, doing: &'static str) -> Result<Scalars, DatabaseError> {
        let probe = Arc::clone(&self.probe);
        let run = |waiter| Ask::Probe(Asked { probe, waiter });
        self.seat.send(doing, run).await
    }
}

impl Drop for HomeProbe {
    fn drop(&mut self) {
        self.seat.tell(Ask::ForgetProbe(self.probe.number));
    }
}

// === impl Lines ===

impl Lines {
    pub(super) fn new(server: Arc<Server>) -> Self {
        Self {
            server,
            lines: Mutex::default(),
            probes: AtomicU64::new(0),
            answers: Answers::default(),
        }
    }

    /// Calls `then` with a slot's line, which is begun if there is none.
    fn with(&self, dbname: Option<&String>, slot: usize, then: impl FnOnce(&Line)) {
        let many = self.server.settings.connections.max(1);
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = lines.entry(dbname.cloned()).or_default();
        if lines.len() < many {
            lines.resize_with(many, || None);
        }
        let line = &mut lines[slot % many];
        // A line ends with its runtime.
        if line.as_ref().is_none_or(|line| line.asks.is_closed()) {
            *line = Some(Line::begin(Arc::clone(&self.server), dbname.cloned()));
        }
        if let Some(line) = line {
            then(line);
        }
    }

    /// Calls `then` with a slot's line, if there is one.
    fn existing(&self, dbname: Option<&String>, slot: usize, then: impl FnOnce(&Line)) {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = lines.get(&dbname.cloned());
        if let Some(Some(line)) = lines.and_then(|lines| lines.get(slot % lines.len())) {
            then(line);
        }
    }

    /// Releases every line: each answers what is under way, then ends.
    pub(super) fn drop_all(&self) {
        self.take();
    }

    /// Ends every line, and waits until they have ended, for [`CLOSE_TIMEOUT`] at most.
    pub(super) async fn close(&self) {
        let tasks = self.take().into_iter().map(|line| line.task);
        let deadline = tokio::time::Instant::now() + CLOSE_TIMEOUT;
        for mut task in tasks.collect::<Vec<_>>() {
            if tokio::time::timeout_at(deadline, &mut task).await.is_err() {
                task.abort();
            }
        }
    }

    fn take(&self) -> Vec<Line> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = std::mem::take(&mut *lines);
        lines.into_values().flatten().flatten().collect()
    }
}

// === impl Line ===

impl Line {
    fn begin(server: Arc<Server>, dbname: Option<String>) -> Self {
        let (asks, asked) = mpsc::unbounded_channel();
        let given_up = Arc::new(Notify::new());
        let task = tokio::spawn(line::serve(server, dbname, asked, Arc::clone(&given_up)));
        Self {
            asks,
            given_up,
            task,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::{ConnInfo, Database, Settings};

    #[test]
    fn every_other_connection_has_its_beat_halfway_between() {
        let conninfo = ConnInfo::parse("host=127.0.0.1", |_| None).unwrap();
        let database = Database::new(conninfo, Settings::default().connections(3)).unwrap();
        let hour = Duration::from_secs(3600);
        let minutes = |slot| database.home(slot, None).since_beat(hour).as_secs() / 60;
        // Slots 0 and 3 share a connection.
        assert_eq!([0, 1, 2, 3].map(minutes), [0, 30, 0, 0]);
        let of_no_length = database.home(0, None).since_beat(Duration::ZERO);
        assert_eq!(of_no_length, Duration::ZERO);
    }
}
