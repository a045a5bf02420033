//! `bgworker demo`: the two workers of PostgreSQL's sample at work on a private server.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use bgworker::config::{ConfigFile, Functions, Sources, WorkerSettings};
use bgworker::database::{self, Connection, Database};
use bgworker::embedded::{Cluster, ClusterSettings};
use bgworker::reload::InForce;
use bgworker::supervision::Shutdown;
use bgworker::worker_spi::{self, Table};
use bgworker::{Postmaster, PostmasterHandle};
use clap::Args;
use tracing::error;

use crate::exit::{self, Exit};
use crate::logging::{self, Logging};
use crate::private_server::{self, StartError};
use crate::signals::{Request, Signals};

/// The workers that the demo runs.
const SEED: &str = include_str!("../seed.toml");

/// How often a few deltas are inserted.
const INSERT_INTERVAL: Duration = Duration::from_millis(100);

/// How many insertions there are between two lines of totals.
const INSERTIONS_PER_LINE: u32 = 10;

/// The arguments of `demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoArguments {
    #[command(flatten)]
    pub(crate) logging: Logging,
}

/// Runs the demo until told to stop.
pub(crate) fn demo(arguments: &DemoArguments) -> Exit {
    logging::init(arguments.logging.log_format, "warn");
    let end = exit::in_system(async {
        let mut signals = Signals::install()?;
        say("starting a private PostgreSQL server, which takes a few seconds …");
        let settings = ClusterSettings::temporary();
        let cluster = match private_server::start(settings, &mut signals).await {
            Ok(cluster) => cluster,
            Err(StartError::Stopped) => return Ok(Exit::Clean),
            Err(error) => return Err(error.into()),
        };
        let end = show(&cluster, &mut signals).await;
        private_server::stop(cluster).await;
        say("stopped; nothing is left behind");
        end
    });
    end.unwrap_or_else(|error: Box<dyn std::error::Error>| {
        error!("{error}");
        Exit::Failed
    })
}

async fn show(
    cluster: &Cluster,
    signals: &mut Signals,
) -> Result<Exit, Box<dyn std::error::Error>> {
    let sources = Sources {
        file: Some(ConfigFile {
            path: PathBuf::from("conf/seed.toml"),
            text: SEED.to_owned(),
        }),
        environment: Vec::new(),
        database: Some(cluster.conninfo()),
    };
    let settings = bgworker::config::read(&sources, &Functions::built_in())?;
    let tables: Vec<_> = settings.workers.iter().filter_map(table_of).collect();
    let database = Database::new(
        private_server::conninfo(cluster),
        database::Settings::default(),
    )?;
    let postmaster = Postmaster::launch(settings.limits.clone(), Some(database.clone()))?;
    let _in_force = InForce::register(settings.clone(), postmaster.clone()).await?;
    say(&format!("join in with: {}", cluster.psql()));
    say("Ctrl-C ends the demo");
    let client = database.connect("bgworker demo", None).await?;
    let stream = async {
        insert_totals(&postmaster, &client, &tables).await?;
        stream_of_deltas(&postmaster, &client, &tables).await
    };
    let streamed = tokio::select! {
        streamed = stream => streamed,
        // Any signal ends the demo: a terminal that is closed sends SIGHUP.
        _ = signals.next() => Ok(()),
    };
    client.close().await;
    postmaster.shut_down(Shutdown::Smart);
    let exited = postmaster.exited();
    let mut exited = std::pin::pin!(exited);
    let exit = loop {
        tokio::select! {
            exit = &mut exited => break exit?,
            request = signals.next() => if let Request::ShutDown(mode) = request {
                postmaster.shut_down(mode);
            },
        }
    };
    streamed?;
    Ok(if exit.aborted.is_empty() {
        Exit::Clean
    } else {
        Exit::Aborted
    })
}

fn table_of(worker: &WorkerSettings) -> Option<Table> {
    let settings: &worker_spi::Settings = worker.function.settings()?;
    Some(settings.table())
}

/// Gives each table its total, as the sample asks its users to, once the workers have made the tables.
async fn insert_totals(
    postmaster: &PostmasterHandle,
    client: &Connection,
    tables: &[Table],
) -> Result<(), Box<dyn std::error::Error>> {
    let mut interval = tokio::time::interval(Duration::from_millis(20));
    while postmaster.status().await?.counts.ready < tables.len() {
        interval.tick().await;
    }
    for table in tables {
        let sql = format!("INSERT INTO {} VALUES ('total', 0)", table.sql());
        client.batch_execute("insert a total", &sql).await?;
    }
    Ok(())
}

/// Inserts deltas, a few at a time, and shows how the totals move.
async fn stream_of_deltas(
    postmaster: &PostmasterHandle,
    client: &Connection,
    tables: &[Table],
) -> Result<(), Box<dyn std::error::Error>> {
    let mut interval = tokio::time::interval(INSERT_INTERVAL);
    let mut inserted = 0_u64;
    loop {
        for _ in 0..INSERTIONS_PER_LINE {
            interval.tick().await;
            for table in tables {
                let rows = fastrand::u64(1..=5);
                inserted += rows;
                let sql = format!(
                    "INSERT INTO {} SELECT 'delta', 1 FROM pg_catalog.generate_series(1, {rows})",
                    table.sql()
                );
                client.batch_execute("insert deltas", &sql).await?;
            }
        }
        let workers = postmaster.workers().await?.registered;
        let totals: Vec<_> = workers
            .iter()
            .zip(tables)
            .map(|(worker, table)| {
                let total = worker.report.level(worker_spi::TOTAL).unwrap_or(0);
                format!("{table} {total:>6}")
            })
            .collect();
        say(&format!(
            "inserted {inserted:>6}   totals: {}",
            totals.join("   ")
        ));
    }
}

/// Prints a line. The demo goes on even if its reader has gone away.
fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
