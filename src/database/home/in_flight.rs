//! The statements of a home connection that were sent and not answered, and how each ends.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, Statement};
use tracing::{debug, warn};

use super::groups::Groups;
use super::probe::{Asked, Scalars};
use super::request::{Message, Request, Rows, Waiter, Work};
use crate::database::connection::{Connection, GRACE, simple_query};
use crate::database::{DatabaseError, ErrorClass};

/// How long after a warning about a loss no other one is given.
const QUIET_AFTER_LOSS: Duration = Duration::from_secs(60);

/// What was prepared on one connection.
pub(super) type Prepared = HashMap<Arc<str>, Statement>;

/// Statements in flight, answered in the order in which they were sent.
pub(super) type InFlight<'c> = FuturesOrdered<Pin<Box<dyn Future<Output = Answered> + Send + 'c>>>;

type Returned = Result<Rows, tokio_postgres::Error>;

/// A statement that was sent, and has been answered.
pub(super) struct Answered {
    message: Message,
    rows: Returned,
    /// What was newly prepared for it.
    prepared: Option<(Arc<str>, Statement)>,
}

/// What was lost with a connection.
pub(super) struct Loss {
    /// Number of statements that were sent and not answered.
    pub(super) in_flight: usize,
    pub(super) cause: String,
}

/// Sends a statement. Returns `true` if it is prepared first.
pub(super) fn send<'c>(
    connection: &'c Connection,
    prepare: bool,
    prepared: &Prepared,
    in_flight: &mut InFlight<'c>,
    message: Message,
) -> bool {
    message.mark_sent();
    let to_prepare = message.to_prepare().filter(|_| prepare).cloned();
    let known = to_prepare.as_ref().and_then(|sql| prepared.get(sql));
    let known = known.cloned();
    let is_preparing = to_prepare.is_some() && known.is_none();
    in_flight.push_back(Box::pin(async move {
        let client = connection.client();
        let (rows, prepared) = match (to_prepare, known) {
            (_, Some(statement)) => (typed(client.query(&statement, &[])).await, None),
            (Some(sql), None) => prepare_and_run(client, sql).await,
            (None, None) => (run(client, &message).await, None),
        };
        Answered {
            message,
            rows,
            prepared,
        }
    }));
    is_preparing
}

async fn prepare_and_run(
    client: &Client,
    sql: Arc<str>,
) -> (Returned, Option<(Arc<str>, Statement)>) {
    match client.prepare(&sql).await {
        Ok(statement) => {
            let rows = typed(client.query(&statement, &[])).await;
            (rows, Some((sql, statement)))
        }
        Err(error) => (Err(error), None),
    }
}

async fn run(client: &Client, message: &Message) -> Returned {
    let work = match message {
        Message::Probes(batch) => return typed(client.query_typed(&batch.sql, &[])).await,
        Message::Request(Request { work, .. }) => work,
    };
    match work {
        Work::Prepared(sql) => typed(client.query_typed(sql, &[])).await,
        Work::Once { sql, parameters } => {
            let parameters: Vec<_> = parameters
                .iter()
                .map(|(value, kind)| (&**value as &(dyn ToSql + Sync), kind.clone()))
                .collect();
            typed(client.query_typed(sql, &parameters)).await
        }
        Work::Batch(sql) => simple_query(client, sql).await.map(Rows::Text),
    }
}

async fn typed(rows: impl Future<Output = Result<Vec<Row>, tokio_postgres::Error>>) -> Returned {
    rows.await.map(Rows::Typed)
}

/// Passes an answer on, and remembers what was prepared for it. Returns the probes that have to be asked again.
pub(super) async fn answer(
    connection: &Connection,
    prepared: &mut Prepared,
    groups: &mut Groups,
    answered: Answered,
) -> Vec<Asked<Waiter<Scalars>>> {
    let Answered {
        message,
        rows,
        prepared: new,
    } = answered;
    let is_wanted = match &message {
        Message::Request(_) => !message.is_withdrawn(),
        Message::Probes(batch) => groups.has(batch),
    };
    // Otherwise nothing is left that would let it be forgotten.
    if is_wanted {
        prepared.extend(new);
    }
    match (message, rows) {
        (Message::Probes(batch), Ok(rows)) => {
            groups.succeeded(&batch);
            Message::Probes(batch).answer(rows);
        }
        (Message::Probes(batch), Err(error))
            if !batch.is_of_one && error.as_db_error().is_some() && !connection.is_closed() =>
        {
            if is_cancelled(&error) {
                groups.shrink();
            }
            return groups.failed(batch);
        }
        (message, rows) => tell(connection, message, rows).await,
    }
    Vec::new()
}

