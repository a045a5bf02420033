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

use super::in_flight::{InFlight, Prepared, answer, cancel_all, give_up, lose, send};
use super::inbox::Inbox;
use super::request::Ask;
use crate::backoff::{doubled, jittered};
use crate::database::Server;
use crate::database::connect::Sharing;
use crate::database::connection::Connection;

/// How many statements are sent and not answered. The rest waits here, and can be withdrawn.
const IN_FLIGHT_MAX: usize = 16;

/// The first wait between two attempts to connect.
const RECONNECT_INITIAL: Duration = Duration::from_millis(100);

/// The longest.
const RECONNECT_MAX: Duration = Duration::from_secs(1);

/// What `pg_stat_activity` calls a home connection. Its statements name their workers.
const APPLICATION_NAME: &str = "bgworker";

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
                let end = work(&server, &connection, &mut inbox, &mut asked, &given_up).await;
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
                inbox.refuse(&mut asked, error);
                // The rest of the fleet waits for the next attempt, instead of making one each.
                let wait = doubled(RECONNECT_INITIAL, attempts, RECONNECT_MAX);
                tokio::time::sleep(jittered(wait, fastrand::f64())).await;
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
    let mut is_preparing = false;
    loop {
        for sql in inbox.take_forgotten() {
            prepared.remove(&sql);
        }
        if in_flight.is_empty() {
            is_preparing = false;
        }
        while !is_preparing && in_flight.len() < IN_FLIGHT_MAX {
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
                    lose(connection, Some(answered), in_flight).await;
                    return End::Lost;
                }
                let again = answer(connection, &mut prepared, inbox.groups(), answered).await;
                inbox.ask_again(again);
            }
            () = &mut too_late, if !in_flight.is_empty() => {
                give_up(connection, in_flight, deadline).await;
                return End::Lost;
            }
            () = given_up.notified() => {
                cancel_all(connection, in_flight).await;
                return End::Lost;
            }
            () = &mut ended => {
                lose(connection, None, in_flight).await;
                return End::Lost;
            }
            is_asked = inbox.wait(asked),
                if is_needed && !is_preparing && in_flight.len() < IN_FLIGHT_MAX => {
                    is_needed = is_asked;
                }
        }
    }
}
