//! The endpoints and the page, served if `[http] listen` is set.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use actix_web::dev::ServerHandle;
use actix_web::{App, HttpServer};
use bgworker::PostmasterHandle;
use bgworker::config::{Setting, Settings};
use thiserror::Error;
use tracing::info;

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
    /// Shows these settings from now on. The text of a job's statements is left out, since it may hold anything.
    pub(crate) fn show(&self, settings: &Settings) {
        let mut texts = vec![String::new(); settings.workers.len()];
        for Setting { key, value, .. } in &settings.shown {
            let worker = key.strip_prefix("worker[");
            let Some((index, key)) = worker.and_then(|rest| rest.split_once("].")) else {
                continue;
            };
            let Some(text) = index
                .parse()
                .ok()
                .and_then(|index: usize| texts.get_mut(index))
            else {
                continue;
            };
            if key == "sql" {
                text.push_str("# sql is not shown\n");
            } else {
                text.extend([key, " = ", &**value, "\n"]);
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
    /// Starts to serve. The server does not handle signals.
    pub(crate) fn serve(
        listen: SocketAddr,
        postmaster: &PostmasterHandle,
        shown: &Shown,
    ) -> Result<Self, ListenError> {
        let (postmaster, shown) = (postmaster.clone(), shown.clone());
        let configuration = move |name: &str| shown.of(name);
        // Made once: each thread of the server shares the history of the workers.
        let endpoints = bgworker::http::configure_with(postmaster, configuration);
        let app = move || App::new().configure(endpoints.clone());
        let server = HttpServer::new(app)
            .workers(1)
            .disable_signals()
            .shutdown_timeout(1)
            .bind(listen)
            .map_err(|error| ListenError { listen, error })?;
        // The actual port: the configuration may leave the choice to the system.
        for address in server.addrs() {
            info!("listening on http://{address}/");
        }
        let server = server.run();
        let handle = server.handle();
        actix::spawn(server);
        Ok(Self(handle))
    }

    /// Stops the server. The Postmaster has exited by then, so listeners to its events have been notified.
    pub(crate) async fn stop(self) {
        self.0.stop(true).await;
    }
}
