//! Server-sent events: a snapshot of all workers, then what happens to them as it happens, and what has changed: once a
//! second, less often with thousands of workers.
//!
//! Whatever is sent is encoded once, for all clients, on a thread that serves no connection. A client keeps a place in a
//! broadcast, and a client that falls behind is sent a snapshot again.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::web::Bytes;
use futures_util::stream;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use super::changes::Known;
use super::moment::{Moment, Moments};
use super::sent::{Sent, piece, sent};
use super::{ANSWER_TIMEOUT, fresh, unavailable};
use crate::postmaster::Event;

/// How long after a snapshot the next one follows if nothing happens.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long after an event the next snapshot follows, so that many events at once make one snapshot.
const SOON: Duration = Duration::from_millis(100);

/// Each time this many workers are reached, both waits become longer by their own length: 1,000 workers double them.
const LARGE: usize = 1000;

/// The most clients at a time. The connections that are left are for probes.
const CLIENTS_MAX: usize = 256;

/// How long a client may wait for its place, which takes longer with many thousands of workers.
const PLACE_TIMEOUT: Duration = Duration::from_secs(30);

/// How many messages a client may fall behind.
const BACKLOG: usize = 16;

/// How much of what has happened is one message.
const BATCH: usize = 64 * 1024;

/// What all clients are sent. Clones share it.
#[derive(Clone)]
pub(super) struct Broadcast {
    joins: mpsc::UnboundedSender<oneshot::Sender<Place>>,
    /// Where the clients that join arrive, until a task takes it.
    begin: Arc<Mutex<Option<Joins>>>,
    places: Arc<Semaphore>,
}

type Joins = mpsc::UnboundedReceiver<oneshot::Sender<Place>>;

/// A client's place in the broadcast: a snapshot, and what follows it.
struct Place {
    snapshot: Bytes,
    next: broadcast::Receiver<Bytes>,
}

/// The task that makes the broadcast.
struct Sender {
    moments: Moments,
    joins: Joins,
    /// The clients that wait for a snapshot.
    newcomers: Vec<oneshot::Sender<Place>>,
    messages: broadcast::Sender<Bytes>,
    /// What each client knows that has a place.
    known: Known,
    last_snapshot: Option<Instant>,
    /// When the next snapshot is due, unless a client comes before.
    next_snapshot: Instant,
    /// How many times longer than usual the waits are.
    pace: u32,
}

/// The stream that one client receives.
struct Client {
    broadcast: Broadcast,
    /// What is left of the message that is being sent.
    rest: Bytes,
    /// `None` while it has no place.
    next: Option<broadcast::Receiver<Bytes>>,
    /// Counts it among the clients.
    _one_of: OwnedSemaphorePermit,
}

pub(super) async fn events(broadcast: Broadcast, moments: Moments) -> HttpResponse {
    let Ok(one_of) = Arc::clone(&broadcast.places).try_acquire_owned() else {
        let why = format!("{CLIENTS_MAX} clients receive events already: close a page");
        return unavailable(&why);
    };
    match tokio::time::timeout(ANSWER_TIMEOUT, moments.postmaster.status()).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return unavailable(&error),
        Err(_) => return unavailable(&"the Postmaster does not answer"),
    }
    // Before the answer begins: a client that has it misses no event.
    let Ok(place) = tokio::time::timeout(PLACE_TIMEOUT, broadcast.join()).await else {
        return unavailable(&"the Postmaster does not answer");
    };
    let (rest, next) =
        place.map_or_else(Default::default, |place| (place.snapshot, Some(place.next)));
    let client = Client {
        broadcast,
        rest,
        next,
        _one_of: one_of,
    };
    fresh(HttpResponse::Ok())
        .content_type("text/event-stream")
        .streaming(stream::unfold(client, Client::next))
}

// === impl Broadcast ===

impl Broadcast {
    pub(super) fn new() -> Self {
        let (joins, begin) = mpsc::unbounded_channel();
        Self {
            joins,
            begin: Arc::new(Mutex::new(Some(begin))),
            places: Arc::new(Semaphore::new(CLIENTS_MAX)),
        }
    }

    /// Makes the broadcast from now on, until the Postmaster has exited. Must be called within an actix system.
    pub(super) fn begin(&self, moments: Moments) {
        let mut begin = self.begin.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(joins) = begin.take() else {
            return;
        };
        let sender = Sender {
            moments,
            joins,
            newcomers: Vec::new(),
            messages: broadcast::Sender::new(BACKLOG),
            known: Known::default(),
            last_snapshot: None,
            next_snapshot: Instant::now(),
            pace: 1,
        };
        actix_web::rt::spawn(sender.run());
    }

    /// Waits for a place; `None` once the Postmaster has exited.
    async fn join(&self) -> Option<Place> {
        let (joins, joined) = oneshot::channel();
        self.joins.send(joins).ok()?;
        joined.await.ok()
    }
}

