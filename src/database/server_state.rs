//! How far the server has come: away, standby or primary.
//!
//! It is asked only while a level is missing, or when somebody has reason to doubt it: while the
//! server is primary and nobody complains, no query runs for this.

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

/// How long after one look at a server that has not come far enough the next one follows.
const INTERVAL: Duration = Duration::from_millis(500);

/// The longest time between two looks at a server that is there, and cannot be asked.
const INTERVAL_MAX: Duration = Duration::from_secs(30);

/// The least time between two looks, however many have doubts.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// What a server is, as far as it can be told from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServerState {
    /// It cannot be reached, or is starting up or shutting down.
    Away,
    /// It answers read-only queries.
    Standby,
    /// It accepts writes. So counts a server that runs but refuses our login: the workers then
    /// meet that refusal under their own names.
    Primary,
}

/// What the server is, since when, and what keeps us from asking it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServerStatus {
    /// What it is, as far as it was seen.
    pub state: ServerState,
    /// Since when it has been that.
    pub since: Instant,
    /// Why it is away, or why it cannot be asked; `None` if it answers. It holds no secret.
    pub reason: Option<Arc<str>>,
}

// === impl ServerStatus ===

impl ServerStatus {
    /// What is known before the first look.
    pub(crate) fn unknown() -> Self {
        Self {
            state: ServerState::Away,
            since: Instant::now(),
            reason: None,
        }
    }

    /// Takes down what was seen now.
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
    /// The level that this state stands for.
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
    /// Looks at the server for ever, and tells `changed` what it is now: first of all, and then whenever that, or
    /// what keeps us from asking it, became something else.
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
            // A server that is there and refuses us is not to be asked twice a second.
            let wait = match state {
                ServerState::Primary if class.is_none() => {
                    suspect.notified().await;
                    continue;
                }
                ServerState::Away => INTERVAL,
                _ if class.is_some() => doubled(INTERVAL, doubts, INTERVAL_MAX),
                ServerState::Standby | ServerState::Primary => INTERVAL,
            };
            // Either ending is a reason to look again.
            let _ = tokio::time::timeout(wait - INTERVAL_MIN, suspect.notified()).await;
        }
    }

    /// Looks at the server once: at every host, until one is a primary. The one that has come furthest counts, and
    /// connections go there first. The error, if any, is what kept us from asking it. `last` is what a server
    /// without room for the question is taken for.
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
                // Of several that have come as far, the first.
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
            // A server that refuses us, or is full, is there, and what fails on our side says nothing about it:
            // the workers are to meet it under their own names.
            _ => ServerState::Primary,
        };
        (state, Some(error))
    }

    /// Asks the servers at the addresses of a host, until one is a primary.
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

/// Says what the server is now, and what keeps us from asking it.
fn log(state: ServerState, class: Option<ErrorClass>, reason: Option<&str>) {
    match class {
        None => info!(%state, "server is {state}"),
        Some(ErrorClass::Away) => warn!(%state, reason, "server is {state}"),
        Some(ErrorClass::Full) => {
            warn!(%state, reason, "server has no room for another connection");
        }
        Some(ErrorClass::Ours) => warn!(%state, reason, "server cannot be asked"),
        Some(_) => warn!(%state, reason, "server is there, but refuses us"),
    }
}
