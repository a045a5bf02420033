//! `bgworker next`: shows the next ticks of each job. Asks no server.

use std::io::{self, Write as _};
use std::time::SystemTime;

use bgworker::config::WorkerSettings;
use bgworker::schedule::Timestamp;
use bgworker::ticked::When;
use clap::Args;

use crate::configuration::{self, Configuration};
use crate::exit::Exit;

/// The arguments of `next`.
#[derive(Debug, Args)]
pub(crate) struct NextArguments {
    #[command(flatten)]
    pub(crate) configuration: Configuration,
    /// Names of jobs [default: all].
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// How many ticks to show of each.
    #[arg(long, short = 'n', value_name = "NUMBER", default_value_t = 10)]
    pub(crate) count: usize,
    /// The ticks after this time, such as 2026-11-26T02:15:00Z; those to come unless given.
    #[arg(long, value_name = "TIME", value_parser = configuration::time)]
    pub(crate) after: Option<Timestamp>,
}

/// Prints the next ticks.
pub(crate) fn next(arguments: &NextArguments) -> Exit {
    let settings = match configuration::read_without_server(&arguments.configuration) {
        Ok(settings) => settings,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            return Exit::Configuration;
        }
    };
    let jobs: Vec<_> = settings.workers.iter().filter_map(job).collect();
    for name in &arguments.names {
        if let Err(refusal) = configuration::when(&settings, name) {
            let _ = writeln!(io::stderr(), "{refusal}");
            return Exit::Failed;
        }
    }
    if jobs.is_empty() {
        let none = "the configuration has no jobs (function = \"sql\"), and other workers have no ticks: they nap between two cycles";
        let _ = writeln!(io::stderr(), "{none}");
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "what comes next depends on the time of day"
    )]
    let now = Timestamp::try_from(SystemTime::now()).unwrap_or(Timestamp::UNIX_EPOCH);
    let after = arguments.after.unwrap_or(now);
    let mut out = io::stdout().lock();
    for (name, when) in jobs {
        let names = &arguments.names;
        if !names.is_empty() && !names.iter().any(|one| **one == *name) {
            continue;
        }
        let _ = writeln!(out, "{name}");
        let Some(schedule) = when.schedule() else {
            let _ = writeln!(out, "  no ticks: it naps between two runs");
            continue;
        };
        let ticks = std::iter::successors(schedule.next(after), |tick| schedule.next(*tick));
        for tick in ticks.take(arguments.count) {
            let _ = writeln!(out, "  {}", schedule.show(tick));
        }
    }
    Exit::Clean
}

fn job(worker: &WorkerSettings) -> Option<(&str, When)> {
    Some((&worker.worker.name, worker.function.when()?))
}
