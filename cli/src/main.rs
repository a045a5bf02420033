//! The program `bgworker`: arguments in, exit code out.
//!
//! Built on the library's public API alone. No logic lives in this file.

#![warn(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod check;
mod completions;
mod configuration;
mod ddl;
mod declare;
mod demo;
mod descriptors;
mod exit;
mod init;
mod logging;
mod man;
mod next;
mod once;
mod private_server;
mod run;
mod schema;
mod service_manager;
mod signals;
mod status;
mod web;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::bench::BenchArguments;
use crate::check::CheckArguments;
use crate::completions::CompletionsArguments;
use crate::ddl::DdlArguments;
use crate::declare::DeclareArguments;
use crate::demo::DemoArguments;
use crate::exit::Exit;
use crate::init::InitArguments;
use crate::man::ManArguments;
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
    /// Asks no server: shows ticks by this machine's clock, although the server's clock decides what is due.
    Next(NextArguments),
    /// Run a job now, beside its schedule, or only try it.
    ///
    /// Does not change which ticks are done; the run is recorded as "once". Exits with 0 only if it succeeded.
    Once(OnceArguments),
    /// Have a job done as this configuration has it, if another instance has declared it differently.
    ///
    /// The last declaration wins; an instance that starts does not bring back one that was replaced before, and this does.
    Declare(DeclareArguments),
    /// Print the statements that create the workers' tables, for an administrator to review and run.
    ///
    /// With these tables in place, bgworker needs no right to create anything. Asks no server.
    Ddl(DdlArguments),
    /// Show the state of a running instance's workers.
    ///
    /// It must listen: [http] listen. Exits with 0 only if every worker is healthy, else with 1.
    Status(StatusArguments),
    /// Write a commented configuration to begin with.
    ///
    /// Its one worker needs no table. An existing file is left as it is.
    Init(InitArguments),
    /// Show the two workers of PostgreSQL's sample at work, on a private server that leaves no
    /// trace.
    Demo(DemoArguments),
    /// Measure what the built-in functions do in a second, and what that costs.
    ///
    /// Makes a schema of its own, and refuses one that it did not make. Each scenario fails if a delta
    /// or a tick was lost.
    Bench(BenchArguments),
    /// Print the completions of a shell.
    ///
    /// For bash: bgworker completions bash > /etc/bash_completion.d/bgworker
    Completions(CompletionsArguments),
    /// Print the manual page of the program, or of one of its commands.
    ///
    /// To read it: bgworker man | man -l -
    Man(ManArguments),
    /// Print the JSON Schema of the configuration file, with which editors complete and check it.
    Schema,
}

fn main() {
    let arguments = Arguments::parse();
    let exit = match arguments.command.unwrap_or(Command::Run(arguments.run)) {
        Command::Run(arguments) => run::run(&arguments),
        Command::Check(arguments) => check::check(&arguments),
        Command::Next(arguments) => next::next(&arguments),
        Command::Once(arguments) => once::once(&arguments),
        Command::Declare(arguments) => declare::declare(&arguments),
        Command::Ddl(arguments) => ddl::ddl(&arguments),
        Command::Status(arguments) => status::status(&arguments),
        Command::Demo(arguments) => demo::demo(&arguments),
        Command::Bench(arguments) => bench::bench(&arguments),
        Command::Init(arguments) => init::init(&arguments),
        Command::Completions(arguments) => {
            completions::completions(&arguments, &mut Arguments::command())
        }
        Command::Man(arguments) => man::man(&arguments, Arguments::command()),
        Command::Schema => schema::schema(),
    };
    logging::flush();
    // Ends the process without waiting for threads that are still at work.
    std::process::exit(Exit::code(exit));
}
