//! One home connection: opened on first use, opened again when it was lost, driven by one task.
//!
//! Statements of many workers are pipelined: sent without waiting for each other, answered in order.
//! So only the first in line has a running deadline; when that passes, the connection is given up, for
//! whatever comes later would belong to somebody else.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;
use tracing::{info, warn};

use super::in_flight::{InFlight, Loss, Prepared, answer, cancel_all, give_up, lose, send};
use super::inbox::Inbox;
use super::request::Ask;
use crate::database::Server;
use crate::database::connect::{Sharing, reconnect_wait};
use crate::database::connection::Connection;

/// How many statements are sent and not answered. The rest waits here, and can be withdrawn.
const IN_FLIGHT_MAX: usize = 16;

/// A session that ends sooner than this has not been of any use.
const SHORT_LIFE: Duration = Duration::from_secs(1);

/// The youngest session that is worth replacing by another one.
const RENEW_AFTER: Duration = Duration::from_secs(5);

/// What `pg_stat_activity` calls a home connection. Its statements name their workers.
const APPLICATION_NAME: &str = "bgworker";

/// Why a connection is not used any more.
enum End {
    /// Nobody can ask any more.
    Unneeded,
    /// The connection was lost or given up, and with it these statements.
    Lost(Loss),
    /// Its session is to be replaced by one that begins anew.
    Outdated,
}

/// Serves a line until nobody can ask any more.
pub(super) async fn serve(
    server: Arc<Server>,
    dbname: Option<String>,
    mut asked: UnboundedReceiver<Ask>,
    given_up: Arc<Notify>,
) {
    let mut attempts = 0;
    // Sessions in a row that ended as soon as they had begun.
    let mut short_lived = 0;
    let mut told = None;
    let mut inbox = Inbox::new(server.settings.prepare);
    while inbox.wait(&mut asked).await {
        if inbox.is_idle() {
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
                let begin = Instant::now();
                let end = work(&server, &connection, &mut inbox, &mut asked, &given_up).await;
                connection.close().await;
                match end {
                    End::Unneeded => return,
                    End::Lost(loss) => {
                        server.suspect.notify_one();
                        loss.log(&mut told);
                        if begin.elapsed() >= SHORT_LIFE {
                            short_lived = 0;
                        } else {
                            // The first of them is replaced at once.
                            if short_lived > 0 {
                                tokio::time::sleep(reconnect_wait(short_lived)).await;
                            }
                            short_lived += 1;
                        }
                    }
                    End::Outdated => {}
                }
            }
            Err(error) => {
                if error.is_away() {
                    server.suspect.notify_one();
                }
                if attempts == 0 {
                    warn!(%error, "home connection could not be opened");
                }
                inbox.refuse(&mut asked, error);
                // The rest of the fleet waits for the next attempt, instead of making one each.
                tokio::time::sleep(reconnect_wait(attempts)).await;
                attempts += 1;
            }
        }
    }
}

/// Runs statements on one connection until it is of no use any more.
async fn work(
    server: &Server,
    connection: &Connection,
    inbox: &mut Inbox,
    asked: &mut UnboundedReceiver<Ask>,
    given_up: &Notify,
) -> End {
    // What was asked of a connection before this one was meant for that one.
    let _ = given_up.notified().now_or_never();
    inbox.take_renewal();
    let begin = Instant::now();
    let mut is_outdated = false;
    let mut prepared = Prepared::new();
    let mut in_flight = InFlight::new();
    let deadline = connection.statement_deadline();
    let mut too_late = pin!(tokio::time::sleep(deadline));
    let mut ended = pin!(connection.ended());
    let mut is_needed = true;
    // A statement that is being prepared is sent twice. What is sent in between would run under its
    // deadline.
    let mut is_preparing = false;
    loop {
        for sql in inbox.take_forgotten() {
            prepared.remove(&sql);
        }
        is_outdated |= inbox.take_renewal() && begin.elapsed() >= RENEW_AFTER;
        if in_flight.is_empty() {
            is_preparing = false;
            if is_outdated {
                return End::Outdated;
            }
        }
        while !is_outdated && !is_preparing && in_flight.len() < IN_FLIGHT_MAX {
            let Some(message) = inbox.next() else {
                break;
            };
            if in_flight.is_empty() {
                too_late.as_mut().reset(Instant::now() + deadline);
            }
            let prepare = server.settings.prepare;
            is_preparing = send(connection, prepare, &prepared, &mut in_flight, message);
        }
        if in_flight.is_empty() && !is_needed {
            return End::Unneeded;
        }
        tokio::select! {
            biased;
            Some(answered) = in_flight.next(), if !in_flight.is_empty() => {
                too_late.as_mut().reset(Instant::now() + deadline);
                if connection.is_closed() || answered.is_out_of_step() {
                    return End::Lost(lose(connection, Some(answered), in_flight).await);
                }
                let again = answer(connection, &mut prepared, inbox.groups(), answered).await;
                inbox.ask_again(again);
            }
            () = &mut too_late, if !in_flight.is_empty() => {
                return End::Lost(give_up(connection, in_flight, deadline).await);
            }
            () = given_up.notified() => {
                cancel_all(connection, in_flight).await;
                return End::Lost(Loss::none());
            }
            () = &mut ended => {
                return End::Lost(lose(connection, None, in_flight).await);
            }
            is_asked = inbox.wait(asked),
                if is_needed && !is_outdated && !is_preparing && in_flight.len() < IN_FLIGHT_MAX => {
                    is_needed = is_asked;
                }
        }
    }
}
