//! Requests that wait to be sent on a home connection, and can still be withdrawn.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;

use super::groups::{Groups, PROBES_MAX};
use super::probe::{Asked, Scalars};
use super::request::{Ask, Message, Waiter};
use crate::database::DatabaseError;

/// Requests that wait to be sent, whatever becomes of the connection.
pub(super) struct Inbox {
    messages: VecDeque<Message>,
    /// Probes, until it is known which other workers have some.
    probes: Vec<Asked<Waiter<Scalars>>>,
    groups: Groups,
    /// Statements that will not be sent again.
    forgotten: Vec<Arc<str>>,
    /// `true` if a worker asked for a new session.
    renewal: bool,
}

// === impl Inbox ===

impl Inbox {
    /// `together` says whether probes may be asked together.
    pub(super) fn new(together: bool) -> Self {
        Self {
            messages: VecDeque::new(),
            probes: Vec::new(),
            groups: Groups::new(if together { PROBES_MAX } else { 1 }),
            forgotten: Vec::new(),
            renewal: false,
        }
    }

    /// Waits for a request, if none waits yet. Returns `false` if no worker can send one any longer.
    ///
    /// Loses nothing when the future is dropped.
    pub(super) async fn wait(&mut self, asked: &mut UnboundedReceiver<Ask>) -> bool {
        if self.messages.is_empty() && self.probes.is_empty() {
            match asked.recv().await {
                Some(ask) => self.take(ask),
                None => return false,
            }
        }
        // Workers that woke together with the one that asked are about to ask as well.
        let mut many = 0;
        while many < self.probes.len() {
            many = self.probes.len();
            tokio::task::yield_now().await;
            self.take_all(asked);
        }
        self.gather();
        true
    }

    fn take_all(&mut self, asked: &mut UnboundedReceiver<Ask>) {
        while let Ok(ask) = asked.try_recv() {
            self.take(ask);
        }
    }

    fn take(&mut self, ask: Ask) {
        match ask {
            Ask::Run(request) => self.messages.push_back(Message::Request(request)),
            Ask::Probe(probe) => self.probes.push(probe),
            Ask::Forget(sql) => self.forgotten.push(sql),
            Ask::ForgetProbe(number) => self.groups.forget(number),
            Ask::Renew => self.renewal = true,
        }
    }

    fn gather(&mut self) {
        let probes = std::mem::take(&mut self.probes);
        let batches = self.groups.gather(still_asked(probes));
        self.messages
            .extend(batches.into_iter().map(Message::Probes));
    }

    /// Takes what is to be sent next.
    pub(super) fn next(&mut self) -> Option<Message> {
        self.drop_withdrawn();
        self.messages.pop_front()
    }

    /// Returns `true` if no caller waits for anything.
    pub(super) fn is_idle(&mut self) -> bool {
        self.drop_withdrawn();
        self.messages.is_empty()
    }

    fn drop_withdrawn(&mut self) {
        while self.messages.front().is_some_and(Message::is_withdrawn) {
            self.messages.pop_front();
        }
    }

    /// The groups of probes that are asked together.
    pub(super) fn groups(&mut self) -> &mut Groups {
        &mut self.groups
    }

    /// Takes back probes that failed together, to ask them again.
    pub(super) fn ask_again(&mut self, probes: Vec<Asked<Waiter<Scalars>>>) {
        for batch in self.groups.gather(still_asked(probes)).into_iter().rev() {
            self.messages.push_front(Message::Probes(batch));
        }
    }

    /// Takes the statements that will not be sent again.
    pub(super) fn take_forgotten(&mut self) -> Vec<Arc<str>> {
        self.forgotten.extend(self.groups.take_dissolved());
        std::mem::take(&mut self.forgotten)
    }

    /// Returns `true` if a worker asked for a new session since the last call.
    pub(super) fn take_renewal(&mut self) -> bool {
        std::mem::take(&mut self.renewal)
    }

    /// Reports an error to every caller that waits.
    pub(super) fn refuse(&mut self, asked: &mut UnboundedReceiver<Ask>, error: DatabaseError) {
        self.take_all(asked);
        self.gather();
        let error = Arc::new(error);
        while let Some(message) = self.next() {
            message.refuse(|_| DatabaseError::Home(Arc::clone(&error)));
        }
    }
}

/// Returns the probes that a caller still waits for. The others may have been forgotten before; grouped again, they
/// would never be forgotten.
fn still_asked(mut probes: Vec<Asked<Waiter<Scalars>>>) -> Vec<Asked<Waiter<Scalars>>> {
    probes.retain(|asked| !asked.waiter.is_gone());
    probes
}
