//! Server-sent events: a snapshot of all workers, then what happens to them as it happens, and what has changed: once a
//! second, less often with thousands of workers.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::web::Bytes;
use futures_util::stream;
use serde::Serialize;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::time::Instant;

use super::changes::Known;
use super::snapshot::Snapshot;
use super::{ANSWER_TIMEOUT, fresh, unavailable};
use crate::postmaster::{Event, EventKind, PostmasterHandle};

/// How long after a snapshot the next one follows if nothing happens.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long after an event the next snapshot follows, so that many events at once make one snapshot.
const SOON: Duration = Duration::from_millis(100);

/// Each time this many workers are reached, both waits become longer by their own length: 1,000 workers double them.
const LARGE: usize = 1000;

/// The stream that one client receives.
struct Feed {
    postmaster: PostmasterHandle,
    exited: Pin<Box<dyn Future<Output = ()>>>,
    events: Receiver<Event>,
    next_snapshot: Instant,
    /// What the client knows.
    known: Known,
    /// How many times longer than usual the waits are.
    pace: u32,
}

/// One event, as it is sent.
#[derive(Serialize)]
struct Sent<'e> {
    worker: &'e str,
    slot: usize,
    generation: u64,
    #[serde(flatten)]
    kind: Kind<'e>,
}

#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Kind<'e> {
    Registered,
    Started,
    Ready,
    Exited {
        exit: String,
        reason: Option<&'e str>,
        restart_in_seconds: Option<f64>,
    },
    Unregistered {
        exit: String,
    },
}

pub(super) async fn events(postmaster: PostmasterHandle) -> HttpResponse {
    let events = match tokio::time::timeout(ANSWER_TIMEOUT, postmaster.subscribe()).await {
        Ok(Ok(events)) => events,
        Ok(Err(error)) => return unavailable(&error),
        Err(_) => return unavailable(&"the Postmaster does not answer"),
    };
    let exiting = postmaster.clone();
    let feed = Feed {
        exited: Box::pin(async move { drop(exiting.exited().await) }),
        postmaster,
        events,
        next_snapshot: Instant::now(),
        known: Known::default(),
        pace: 1,
    };
    fresh(HttpResponse::Ok())
        .content_type("text/event-stream")
        .streaming(stream::unfold(feed, Feed::next))
}

// === impl Feed ===

impl Feed {
    /// The next event; `None` once the Postmaster has exited.
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        let text = loop {
            tokio::select! {
                // What happened before the exit is sent before the end.
                biased;
                event = self.events.recv() => match event {
                    Ok(event) => {
                        let soon = Instant::now() + SOON * self.pace;
                        self.next_snapshot = self.next_snapshot.min(soon);
                        break sent("worker", &Sent::from(&event));
                    }
                    // The next snapshot shows it.
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return None,
                },
                () = &mut self.exited => return None,
                () = tokio::time::sleep_until(self.next_snapshot) => {
                    let snapshot = Snapshot::take(&self.postmaster).await.ok()?;
                    self.pace = u32::try_from(snapshot.workers.len() / LARGE).unwrap_or(u32::MAX) + 1;
                    self.next_snapshot = Instant::now() + INTERVAL * self.pace;
                    let now = Instant::now();
                    break match self.known.changes(&snapshot, now) {
                        None => sent("status", &snapshot),
                        Some(changes) => sent("changes", &changes),
                    };
                }
            }
        };
        Some((Ok(text), self))
    }
}

/// An event of this name, in the format of the standard.
fn sent(name: &str, value: &impl Serialize) -> Bytes {
    // Nothing here can fail to be JSON, and JSON has no line breaks.
    let json = serde_json::to_string(value).unwrap_or_default();
    Bytes::from(format!("event: {name}\ndata: {json}\n\n"))
}

impl<'e> From<&'e Event> for Sent<'e> {
    fn from(event: &'e Event) -> Self {
        Self {
            worker: &event.name,
            slot: event.worker.slot(),
            generation: event.worker.generation(),
            kind: match &event.kind {
                EventKind::Registered => Kind::Registered,
                EventKind::Started(_) => Kind::Started,
                EventKind::Ready(_) => Kind::Ready,
                EventKind::Exited {
                    exit,
                    reason,
                    restart_in,
                    ..
                } => Kind::Exited {
                    exit: exit.to_string(),
                    reason: reason.as_deref(),
                    restart_in_seconds: restart_in.map(|wait| wait.as_secs_f64()),
                },
                EventKind::Unregistered(exit) => Kind::Unregistered {
                    exit: exit.to_string(),
                },
            },
        }
    }
}
