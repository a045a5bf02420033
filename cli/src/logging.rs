//! The log, on standard error, for people or for programs. One event is one line, whatever its text holds. A reader of the
//! log that stalls stops nothing: `queue` holds its lines.

mod queue;

use std::io::{self, IsTerminal as _, Write};
use std::sync::OnceLock;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

use self::queue::Queue;

/// The lines that wait for the reader of the log, once there is a log.
static QUEUE: OnceLock<Queue> = OnceLock::new();

/// How the log is written.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Logging {
    /// How to write the log, which goes to standard error. Text on a terminal, JSON otherwise,
    /// unless set. RUST_LOG sets the level.
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
}

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Installs the log, and sends panics there.
pub(crate) fn init(format: Option<LogFormat>, level: &str) {
    let is_terminal = io::stderr().is_terminal();
    let format = format.unwrap_or(if is_terminal {
        LogFormat::Text
    } else {
        LogFormat::Json
    });
    let wanted = std::env::var("RUST_LOG").unwrap_or_default();
    let wanted = Some(&*wanted).filter(|wanted| !wanted.is_empty());
    let filter = wanted.map(EnvFilter::try_new).transpose();
    // Without a thread nothing could run, so there is nothing that a log could be about.
    let report = |lost| {
        tracing::error!(
            "{lost} lines of the log were lost, since its reader stalled or its disk was full"
        );
    };
    let Ok(queue) = Queue::new(io::stderr(), report) else {
        return;
    };
    let queue = QUEUE.get_or_init(|| queue);
    let log = tracing_subscriber::fmt()
        .with_env_filter(match &filter {
            Ok(Some(filter)) => filter.clone(),
            // The web server's own messages are of interest only if it is in trouble.
            Ok(None) | Err(_) => EnvFilter::new(format!("{level},actix_server=warn")),
        })
        .with_writer(|| queue.clone())
        // If nothing reads the log any longer, the workers must not suffer for it.
        .log_internal_errors(false)
        .with_ansi(is_terminal);
    match format {
        LogFormat::Text => log
            .with_target(false)
            .with_writer(|| Lines(queue.clone()))
            .init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    if let Err(error) = filter {
        tracing::warn!("RUST_LOG is not understood, and \"{level}\" is used instead: {error}");
    }
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
}

/// Waits for the log to be written, but not for long. To be called before the process exits.
pub(crate) fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush_within_bounds();
    }
}

/// Writes events as lines: a line break inside an event is written as `\n`, so that a server's message cannot pass
/// for a line of bgworker's. Other control characters are escaped before they come here.
struct Lines<W>(W);

impl<W: Write> Write for Lines<W> {
    /// Writes a whole event.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = event.strip_suffix(b"\n").unwrap_or(event);
        let mut line = Vec::with_capacity(event.len());
        for byte in text {
            match byte {
                b'\n' => line.extend(b"\\n"),
                b'\r' => line.extend(b"\\r"),
                byte => line.push(*byte),
            }
        }
        line.push(b'\n');
        self.0.write_all(&line)?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
