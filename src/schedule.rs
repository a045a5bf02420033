//! Schedules: points in time, *ticks*, that all instances agree on.
//!
//! Pure: no clock and no I/O. A time goes in, and the ticks around it come out. The time zone data are compiled in, so
//! that instances of one version never disagree, whatever data their machines have.
//!
//! ```
//! use bgworker::schedule::{Schedule, Timestamp};
//!
//! let nightly = Schedule::cron("15 2 * * *", "Europe/Berlin")?;
//! let now: Timestamp = "2026-11-26T20:00:00Z".parse()?;
//! let next = nightly.next(now).map(|tick| tick.to_string());
//! assert_eq!(next.as_deref(), Some("2026-11-27T01:15:00Z"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cron;
mod meant;
mod text;

use std::time::Duration;

pub use jiff::Timestamp;
use thiserror::Error;

use self::cron::Cron;

/// A recurring time: a sequence of ticks.
#[derive(Clone, Debug)]
pub struct Schedule(Kind);

#[derive(Clone, Debug)]
enum Kind {
    /// Multiples of this many milliseconds since the epoch.
    Every(i64),
    Cron(Box<Cron>),
}

/// Why something is not a schedule.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InvalidSchedule {
    /// The interval is shorter than [`Schedule::EVERY_MIN`], or not a whole number of milliseconds.
    #[error(
        "it must be at least {} ms, in whole milliseconds: each tick is a transaction that is recorded",
        Schedule::EVERY_MIN.as_millis()
    )]
    Every,
    /// The expression is not a cron expression.
    #[error("{what}{}", place(*.at))]
    Cron {
        /// What is wrong, and in which field.
        what: String,
        /// The first and the last wrong character, counted from 1.
        at: Option<(usize, usize)>,
    },
    /// The nickname does not stand for a recurring time.
    #[error("\"{nickname}\" is not a recurring time: set \"every\" or five fields")]
    Nickname {
        /// The nickname.
        nickname: String,
    },
    /// The schedule never comes: none of its months has its day.
    #[error("it never comes: no month that it names has that day")]
    Never,
    /// The time zone does not exist.
    #[error(
        "there is no time zone with this name: it must be one such as \"Europe/Berlin\", or \"UTC\""
    )]
    Zone,
}

fn place(at: Option<(usize, usize)>) -> String {
    match at {
        Some((first, last)) if first == last => format!(" (character {first})"),
        Some((first, last)) => format!(" (characters {first} to {last})"),
        None => String::new(),
    }
}

// === impl Schedule ===

impl Schedule {
    /// The shortest interval.
    pub const EVERY_MIN: Duration = Duration::from_millis(50);

    /// Ticks at this interval, aligned to the epoch, so that each instance has the same ticks.
    ///
    /// # Errors
    ///
    /// If the interval is shorter than [`EVERY_MIN`](Self::EVERY_MIN), or not a whole number of milliseconds.
    pub fn every(interval: Duration) -> Result<Self, InvalidSchedule> {
        let is_whole = interval.subsec_nanos().is_multiple_of(1_000_000);
        let milliseconds = i64::try_from(interval.as_millis()).ok();
        match milliseconds.filter(|_| is_whole && interval >= Self::EVERY_MIN) {
            Some(milliseconds) => Ok(Self(Kind::Every(milliseconds))),
            None => Err(InvalidSchedule::Every),
        }
    }

    /// Ticks by the five fields of cron, or one of its nicknames, in a time zone. When the clocks change, they follow
    /// the rules of Debian's cron.
    ///
    /// A schedule that names a minute and an hour comes once for each of these times: a time that the clocks skip comes
    /// at the moment of the change, and a time that they repeat comes the first time. A schedule whose minute or hour
    /// begins with `*` comes in every matching minute that the clocks really show.
    ///
    /// # Errors
    ///
    /// If the expression is not a cron expression or never comes, or if there is no such time zone.
    pub fn cron(expression: &str, zone: &str) -> Result<Self, InvalidSchedule> {
        Ok(Self(Kind::Cron(Box::new(Cron::new(expression, zone)?))))
    }

