//! `bgworker next`: the next ticks of each job. Asks no server.

use std::io::{self, Write as _};
use std::time::SystemTime;

use bgworker::config::WorkerSettings;
use bgworker::schedule::Timestamp;
use bgworker::sql;
use clap::Args;

use crate::configuration::{self, Configuration};
use crate::exit::Exit;

/// What `next` is told.
#[derive(Debug, Args)]
pub(crate) struct NextArguments {
    #[command(flatten)]
    pub(crate) configuration: Configuration,
    /// The job; every one of the configuration unless it is named.
    #[arg(value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// How many ticks to show of each.
    #[arg(long, value_name = "NUMBER", default_value_t = 5)]
    pub(crate) count: usize,
}

/// Prints the next ticks.
pub(crate) fn next(arguments: &NextArguments) -> Exit {
    let settings = match configuration::read(&arguments.configuration) {
        Ok(settings) => settings,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            return Exit::Configuration;
        }
    };
    let is_meant = |worker: &&WorkerSettings| {
        let name = arguments.name.as_deref();
        name.is_none_or(|name| name == &*worker.worker.name)
    };
    let jobs = settings.workers.iter().filter(is_meant);
    let jobs: Vec<_> = jobs
        .filter_map(|worker| {
            Some((
                &worker.worker.name,
                worker.function.settings::<sql::Settings>()?,
            ))
        })
        .collect();
    if let (true, Some(name)) = (jobs.is_empty(), &arguments.name) {
        let _ = writeln!(
            io::stderr(),
            "there is no job \"{name}\" in the configuration"
        );
        return Exit::Failed;
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "what comes next depends on the time of day"
    )]
    let now = Timestamp::try_from(SystemTime::now()).unwrap_or(Timestamp::UNIX_EPOCH);
    let mut out = io::stdout().lock();
    for (name, job) in jobs {
        // It was checked.
        let Ok(schedule) = job.schedule() else {
            continue;
        };
        let _ = writeln!(out, "{name}");
        let ticks = std::iter::successors(schedule.next(now), |tick| schedule.next(*tick));
        for tick in ticks.take(arguments.count) {
            let _ = writeln!(out, "  {}", schedule.show(tick));
        }
    }
    Exit::Clean
}
