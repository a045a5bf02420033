//! The program `bgworker`: arguments in, exit code out.
//!
//! Built on the library's public API alone. No logic lives in this file.

#![warn(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod check;
mod configuration;
mod demo;
mod exit;
mod logging;
mod private_server;
mod reload;
mod run;
mod service_manager;
mod signals;
mod status;
mod web;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::bench::BenchArguments;
use crate::exit::Exit;
use crate::logging::LogFormat;

/// PostgreSQL's background workers, outside the server.
///
/// Runs the workers of a configuration file against any PostgreSQL server, and keeps them running.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
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
    /// Ask a running instance how its workers are.
    ///
    /// It must listen: [http] listen. Exits with 0 only if every worker is healthy, else with 1.
    Status(StatusArguments),
    /// Show the two workers of PostgreSQL's sample at work, on a private server that leaves no
    /// trace.
    Demo(DemoArguments),
    /// Measure what the built-in worker does in a second, and what that costs.
    ///
    /// Makes a schema of its own, and refuses one that it did not make. Each scenario fails if a delta
    /// was lost.
    Bench(BenchArguments),
}

/// Where settings come from.
#[derive(Clone, Debug, Args)]
struct Configuration {
    /// The configuration file. Without it: $BGWORKER_CONFIG, ./bgworker.toml,
    /// ./conf/bgworker.toml, $XDG_CONFIG_HOME/bgworker/bgworker.toml, /etc/bgworker/bgworker.toml
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The server: a URL or a key=value string, as libpq takes it.
    #[arg(long, value_name = "URL")]
    database: Option<String>,
}

#[derive(Debug, Args)]
struct RunArguments {
    #[command(flatten)]
    configuration: Configuration,
    #[command(flatten)]
    logging: Logging,
}

#[derive(Debug, Args)]
struct CheckArguments {
    #[command(flatten)]
    configuration: Configuration,
    /// Print the settings in force, and where each comes from. Secrets are left out.
    #[arg(long)]
    print: bool,
}

#[derive(Debug, Args)]
struct StatusArguments {
    #[command(flatten)]
    configuration: Configuration,
    /// Where it listens; what the configuration says unless this is given.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Print what it answers, as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct DemoArguments {
    #[command(flatten)]
    logging: Logging,
}

#[derive(Clone, Copy, Debug, Args)]
struct Logging {
    /// How to write the log, which goes to standard error. Text on a terminal, JSON otherwise,
    /// unless set. RUST_LOG sets the level.
    #[arg(long, value_enum, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

fn main() {
    let arguments = Arguments::parse();
    let exit = match arguments.command.unwrap_or(Command::Run(arguments.run)) {
        Command::Run(RunArguments {
            configuration,
            logging,
        }) => {
            logging::init(logging.log_format, "info");
            run::run(&configuration)
        }
        Command::Check(CheckArguments {
            configuration,
            print,
        }) => check::check(&configuration, print),
        Command::Status(arguments) => status::status(&arguments),
        Command::Demo(DemoArguments { logging }) => {
            logging::init(logging.log_format, "warn");
            demo::demo()
        }
        Command::Bench(arguments) => {
            logging::init(None, "warn");
            bench::bench(&arguments)
        }
    };
    // Not by returning: a name lookup that hangs in a thread would keep the process.
    std::process::exit(Exit::code(exit));
}
