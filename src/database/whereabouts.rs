//! Which server is the primary, so that connections to one that no longer is are given up.
//!
//! A server that is frozen, or cut off, closes no connection. Another one may be promoted meanwhile: then nothing that
//! the old one still answers counts. Only a server that says that it is the primary takes the place of another; a slow one
//! keeps its connections.

use std::future::pending;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use tokio::sync::{Notify, watch};

use super::conninfo::Host;
use super::timeline::Timeline;

/// A server that a connection leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// The host, with its address.
    pub(super) host: Host,
    /// When the server began: it tells servers apart that are reached by the same name or through the same proxy.
    /// `None` if it does not say.
    pub(super) begun: Option<SystemTime>,
    /// Its timeline, if it has been asked for that, and says.
    pub(super) timeline: Option<Timeline>,
}

/// What connections and the watch of the server's state tell each other.
#[derive(Debug)]
pub(super) struct Whereabouts {
    /// Notified when there is reason to doubt the state in which the server was last seen.
    pub(super) suspect: Notify,
    /// Notified while a statement takes long: a server that is frozen would be as quiet.
    pub(super) quiet: Notify,
    primary: watch::Sender<Option<Origin>>,
}

/// What a connection waits for: that its server is no longer the primary.
#[derive(Debug)]
pub(super) struct Lookout {
    host: Host,
    /// When the server of the connection began, once it has said so.
    begun: Arc<OnceLock<SystemTime>>,
    known: Option<Origin>,
    primary: watch::Receiver<Option<Origin>>,
}

// === impl Origin ===

impl Origin {
    pub(super) fn is_another_than(&self, other: &Self) -> bool {
        match (self.begun, other.begun) {
            (Some(begun), Some(other)) => begun != other,
            _ => self.host != other.host,
        }
    }
}

// === impl Whereabouts ===

impl Whereabouts {
    pub(super) fn new() -> Self {
        Self {
            suspect: Notify::new(),
            quiet: Notify::new(),
            primary: watch::Sender::new(None),
        }
    }

    /// The server that was last seen to be the primary.
    pub(super) fn primary(&self) -> Option<Origin> {
        self.primary.borrow().clone()
    }

    /// Records which server is the primary. Connections to the one that was it before are given up. Returns that one's
    /// host.
    pub(super) fn found(&self, mut primary: Origin) -> Option<Host> {
        let mut before = None;
        self.primary.send_if_modified(|known| {
            let same = known
                .as_ref()
                .filter(|known| !primary.is_another_than(known));
            primary.timeline = primary.timeline.or_else(|| same?.timeline);
            let is_news = known.as_ref() != Some(&primary);
            before = known.replace(primary.clone());
            is_news
        });
        let before = before.filter(|before| primary.is_another_than(before));
        before.map(|before| before.host)
    }

    /// The lookout of a new connection to a host. The connection says later when its server began.
    pub(super) fn lookout(&self, host: Host, begun: Arc<OnceLock<SystemTime>>) -> Lookout {
        let mut primary = self.primary.subscribe();
        let known = primary.borrow_and_update().clone();
        Lookout {
            host,
            begun,
            known,
            primary,
        }
    }
}

// === impl Lookout ===

impl Lookout {
    /// Waits until another server has become the primary in the place of this one, and returns its host.
    pub(super) async fn replaced(mut self) -> Host {
        while self.primary.changed().await.is_ok() {
            let Some(now) = self.primary.borrow_and_update().clone() else {
                continue;
            };
            let origin = Origin {
                host: self.host.clone(),
                begun: self.begun.get().copied(),
                timeline: None,
            };
            let known = self.known.as_ref();
            let was_primary = known.is_some_and(|known| !origin.is_another_than(known));
            if was_primary && origin.is_another_than(&now) {
                return now.host;
            }
            self.known = Some(now);
        }
        pending().await
    }
}
