//! How far the server has come: away, standby or primary.
//!
//! It is asked only while a level is missing, or when somebody has reason to doubt it: while the
//! server is primary and nobody complains, no query runs for this.

use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tracing::{info, warn};

use super::connect::Sharing;
use super::conninfo::TargetSessionAttrs;
use super::{Database, DatabaseError, Server};
use crate::background_worker::StartTime;

/// How long after one look at a server that has not come far enough the next one follows.
const INTERVAL: Duration = Duration::from_millis(500);

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

// === impl Database ===

impl Database {
    /// Looks at the server for ever, and tells `changed` what it is now, first of all and then
    /// whenever it became something else.
    pub(crate) async fn watch_server_state(&self, mut changed: impl FnMut(ServerState)) {
        let suspect = &self.server.suspect;
        let mut last = None;
        loop {
            let (state, reason) = self.server_state().await;
            if last.replace(state) != Some(state) {
                match reason {
                    Some(reason) if state == ServerState::Away => {
                        warn!(%state, %reason, "server is {state}");
                    }
                    Some(reason) => {
                        warn!(%state, %reason, "server is there, but refuses us");
                    }
                    None => info!(%state, "server is {state}"),
                }
                changed(state);
            }
            tokio::time::sleep(INTERVAL_MIN).await;
            if state == ServerState::Primary {
                suspect.notified().await;
            } else {
                // Either ending is a reason to look again.
                let _ = tokio::time::timeout(INTERVAL - INTERVAL_MIN, suspect.notified()).await;
            }
        }
    }

    /// Looks at the server once: at every host, until one is a primary. The one that has come furthest
    /// counts, and connections go there first. The error, if any, is what kept us from asking it.
    pub async fn server_state(&self) -> (ServerState, Option<DatabaseError>) {
        let hosts = self.server.conninfo.hosts().len();
        let share = self.server.settings.connect_timeout / u32::try_from(hosts).unwrap_or(1).max(1);
        let mut best = None;
        let mut errors = Vec::new();
        for host in 0..hosts {
            for asked in self.server.is_in_recovery(host, share).await {
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
            self.server.best_host.store(host, Ordering::Relaxed);
            return (state, None);
        }
        // Whoever refuses us is there. What fails on our side says nothing about the server.
        let state = if errors.iter().any(DatabaseError::is_refused) {
            ServerState::Primary
        } else {
            ServerState::Away
        };
        (state, Some(DatabaseError::of_each(errors)))
    }
}

impl Server {
    /// Asks the servers at the addresses of a host, until one is a primary.
    async fn is_in_recovery(
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
