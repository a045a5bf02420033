//! One home connection: opened on first use, opened again when it was lost, driven by one task.
//!
//! Statements of many workers are pipelined: sent without waiting for each other, answered in order.
//! So only the first in line has a running deadline; when that passes, the connection is given up, for
//! whatever comes later would belong to somebody else.

use std::collections::HashMap;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};
use tracing::{info, warn};

use super::Parameters;
use crate::backoff::{doubled, jittered};
use crate::database::connect::Sharing;
use crate::database::connection::{Connection, GRACE};
use crate::database::{DatabaseError, Server};

/// How many statements are sent and not answered. The rest waits here, and can be withdrawn.
const IN_FLIGHT_MAX: usize = 16;

/// The first wait between two attempts to connect.
const RECONNECT_INITIAL: Duration = Duration::from_millis(100);

/// The longest.
const RECONNECT_MAX: Duration = Duration::from_secs(1);

/// What `pg_stat_activity` calls a home connection. Its statements name their workers.
const APPLICATION_NAME: &str = "bgworker";

/// What a line is asked.
pub(super) enum Ask {
    Run(Request),
    /// Let the server forget what was prepared of this.
    Forget(Arc<str>),
}

/// A statement, and who waits for its rows.
pub(super) struct Request {
    pub(super) doing: &'static str,
    pub(super) work: Work,
    /// Set when it is sent.
    pub(super) sent: Arc<AtomicBool>,
    pub(super) answer: oneshot::Sender<Answer>,
}

pub(super) enum Work {
    /// Prepared when it is first run.
    Prepared(Arc<str>),
    Once {
        sql: String,
        parameters: Parameters,
    },
    /// Several statements, one transaction.
    Batch(String),
}

type Answer = Result<Vec<Row>, DatabaseError>;

/// What was prepared on one connection.
type Prepared = HashMap<Arc<str>, Statement>;

/// A statement that was sent, as it is when it has been answered.
struct Answered {
    doing: &'static str,
    to: oneshot::Sender<Answer>,
    rows: Result<Vec<Row>, tokio_postgres::Error>,
    /// What was prepared for it.
    prepared: Option<(Arc<str>, Statement)>,
}

type InFlight<'c> = FuturesOrdered<Pin<Box<dyn Future<Output = Answered> + Send + 'c>>>;

/// Why a connection is not used any more.
enum End {
    /// Nobody can ask any more.
    Unneeded,
    /// The connection was lost or given up.
    Lost,
}

/// Serves a line until nobody can ask any more.
pub(super) async fn serve(
    server: Arc<Server>,
    dbname: Option<String>,
    mut asked: UnboundedReceiver<Ask>,
    given_up: Arc<Notify>,
) {
    let mut attempts = 0;
    while let Some(ask) = asked.recv().await {
        let Ask::Run(first) = ask else {
            continue;
        };
        if first.answer.is_closed() {
            continue;
        }
        let dbname = dbname.as_deref();
        match server
            .connect(APPLICATION_NAME, dbname, Sharing::Shared)
            .await
        {
            Ok(connection) => {
                if attempts > 0 {
                    info!("home connection is back");
                }
                attempts = 0;
                let end = work(&server, &connection, first, &mut asked, &given_up).await;
                connection.close().await;
                if let End::Unneeded = end {
                    return;
                }
                server.suspect.notify_one();
            }
            Err(error) => {
                server.suspect.notify_one();
                if attempts == 0 {
                    warn!(%error, "home connection could not be opened");
                }
                refuse(first, error, &mut asked);
                // The rest of the fleet waits for the next attempt, instead of making one each.
                let wait = doubled(RECONNECT_INITIAL, attempts, RECONNECT_MAX);
                tokio::time::sleep(jittered(wait, fastrand::f64())).await;
                attempts += 1;
            }
        }
    }
}

/// Tells everybody who waits why there is no connection.
fn refuse(first: Request, error: DatabaseError, asked: &mut UnboundedReceiver<Ask>) {
    let error = Arc::new(error);
    let refuse = |request: Request| {
        // Whoever does not wait any more needs no answer.
        let _ = request
            .answer
            .send(Err(DatabaseError::Home(Arc::clone(&error))));
    };
    refuse(first);
    while let Ok(ask) = asked.try_recv() {
        if let Ask::Run(request) = ask {
            refuse(request);
        }
    }
}

/// Runs statements on one connection until it is of no use any more.
async fn work(
    server: &Server,
    connection: &Connection,
    first: Request,
    asked: &mut UnboundedReceiver<Ask>,
    given_up: &Notify,
) -> End {
    // Whoever gave a connection up before this one meant that one.
    let _ = given_up.notified().now_or_never();
    let mut prepared = Prepared::new();
    let mut in_flight = InFlight::new();
    let deadline = connection.statement_deadline();
    let mut too_late = pin!(tokio::time::sleep(deadline));
    let mut ended = pin!(connection.ended());
    let mut is_needed = true;
    // A statement that is being prepared is sent twice. What is sent in between would run under its
    // deadline.
    let mut is_preparing = send(server, connection, &prepared, &mut in_flight, first);
    loop {
        if in_flight.is_empty() {
            is_preparing = false;
            if !is_needed {
                return End::Unneeded;
            }
        }
        tokio::select! {
            biased;
            Some(answered) = in_flight.next(), if !in_flight.is_empty() => {
                too_late.as_mut().reset(Instant::now() + deadline);
                if connection.is_closed() || is_out_of_step(&answered) {
                    return lose(connection, Some(answered), in_flight).await;
                }
                answer(connection, &mut prepared, answered).await;
            }
            () = &mut too_late, if !in_flight.is_empty() => {
                give_up(connection, in_flight, deadline).await;
                return End::Lost;
            }
            () = given_up.notified() => {
                cancel_all(connection, &mut prepared, in_flight).await;
                return End::Lost;
            }
            () = &mut ended => return lose(connection, None, in_flight).await,
            ask = asked.recv(),
                if is_needed && !is_preparing && in_flight.len() < IN_FLIGHT_MAX => match ask {
                Some(Ask::Run(request)) => {
                    if in_flight.is_empty() {
                        too_late.as_mut().reset(Instant::now() + deadline);
                    }
                    is_preparing = send(server, connection, &prepared, &mut in_flight, request);
                }
                Some(Ask::Forget(sql)) => drop(prepared.remove(&sql)),
                None => is_needed = false,
            },
        }
    }
}

