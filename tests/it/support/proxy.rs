//! A bad network between a client and its server: a proxy passes bytes on until a test sets a fault.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

/// A port that forwards to another one. The threads of a connection end with it.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    state: Arc<Mutex<State>>,
}

struct State {
    /// The port to which new connections are forwarded.
    target: u16,
    fault: Option<Fault>,
    streams: Vec<TcpStream>,
    round_trips: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    /// Bytes of either side are dropped; new connections are accepted and get no answer.
    Silence,
    /// The server's bytes are dropped after this many.
    SilenceAfter(usize),
    /// The server's bytes are replaced by garbage.
    Garbage,
}

impl Proxy {
    pub(crate) fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State {
            target,
            fault: None,
            streams: Vec::new(),
            round_trips: 0,
        }));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let target = shared.lock().unwrap().target;
                let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else {
                    continue;
                };
                let is_answered = Arc::new(AtomicBool::new(true));
                let streams = [client.try_clone().unwrap(), server.try_clone().unwrap()];
                shared.lock().unwrap().streams.extend(streams);
                for (from, to, is_server) in [
                    (
                        client.try_clone().unwrap(),
                        server.try_clone().unwrap(),
                        false,
                    ),
                    (server, client, true),
                ] {
                    let (shared, is_answered) = (Arc::clone(&shared), Arc::clone(&is_answered));
                    std::thread::spawn(move || pass(from, to, is_server, &is_answered, &shared));
                }
            }
        });
        Self { port, state }
    }

    /// Sets the fault from now on, for existing connections too.
    pub(crate) fn set(&self, fault: Option<Fault>) {
        self.state.lock().unwrap().fault = fault;
    }

    /// Closes every connection.
    pub(crate) fn cut(&self) {
        for stream in self.state.lock().unwrap().streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// How often a client has sent something after its server had, on all connections together.
    pub(crate) fn round_trips(&self) -> u32 {
        self.state.lock().unwrap().round_trips
    }

    /// Forwards new connections to another port; the existing ones stay.
    pub(crate) fn lead_new_ones_to(&self, target: u16) {
        self.state.lock().unwrap().target = target;
    }

    /// Forwards new connections to another port, and closes the existing ones.
    pub(crate) fn lead_to(&self, target: u16) {
        self.state.lock().unwrap().target = target;
        self.cut();
    }
}

fn pass(
    mut from: TcpStream,
    mut to: TcpStream,
    is_server: bool,
    is_answered: &AtomicBool,
    state: &Mutex<State>,
) {
    let mut bytes = [0; 4096];
    loop {
        let count = match from.read(&mut bytes) {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        let (fault, said) = {
            let mut state = state.lock().unwrap();
            if is_answered.swap(is_server, Ordering::Relaxed) && !is_server {
                state.round_trips += 1;
            }
            let fault = state.fault;
            match (&mut state.fault, is_server) {
                (Some(Fault::SilenceAfter(left)), true) => {
                    let said = count.min(*left);
                    *left -= said;
                    (fault, said)
                }
                _ => (fault, count),
            }
        };
        let passed = match fault {
            Some(Fault::Silence) => Ok(()),
            Some(Fault::SilenceAfter(_)) => to.write_all(&bytes[..said]),
            Some(Fault::Garbage) if is_server => to.write_all(b"HTTP/1.1 400 Bad Request\r\n"),
            Some(Fault::Garbage) | None => to.write_all(&bytes[..count]),
        };
        if passed.is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// Starts a fake server, and returns its port: for each client it reads once, writes `says`, waits, and closes.
pub(crate) fn impostor(says: &'static [u8], waits: Duration) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let _ = client.read(&mut [0; 1024]);
                let _ = client.write_all(says);
                #[expect(clippy::disallowed_methods, reason = "that is what it does")]
                std::thread::sleep(waits);
            });
        }
    });
    port
}

/// A port that nothing listens on, and that the system gives to none that asks for any: a server that stops and starts again finds
/// it free.
pub(crate) fn free_port() -> u16 {
    const FIRST: u32 = 20_000;
    const PORTS: u32 = 12_000;
    static NEXT: LazyLock<AtomicU32> = LazyLock::new(|| AtomicU32::new(fastrand::u32(..PORTS)));
    loop {
        let port = FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % PORTS;
        let port = u16::try_from(port).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
