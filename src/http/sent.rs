//! What is sent of events and snapshots: JSON in the format of server-sent events.

use std::convert::Infallible;

use actix_web::web::Bytes;
use futures_util::stream::{self, Stream};
use serde::Serialize;

use super::published::published;
use crate::postmaster::{Event, EventKind};

/// The most that is sent at once: a connection keeps a copy of what it is sending.
const PIECE: usize = 16 * 1024;

/// One event, as it is sent.
#[derive(Serialize)]
pub(super) struct Sent<'e> {
    worker: &'e str,
    slot: usize,
    generation: u64,
    #[serde(flatten)]
    kind: Kind,
}

#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Kind {
    Registered,
    Started,
    Ready,
    Exited {
        exit: String,
        reason: Option<String>,
        restart_in_seconds: Option<f64>,
    },
    Unregistered {
        exit: String,
    },
}

/// An event of this name, in the format of the standard.
pub(super) fn sent(name: &str, value: &impl Serialize) -> Bytes {
    let mut message = format!("event: {name}\ndata: ").into_bytes();
    // Nothing here can fail to be JSON, and JSON has no line breaks.
    let _ = serde_json::to_writer(&mut message, value);
    message.extend(b"\n\n");
    message.into()
}

/// Takes the next piece of a message; `None` at its end. Other connections have their turns between two pieces.
pub(super) async fn piece(rest: &mut Bytes) -> Option<Bytes> {
    tokio::task::yield_now().await;
    let piece = rest.split_to(PIECE.min(rest.len()));
    Some(piece).filter(|piece| !piece.is_empty())
}

/// All pieces of a message.
pub(super) fn pieces(message: Bytes) -> impl Stream<Item = Result<Bytes, Infallible>> {
    stream::unfold(message, |mut rest| async move {
        let piece = piece(&mut rest).await?;
        Some((Ok(piece), rest))
    })
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
                    reason: reason.as_deref().map(published),
                    restart_in_seconds: restart_in.map(|wait| wait.as_secs_f64()),
                },
                EventKind::Unregistered(exit) => Kind::Unregistered {
                    exit: exit.to_string(),
                },
            },
        }
    }
}
