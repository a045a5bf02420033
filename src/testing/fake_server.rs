//! A server that is what a test says.

use crate::database::ServerState;
use crate::postmaster::{NoSystem, Postmaster, PostmasterHandle};
use crate::supervision::Limits;

/// What a Postmaster takes for its server: away until the test says otherwise.
///
/// Workers start, are parked and come back as they would with a server of that state. There is none to
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

    /// From now on the server is this.
    pub fn becomes(&self, state: ServerState) {
        self.0.server_is(state, None);
    }

    /// From now on the server is away, and this is why.
    pub fn goes_away(&self, reason: &str) {
        self.0.server_is(ServerState::Away, Some(reason.into()));
    }
}
