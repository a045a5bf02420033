//! `bgworker once`: one run of a job, now, beside its schedule.

use std::error::Error;
use std::io::{self, Write as _};

use bgworker::config::Settings;
use bgworker::schedule::Timestamp;
use bgworker::ticked::{self, Once, OnceReport};
use clap::Args;

use crate::configuration::{self, Configuration};
use crate::exit::{self, Exit};
use crate::signals::Signals;

/// The arguments of `once`.
#[derive(Debug, Args)]
pub(crate) struct OnceArguments {
    #[command(flatten)]
    pub(crate) configuration: Configuration,
    /// The job.
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// The tick that its statements are told, such as 2026-11-26T02:15:00Z; the time of the server unless given.
    #[arg(long, value_name = "TIME", value_parser = configuration::time)]
    pub(crate) tick: Option<Timestamp>,
    /// Undo it, and show what it would have written. Sequences, and what leaves the database, are not undone.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Runs the job, and prints what it did.
pub(crate) fn once(arguments: &OnceArguments) -> Exit {
    crate::logging::init(None, "warn");
    let settings = match configuration::read(&arguments.configuration) {
        Ok(settings) => settings,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            return Exit::Configuration;
        }
    };
    let name = &arguments.name;
    match exit::in_system(run(arguments, settings)) {
        Ok(report) => {
            let _ = io::stdout()
                .lock()
                .write_all(show(arguments, &report).as_bytes());
            Exit::Clean
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "{name}: {error}");
            Exit::Failed
        }
    }
}

async fn run(arguments: &OnceArguments, settings: Settings) -> Result<OnceReport, Box<dyn Error>> {
    let when = configuration::when(&settings, &arguments.name)?;
    let database = configuration::database(settings)?;
    let once = Once {
        tick: arguments.tick,
        dry_run: arguments.dry_run,
    };
    let mut signals = Signals::install()?;
    let interrupted = async {
        signals.stop().await;
    };
    let report = ticked::once(&database, &arguments.name, &when, once, interrupted).await;
    database.close().await;
    Ok(report?)
}

fn show(arguments: &OnceArguments, report: &OnceReport) -> String {
    let (name, rows) = (&arguments.name, report.rows);
    let milliseconds = report.took.as_millis();
    if !arguments.dry_run {
        return format!("{name}: done, {rows} rows in {milliseconds} ms\n");
    }
    let mut text = format!("{name}: would write {rows} rows in {milliseconds} ms; all is undone\n");
    for change in &report.changes {
        text += &format!(
            "  {}: {} inserted, {} updated, {} deleted\n",
            change.table, change.inserted, change.updated, change.deleted
        );
    }
    text
}