// === impl Sender ===

impl Sender {
    async fn run(mut self) {
        let postmaster = self.moments.postmaster.clone();
        let exited = postmaster.exited();
        let mut exited = std::pin::pin!(exited);
        // While there is no client, nothing is asked.
        while let Some(newcomer) = self.joins.recv().await {
            self.newcomers.push(newcomer);
            let Ok(events) = postmaster.subscribe().await else {
                return;
            };
            if self.serve(events, exited.as_mut()).await.is_none() {
                return;
            }
        }
    }

    /// Sends as long as there are clients; `None` once the Postmaster has exited.
    async fn serve<E>(
        &mut self,
        mut events: broadcast::Receiver<Event>,
        mut exited: Pin<&mut impl Future<Output = E>>,
    ) -> Option<()> {
        while self.messages.receiver_count() > 0 || !self.newcomers.is_empty() {
            let due = self.due();
            tokio::select! {
                // What happened before the exit is sent before the end.
                biased;
                event = events.recv() => {
                    self.send_events(event, &mut events)?;
                    let soon = Instant::now() + SOON * self.pace;
                    self.next_snapshot = self.next_snapshot.min(soon);
                }
                _ = exited.as_mut() => return None,
                newcomer = self.joins.recv() => self.newcomers.push(newcomer?),
                () = tokio::time::sleep_until(due) => self.send_snapshot().await?,
            }
        }
        self.known = Known::default();
        Some(())
    }

    /// When the next snapshot is taken.
    fn due(&self) -> Instant {
        if self.newcomers.is_empty() {
            return self.next_snapshot;
        }
        let soon = self.last_snapshot.map(|last| last + SOON * self.pace);
        soon.map_or_else(Instant::now, |soon| soon.min(self.next_snapshot))
    }

    /// Sends what has happened up to now as one message; `None` if nothing can happen after it.
    fn send_events(
        &self,
        first: Result<Event, RecvError>,
        events: &mut broadcast::Receiver<Event>,
    ) -> Option<()> {
        let mut message = Vec::new();
        let mut next = first;
        loop {
            match next {
                Ok(event) => message.extend(sent("worker", &Sent::from(&event))),
                // The next snapshot shows it.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) if message.is_empty() => return None,
                Err(RecvError::Closed) => break,
            }
            next = match events.try_recv() {
                Ok(event) if message.len() < BATCH => Ok(event),
                Ok(event) => {
                    message.extend(sent("worker", &Sent::from(&event)));
                    break;
                }
                Err(TryRecvError::Lagged(missed)) => Err(RecvError::Lagged(missed)),
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            };
        }
        self.send(message.into());
        Some(())
    }

    /// Takes a snapshot, sends what has changed, and gives the clients that wait their places.
    async fn send_snapshot(&mut self) -> Option<()> {
        let moment = self.moments.take().await.ok()?;
        self.pace = u32::try_from(moment.workers.registered.len() / LARGE).unwrap_or(u32::MAX) + 1;
        self.last_snapshot = Some(moment.now);
        self.next_snapshot = moment.now + INTERVAL * self.pace;
        let mut known = std::mem::take(&mut self.known);
        let is_awaited = !self.newcomers.is_empty();
        let encode = move |moment: &Moment| {
            let snapshot = moment.snapshot();
            let changes = known.changes(snapshot, moment.now);
            let changes = changes.map(|changes| sent("changes", &changes));
            let whole = is_awaited.then(|| sent("status", snapshot));
            (known, changes, whole)
        };
        let (known, changes, whole) = moment.make(encode).await?;
        self.known = known;
        if let Some(changes) = changes {
            self.send(changes);
        }
        let Some(snapshot) = whole else {
            return Some(());
        };
        for newcomer in self.newcomers.drain(..) {
            // A client that has gone away needs no place.
            let _ = newcomer.send(Place {
                snapshot: snapshot.clone(),
                next: self.messages.subscribe(),
            });
        }
        Some(())
    }

    fn send(&self, message: Bytes) {
        // An error says that there is no client to send it to.
        let _ = self.messages.send(message);
    }
}

// === impl Client ===

impl Client {
    /// The next piece; `None` once the Postmaster has exited.
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        if self.rest.is_empty() {
            self.rest = self.message().await?;
        }
        let piece = piece(&mut self.rest).await?;
        Some((Ok(piece), self))
    }

    async fn message(&mut self) -> Option<Bytes> {
        if let Some(mut next) = self.next.take() {
            match next.recv().await {
                Ok(message) => {
                    self.next = Some(next);
                    return Some(message);
                }
                Err(RecvError::Closed) => return None,
                // It fell behind, and begins again.
                Err(RecvError::Lagged(_)) => {}
            }
        }
        let Place { snapshot, next } = self.broadcast.join().await?;
        self.next = Some(next);
        Some(snapshot)
    }
}
