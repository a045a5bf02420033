//! Which of many events that are alike is worth a line in the log. Pure: the time is given.

use std::time::Duration;

use tokio::time::Instant;

/// The shortest time between two lines.
const APART: Duration = Duration::from_secs(60);

/// What has been said of a worker's events.
#[derive(Debug, Default)]
pub(super) struct Seldom {
    /// When the last line was written.
    said: Option<Instant>,
    /// How many events since then have none.
    unsaid: u64,
}

// === impl Seldom ===

impl Seldom {
    /// Decides about an event: `None` if it gets no line, otherwise the number of events before it that got none.
    pub(super) fn next(&mut self, now: Instant) -> Option<u64> {
        let is_soon = |said: Instant| now.saturating_duration_since(said) < APART;
        if self.said.is_some_and(is_soon) {
            self.unsaid += 1;
            return None;
        }
        self.said = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_event_gets_a_line_at_once_and_then_one_a_minute_counts_the_others() {
        let (begin, mut seldom) = (Instant::now(), Seldom::default());
        let second = Duration::from_secs(1);
        let lines: Vec<_> = (0..150)
            .filter_map(|n| Some((n, seldom.next(begin + n * second)?)))
            .collect();
        assert_eq!(lines, [(0, 0), (60, 59), (120, 59)]);
    }
}
