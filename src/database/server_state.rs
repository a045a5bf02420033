//! How far the server has come: away, standby or primary.
//!
//! The server is asked only while a level is missing, while something keeps bgworker from asking, or when there is
//! reason to doubt the last answer. While it is primary and nothing casts doubt on that, no query runs for this.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;
use tracing::{info, warn};

use super::connect::{IS_STANDBY, Sharing, timeline};
use super::conninfo::TargetSessionAttrs;
use super::error::DatabaseError;
use super::server::Server;
use super::sqlstate::ErrorClass;
use super::whereabouts::Origin;
use crate::background_worker::StartTime;
use crate::backoff::doubled;

/// Time between two looks at a server that has not come far enough.
const INTERVAL: Duration = Duration::from_millis(500);

/// Longest time between two looks at a server that is there but cannot be asked.
const INTERVAL_MAX: Duration = Duration::from_secs(30);

/// Shortest time between two looks, however many doubts are reported.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Shortest time between two looks at a primary for the sake of statements that take long.
const INTERVAL_OF_QUIET: Duration = Duration::from_secs(5);

/// How long a look waits for a host before it asks the next one as well.
const PATIENCE: Duration = Duration::from_secs(1);

/// The state of a server, as far as a client can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServerState {
    /// It cannot be reached, or is starting up or shutting down.
    Away,
    /// It answers read-only queries.
    Standby,
    /// It could not be asked, since it refused the connection or had no room for it, or for a reason on bgworker's side; and
    /// it was away before, or never reached. Workers of every start time run, and meet that under their own names.
    Unknown,
    /// It accepts writes.
    Primary,
}

/// What a look has found.
#[derive(Debug)]
pub(super) struct Seen {
    state: ServerState,
    /// The server that is the primary, if one said so.
    primary: Option<Origin>,
    /// `true` if a host answered.
    is_asked: bool,
    /// What the hosts said, unless one is the primary.
    error: Option<DatabaseError>,
}

/// What a server says that it is.
enum Asked {
    Primary(Origin),
    /// With what that means for one that looks for the primary.
    Standby(DatabaseError),
}

/// The answers of hosts to one look.
#[derive(Default)]
struct Answers {
    /// The server that was the primary before the look.
    known: Option<Origin>,
    primary: Option<Origin>,
    /// The state that has come furthest; of several hosts in it, the first, as `usize::MAX - host`, or that of the primary.
    best: Option<(ServerState, usize)>,
    /// What the others said.
    others: Vec<DatabaseError>,
}

/// The state of the server, when it came into it, and what keeps bgworker from asking it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServerStatus {
    /// The state in which the server was last seen.
    pub state: ServerState,
    /// When the server was seen to come into this state.
    pub since: Instant,
    /// Why the server is away, cannot be asked, or is not a primary, with what each host said. Holds no secret.
    pub reason: Option<Arc<str>>,
    /// Since when there has been such a reason, whatever its words.
    pub reason_since: Option<Instant>,
    /// Since when there has been no primary, if there was one before.
    pub without_primary: Option<Instant>,
}

// === impl ServerStatus ===

impl ServerStatus {
    /// The status before the first look.
    pub(crate) fn unknown() -> Self {
        Self {
            state: ServerState::Away,
            since: Instant::now(),
            reason: None,
            reason_since: None,
            without_primary: None,
        }
    }

    /// Records what was just seen.
    pub(crate) fn saw(&mut self, state: ServerState, reason: Option<Arc<str>>) {
        if self.state != state {
            self.since = Instant::now();
        }
        if state.reached() == StartTime::RecoveryFinished {
            self.without_primary = None;
        } else if self.state == ServerState::Primary {
            self.without_primary = Some(self.since);
        }
        self.state = state;
        let known = self.reason_since.filter(|_| reason.is_some());
        self.reason_since = known.or_else(|| reason.as_ref().map(|_| Instant::now()));
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
            Self::Unknown | Self::Primary => StartTime::RecoveryFinished,
        }
    }
}

