//! The endpoints and the page, served if `[http] listen` is set.

use std::io;
use std::net::SocketAddr;

use actix_web::dev::ServerHandle;
use actix_web::{App, HttpServer};
use bgworker::PostmasterHandle;
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

/// A running HTTP server.
pub(crate) struct Web(ServerHandle);

// === impl Web ===

impl Web {
    /// Starts to serve. The server does not handle signals.
    pub(crate) fn serve(
        listen: SocketAddr,
        postmaster: &PostmasterHandle,
    ) -> Result<Self, ListenError> {
        let postmaster = postmaster.clone();
        let app = move || App::new().configure(bgworker::http::configure(postmaster.clone()));
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
