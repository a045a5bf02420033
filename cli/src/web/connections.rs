//! The connections that are open, and which of them gives way when there are too many. Does no I/O.
//!
//! A connection is not refused: a probe among a thousand idle clients is answered at once, and the client that was silent
//! for longest is closed.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tokio::sync::oneshot;

/// The connections that are open, by the address of the client.
#[derive(Debug)]
pub(super) struct Connections {
    most: usize,
    open: BTreeMap<SocketAddr, Open>,
    /// Counts connections and requests, in place of a clock.
    count: u64,
}

#[derive(Debug)]
struct Open {
    number: u64,
    /// When it last began a request, or was opened.
    heard: u64,
    /// `true` if it listens to events: it has no other request to make.
    listens: bool,
    /// Dropped to close it.
    _is_open: oneshot::Sender<()>,
}

/// A connection among those that are open.
#[derive(Debug)]
pub(super) struct Place {
    client: SocketAddr,
    number: u64,
    /// Ends when the connection must give way.
    pub(super) is_open: oneshot::Receiver<()>,
}

// === impl Connections ===

impl Connections {
    /// At most this many are open.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most: most.max(1),
            open: BTreeMap::new(),
            count: 0,
        }
    }

    /// Adds a connection. If there is no room, the one that was silent for longest gives way, and a client of events only
    /// if there are no others.
    pub(super) fn enter(&mut self, client: SocketAddr) -> Place {
        if self.open.len() >= self.most
            && let Some((silent, _)) = (self.open.iter())
                .min_by_key(|(_, open)| (open.listens, open.heard))
                .map(|(client, open)| (*client, open.heard))
        {
            self.open.remove(&silent);
        }
        self.count += 1;
        let (sender, is_open) = oneshot::channel();
        let open = Open {
            number: self.count,
            heard: self.count,
            listens: false,
            _is_open: sender,
        };
        self.open.insert(client, open);
        Place {
            client,
            number: self.count,
            is_open,
        }
    }

    /// A request has begun.
    pub(super) fn heard(&mut self, client: SocketAddr) {
        self.count += 1;
        if let Some(open) = self.open.get_mut(&client) {
            open.heard = self.count;
        }
    }

    /// The answer to its request is a stream of events.
    pub(super) fn listens(&mut self, client: SocketAddr) {
        if let Some(open) = self.open.get_mut(&client) {
            open.listens = true;
        }
    }

    /// A connection has ended.
    pub(super) fn leave(&mut self, place: &Place) {
        let open = self.open.get(&place.client);
        // Another one may have its address already.
        if open.is_some_and(|open| open.number == place.number) {
            self.open.remove(&place.client);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    /// The ports of the places whose connections are still open.
    fn open(places: &mut [Place]) -> Vec<u16> {
        use oneshot::error::TryRecvError::Empty;
        let open = places.iter_mut().filter_map(|place| {
            (place.is_open.try_recv() == Err(Empty)).then(|| place.client.port())
        });
        open.collect()
    }

    #[test]
    fn the_connection_that_was_silent_for_longest_gives_way_and_listeners_last() {
        let mut connections = Connections::new(3);
        let mut places: Vec<_> = (1..=3)
            .map(|port| connections.enter(client(port)))
            .collect();
        connections.listens(client(1));
        connections.heard(client(2));
        assert_eq!(open(&mut places), [1, 2, 3]);
        for (port, expected) in [(4, vec![1, 2, 4]), (5, vec![1, 4, 5])] {
            places.push(connections.enter(client(port)));
            assert_eq!(open(&mut places), expected);
        }
        connections.listens(client(4));
        connections.listens(client(5));
        places.push(connections.enter(client(6)));
        assert_eq!(open(&mut places), [4, 5, 6]);
    }

    #[test]
    fn a_connection_that_ends_makes_room_once() {
        let mut connections = Connections::new(1);
        let mut places = vec![connections.enter(client(1)), connections.enter(client(1))];
        // The first has given way, and its end is not that of the second, whose address is the same.
        connections.leave(&places[0]);
        assert_eq!(open(&mut places), [1]);
        connections.leave(&places[1]);
        assert!(open(&mut places).is_empty());
        assert!(connections.open.is_empty());
    }
}
