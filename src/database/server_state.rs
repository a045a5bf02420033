//! How far the server has come: away, standby or primary.
//!
//! The server is asked only while a level is missing, while something keeps bgworker from asking, or when there is
//! reason to doubt the last answer. While it is primary and nothing casts doubt on that, no query runs for this.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::connect::Sharing;
use super::conninfo::TargetSessionAttrs;
use super::error::DatabaseError;
use super::server::Server;
use super::sqlstate::ErrorClass;
use crate::background_worker::StartTime;
use crate::backoff::doubled;

/// Time between two looks at a server that has not come far enough.
const INTERVAL: Duration = Duration::from_millis(500);

/// Longest time between two looks at a server that is there but cannot be asked.
const INTERVAL_MAX: Duration = Duration::from_secs(30);

/// Shortest time between two looks, however many doubts are reported.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// The state of a server, as far as a client can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServerState {
    /// It cannot be reached, or is starting up or shutting down.
    Away,
    /// It answers read-only queries.
    Standby,
    /// It accepts writes. A server that runs but refuses bgworker's login also counts as primary: the workers then meet
    /// that refusal under their own names.
    Primary,
}

/// The state of the server, when it came into it, and what keeps bgworker from asking it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServerStatus {
    /// The state in which the server was last seen.
    pub state: ServerState,
    /// When the server was seen to come into this state.
    pub since: Instant,
    /// Why the server is away or cannot be asked; `None` if it answers. Holds no secret.
    pub reason: Option<Arc<str>>,
}

// === impl ServerStatus ===

impl ServerStatus {
    /// The status before the first look.
    pub(crate) fn unknown() -> Self {
        Self {
            state: ServerState::Away,
            since: Instant::now(),
            reason: None,
        }
    }

    /// Records what was just seen.
    pub(crate) fn saw(&mut self, state: ServerState, reason: Option<Arc<str>>) {
        if self.state != state {
            self.since = Instant::now();
        }
        self.state = state;
        self.reason = reason;
    }
}

// === impl ServerState ===

impl ServerState {
    /// The level that a server in this state has reached.
    #[must_use]
    pub fn reached(self) -> StartTime {
        match self {
            Self::Away => StartTime::PostmasterStart,
            Self::Standby => StartTime::ConsistentState,
            Self::Primary => StartTime::RecoveryFinished,
        }
    }
}

impl fmt::Display for ServerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Away => "away",
            Self::Standby => "standby",
            Self::Primary => "primary",
        })
    }
}

// === impl Server ===

impl Server {
    /// Watches the server indefinitely. Calls `changed` after the first look, and then whenever the server's state
    /// changes, or what keeps bgworker from asking it.
    pub(super) async fn watch_state(&self, mut changed: impl FnMut(ServerState, Option<Arc<str>>)) {
        let suspect = &self.suspect;
        let mut last = None;
        let mut told = None;
        let mut doubts = 0;
        loop {
            let (state, error) = self.look(last.unwrap_or(ServerState::Primary)).await;
            last = Some(state);
            let class = error.as_ref().map(DatabaseError::class);
            let reason = error.map(|error| Arc::from(error.to_string()));
            if told
                .as_ref()
                .is_none_or(|(was, of, _)| (*was, *of) != (state, class))
            {
                log(state, class, reason.as_deref());
            }
            let now = (state, class, reason.clone());
            if told.as_ref() != Some(&now) {
                told = Some(now);
                changed(state, reason);
            }
            self.is_in_doubt.store(class.is_some(), Ordering::Relaxed);
            doubts = if class.is_some() { doubts + 1 } else { 0 };
            tokio::time::sleep(INTERVAL_MIN).await;
            // A server that is there but refuses bgworker must not be asked twice a second.
            let wait = match state {
                ServerState::Primary if class.is_none() => {
                    suspect.notified().await;
                    continue;
                }
                ServerState::Away => INTERVAL,
                _ if class.is_some() => doubled(INTERVAL, doubts, INTERVAL_MAX),
                ServerState::Standby | ServerState::Primary => INTERVAL,
            };
            // A timeout and a doubt are both reasons to look again.
            let _ = tokio::time::timeout(wait - INTERVAL_MIN, suspect.notified()).await;
        }
    }

    /// Looks at the server once: at each host, until one is a primary. The host that has come furthest counts, and
    /// connections try it first, unless hosts are tried in random order. The error, if any, is what kept bgworker from
    /// asking the server. A server with no room for the question counts as `last`, or as primary if that is away.
    pub(super) async fn look(&self, last: ServerState) -> (ServerState, Option<DatabaseError>) {
        let hosts = self.conninfo.hosts().len();
        let share = self.settings.connect_timeout / u32::try_from(hosts).unwrap_or(1).max(1);
        let mut best = None;
        let mut errors = Vec::new();
        for host in 0..hosts {
            for asked in self.ask_each_address(host, share).await {
                let state = match asked {
                    Ok(true) => ServerState::Standby,
                    Ok(false) => ServerState::Primary,
                    Err(error) => {
                        errors.push(error);
                        continue;
                    }
                };
                // Of several hosts that have come equally far, the first counts.
                best = best.max(Some((state, usize::MAX - host)));
            }
            if best.is_some_and(|(state, _)| state == ServerState::Primary) {
                break;
            }
        }
        if let Some((state, host)) = best {
            let host = usize::MAX - host;
            self.best_host.store(host, Ordering::Relaxed);
            return (state, None);
        }
        let error = DatabaseError::of_each(errors);
        let state = match error.class() {
            ErrorClass::Away => ServerState::Away,
            ErrorClass::Full if last != ServerState::Away => last,
            // A server that refuses bgworker or is full is there, and a failure on bgworker's side says nothing about
            // the server: the workers should meet the error under their own names.
            _ => ServerState::Primary,
        };
        (state, Some(error))
    }

    /// Asks the servers at the addresses of a host, until one is a primary, or fails other than by being away or full.
    async fn ask_each_address(
        &self,
        host: usize,
        share: Duration,
    ) -> Vec<Result<bool, DatabaseError>> {
        let as_whom = ("bgworker", None, Sharing::Own);
        let mut answers = Vec::new();
        let asked = self.connect_to_host(host, as_whom, share, TargetSessionAttrs::Primary);
        for asked in asked.await {
            answers.push(match asked {
                Ok((connection, standing)) => {
                    connection.close().await;
                    Ok(standing.is_standby)
                }
                Err(error) => Err(error),
            });
        }
        answers
    }
}

/// Logs what the server is now, and what keeps bgworker from asking it.
fn log(state: ServerState, class: Option<ErrorClass>, reason: Option<&str>) {
    match class {
        None => info!(%state, "server is {state}"),
        Some(ErrorClass::Away) => warn!(%state, reason, "server is {state}"),
        Some(ErrorClass::Full) => {
            warn!(%state, reason, "server has no room for another connection");
        }
        Some(ErrorClass::Ours) => warn!(%state, reason, "server cannot be asked"),
        Some(_) => warn!(%state, reason, "server is there, but refuses the connection"),
    }
}
