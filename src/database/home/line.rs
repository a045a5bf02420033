//! One home connection: opened on first use, reopened when it was lost, driven by one task.
//!
//! Statements of many workers are pipelined: sent without waiting for each other, answered in order. So the deadline
//! runs only for the first in line. When it passes, the connection is given up, since whatever comes later would belong
//! to another worker.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;
use tracing::{info, warn};

use super::in_flight::{
    Answered, InFlight, Loss, Prepared, answer, cancel_all, give_up, lose, send,
};
use super::inbox::Inbox;
use super::request::Ask;
use crate::database::Server;
use crate::database::connect::{Sharing, reconnect_wait};
use crate::database::connection::{Connection, QUIET};

/// Largest number of statements in flight. The rest wait in the inbox, and can be withdrawn.
const IN_FLIGHT_MAX: usize = 16;

/// A session that ends sooner than this was not useful.
const SHORT_LIFE: Duration = Duration::from_secs(1);

/// The age at which a session is worth replacing.
const RENEW_AFTER: Duration = Duration::from_secs(5);

/// What `pg_stat_activity` calls a home connection. Its statements name their workers.
const APPLICATION_NAME: &str = "bgworker";

/// Why a connection is no longer used.
enum End {
    /// No worker can send a request any longer.
    Unneeded,
    /// The connection was lost or given up, and with it these statements.
    Lost(Loss),
    /// Its session is to be replaced by a new one.
    Outdated,
}

/// Serves a line until no worker can send it a request any longer.
pub(super) async fn serve(
    server: Arc<Server>,
    dbname: Option<String>,
    mut asked: UnboundedReceiver<Ask>,
    given_up: Arc<Notify>,
) {
    let mut attempts = 0;
    // Number of sessions in a row that ended almost as soon as they had begun.
    let mut short_lived = 0;
    let mut told = None;
    let mut inbox = Inbox::new(server.settings.prepare);
    while inbox.wait(&mut asked).await {
        if inbox.is_idle() {
            continue;
        }
        let connecting = server.connect(APPLICATION_NAME, dbname.as_deref(), Sharing::Shared);
        match connecting.await {
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
                        server.whereabouts.suspect.notify_one();
                        loss.log(&mut told);
                        short_lived = match begin.elapsed() {
                            life if life >= SHORT_LIFE => 0,
                            // The first short-lived session is replaced at once.
                            _ if short_lived == 0 => 1,
                            _ => {
                                tokio::time::sleep(reconnect_wait(short_lived)).await;
                                short_lived + 1
                            }
                        };
                    }
                    End::Outdated => {}
                }
            }
            Err(error) => {
                if error.is_away() {
                    server.whereabouts.suspect.notify_one();
                }
                if attempts == 0 {
                    warn!(%error, "home connection could not be opened");
                }
                inbox.refuse(&mut asked, error);
                // Requests that come meanwhile wait for the next attempt, instead of making one each.
                tokio::time::sleep(reconnect_wait(attempts)).await;
                attempts += 1;
            }
        }
    }
}

