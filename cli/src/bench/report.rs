//! The figures of a run, as a table and as JSON.

use std::error::Error;
use std::fmt::Write as _;

use indicatif::HumanCount;

use super::ground::Ground;

/// Everything that was measured.
pub(super) struct Report {
    /// What it was measured on: server and processors.
    pub(super) where_: String,
    pub(super) figures: Vec<Figure>,
    pub(super) plots: Vec<Plot>,
}

/// One figure, and the baseline's.
pub(super) struct Figure {
    pub(super) scenario: &'static str,
    pub(super) what: String,
    pub(super) unit: &'static str,
    pub(super) ours: f64,
    pub(super) baseline: Option<f64>,
    pub(super) better: Better,
}

/// Which way is better.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Better {
    Higher,
    Lower,
}

/// Values over time.
pub(super) struct Plot {
    pub(super) title: String,
    pub(super) unit: &'static str,
    /// Seconds, and the value then.
    pub(super) points: Vec<(f64, f64)>,
}

// === impl Report ===

impl Report {
    pub(super) async fn new(ground: &Ground) -> Result<Self, Box<dyn Error>> {
        let version: String = ground.value("SHOW server_version").await?;
        let fsync: String = ground.value("SHOW fsync").await?;
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        Ok(Self {
            where_: format!(
                "bgworker {}, PostgreSQL {version}, fsync {fsync}, {cores} cores",
                env!("CARGO_PKG_VERSION")
            ),
            figures: Vec::new(),
            plots: Vec::new(),
        })
    }

    pub(super) fn add(
        &mut self,
        scenario: &'static str,
        what: impl Into<String>,
        (unit, better): (&'static str, Better),
        ours: f64,
        baseline: Option<f64>,
    ) {
        self.figures.push(Figure {
            scenario,
            what: what.into(),
            unit,
            ours,
            baseline,
            better,
        });
    }

    /// Returns the figures as a table, for people.
    pub(super) fn table(&self) -> String {
        let mut text = format!("{}\n\n", self.where_);
        let width = self.figures.iter().map(|figure| figure.what.len()).max();
        let width = width.unwrap_or(0);
        let has_baseline = self.figures.iter().any(|figure| figure.baseline.is_some());
        let ratio = if has_baseline { "ratio" } else { "" };
        let mut scenario = "";
        for figure in &self.figures {
            if figure.scenario != scenario {
                scenario = figure.scenario;
                let baseline = if has_baseline {
                    baseline_of(scenario)
                } else {
                    ""
                };
                let _ = writeln!(
                    text,
                    "{scenario:width$}   {:>16}   {:>16}   {ratio}",
                    "bgworker", baseline
                );
            }
            let ours = format!("{} {}", number(figure.ours), figure.unit);
            let (baseline, ratio) = match figure.baseline {
                Some(baseline) => (
                    format!("{} {}", number(baseline), figure.unit),
                    figure
                        .ratio()
                        .map_or(String::new(), |ratio| format!("{} ×", number(ratio))),
                ),
                None => (String::new(), String::new()),
            };
            let _ = writeln!(
                text,
                "  {:width$} {ours:>16}   {baseline:>16}   {ratio}",
                figure.what
            );
        }
        text
    }

    /// Returns everything as JSON, for programs.
    pub(super) fn json(&self) -> String {
        let figures = self.figures.iter().map(|figure| {
            serde_json::json!({
                "scenario": figure.scenario,
                "what": figure.what,
                "unit": figure.unit,
                "bgworker": figure.ours,
                "baseline": figure.baseline,
                "times_better": figure.ratio(),
            })
        });
        let plots = self.plots.iter().map(|plot| {
            serde_json::json!({ "title": plot.title, "unit": plot.unit, "points": plot.points })
        });
        let all = serde_json::json!({
            "on": self.where_,
            "figures": figures.collect::<Vec<_>>(),
            "plots": plots.collect::<Vec<_>>(),
        });
        format!("{all:#}")
    }
}

// === impl Figure ===

impl Figure {
    /// How many times better than the baseline the figure is; `None` unless there is a baseline and both are positive.
    pub(super) fn ratio(&self) -> Option<f64> {
        let baseline = self.baseline?;
        let (more, less) = match self.better {
            Better::Higher => (self.ours, baseline),
            Better::Lower => (baseline, self.ours),
        };
        (less > 0.0 && more > 0.0).then(|| more / less)
    }
}

/// What a scenario is compared with.
pub(super) fn baseline_of(scenario: &str) -> &'static str {
    match scenario {
        "counters" => "upserts",
        "rollup" => "one statement",
        "jobs" => "bare statement",
        _ => "the sample",
    }
}

/// Formats a value with three significant digits, or as a whole number if that has more; at most two decimals.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => HumanCount(value.round() as u64).to_string(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size > 0.0 => format!("{value:.2}"),
        _ => "0".to_owned(),
    }
}
