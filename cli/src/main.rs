//! The program `bgworker`: arguments in, exit code out.
//!
//! Built on the library's public API alone. No logic lives in this file.

#![warn(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod check;
mod configuration;
mod ddl;
mod demo;
mod exit;
mod logging;
mod next;
mod once;
mod private_server;
mod run;
mod service_manager;
mod signals;
mod status;
mod web;

use clap::{Parser, Subcommand};

use crate::bench::BenchArguments;
use crate::check::CheckArguments;
use crate::ddl::DdlArguments;
use crate::demo::DemoArguments;
use crate::exit::Exit;
use crate::next::NextArguments;
use crate::once::OnceArguments;
use crate::run::RunArguments;
use crate::status::StatusArguments;

/// PostgreSQL's background workers, outside the server.
///
/// Runs the workers of a configuration file against any PostgreSQL server, and keeps them running.
#[derive(Debug, Parser)]
#[command(name = "bgworker", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the workers until told to stop (the default).
    ///
    /// SIGTERM: finish what runs, then stop. SIGINT: cancel what runs, then stop. SIGQUIT: stop at
    /// once. SIGHUP: read the configuration again.
    Run(RunArguments),
    /// Read and check the configuration, and report every mistake in it.
    ///
    /// Opens no connection and writes no file. Exits with 0 if all is well, with 78 if not.
    Check(CheckArguments),
    /// Show the next ticks of each job.
    ///
    /// Asks no server: what is due is decided from its clock, and this is shown by the one of this machine.
    Next(NextArguments),
    /// Run a job now, beside its schedule, or only try it.
    ///
    /// Which ticks are done stays as it is; the run is recorded as "once". Exits with 0 only if it ran through.
    Once(OnceArguments),
    /// Print the statements that make the tables of workers, for an administrator who has to see them first.
    ///
    /// With these tables in place, bgworker needs no right to create anything. Asks no server.
    Ddl(DdlArguments),
    /// Ask a running instance how its workers are.
    ///
    /// It must listen: [http] listen. Exits with 0 only if every worker is healthy, else with 1.
    Status(StatusArguments),
    /// Show the two workers of PostgreSQL's sample at work, on a private server that leaves no
    /// trace.
    Demo(DemoArguments),
    /// Measure what the built-in functions do in a second, and what that costs.
    ///
    /// Makes a schema of its own, and refuses one that it did not make. Each scenario fails if a delta
    /// or a tick was lost.
    Bench(BenchArguments),
}

fn main() {
    let arguments = Arguments::parse();
    let exit = match arguments.command.unwrap_or(Command::Run(arguments.run)) {
        Command::Run(arguments) => run::run(&arguments),
        Command::Check(arguments) => check::check(&arguments),
        Command::Next(arguments) => next::next(&arguments),
        Command::Once(arguments) => once::once(&arguments),
        Command::Ddl(arguments) => ddl::ddl(&arguments),
        Command::Status(arguments) => status::status(&arguments),
        Command::Demo(arguments) => demo::demo(&arguments),
        Command::Bench(arguments) => bench::bench(&arguments),
    };
    // Not by returning: a name lookup that hangs in a thread would keep the process.
    std::process::exit(Exit::code(exit));
}
