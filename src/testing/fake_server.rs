//! A server whose state the test sets.

use crate::database::ServerState;
use crate::postmaster::{NoSystem, Postmaster, PostmasterHandle};
use crate::supervision::Limits;

/// What a Postmaster takes for its server: away until the test says otherwise.
///
/// Workers start, are parked and come back as they would with a server in that state. There is no server to
/// connect to: [`WorkerContext::connect`](crate::WorkerContext::connect) fails.
#[derive(Debug)]
pub struct FakeServer(PostmasterHandle);

// === impl FakeServer ===

impl FakeServer {
    /// Starts a Postmaster whose server is away.
    ///
    /// # Errors
    ///
    /// If there is no actix System on this thread.
    pub fn launch(limits: Limits) -> Result<(PostmasterHandle, Self), NoSystem> {
        let postmaster = Postmaster::launch_without_server(limits)?;
        Ok((postmaster.clone(), Self(postmaster)))
    }

    /// Sets the server's state, from now on.
    pub fn becomes(&self, state: ServerState) {
        self.0.server_is(state, None);
    }

    /// Makes the server away from now on, for this reason.
    pub fn goes_away(&self, reason: &str) {
        self.0.server_is(ServerState::Away, Some(reason.into()));
    }
}
