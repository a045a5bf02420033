//! `bgworker bench`: measures what the built-in functions do in a second, and what that costs.
//!
//! Everything is measured in one run and, if asked for, beside it what people do without bgworker. Each scenario
//! checks that no delta was lost; if one was, the bench fails and shows no figures.

mod baseline;
mod configured;
mod fleet;
mod ground;
mod page;
mod progress;
mod report;
mod scenarios;
mod usage;

use std::error::Error;
use std::io::{self, Write as _};
use std::path::PathBuf;

use bgworker::database::ConnInfo;
use bgworker::embedded::ClusterSettings;
use clap::{Args, ValueEnum};
use tracing::error;

use self::ground::Ground;
use self::progress::Progress;
use self::report::Report;
use crate::exit::{self, Exit};
use crate::private_server::{self, StartError};
use crate::signals::Signals;

/// The arguments of `bench`.
#[derive(Clone, Debug, Args)]
pub(crate) struct BenchArguments {
    /// What to measure; everything unless named.
    #[arg(value_enum, value_name = "SCENARIO")]
    scenarios: Vec<Scenario>,
    /// The server: a URL or a key=value string. A private one is started unless this is given.
    #[arg(long, value_name = "URL")]
    database: Option<String>,
    /// Run what people do without bgworker as well, such as the sample's own statement, and show the ratios.
    #[arg(long)]
    baseline: bool,
    /// How long to measure, in seconds, where a scenario has no end of its own.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// How many workers a fleet has, each with a table.
    #[arg(long, value_name = "NUMBER", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    workers: u32,
    /// How long they nap, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=600))]
    naptime: u32,
    /// How many home connections they share.
    #[arg(long, value_name = "NUMBER", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=100))]
    connections: u32,
    /// How many rows a backlog has.
    #[arg(long, value_name = "NUMBER", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    rows: u32,
    /// How many rows a second a stream has.
    #[arg(long, value_name = "NUMBER", default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(50..=1_000_000))]
    rate: u32,
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
    /// Write a page with plots.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// Empty cycles back to back: one worker, and a fleet.
    Idle,
    /// A fleet that naps a second between its cycles: what it costs to have it.
    Fleet,
    /// A backlog folded at once.
    Backlog,
    /// Inserts at a rate, and what dead rows do to the table.
    Stream,
    /// The same beside a snapshot that another client holds.
    Held,
    /// From an insert to its fold.
    Latency,
    /// Counters that 16 clients raise: deltas that a roll-up folds meanwhile, beside upserts into the totals.
    Counters,
    /// A backlog of many keys folded at once, beside the statement that people write by hand.
    Rollup,
    /// Jobs: from a tick to its mark, a thousand at one moment, and what a tick and a job that waits cost.
    Jobs,
}

/// Measures the scenarios that are asked for, and reports their figures.
pub(crate) fn bench(arguments: &BenchArguments) -> Exit {
    crate::logging::init(None, "warn");
    let end = exit::in_system(async {
        let mut signals = Signals::install()?;
        let (conninfo, cluster) = match &arguments.database {
            Some(url) => {
                let environment = crate::configuration::environment()?;
                let variable = |name: &str| {
                    let found = environment.iter().find(|(known, _)| known == name);
                    found.map(|(_, value)| value.clone())
                };
                (ConnInfo::parse(url, variable)?, None)
            }
            None => {
                let settings = ClusterSettings::temporary().option("max_connections", "120");
                match private_server::start(settings, &mut signals).await {
                    Ok(cluster) => (private_server::conninfo(&cluster), Some(cluster)),
                    Err(StartError::Stopped) => return Ok(Exit::Clean),
                    Err(error) => return Err(error.into()),
                }
            }
        };
        let end = tokio::select! {
            measured = measure(arguments, conninfo) => measured.map(|()| Exit::Clean),
            _ = signals.stop() => Ok(Exit::Clean),
        };
        if let Some(cluster) = cluster {
            private_server::stop(cluster).await;
        }
        end
    });
    end.unwrap_or_else(|error: Box<dyn Error>| {
        error!("{error}");
        Exit::Failed
    })
}

async fn measure(arguments: &BenchArguments, conninfo: ConnInfo) -> Result<(), Box<dyn Error>> {
    let ground = Ground::prepare(conninfo).await?;
    let mut report = Report::new(&ground).await?;
    let all = Scenario::value_variants();
    let asked = if arguments.scenarios.is_empty() {
        all
    } else {
        &arguments.scenarios
    };
    let asked: Vec<_> = all
        .iter()
        .filter(|scenario| asked.contains(scenario))
        .collect();
    let steps: usize = asked.iter().map(|scenario| scenario.steps(arguments)).sum();
    let progress = Progress::new(steps as u64);
    for scenario in asked {
        let (report, progress) = (&mut report, &progress);
        match scenario {
            Scenario::Idle => scenarios::idle(&ground, arguments, report, progress).await?,
            Scenario::Fleet => scenarios::fleet(&ground, arguments, report, progress).await?,
            Scenario::Backlog => scenarios::backlog(&ground, arguments, report, progress).await?,
            Scenario::Stream => scenarios::stream(&ground, arguments, report, progress).await?,
            Scenario::Held => scenarios::held(&ground, arguments, report, progress).await?,
            Scenario::Latency => scenarios::latency(&ground, arguments, report, progress).await?,
            Scenario::Counters => scenarios::counters(&ground, arguments, report, progress).await?,
            Scenario::Rollup => scenarios::rollup(&ground, arguments, report, progress).await?,
            Scenario::Jobs => scenarios::jobs(&ground, arguments, report, progress).await?,
        }
    }
    ground.clear().await?;
    drop(progress);
    let text = if arguments.json {
        report.json()
    } else {
        report.table()
    };
    // A reader that has gone away does not matter.
    let _ = writeln!(io::stdout().lock(), "{text}");
    if let Some(file) = &arguments.html {
        std::fs::write(file, page::render(&report))
            .map_err(|error| format!("could not write \"{}\": {error}", file.display()))?;
    }
    Ok(())
}

// === impl Scenario ===

impl Scenario {
    /// How many steps of the progress bar the scenario takes.
    fn steps(self, arguments: &BenchArguments) -> usize {
        match self {
            Self::Idle => scenarios::idle_steps(arguments),
            Self::Fleet => scenarios::fleet_steps(arguments),
            Self::Backlog => scenarios::BACKLOG_STEPS,
            Self::Stream | Self::Held | Self::Latency => 1,
            Self::Counters => scenarios::COUNTERS_STEPS,
            Self::Rollup => scenarios::ROLLUP_STEPS,
            Self::Jobs => 3,
        }
    }
}
