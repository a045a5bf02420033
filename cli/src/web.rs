//! The endpoints and the page, where `[http] listen` asks for them.

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

/// A server that runs.
pub(crate) struct Web(ServerHandle);

// === impl Web ===

impl Web {
    /// Begins to serve. Signals are not its business.
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
        // The port that it has, where any will do.
        for address in server.addrs() {
            info!("listening on http://{address}/");
        }
        let server = server.run();
        let handle = server.handle();
        actix::spawn(server);
        Ok(Self(handle))
    }

    /// Ends it. Listeners have been told by then: the Postmaster has exited.
    pub(crate) async fn stop(self) {
        self.0.stop(true).await;
    }
}
