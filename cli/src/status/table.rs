//! The answer of an instance as a table. Asks nothing, and prints nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use bgworker::http::{Snapshot, State, WorkerSnapshot};
use bgworker::schedule::Timestamp;
use console::{Color, style};

/// Suffix of the names of figures that are times.
const TIME: &str = "_timestamp_seconds";

/// The column of the worker's state.
const STATE: usize = 1;

/// The columns that every worker has.
const HEADING: [&str; 5] = ["worker", "state", "since", "success", "restarts"];

/// How many figures have a column each; more share one.
const FIGURES_MAX: usize = 4;

/// Formats the answer for people: a line for each worker, and below it the worker's trouble, if any. Workers that need
/// attention come first.
pub(super) fn table(snapshot: &Snapshot) -> String {
    let mut workers: Vec<_> = snapshot.workers.iter().collect();
    workers.sort_by_key(|one| (one.healthy, !one.needs_attention()));
    let figures: BTreeSet<_> = workers.iter().flat_map(|one| one.figures.keys()).collect();
    let heading = HEADING.map(str::to_owned).into_iter();
    let names: Vec<_> = figures
        .iter()
        .map(|name| name.trim_end_matches(TIME).to_owned())
        .collect();
    let names = if names.len() > FIGURES_MAX {
        vec!["figures".to_owned()]
    } else {
        names
    };
    let heading: Vec<_> = heading.chain(names).collect();
    let rows: Vec<_> = std::iter::once(heading.clone())
        .chain(workers.iter().map(|worker| row(worker, &figures)))
        .collect();
    let width = |column: usize| {
        let cells = rows
            .iter()
            .map(|row| console::measure_text_width(&row[column]));
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
    let texts: &[usize] = if figures.len() > FIGURES_MAX {
        &[HEADING.len()]
    } else {
        &[]
    };
    text += &line(&rows[0], &widths, texts, None);
    for (row, worker) in std::iter::zip(&rows[1..], workers) {
        text += &line(row, &widths, texts, Some(worker));
        let trouble = worker.trouble().map(|trouble| plain(&trouble));
        text.extend(trouble.map(|trouble| format!("    {}\n", style(trouble).red())));
    }
    text
}

/// One line of the table: the heading, or that of a worker. The columns `texts` are left-aligned.
fn line(
    row: &[String],
    widths: &[usize],
    texts: &[usize],
    worker: Option<&WorkerSnapshot>,
) -> String {
    let mut line = String::new();
    for (column, (cell, width)) in std::iter::zip(row, widths).enumerate() {
        let fill = " ".repeat(width - console::measure_text_width(cell));
        let cell = match worker {
            Some(worker) if column == STATE => style(cell).fg(colour(worker)),
            Some(_) => style(cell),
            None => style(cell).bold(),
        };
        line += if column == 0 { "" } else { "  " };
        // Numbers are right-aligned.
        let is_text = column <= STATE || texts.contains(&column);
        line += &if is_text {
            format!("{cell}{fill}")
        } else {
            format!("{fill}{cell}")
        };
    }
    line.truncate(line.trim_end_matches(' ').len());
    line + "\n"
}

/// Green while the worker is at work, red if it needs attention, yellow if it waits for what comes by itself.
fn colour(worker: &WorkerSnapshot) -> Color {
    match worker.state {
        _ if worker.needs_attention() => Color::Red,
        _ if worker.job.as_ref().is_some_and(|job| job.why.is_some()) => Color::Yellow,
        State::Ready | State::Napping | State::Running | State::Finished | State::Stopped => {
            Color::Green
        }
        _ => Color::Yellow,
    }
}

/// The state of the server, and what is wrong with it.
fn server(snapshot: &Snapshot) -> String {
    let Some(server) = &snapshot.server else {
        return "no server".to_owned();
    };
    let mut text = format!("server is {}", server.state);
    if let Some((seconds, trouble)) = server.trouble() {
        text += &format!("; for {}: {}", span(seconds), plain(trouble));
    }
    text
}

/// The state of the worker or, while it is at work, of its job; and since when.
fn state(worker: &WorkerSnapshot) -> (String, f64) {
    let is_at_work = matches!(worker.state, State::Ready | State::Napping | State::Running);
    match &worker.job {
        Some(job) if is_at_work && job.state != "idle" => (job.state.clone(), job.state_seconds),
        _ => (worker.state.to_string(), worker.state_seconds),
    }
}

fn row(worker: &WorkerSnapshot, figures: &BTreeSet<&String>) -> Vec<String> {
    let figures: Vec<_> = if figures.len() > FIGURES_MAX {
        let own = worker.figures.iter();
        let own = own.map(|(name, value)| {
            format!("{} {}", name.trim_end_matches(TIME), figure(name, *value))
        });
        vec![own.collect::<Vec<_>>().join(", ")]
    } else {
        let value = |name: &&String| worker.figures.get(*name).map(|value| figure(name, *value));
        figures
            .iter()
            .map(|name| value(name).unwrap_or_default())
            .collect()
    };
    let (state, state_seconds) = state(worker);
    // A job may have been done before its history began.
    let never = if worker.job.is_some() {
        "none known"
    } else {
        "never"
    };
    let cells = [
        plain(&worker.name),
        match worker.next_start_seconds {
            Some(wait) => format!("{state}, starts in {}", span(wait)),
            None => state,
        },
        span(state_seconds),
        worker
            .last_success_seconds
            .map_or_else(|| never.to_owned(), |age| format!("{} ago", span(age))),
        worker.restarts.to_string(),
    ];
    cells.into_iter().chain(figures).collect()
}

/// Formats a figure, as a time if its name says that it is one.
fn figure(name: &str, value: i64) -> String {
    let time = name.ends_with(TIME).then(|| Timestamp::from_second(value));
    match time {
        Some(Ok(time)) => time.to_string(),
        _ => value.to_string(),
    }
}

/// Escapes control characters: the text stays on one line and steers no terminal.
fn plain(text: &str) -> String {
    let escaped = |c: char| {
        let control = c.is_control().then(|| c.escape_default().to_string());
        control.unwrap_or_else(|| c.to_string())
    };
    text.chars().map(escaped).collect()
}

/// Formats a duration in whole seconds, in the largest units.
fn span(seconds: f64) -> String {
    let whole = Duration::try_from_secs_f64(seconds.floor());
    humantime::format_duration(whole.unwrap_or_default()).to_string()
}
