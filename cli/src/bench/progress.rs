//! How far a bench has come: a bar on standard error, if that is a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

const TICK: Duration = Duration::from_millis(250);

/// A bar of steps, one of which is under way.
pub(super) struct Progress(ProgressBar);

// === impl Progress ===

impl Progress {
    /// Makes a bar of this many steps. It draws nothing unless standard error is a terminal.
    pub(super) fn new(steps: u64) -> Self {
        let bar = ProgressBar::new(steps);
        let template = "[{elapsed_precise}] {wide_bar} {pos}/{len} {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(TICK);
        Self(bar)
    }

    /// Ends the previous step, if there is one, and begins this one.
    pub(super) fn step(&self, doing: impl Into<String>) {
        if !self.0.message().is_empty() {
            self.0.inc(1);
        }
        self.say(doing);
    }

    /// Shows what else the current step does.
    pub(super) fn say(&self, doing: impl Into<String>) {
        self.0.set_message(doing.into());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