/// Returns `true` if the server cancelled a statement: it took too long, or another session asked for it.
fn is_cancelled(error: &tokio_postgres::Error) -> bool {
    let code = error.code().map(SqlState::code);
    code.is_some_and(|code| ErrorClass::of_statement(code, "", None) == ErrorClass::Cancelled)
}

/// Tells the callers that wait for a statement how it ended.
async fn tell(connection: &Connection, message: Message, rows: Returned) {
    match rows {
        Ok(rows) => message.answer(rows),
        // Which probe is at fault is not known, and there is no time to find out.
        Err(error) if message.is_of_several() && error.as_db_error().is_some() => {
            message.refuse(given_up_on);
        }
        Err(error) => {
            let error = connection.explain(message.doing(), error).await;
            message.fail(error);
        }
    }
}

// === impl Answered ===

impl Answered {
    /// Returns `true` if what came is not an answer of a server: then nothing that follows can be trusted.
    pub(super) fn is_out_of_step(&self) -> bool {
        let error = self.rows.as_ref().err();
        error.is_some_and(|error| error.as_db_error().is_none() && !DatabaseError::is_ours(error))
    }
}

/// Handles a connection that is gone or cannot be used: each worker with a statement in flight is notified.
pub(super) async fn lose(
    connection: &Connection,
    first: Option<Answered>,
    mut in_flight: InFlight<'_>,
) -> Loss {
    let many = in_flight.len() + usize::from(first.is_some());
    if let Some(answered) = first {
        if answered.is_out_of_step() && !connection.is_closed() {
            connection.abort();
        }
        tell(connection, answered.message, answered.rows).await;
    }
    // Each of them is answered by the end of the connection.
    while let Some(answered) = in_flight.next().await {
        tell(connection, answered.message, answered.rows).await;
    }
    Loss {
        in_flight: many,
        cause: connection.cause_of_end().await,
    }
}

/// Handles a first statement in line that got no answer in time: cancels it, and gives the connection up.
pub(super) async fn give_up(
    connection: &Connection,
    mut in_flight: InFlight<'_>,
    after: Duration,
) -> Loss {
    let many = in_flight.len();
    connection.cancel_token().cancel().await;
    // An answer that comes now is too late, but the statement may still end cleanly.
    let first = tokio::time::timeout(GRACE, in_flight.next()).await;
    connection.abort();
    let first = match first {
        Ok(first) => first,
        Err(_) => in_flight.next().await,
    };
    if let Some(Answered { message, .. }) = first {
        message.refuse(|doing| DatabaseError::StatementDeadline { doing, after });
    }
    while let Some(Answered { message, .. }) = in_flight.next().await {
        message.refuse(given_up_on);
    }
    Loss {
        in_flight: many,
        cause: "given up: a statement got no answer in time".to_owned(),
    }
}

/// Cancels one statement after the other. To workers that did not ask for this, the connection was lost.
pub(super) async fn cancel_all(connection: &Connection, mut in_flight: InFlight<'_>) {
    while !in_flight.is_empty() {
        connection.cancel_token().cancel().await;
        let next = tokio::time::timeout(GRACE, in_flight.next());
        let Ok(Some(answered)) = next.await else {
            return;
        };
        if answered.rows.as_ref().is_err_and(is_cancelled) {
            answered.message.refuse(given_up_on);
        } else {
            tell(connection, answered.message, answered.rows).await;
        }
    }
}

/// The error of a statement whose connection is given up for the sake of another one.
pub(super) fn given_up_on(doing: &'static str) -> DatabaseError {
    DatabaseError::Lost {
        doing,
        cause: "it was given up".to_owned(),
        sqlstate: None,
    }
}

// === impl Loss ===

impl Loss {
    /// The loss of a connection that a worker gave up: nothing to report.
    pub(super) fn none() -> Self {
        Self {
            in_flight: 0,
            cause: String::new(),
        }
    }

    /// Warns about what was lost, unless it did so a moment ago. A connection that was idle is no loss: if the server
    /// is away, that is reported elsewhere.
    pub(super) fn log(&self, told: &mut Option<Instant>) {
        let Self { in_flight, cause } = self;
        let is_news = told.is_none_or(|told| told.elapsed() >= QUIET_AFTER_LOSS);
        if *in_flight > 0 && is_news {
            *told = Some(Instant::now());
            warn!(in_flight, cause, "home connection was lost");
        } else {
            debug!(in_flight, cause, "home connection was closed");
        }
    }
}