impl fmt::Display for ServerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Away => "away",
            Self::Standby => "standby",
            Self::Unknown => "unknown",
            Self::Primary => "primary",
        })
    }
}

// === impl Server ===

impl Server {
    /// Watches the server indefinitely. Calls `changed` after the first look, and then whenever the server's state
    /// changes, or what keeps bgworker from asking it.
    pub(super) async fn watch_state(&self, mut changed: impl FnMut(ServerState, Option<Arc<str>>)) {
        let hosts = self.conninfo.hosts().len();
        let mut last = None;
        let mut has_seen_primary = false;
        let mut told = None;
        let mut doubts = 0;
        // Since when looks have found no primary, and a host gave no answer in time.
        let mut silence: Option<Instant> = None;
        loop {
            let begin = Instant::now();
            let seen = self.look(last.unwrap_or(ServerState::Away)).await;
            if let (true, Some(ServerState::Primary)) = (seen.is_silent(), last)
                && silence.get_or_insert(begin).elapsed() < self.settings.connect_timeout
            {
                // A primary that is slow to answer is still the primary.
                self.is_in_doubt.store(true, Ordering::Relaxed);
                tokio::time::sleep(INTERVAL).await;
                continue;
            }
            silence = None;
            let (state, class) = (seen.state, seen.class());
            last = Some(state);
            has_seen_primary |= state == ServerState::Primary;
            // That a server alone is a standby needs no explanation, if it was never anything else.
            let is_expected = seen.is_asked && hosts == 1 && !has_seen_primary;
            let reason = seen.reason().filter(|_| !is_expected);
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
            if let Some(primary) = seen.primary {
                self.found(primary);
            }
            self.is_in_doubt.store(class.is_some(), Ordering::Relaxed);
            doubts = if class.is_some() { doubts + 1 } else { 0 };
            self.wait_before_next_look(state, class, doubts).await;
        }
    }

    /// Records which server is the primary, and reports that another one was it before.
    pub(super) fn found(&self, primary: Origin) {
        let host = primary.host.clone();
        match self.whereabouts.found(primary) {
            Some(before) if before == host => {
                info!(%host, "{host} leads to another server, or to one that was restarted: connections to the one before are given up");
            }
            Some(before) => {
                warn!(%host, %before, "the primary is now {host}: connections to the server that was it are given up");
            }
            None => {}
        }
    }

    /// Waits until the server is to be looked at again: some time, or until there is reason to doubt what was seen.
    async fn wait_before_next_look(
        &self,
        state: ServerState,
        class: Option<ErrorClass>,
        doubts: u32,
    ) {
        let suspect = &self.whereabouts.suspect;
        let quiet = async {
            // However many statements take long, looks for their sake are rare.
            tokio::time::sleep(INTERVAL_OF_QUIET).await;
            self.whereabouts.quiet.notified().await;
        };
        tokio::time::sleep(INTERVAL_MIN).await;
        // A server that is there but refuses bgworker must not be asked twice a second.
        let wait = match state {
            ServerState::Primary if class.is_none() => {
                tokio::select! {
                    () = suspect.notified() => {}
                    () = quiet => {}
                }
                return;
            }
            ServerState::Away => INTERVAL,
            _ if class.is_some() => doubled(INTERVAL, doubts, INTERVAL_MAX),
            ServerState::Standby | ServerState::Unknown | ServerState::Primary => INTERVAL,
        };
        // A timeout and a doubt are both reasons to look again.
        let _ = tokio::time::timeout(wait - INTERVAL_MIN, suspect.notified()).await;
    }

