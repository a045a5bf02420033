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
        let mut shown = BTreeMap::new();
        for (index, worker) in settings.workers.iter().enumerate() {
            let path = format!("worker[{index}].");
            let mut text = String::new();
            for Setting { key, value, .. } in &settings.shown {
                match key.strip_prefix(&path) {
                    Some("sql") => {
                        text += &format!("# sql: {} characters\n", value.chars().count());
                    }
                    Some(key) => text += &format!("{key} = {value}\n"),
                    None => {}
                }
            }
            shown.insert(worker.worker.name.to_string(), text);
        }
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
        let app = move || {
            let shown = shown.clone();
            let configuration = move |name: &str| shown.of(name);
            App::new().configure(bgworker::http::configure_with(
                postmaster.clone(),
                configuration,
            ))
        };
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
