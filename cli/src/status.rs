//! `bgworker status`: what a running instance says of its workers.

use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bgworker::http::{Snapshot, WorkerSnapshot};
use bgworker::schedule::Timestamp;
use clap::Args;
use thiserror::Error;

use crate::configuration::{self, Configuration, ConfigurationError};
use crate::exit::Exit;

/// How long the answer may take, all of it.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What the name of a figure ends in that is a time.
const TIME: &str = "_timestamp_seconds";

/// What `status` is told.
#[derive(Debug, Args)]
pub(crate) struct StatusArguments {
    #[command(flatten)]
    pub(crate) configuration: Configuration,
    /// Where it listens; what the configuration says unless this is given.
    #[arg(long, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// Print what it answers, as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Why there is nothing to show.
#[derive(Debug, Error)]
enum StatusError {
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
    #[error(
        "the configuration does not say where a running instance listens: set \"listen\" in [http], such as \
         listen = \"127.0.0.1:9187\", and start it again; or pass --url URL"
    )]
    NotListening,
    #[error("could not ask {url}: {error}: is bgworker running, with [http] listen?")]
    Unreachable { url: String, error: ureq::Error },
    #[error("{url} does not answer as bgworker does: {error}")]
    Strange {
        url: String,
        error: serde_json::Error,
    },
}

/// Asks, prints, and exits with 0 only if every worker is healthy.
pub(crate) fn status(arguments: &StatusArguments) -> Exit {
    let (text, snapshot) = match ask(arguments) {
        Ok(answer) => answer,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            return match error {
                StatusError::Configuration(_) => Exit::Configuration,
                _ => Exit::Failed,
            };
        }
    };
    let text = if arguments.json {
        text
    } else {
        table(&snapshot)
    };
    // Whether anybody reads it does not matter.
    let _ = writeln!(io::stdout().lock(), "{}", text.trim_end());
    if snapshot.healthy {
        Exit::Clean
    } else {
        Exit::Failed
    }
}

fn ask(arguments: &StatusArguments) -> Result<(String, Snapshot), StatusError> {
    let url = match &arguments.url {
        Some(url) => url.clone(),
        None => url(&arguments.configuration)?,
    };
    let url = format!("{}/status", url.trim_end_matches('/'));
    // A proxy for the outer world knows nothing of an instance of ours.
    let settings = ureq::Agent::config_builder()
        .timeout_global(Some(TIMEOUT))
        .proxy(None)
        .build();
    let answer = ureq::Agent::new_with_config(settings).get(&url).call();
    let text = answer.and_then(|mut answer| answer.body_mut().read_to_string());
    let text = text.map_err(|error| StatusError::Unreachable {
        url: url.clone(),
        error,
    })?;
    match serde_json::from_str(&text) {
        Ok(snapshot) => Ok((text, snapshot)),
        Err(error) => Err(StatusError::Strange { url, error }),
    }
}

/// Where the instance of this configuration listens.
fn url(configuration: &Configuration) -> Result<String, StatusError> {
    let settings = configuration::read(configuration)?;
    let listen = settings.http.listen.ok_or(StatusError::NotListening)?;
    // Whoever listens everywhere listens here too.
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    Ok(format!("http://{}", SocketAddr::new(ip, listen.port())))
}

/// For people: a line for each worker, and below it what its trouble is.
fn table(snapshot: &Snapshot) -> String {
    let workers = &snapshot.workers;
    let figures: BTreeSet<_> = workers.iter().flat_map(|one| one.figures.keys()).collect();
    let heading = ["worker", "state", "since", "success", "restarts"];
    let heading = heading.map(str::to_owned).into_iter();
    let names = figures
        .iter()
        .map(|name| name.trim_end_matches(TIME).to_owned());
    let heading: Vec<_> = heading.chain(names).collect();
    let rows: Vec<_> = std::iter::once(heading.clone())
        .chain(workers.iter().map(|worker| row(worker, &figures)))
        .collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let shutdown = snapshot.shutdown.as_ref();
    let shutdown = shutdown.map_or(String::new(), |mode| format!(", {mode} shutdown"));
    let mut text = format!(
        "bgworker {}: {}{shutdown}\n",
        snapshot.version,
        server(snapshot)
    );
    if snapshot.workers.is_empty() {
        text += "\nno background worker is registered\n";
        return text;
    }
    text += "\n";
    let troubles =
        std::iter::once(None).chain(snapshot.workers.iter().map(WorkerSnapshot::trouble));
    for (row, trouble) in std::iter::zip(&rows, troubles) {
        for (column, cell) in row.iter().enumerate() {
            let fill = " ".repeat(widths[column] - cell.chars().count());
            // Numbers stand at the right.
            let cell = if column < 2 {
                format!("{cell}{fill}")
            } else {
                format!("{fill}{cell}")
            };
            text += if column == 0 { "" } else { "  " };
            text += &cell;
        }
        text.truncate(text.trim_end_matches(' ').len());
        text += "\n";
        text.extend(trouble.map(|trouble| format!("    {}\n", plain(&trouble))));
    }
    text
}

/// What the server is, and why it is away.
fn server(snapshot: &Snapshot) -> String {
    let Some(server) = &snapshot.server else {
        return "no server".to_owned();
    };
    let mut text = format!("server is {}", server.state);
    if let Some(reason) = &server.reason {
        text += &format!(" for {}: {}", span(server.state_seconds), plain(reason));
    }
    text
}

fn row(worker: &WorkerSnapshot, figures: &BTreeSet<&String>) -> Vec<String> {
    let figures = figures.iter().map(|name| {
        let value = worker.figures.get(*name);
        value.map_or_else(String::new, |value| figure(name, *value))
    });
    let cells = [
        plain(&worker.name),
        match worker.next_start_seconds {
            Some(wait) => format!("{}, starts in {}", worker.state, span(wait)),
            None => worker.state.to_string(),
        },
        span(worker.state_seconds),
        worker
            .last_success_seconds
            .map_or_else(|| "never".to_owned(), |age| format!("{} ago", span(age))),
        worker.restarts.to_string(),
    ];
    cells.into_iter().chain(figures).collect()
}

/// A figure, or the time that it is.
fn figure(name: &str, value: i64) -> String {
    let time = name.ends_with(TIME).then(|| Timestamp::from_second(value));
    match time {
        Some(Ok(time)) => time.to_string(),
        _ => value.to_string(),
    }
}

/// A text that steers no terminal, on one line.
fn plain(text: &str) -> String {
    let escaped = |c: char| {
        let control = c.is_control().then(|| c.escape_default().to_string());
        control.unwrap_or_else(|| c.to_string())
    };
    text.chars().map(escaped).collect()
}

/// Whole seconds, in the largest units.
fn span(seconds: f64) -> String {
    let whole = Duration::try_from_secs_f64(seconds.floor());
    humantime::format_duration(whole.unwrap_or_default()).to_string()
}
