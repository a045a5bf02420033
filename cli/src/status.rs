//! `bgworker status`: what a running instance reports about its workers.

mod table;

use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bgworker::http::Snapshot;
use clap::Args;
use console::Term;
use thiserror::Error;

use crate::configuration::{self, Configuration, ConfigurationError};
use crate::exit::Exit;

/// How long the request may take as a whole, including the answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Time between two answers of `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// The arguments of `status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArguments {
    #[command(flatten)]
    pub(crate) configuration: Configuration,
    /// The URL of the instance [default: from the configuration].
    #[arg(long, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// Print the answer as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Show the table again every second, in place, until interrupted.
    #[arg(long, conflicts_with = "json")]
    pub(crate) watch: bool,
    /// Only ask whether it is alive, whatever its workers do. For what restarts it if it is not.
    #[arg(long, conflicts_with_all = ["json", "watch"])]
    pub(crate) live: bool,
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
    #[error("{url} answered with {status}: {}", text.trim_end())]
    Refused {
        url: String,
        status: u16,
        text: String,
    },
    #[error("{url} did not answer like bgworker: {error}")]
    Strange {
        url: String,
        error: serde_json::Error,
    },
}

/// Asks the instance, prints its answer, and exits with 0 only if every worker is healthy.
pub(crate) fn status(arguments: &StatusArguments) -> Exit {
    let url = match &arguments.url {
        Some(url) => Ok(url.clone()),
        None => url(&arguments.configuration),
    };
    let url = match url {
        Ok(url) => {
            let path = if arguments.live { "livez" } else { "status" };
            let scheme = if url.contains("://") { "" } else { "http://" };
            format!("{scheme}{}/{path}", url.trim_end_matches('/'))
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            return match error {
                StatusError::Configuration(_) => Exit::Configuration,
                _ => Exit::Failed,
            };
        }
    };
    if arguments.live {
        is_alive(&url)
    } else if arguments.watch {
        watch(&url)
    } else {
        once(&url, arguments.json)
    }
}

/// Shows whether the instance is alive.
fn is_alive(url: &str) -> Exit {
    match get(url) {
        Ok(text) => {
            let _ = write!(io::stdout().lock(), "{text}");
            Exit::Clean
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            Exit::Failed
        }
    }
}

/// Shows the answer of one moment.
fn once(url: &str, json: bool) -> Exit {
    let (text, snapshot) = match ask(url) {
        Ok(answer) => answer,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            return Exit::Failed;
        }
    };
    let text = if json { text } else { table::table(&snapshot) };
    // A reader that has gone away does not matter.
    let _ = writeln!(io::stdout().lock(), "{}", text.trim_end());
    if snapshot.healthy {
        Exit::Clean
    } else {
        Exit::Failed
    }
}

/// Shows the answer again and again, in place on a terminal, until the reader has gone away or a signal ends the program.
fn watch(url: &str) -> Exit {
    let terminal = Term::stdout();
    loop {
        let text = match ask(url) {
            Ok((_, snapshot)) => table::table(&snapshot),
            Err(error) => format!("{error}\n"),
        };
        let shown = if terminal.is_term() {
            show_in_place(&terminal, &text)
        } else {
            writeln!(io::stdout().lock(), "{text}")
        };
        if shown.is_err() {
            return Exit::Clean;
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "between two looks there is nothing else to wait for"
        )]
        std::thread::sleep(WATCH_INTERVAL);
    }
}

/// Replaces what the terminal shows by as much of this as fits.
fn show_in_place(terminal: &Term, text: &str) -> io::Result<()> {
    let (height, width) = terminal.size();
    let (height, width) = (usize::from(height), usize::from(width));
    let lines: Vec<_> = text.lines().collect();
    let hidden = (lines.len() + 1).saturating_sub(height);
    let fit = if hidden > 0 {
        height.saturating_sub(2)
    } else {
        lines.len()
    };
    // One write, so that the terminal never shows half of it: each line replaces the one that was there.
    let mut screen = "\x1b[H".to_owned();
    for line in lines.iter().take(fit) {
        screen += &console::truncate_str(line, width, "…");
        screen += "\x1b[K\n";
    }
    if hidden > 0 {
        screen += &format!("… {} more lines\x1b[K\n", lines.len() - fit);
    }
    screen += "\x1b[J";
    terminal.write_str(&screen)?;
    terminal.flush()
}

fn ask(url: &str) -> Result<(String, Snapshot), StatusError> {
    let text = get(url)?;
    match serde_json::from_str(&text) {
        Ok(snapshot) => Ok((text, snapshot)),
        Err(error) => Err(StatusError::Strange {
            url: url.to_owned(),
            error,
        }),
    }
}

fn get(url: &str) -> Result<String, StatusError> {
    // A proxy for the outside world knows nothing of bgworker's instances.
    let settings = ureq::Agent::config_builder()
        .timeout_global(Some(TIMEOUT))
        .proxy(None)
        .http_status_as_error(false)
        .build();
    let answer = ureq::Agent::new_with_config(settings).get(url).call();
    let text = answer.and_then(|mut answer| {
        let status = answer.status();
        let body = answer.body_mut().with_config().limit(u64::MAX);
        Ok((status, body.read_to_string()?))
    });
    let (status, text) = text.map_err(|error| StatusError::Unreachable {
        url: url.to_owned(),
        error,
    })?;
    if !status.is_success() {
        return Err(StatusError::Refused {
            url: url.to_owned(),
            status: status.as_u16(),
            text,
        });
    }
    Ok(text)
}

/// Where the instance of this configuration listens.
fn url(configuration: &Configuration) -> Result<String, StatusError> {
    let http = configuration::read_http(configuration)?;
    let listen = http.listen.ok_or(StatusError::NotListening)?;
    // An instance that listens on every address listens on the loopback address too.
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    Ok(format!("http://{}", SocketAddr::new(ip, listen.port())))
}