    /// Looks at the server once: at each host, until one is a primary. If the server was one, something casts doubt on that, and
    /// every host is looked at: one that hangs may still say that it is the primary. The host that has come furthest counts, and
    /// connections try it first, unless hosts are tried in random order. A server that is there but cannot be asked is what it
    /// was seen to be `last`; if that is away, it is unknown.
    pub(super) async fn look(&self, last: ServerState) -> Seen {
        let mut answers = Answers {
            known: self.whereabouts.primary(),
            ..Answers::default()
        };
        let mut asked = FuturesUnordered::new();
        for host in self.hosts_in_order() {
            asked.push(async move { (host, self.ask_each_address(host).await) });
            let mut slow = pin!(tokio::time::sleep(PATIENCE));
            // The next host's turn comes when those before it have answered, or are slow.
            while !asked.is_empty() {
                tokio::select! {
                    biased;
                    Some((host, of_host)) = asked.next() => answers.take(host, of_host),
                    () = &mut slow => break,
                }
            }
            if answers.primary().is_some() && last != ServerState::Primary {
                break;
            }
        }
        while answers.primary().is_none()
            && let Some((host, of_host)) = asked.next().await
        {
            answers.take(host, of_host);
        }
        if let Some((_, host)) = answers.best {
            self.best_host.store(usize::MAX - host, Ordering::Relaxed);
        }
        answers.seen(last)
    }

    /// Asks the servers at the addresses of a host, until one is a primary, or fails other than by being away or full.
    async fn ask_each_address(&self, host: usize) -> Vec<Result<Asked, DatabaseError>> {
        let as_whom = ("bgworker", None, Sharing::Apart);
        let mut answers = Vec::new();
        let wanted = TargetSessionAttrs::Primary;
        let asked = self.connect_to_host(host, as_whom, self.share(), wanted);
        for asked in asked.await {
            answers.push(match asked {
                Ok((connection, standing)) => {
                    let mut origin = connection.origin();
                    let known = self.whereabouts.primary();
                    let known = known.filter(|known| !origin.is_another_than(known));
                    origin.timeline = match known {
                        _ if standing.is_standby => None,
                        Some(known) => known.timeline,
                        None => timeline(&connection).await.ok().flatten(),
                    };
                    connection.close().await;
                    Ok(if standing.is_standby {
                        let target = self.conninfo.target_of(&origin.host, None);
                        let why = IS_STANDBY;
                        Asked::Standby(DatabaseError::Unsuitable { target, why })
                    } else {
                        Asked::Primary(origin)
                    })
                }
                Err(error) => Err(error),
            });
        }
        answers
    }
}

// === impl Answers ===

impl Answers {
    fn take(&mut self, host: usize, answers: Vec<Result<Asked, DatabaseError>>) {
        for answer in answers {
            let state = match answer {
                Ok(Asked::Primary(origin)) => {
                    if self.is_replaced_by(&origin) {
                        self.primary = Some(origin);
                        self.best = Some((ServerState::Primary, usize::MAX - host));
                    }
                    continue;
                }
                Ok(Asked::Standby(why)) => {
                    self.others.push(why);
                    ServerState::Standby
                }
                Err(error) => {
                    self.others.push(error);
                    continue;
                }
            };
            // Of several hosts that have come equally far, the first counts.
            self.best = self.best.max(Some((state, usize::MAX - host)));
        }
    }

    /// `true` if another server is the primary rather than the one that has said so first: it was promoted in that one's place.
    /// Of systems of their own, the one that is known stays.
    fn is_replaced_by(&self, other: &Origin) -> bool {
        let Some(primary) = &self.primary else {
            return true;
        };
        let is_known = |origin: &Origin| {
            let known = self.known.as_ref();
            known.is_some_and(|known| !origin.is_another_than(known))
        };
        match primary.timeline.zip(other.timeline) {
            Some((own, other)) if own.was_replaced_by(other) => true,
            Some((own, other)) if other.was_replaced_by(own) => false,
            _ => is_known(other) && !is_known(primary),
        }
    }

    fn primary(&self) -> Option<&Origin> {
        self.primary.as_ref()
    }

    fn seen(self, last: ServerState) -> Seen {
        let error = || DatabaseError::of_each(self.others);
        match self.best {
            Some((state @ ServerState::Primary, _)) => Seen {
                state,
                primary: self.primary,
                is_asked: true,
                error: None,
            },
            Some((state, _)) => Seen {
                state,
                primary: None,
                is_asked: true,
                error: Some(error()),
            },
            None => {
                let error = error();
                let state = match error.class() {
                    ErrorClass::Away => ServerState::Away,
                    // A server that refuses bgworker or is full is there, and a failure on bgworker's side says nothing
                    // about the server.
                    _ if last != ServerState::Away => last,
                    _ => ServerState::Unknown,
                };
                Seen {
                    state,
                    primary: None,
                    is_asked: false,
                    error: Some(error),
                }
            }
        }
    }
}

