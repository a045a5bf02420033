//! A private server around the workers: started before them, stopped after them, and never left behind because an
//! impatient user sent a signal.

use std::time::Duration;

use bgworker::database::ConnInfo;
use bgworker::embedded::{Cluster, ClusterSettings, EmbeddedError};
use thiserror::Error;
use tracing::{error, info};

use crate::signals::Signals;

/// Why there is no private server.
#[derive(Debug, Error)]
pub(crate) enum StartError {
    /// The server could not be started.
    #[error("{}", with_cause(.0))]
    Embedded(#[from] EmbeddedError),
    /// A signal asked to stop while the server was being started; the server has been stopped again.
    #[error("asked to stop")]
    Stopped,
    /// There is no server to use. Reading a configuration refuses that.
    #[error("no server is given")]
    NotGiven,
    /// The thread that starts the server died.
    #[error("the thread that starts the private server died")]
    Thread,
}

/// Starts a private server. A request to stop waits until the server has started, and stops it again.
pub(crate) async fn start(
    settings: ClusterSettings,
    signals: &mut Signals,
) -> Result<Cluster, StartError> {
    let mut starting = tokio::task::spawn_blocking(|| Cluster::start(settings));
    tokio::select! {
        started = &mut starting => Ok(started.map_err(|_| StartError::Thread)??),
        _ = signals.stop() => {
            info!("asked to stop while the private server is being started");
            if let Ok(Ok(cluster)) = starting.await {
                stop(cluster).await;
            }
            Err(StartError::Stopped)
        }
    }
}

/// Waits until the server has ended by itself; forever if there is none.
pub(crate) async fn ended(cluster: Option<&mut Cluster>) -> EmbeddedError {
    let Some(cluster) = cluster else {
        return std::future::pending().await;
    };
    // The end of a child process can only be polled for.
    let mut interval = tokio::time::interval(Duration::from_secs(1));
    loop {
        interval.tick().await;
        if let Some(error) = cluster.ended() {
            return error;
        }
    }
}

/// Stops the server, waits until it has stopped, and returns `true` if it has.
pub(crate) async fn stop(cluster: Cluster) -> bool {
    match tokio::task::spawn_blocking(|| cluster.stop()).await {
        Ok(Ok(())) => return true,
        Ok(Err(stop_error)) => error!("{stop_error}"),
        Err(_) => error!("the thread that stops the private server died"),
    }
    false
}

/// How to connect to the server: environment variables do not apply.
pub(crate) fn conninfo(cluster: &Cluster) -> ConnInfo {
    ConnInfo::parse(&cluster.conninfo(), |_| None).expect("a cluster knows its own address")
}

fn with_cause(error: &EmbeddedError) -> String {
    match std::error::Error::source(error) {
        Some(cause) if !error.to_string().contains(&cause.to_string()) => {
            format!("{error}: {cause}")
        }
        Some(_) | None => error.to_string(),
    }
}
