//! Schedules: points in time, *ticks*, that all instances agree on.
//!
//! Pure: no clock and no I/O. A time comes in, and the ticks around it go out. The zone data are those that were
//! compiled in, so that instances of one version never disagree, whatever their machines have.
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

use std::time::Duration;

pub use jiff::Timestamp;
use thiserror::Error;

use self::cron::Cron;

/// When something is due, again and again.
#[derive(Clone, Debug)]
pub struct Schedule(Kind);

#[derive(Clone, Debug)]
enum Kind {
    /// Multiples of this many milliseconds since the epoch.
    Every(i64),
    Cron(Box<Cron>),
}

/// Why something is no schedule.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InvalidSchedule {
    /// The interval is shorter than ticks can be, or is no whole number of milliseconds.
    #[error(
        "it must be at least {} ms, in whole milliseconds: each tick is a transaction that is written down",
        Schedule::EVERY_MIN.as_millis()
    )]
    Every,
    /// The expression is not one of cron's.
    #[error("{what}{}", place(*.at))]
    Cron {
        /// What is wrong, and in which field.
        what: String,
        /// The characters that are wrong, from 1 to and with the second.
        at: Option<(usize, usize)>,
    },
    /// A nickname that is no time.
    #[error("\"{nickname}\" is no time that comes again: set \"every\" or five fields")]
    Nickname {
        /// The nickname.
        nickname: String,
    },
    /// Its month never has its day.
    #[error("it never comes: no month that it names has that day")]
    Never,
    /// The zone is in no table of zones.
    #[error(
        "there is no time zone of this name: it must be one such as \"Europe/Berlin\", or \"UTC\""
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

    /// Ticks at this interval, aligned to the epoch: each instance has the same.
    ///
    /// # Errors
    ///
    /// If it is shorter than [`EVERY_MIN`](Self::EVERY_MIN), or no whole number of milliseconds.
    pub fn every(interval: Duration) -> Result<Self, InvalidSchedule> {
        let is_whole = interval.subsec_nanos().is_multiple_of(1_000_000);
        let milliseconds = i64::try_from(interval.as_millis()).ok();
        match milliseconds.filter(|_| is_whole && interval >= Self::EVERY_MIN) {
            Some(milliseconds) => Ok(Self(Kind::Every(milliseconds))),
            None => Err(InvalidSchedule::Every),
        }
    }

    /// Ticks by the five fields of cron, or one of its nicknames, in a time zone. What a change of the clocks does to
    /// them is what Debian's cron does.
    ///
    /// A schedule that names a minute and an hour comes once for each of these times: one that the clocks skip comes
    /// at the moment of the change, one that they repeat comes the first time. A schedule whose minute or hour begins
    /// with `*` comes in every minute that the clocks really show.
    ///
    /// # Errors
    ///
    /// If it is not cron's, never comes, or there is no such zone.
    pub fn cron(expression: &str, zone: &str) -> Result<Self, InvalidSchedule> {
        Ok(Self(Kind::Cron(Box::new(Cron::new(expression, zone)?))))
    }

    /// The first tick after a time. `None` only at the end of all calendars.
    #[must_use]
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        match &self.0 {
            Kind::Every(every) => aligned(after, *every, 1),
            Kind::Cron(cron) => cron.next(after),
        }
    }

    /// A tick as people in its time zone would write it: with its offset, and the zone if that is not UTC. Says so where it
    /// comes at a change of the clocks, which skip its time.
    #[must_use]
    pub fn show(&self, tick: Timestamp) -> String {
        match &self.0 {
            Kind::Every(_) => tick.to_string(),
            Kind::Cron(cron) => cron.show(tick),
        }
    }

    /// The last tick that is not after a time. `None` only at the beginning of all calendars.
    #[must_use]
    pub fn newest(&self, until: Timestamp) -> Option<Timestamp> {
        match &self.0 {
            Kind::Every(every) => aligned(until, *every, 0),
            Kind::Cron(cron) => cron.newest(until),
        }
    }
}

/// The multiple of an interval that a time is in, and this many further.
fn aligned(time: Timestamp, every: i64, further: i64) -> Option<Timestamp> {
    // Towards the past, also for a time between two milliseconds before the epoch.
    let milliseconds = time.as_nanosecond().div_euclid(1_000_000);
    let turn = i64::try_from(milliseconds.div_euclid(i128::from(every))).ok()?;
    let tick = turn.checked_add(further)?.checked_mul(every)?;
    Timestamp::from_millisecond(tick).ok()
}