/// Whether what came is no answer of a server: then nothing that follows can be trusted.
fn is_out_of_step(answered: &Answered) -> bool {
    let error = answered.rows.as_ref().err();
    error.is_some_and(|error| error.as_db_error().is_none() && !DatabaseError::is_ours(error))
}

/// Sends a statement, unless it was withdrawn; whether it is prepared first.
fn send<'c>(
    server: &Server,
    connection: &'c Connection,
    prepared: &Prepared,
    in_flight: &mut InFlight<'c>,
    request: Request,
) -> bool {
    let Request {
        doing,
        work,
        sent,
        answer: to,
    } = request;
    if to.is_closed() {
        return false;
    }
    sent.store(true, Ordering::Release);
    let known = match &work {
        Work::Prepared(sql) => prepared.get(sql).cloned(),
        Work::Once { .. } | Work::Batch(_) => None,
    };
    let prepare = server.settings.prepare;
    let is_preparing = prepare && known.is_none() && matches!(work, Work::Prepared(_));
    in_flight.push_back(Box::pin(async move {
        let mut new = None;
        let client = connection.client();
        let rows = match work {
            Work::Prepared(sql) if !prepare => client.query_typed(&sql, &[]).await,
            Work::Prepared(sql) => match known {
                Some(statement) => client.query(&statement, &[]).await,
                None => match client.prepare(&sql).await {
                    Ok(statement) => {
                        let rows = client.query(&statement, &[]).await;
                        new = Some((sql, statement));
                        rows
                    }
                    Err(error) => Err(error),
                },
            },
            Work::Once { sql, parameters } => {
                let parameters: Vec<_> = parameters
                    .iter()
                    .map(|(value, kind)| (&**value as &(dyn ToSql + Sync), kind.clone()))
                    .collect();
                client.query_typed(&sql, &parameters).await
            }
            Work::Batch(sql) => client.batch_execute(&sql).await.map(|()| Vec::new()),
        };
        Answered {
            doing,
            to,
            rows,
            prepared: new,
        }
    }));
    is_preparing
}

/// Passes an answer on, and remembers what was prepared for it.
async fn answer(connection: &Connection, prepared: &mut Prepared, answered: Answered) {
    let Answered {
        doing,
        to,
        rows,
        prepared: new,
    } = answered;
    // Nobody is there any more who would let it be forgotten.
    if !to.is_closed() {
        prepared.extend(new);
    }
    let answer = match rows {
        Ok(rows) => Ok(rows),
        Err(error) => Err(connection.explain(doing, error).await),
    };
    let _ = to.send(answer);
}

/// The connection is gone, or of no use: everybody in flight is told so.
async fn lose(
    connection: &Connection,
    first: Option<Answered>,
    mut in_flight: InFlight<'_>,
) -> End {
    let mut prepared = Prepared::new();
    let many = in_flight.len() + usize::from(first.is_some());
    if let Some(answered) = first {
        if is_out_of_step(&answered) && !connection.is_closed() {
            connection.abort();
        }
        answer(connection, &mut prepared, answered).await;
    }
    // Each of them is answered by the end of the connection.
    while let Some(answered) = in_flight.next().await {
        answer(connection, &mut prepared, answered).await;
    }
    let cause = connection.cause_of_end().await;
    warn!(in_flight = many, cause, "home connection was lost");
    End::Lost
}

/// The first in line got no answer in time: it is cancelled, and the connection is given up.
async fn give_up(connection: &Connection, mut in_flight: InFlight<'_>, after: Duration) {
    connection.cancel_token().cancel().await;
    // Whatever comes now, it is too late; but it may still end cleanly.
    let first = tokio::time::timeout(GRACE, in_flight.next()).await;
    connection.abort();
    let first = match first {
        Ok(first) => first,
        Err(_) => in_flight.next().await,
    };
    if let Some(Answered { doing, to, .. }) = first {
        let _ = to.send(Err(DatabaseError::StatementDeadline { doing, after }));
    }
    while let Some(Answered { doing, to, .. }) = in_flight.next().await {
        let _ = to.send(Err(given_up_on(doing)));
    }
    warn!("home connection was given up: a statement got no answer in time");
}

/// Cancels one statement after the other. To those who did not ask for it, the connection was lost.
async fn cancel_all(connection: &Connection, prepared: &mut Prepared, mut in_flight: InFlight<'_>) {
    while !in_flight.is_empty() {
        connection.cancel_token().cancel().await;
        let next = tokio::time::timeout(GRACE, in_flight.next());
        let Ok(Some(answered)) = next.await else {
            return;
        };
        let error = answered.rows.as_ref().err();
        if error.and_then(tokio_postgres::Error::code) == Some(&SqlState::QUERY_CANCELED) {
            let _ = answered.to.send(Err(given_up_on(answered.doing)));
        } else {
            answer(connection, prepared, answered).await;
        }
    }
}

fn given_up_on(doing: &'static str) -> DatabaseError {
    DatabaseError::Lost {
        doing,
        cause: "it was given up".to_owned(),
        sqlstate: None,
    }
}
