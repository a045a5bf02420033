//! The endpoints and the page, served if `[http] listen` is set.

mod connections;
mod door;
mod host;

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};

use actix_server::{Server, ServerHandle};
use bgworker::PostmasterHandle;
use bgworker::config::{Http, Settings};
use thiserror::Error;
use tracing::info;

use self::connections::Connections;
use self::door::Door;

/// The most connections at a time, if the process may have twice as many descriptors.
const CONNECTIONS_MAX: usize = 512;

/// The most connections beyond those, which are being closed.
const BEING_CLOSED_MAX: usize = 16;

/// How many answers are made at a time.
const RENDERING_THREADS: usize = 2;

/// Why nothing is served.
#[derive(Debug, Error)]
#[error(
    "could not listen on {listen}: {error}: give [http] another address in \"listen\", or none"
)]
pub(crate) struct ListenError {
    listen: SocketAddr,
    error: io::Error,
}

/// The configuration of each worker, as the page shows it. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shown(Arc<Mutex<BTreeMap<String, String>>>);

/// A running HTTP server.
pub(crate) struct Web(ServerHandle);

// === impl Shown ===

impl Shown {
    /// Shows these settings from now on. The values that a function hides are left out.
    pub(crate) fn show(&self, settings: &Settings) {
        let mut texts = vec![String::new(); settings.workers.len()];
        for setting in &settings.shown {
            let Some(text) = setting.worker.and_then(|worker| texts.get_mut(worker)) else {
                continue;
            };
            if setting.is_hidden {
                text.extend(["# ", setting.name(), " is not shown\n"]);
            } else {
                text.extend([setting.name(), " = ", &*setting.value, "\n"]);
            }
        }
        let names = settings
            .workers
            .iter()
            .map(|one| one.worker.name.to_string());
        let shown = std::iter::zip(names, texts).collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = shown;
    }

    fn of(&self, name: &str) -> Option<String> {
        let shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shown.get(name).cloned()
    }
}

// === impl Web ===

impl Web {
    /// Starts to serve, on threads of its own. The server does not handle signals.
    ///
    /// Most descriptors are left to the database: connections take at most half of those that the process may have.
    pub(crate) fn serve(
        http: &Http,
        descriptors: u64,
        postmaster: &PostmasterHandle,
        shown: &Shown,
    ) -> Result<Option<Self>, ListenError> {
        let Some(listen) = http.listen else {
            return Ok(None);
        };
        let most = usize::try_from(descriptors / 2).unwrap_or(usize::MAX);
        let most = most.min(CONNECTIONS_MAX);
        let door = Door {
            connections: Arc::new(Mutex::new(Connections::new(most))),
            hosts: http.hosts.clone().into(),
        };
        let (postmaster, shown) = (postmaster.clone(), shown.clone());
        let configuration = move |name: &str| shown.of(name);
        // Made once: each thread of the server shares the history of the workers.
        let endpoints = bgworker::http::configure_with(postmaster, configuration);
        let server = (|| {
            let listener = TcpListener::bind(listen)?;
            // The actual port: the configuration may leave the choice to the system.
            let address = listener.local_addr()?;
            let server = Server::build()
                .workers(1)
                .worker_max_blocking_threads(RENDERING_THREADS)
                // Those beyond `most` have just been accepted, or are being closed.
                .max_concurrent_connections(most + BEING_CLOSED_MAX)
                .disable_signals()
                .shutdown_timeout(1);
            let stopping = server.graceful_shutdown_signal();
            let server = server.listen("http", listener, move || {
                door.connections(&endpoints, stopping.clone())
            })?;
            info!("listening on http://{address}/");
            Ok(server.run())
        })();
        let server = server.map_err(|error| ListenError { listen, error })?;
        let handle = server.handle();
        actix::spawn(server);
        Ok(Some(Self(handle)))
    }

    /// Stops the server. The Postmaster has exited by then, so listeners to its events have been notified.
    pub(crate) async fn stop(self) {
        self.0.stop(true).await;
    }
}
