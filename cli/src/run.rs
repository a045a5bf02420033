//! `bgworker run`: runs the workers of the configuration until told to stop.

use std::pin::Pin;

use bgworker::config::{Server, Settings};
use bgworker::database::{ConnInfo, Database};
use bgworker::embedded::{Cluster, ClusterSettings};
use bgworker::reload::InForce;
use bgworker::supervision::Shutdown;
use bgworker::{Postmaster, PostmasterExit, PostmasterHandle, RequestError};
use clap::Args;
use tracing::{error, info, warn};

use crate::configuration::{self, Configuration, ConfigurationError};
use crate::exit::{self, Exit};
use crate::logging::{self, Logging};
use crate::private_server::{self, StartError};
use crate::service_manager::ServiceManager;
use crate::signals::{Request, Signals};
use crate::web::{Shown, Web};

/// The arguments of `run`.
#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    #[command(flatten)]
    pub(crate) configuration: Configuration,
    #[command(flatten)]
    pub(crate) logging: Logging,
}

/// Reads the configuration, runs its workers, and returns how that ended.
pub(crate) fn run(arguments: &RunArguments) -> Exit {
    logging::init(arguments.logging.log_format, "info");
    let configuration = &arguments.configuration;
    let settings = match configuration::read(configuration) {
        Ok(settings) => settings,
        Err(error) => {
            log_configuration_error(&error);
            return Exit::Configuration;
        }
    };
    exit::in_system(async {
        // Before anything is started, so that no signal can leave anything behind.
        let signals = match Signals::install() {
            Ok(signals) => signals,
            Err(error) => {
                error!("could not install signal handlers: {error}");
                return Exit::Failed;
            }
        };
        serve(configuration, settings, signals).await
    })
}

/// Finds or starts the server, runs the workers, and then stops the server if it is a private one.
async fn serve(configuration: &Configuration, settings: Settings, mut signals: Signals) -> Exit {
    let (conninfo, mut cluster) = match server(&settings.server, &mut signals).await {
        Ok(server) => server,
        Err(StartError::Stopped) => return Exit::Clean,
        Err(error) => {
            error!("{error}");
            return Exit::Failed;
        }
    };
    let exit = supervise(configuration, settings, conninfo, cluster.as_mut(), signals).await;
    let has_stopped = match cluster {
        Some(cluster) => private_server::stop(cluster).await,
        None => true,
    };
    if has_stopped { exit } else { Exit::Failed }
}

async fn server(
    server: &Server,
    signals: &mut Signals,
) -> Result<(ConnInfo, Option<Cluster>), StartError> {
    match server {
        Server::Given {
            conninfo,
            instead_of_embedded,
        } => {
            let target = conninfo.target(None);
            if *instead_of_embedded {
                info!("using {target}: a URL is given, so no private server is started");
            } else {
                info!("using {target}");
            }
            Ok((ConnInfo::clone(conninfo), None))
        }
        Server::NotGiven => Err(StartError::NotGiven),
        Server::Embedded { data_dir } => {
            let data_dir = data_dir.clone();
            let data_dir = data_dir.unwrap_or_else(ClusterSettings::default_data_dir);
            info!("starting a private server in \"{}\"", data_dir.display());
            let cluster = private_server::start(ClusterSettings::kept(data_dir), signals).await?;
            info!("join in with: {}", cluster.psql());
            Ok((private_server::conninfo(&cluster), Some(cluster)))
        }
    }
}

async fn supervise(
    configuration: &Configuration,
    settings: Settings,
    conninfo: ConnInfo,
    cluster: Option<&mut Cluster>,
    mut signals: Signals,
) -> Exit {
    let shown = Shown::default();
    let descriptors = crate::descriptors::raise_limit();
    let (postmaster, web, in_force) = match launch(settings, conninfo, descriptors, &shown).await {
        Ok(launched) => launched,
        Err(error) => {
            error!("{error}");
            return Exit::Failed;
        }
    };
    let service_manager = ServiceManager::ready(&postmaster);
    let exited = postmaster.exited();
    let mut exited = std::pin::pin!(exited);
    let mut server_ended = std::pin::pin!(private_server::ended(cluster));
    let mut has_server = true;
    // A reload may wait for a worker to end. Signals are handled meanwhile, and another reload waits for its turn.
    let mut idle = Some(in_force);
    let mut reloading = None;
    let mut reloads_again = false;
    let exit = loop {
        if reloads_again && let Some(in_force) = idle.take() {
            reloads_again = false;
            service_manager.reloading();
            reloading = Some(Box::pin(reload(configuration, in_force, shown.clone())));
        }
        tokio::select! {
            exit = &mut exited => break how_it_ended(exit, has_server),
            error = &mut server_ended, if has_server => {
                error!("{error}");
                has_server = false;
                service_manager.stopping();
                postmaster.shut_down(Shutdown::Fast);
            }
            in_force = settled(&mut reloading) => {
                reloading = None;
                idle = Some(in_force);
                service_manager.reloaded();
            }
            request = signals.next() => match request {
                Request::Reload => reloads_again = true,
                Request::ShutDown(mode) => {
                    service_manager.stopping();
                    postmaster.shut_down(mode);
                }
            },
        }
    };
    if let Some(web) = web {
        web.stop().await;
    }
    exit
}

fn how_it_ended(exit: Result<PostmasterExit, RequestError>, has_server: bool) -> Exit {
    match exit {
        Ok(_) if !has_server => Exit::Failed,
        Ok(exit) if exit.aborted.is_empty() => Exit::Clean,
        Ok(_) => Exit::Aborted,
        Err(error) => {
            error!("{error}");
            Exit::Failed
        }
    }
}

async fn launch(
    settings: Settings,
    conninfo: ConnInfo,
    descriptors: u64,
    shown: &Shown,
) -> Result<(PostmasterHandle, Option<Web>, InForce), Box<dyn std::error::Error>> {
    if settings.workers.is_empty() {
        warn!("the configuration has no [[worker]]: there is nothing to do");
    }
    let database = Database::new(conninfo, settings.database_settings.clone())?;
    let postmaster = Postmaster::launch(settings.limits.clone(), Some(database))?;
    // Before a worker has done anything: an instance that cannot listen must not have done any work.
    let web = Web::serve(&settings.http, descriptors, &postmaster, shown)?;
    shown.show(&settings);
    let in_force = InForce::register(settings, postmaster.clone()).await?;
    Ok((postmaster, web, in_force))
}

/// Waits until the reload under way has ended; forever if there is none.
async fn settled(reloading: &mut Option<Pin<Box<impl Future<Output = InForce>>>>) -> InForce {
    match reloading {
        Some(reloading) => reloading.await,
        None => std::future::pending().await,
    }
}

/// Reads the configuration again, and applies it whole or not at all.
async fn reload(configuration: &Configuration, mut in_force: InForce, shown: Shown) -> InForce {
    info!("received SIGHUP, reloading configuration files");
    match configuration::read_beside(configuration).await {
        Ok(settings) => {
            if settings.workers.is_empty() {
                warn!("the configuration has no [[worker]]: there is nothing to do");
            }
            shown.show(&settings);
            if let Err(error) = in_force.reload(settings).await {
                error!("{error}");
            }
        }
        Err(error @ ConfigurationError::Problems(_)) => {
            log_configuration_error(&error);
            error!("the configuration has mistakes: nothing was changed");
        }
        Err(error) => warn!("{error}: nothing was changed"),
    }
    in_force
}

/// Logs one line for each mistake.
fn log_configuration_error(error: &ConfigurationError) {
    for line in error.to_string().lines() {
        error!("{line}");
    }
}