/// Runs statements on one connection until it is no longer used.
async fn work(
    server: &Server,
    connection: &Connection,
    inbox: &mut Inbox,
    asked: &mut UnboundedReceiver<Ask>,
    given_up: &Notify,
) -> End {
    // A request to give up that came before this connection was meant for an earlier one.
    let _ = given_up.notified().now_or_never();
    let mut flight = Flight::begin(server, connection, inbox);
    let deadline = connection.statement_deadline();
    let mut too_late = pin!(tokio::time::sleep(deadline));
    let mut quiet = pin!(tokio::time::sleep(QUIET));
    let mut ended = pin!(connection.ended());
    loop {
        if flight.fill() {
            too_late.as_mut().reset(Instant::now() + deadline);
            quiet.as_mut().reset(Instant::now() + QUIET);
        }
        if let Some(end) = flight.end() {
            return end;
        }
        let is_waiting = !flight.in_flight.is_empty();
        let may_ask = flight.is_needed && flight.may_send();
        tokio::select! {
            biased;
            Some(answered) = flight.in_flight.next(), if is_waiting => {
                too_late.as_mut().reset(Instant::now() + deadline);
                quiet.as_mut().reset(Instant::now() + QUIET);
                if let Err(answered) = flight.settle(answered).await {
                    return End::Lost(lose(connection, Some(answered), flight.in_flight).await);
                }
            }
            () = &mut too_late, if is_waiting => {
                return End::Lost(give_up(connection, flight.in_flight, deadline).await);
            }
            () = &mut quiet, if is_waiting => {
                server.whereabouts.quiet.notify_one();
                quiet.as_mut().reset(Instant::now() + QUIET);
            }
            () = given_up.notified() => {
                cancel_all(connection, flight.in_flight).await;
                return End::Lost(Loss::none());
            }
            () = &mut ended => {
                return End::Lost(lose(connection, None, flight.in_flight).await);
            }
            is_asked = flight.inbox.wait(asked), if may_ask => flight.is_needed = is_asked,
        }
    }
}

/// What is under way on one connection.
struct Flight<'c> {
    server: &'c Server,
    connection: &'c Connection,
    inbox: &'c mut Inbox,
    prepared: Prepared,
    in_flight: InFlight<'c>,
    begin: Instant,
    /// `true` while workers can still send requests.
    is_needed: bool,
    /// `true` while a statement is being prepared: it is sent twice, and what is sent in between would run under its
    /// deadline.
    is_preparing: bool,
    /// `true` if the session is to be replaced, once what is in flight has been answered.
    is_outdated: bool,
}

// === impl Flight ===

impl<'c> Flight<'c> {
    fn begin(server: &'c Server, connection: &'c Connection, inbox: &'c mut Inbox) -> Self {
        inbox.take_renewal();
        Self {
            server,
            connection,
            inbox,
            prepared: Prepared::new(),
            in_flight: InFlight::new(),
            begin: Instant::now(),
            is_needed: true,
            is_preparing: false,
            is_outdated: false,
        }
    }

    /// Sends what waits, as far as it may. Returns `true` if another statement is now first in line.
    fn fill(&mut self) -> bool {
        for sql in self.inbox.take_forgotten() {
            self.prepared.remove(&sql);
        }
        self.is_outdated |= self.inbox.take_renewal() && self.begin.elapsed() >= RENEW_AFTER;
        let was_idle = self.in_flight.is_empty();
        if was_idle {
            self.is_preparing = false;
        }
        while self.may_send() {
            let Some(message) = self.inbox.next() else {
                break;
            };
            let prepare = self.server.settings.prepare;
            let (connection, in_flight) = (self.connection, &mut self.in_flight);
            self.is_preparing = send(connection, prepare, &self.prepared, in_flight, message);
        }
        was_idle && !self.in_flight.is_empty()
    }

    fn may_send(&self) -> bool {
        !self.is_outdated && !self.is_preparing && self.in_flight.len() < IN_FLIGHT_MAX
    }

    /// Why the connection is no longer used, if nothing is in flight.
    fn end(&self) -> Option<End> {
        match (self.in_flight.is_empty(), self.is_outdated, self.is_needed) {
            (true, true, _) => Some(End::Outdated),
            (true, false, false) => Some(End::Unneeded),
            _ => None,
        }
    }

    /// Passes an answer on.
    ///
    /// # Errors
    ///
    /// Returns what came if it is not an answer, or if the connection has closed: then the connection is lost.
    async fn settle(&mut self, answered: Answered) -> Result<(), Answered> {
        if self.connection.is_closed() || answered.is_out_of_step() {
            return Err(answered);
        }
        let (connection, groups) = (self.connection, self.inbox.groups());
        let again = answer(connection, &mut self.prepared, groups, answered).await;
        self.inbox.ask_again(again);
        Ok(())
    }
}