    /// The first tick after a time. `None` only at the end of the calendar.
    #[must_use]
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        match &self.0 {
            Kind::Every(every) => aligned(after, *every, 1),
            Kind::Cron(cron) => cron.next(after),
        }
    }

    /// The oldest of the newest ticks, this many of them at most, that are after one time and not after another.
    pub(crate) fn oldest_of_newest(
        &self,
        most: usize,
        after: Timestamp,
        until: Timestamp,
    ) -> Option<Timestamp> {
        match &self.0 {
            Kind::Every(every) => {
                let first = aligned(after, *every, 1)?;
                let others = i64::try_from(most).ok()?.saturating_sub(1);
                let oldest = aligned(until, *every, -others);
                let oldest = oldest.map_or(first, |oldest| oldest.max(first));
                (oldest <= until).then_some(oldest)
            }
            Kind::Cron(cron) => cron.oldest_of_newest(most, after, until),
        }
    }

    /// A tick as text, in the time zone of its schedule: with its offset, and the zone if that is not UTC. Adds a note
    /// if the clocks skip its time, so that it comes at the moment of the change.
    #[must_use]
    pub fn show(&self, tick: Timestamp) -> String {
        match &self.0 {
            Kind::Every(_) => tick.to_string(),
            Kind::Cron(cron) => cron.show(tick),
        }
    }

    /// What the schedule was made from, as instances compare it: each version must write it the same way.
    pub(crate) fn declaration(&self) -> String {
        match &self.0 {
            Kind::Every(every) => format!("Some({}) None UTC", seconds(*every)),
            Kind::Cron(cron) => {
                let (expression, zone) = cron.written();
                format!("None Some({}) {zone}", text::quoted(expression))
            }
        }
    }

    /// What to write instead of an expression that is refused, if that is known.
    pub(crate) fn meant(expression: &str) -> Option<String> {
        meant::meant(expression, |expression| {
            Cron::new(expression, "UTC").is_ok()
        })
    }

    /// The names of all time zones.
    pub(crate) fn zones() -> impl Iterator<Item = String> {
        let zones = jiff::tz::TimeZoneDatabase::bundled();
        let names: Vec<_> = zones.available().map(|name| name.to_string()).collect();
        names.into_iter()
    }

    /// The last tick that is not after a time. `None` only at the beginning of the calendar.
    #[must_use]
    pub fn newest(&self, until: Timestamp) -> Option<Timestamp> {
        match &self.0 {
            Kind::Every(every) => aligned(until, *every, 0),
            Kind::Cron(cron) => cron.newest(until),
        }
    }
}

/// An interval of whole milliseconds: below a second in these, and from a second on in seconds, with the decimals it needs.
fn seconds(milliseconds: i64) -> String {
    if milliseconds < 1_000 {
        return format!("{milliseconds}ms");
    }
    let (seconds, rest) = (milliseconds / 1_000, milliseconds % 1_000);
    let decimals = format!(".{rest:03}");
    let decimals = decimals.trim_end_matches('0').trim_end_matches('.');
    format!("{seconds}{decimals}s")
}

/// The last multiple of an interval that is not after a time, plus `further` intervals.
fn aligned(time: Timestamp, every: i64, further: i64) -> Option<Timestamp> {
    // Rounds towards the past, even for a time between two milliseconds before the epoch.
    let milliseconds = time.as_nanosecond().div_euclid(1_000_000);
    let turn = i64::try_from(milliseconds.div_euclid(i128::from(every))).ok()?;
    let tick = turn.checked_add(further)?.checked_mul(every)?;
    Timestamp::from_millisecond(tick).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_schedule_was_made_from_is_written_as_every_version_has_written_it() {
        for (milliseconds, expected) in [
            (50, "Some(50ms) None UTC"),
            (999, "Some(999ms) None UTC"),
            (1_000, "Some(1s) None UTC"),
            (1_500, "Some(1.5s) None UTC"),
            (60_001, "Some(60.001s) None UTC"),
            (90_000, "Some(90s) None UTC"),
            (86_400_000, "Some(86400s) None UTC"),
        ] {
            let every = Schedule::every(Duration::from_millis(milliseconds)).unwrap();
            assert_eq!(every.declaration(), expected);
        }
        for (expression, zone, expected) in [
            (
                "15 2 * * *",
                "Europe/Berlin",
                "None Some(\"15 2 * * *\") Europe/Berlin",
            ),
            ("@daily", "UTC", "None Some(\"@daily\") UTC"),
            (
                " 0\t3 * * mon ",
                "utc",
                "None Some(\" 0\\t3 * * mon \") utc",
            ),
        ] {
            let cron = Schedule::cron(expression, zone).unwrap();
            assert_eq!(cron.declaration(), expected);
        }
    }
}
