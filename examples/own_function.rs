//! A function of your own, which a worker in a configuration file runs by its name.
//!
//! The function `gauge` runs a query that returns a number, and reports it: on the page at <http://localhost:8080/>,
//! and at `/metrics`. SIGHUP reads the file again; Ctrl-C or SIGTERM ends the program. Another file can be given as the
//! argument: all mistakes in it are reported, including those in the function's keys.

use std::error::Error;
use std::time::Duration;

use actix_web::{App, HttpServer};
use bgworker::config::{
    self, ConfigFile, Function, Functions, Mistake, Server, Settings, Sources, duration,
};
use bgworker::database::{ConnInfo, Database};
use bgworker::embedded::{Cluster, ClusterSettings};
use bgworker::reload::InForce;
use bgworker::supervision::Shutdown;
use bgworker::{BackgroundWorker, Main, Postmaster, WorkerContext, WorkerError};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::warn;

/// Measures a number again and again.
struct Gauge;

/// The keys of `gauge`: these fields, and nothing else.
#[derive(Clone, Serialize, Deserialize)]
struct GaugeSettings {
    /// A query that returns a bigint.
    query: String,
    #[serde(with = "duration", default = "a_minute")]
    naptime: Duration,
    /// A larger number causes a warning.
    #[serde(default)]
    warn_above: Option<i64>,
}

fn a_minute() -> Duration {
    Duration::from_secs(60)
}

impl Function for Gauge {
    const NAME: &'static str = "gauge";
    const IN_PLACE: &'static [&'static str] = &["naptime", "warn_above"];

    type Settings = GaugeSettings;

    fn check(&self, settings: &mut GaugeSettings, _: &BackgroundWorker) -> Vec<Mistake> {
        if settings.query.trim().is_empty() {
            let hint = "such as \"SELECT count(*) FROM shop.sales\"";
            return vec![Mistake::new("query", "there is nothing to run").hint(hint)];
        }
        Vec::new()
    }

    fn main(&self, settings: watch::Receiver<GaugeSettings>) -> impl Main {
        move |context| measure(context, settings.clone())
    }
}

async fn measure(
    mut context: WorkerContext,
    settings: watch::Receiver<GaugeSettings>,
) -> Result<(), WorkerError> {
    let home = context.home(None)?;
    let query = home.statement(&*settings.borrow().query)?;
    context.ready();
    loop {
        let GaugeSettings {
            naptime,
            warn_above,
            ..
        } = settings.borrow().clone();
        let rows = home.run("measure", &query).await?;
        let row = rows
            .first()
            .ok_or_else(|| WorkerError::failed("the query returned no row"))?;
        let measured: i64 = row.try_get(0)?;
        if warn_above.is_some_and(|limit| measured > limit) {
            warn!("{} is at {measured}", context.name());
        }
        context.progress().level("measured", measured);
        context.progress().succeeded();
        if context.nap(naptime).await.is_stop() {
            return Ok(());
        }
    }
}

fn read(path: &str) -> Result<Settings, Box<dyn Error>> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let sources = Sources {
        file: Some(ConfigFile {
            path: path.into(),
            text,
        }),
        ..Sources::default()
    };
    Ok(config::read(&sources, &Functions::built_in().with(Gauge))?)
}

#[actix::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().init();
    let path = std::env::args().nth(1);
    let path = path.as_deref().unwrap_or("examples/own_function.toml");
    let settings = read(path).unwrap_or_else(|error| {
        eprintln!("{error}");
        std::process::exit(78)
    });

    let (conninfo, cluster) = match &settings.server {
        Server::Given { conninfo, .. } => (ConnInfo::clone(conninfo), None),
        Server::NotGiven => return Err("no server is given".into()),
        Server::Embedded { .. } => {
            let start = || Cluster::start(ClusterSettings::temporary());
            let cluster = tokio::task::spawn_blocking(start).await??;
            (
                ConnInfo::parse(&cluster.conninfo(), |_| None)?,
                Some(cluster),
            )
        }
    };
    let database = Database::new(conninfo, settings.database_settings.clone())?;
    let postmaster = Postmaster::launch(settings.limits.clone(), Some(database))?;
    if let Some(listen) = settings.http.listen {
        let endpoints = bgworker::http::configure(postmaster.clone());
        let app = move || App::new().configure(endpoints.clone());
        let server = HttpServer::new(app)
            .workers(1)
            .disable_signals()
            .bind(listen)?;
        for address in server.addrs() {
            println!("listening on http://{address}/");
        }
        actix::spawn(server.run());
    }
    let mut in_force = InForce::register(settings, postmaster.clone()).await?;

    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    loop {
        tokio::select! {
            _ = hangup.recv() => match read(path) {
                Ok(settings) => in_force.reload(settings).await?,
                Err(error) => eprintln!("{error}: nothing was changed"),
            },
            _ = terminate.recv() => break,
            interrupted = tokio::signal::ctrl_c() => break interrupted?,
        }
    }
    postmaster.shut_down(Shutdown::Smart);
    postmaster.exited().await?;
    if let Some(cluster) = cluster {
        tokio::task::spawn_blocking(|| cluster.stop()).await??;
    }
    println!("all have ended");
    Ok(())
}