// === impl Seen ===

impl Seen {
    /// The class of what kept bgworker from asking the server; `None` if a host answered.
    fn class(&self) -> Option<ErrorClass> {
        let error = self.error.as_ref().filter(|_| !self.is_asked);
        error.map(DatabaseError::class)
    }

    /// Why the server is not the primary, or cannot be asked: what each host said.
    fn reason(&self) -> Option<Arc<str>> {
        let error = self.error.as_ref()?;
        Some(Arc::from(error.to_string()))
    }

    /// Returns `true` if there is no primary, but a host gave no answer in time.
    fn is_silent(&self) -> bool {
        let error = self.error.as_ref();
        self.state != ServerState::Primary && error.is_some_and(DatabaseError::is_silence)
    }

    /// What was seen, and what kept bgworker from asking the server.
    pub(super) fn into_parts(self) -> (ServerState, Option<DatabaseError>) {
        (self.state, self.error.filter(|_| !self.is_asked))
    }
}

/// Logs what the server is now, and what keeps bgworker from asking it.
fn log(state: ServerState, class: Option<ErrorClass>, reason: Option<&str>) {
    match class {
        None if reason.is_some() => {
            warn!(%state, reason, "server is {state}: no host is the primary");
        }
        None => info!(%state, "server is {state}"),
        Some(ErrorClass::Away) => warn!(%state, reason, "server is {state}"),
        Some(ErrorClass::Full) => {
            warn!(%state, reason, "server has no room for another connection");
        }
        Some(ErrorClass::Ours) => warn!(%state, reason, "server cannot be asked"),
        Some(_) => warn!(%state, reason, "server is there, but refuses the connection"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::conninfo::{ConnInfo, Host};
    use super::super::timeline::Timeline;
    use super::*;

    /// Servers that said that they are the primary, each a host of its own on a timeline of a system.
    fn origins(servers: &[(u32, i64)]) -> Vec<Origin> {
        let hosts: Vec<_> = (0..servers.len()).map(|n| format!("h{n}")).collect();
        let conninfo = ConnInfo::parse(&format!("host={}", hosts.join(",")), |_| None).unwrap();
        let origin = |(host, (number, system)): (&Host, &(u32, i64))| Origin {
            host: host.clone(),
            begun: None,
            timeline: Timeline::of(&format!("{number:08X}0000000300000004"), Some(*system)),
        };
        conninfo.hosts().iter().zip(servers).map(origin).collect()
    }

    #[test]
    fn of_several_primaries_the_newest_counts_in_whichever_order_they_answer() {
        for (servers, known, order, expected) in [
            // Of one system, the newer timeline.
            ([(1, 7), (2, 7)], None, [0, 1], 1),
            ([(1, 7), (2, 7)], None, [1, 0], 1),
            ([(1, 7), (2, 7)], Some(0), [1, 0], 1),
            // Of systems of their own, or of one timeline, the one that is known.
            ([(1, 7), (2, 8)], Some(0), [1, 0], 0),
            ([(2, 7), (2, 7)], Some(1), [0, 1], 1),
            ([(2, 7), (2, 7)], None, [1, 0], 1),
        ] {
            let origins = origins(&servers);
            let mut answers = Answers {
                known: known.map(|known: usize| origins[known].clone()),
                ..Answers::default()
            };
            for host in order {
                let origin = origins[host].clone();
                answers.take(host, vec![Ok(Asked::Primary(origin))]);
            }
            let of = (&servers, known, order);
            assert_eq!(answers.primary(), Some(&origins[expected]), "{of:?}");
            let best = Some((ServerState::Primary, usize::MAX - expected));
            assert_eq!(answers.best, best, "{of:?}");
        }
    }
}
