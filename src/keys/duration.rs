//! A length of time as a configuration key spells it: a number with its unit, such as `"1s"`, `"250ms"` or `"2m"`; more
//! than 0 and at most 1,000 days.
//!
//! For a settings struct of your own: `#[serde(with = "bgworker::config::duration")]` on a field of type
//! [`Duration`].

use std::fmt;
use std::time::Duration;

use serde::de::{Deserializer, Error, Visitor};
use serde::{Serialize as _, Serializer};

/// 1,000 days, in milliseconds: no clock overflows.
const MAX_MS: u64 = 86_400_000_000;

const SECONDS_OF_A_DAY: u64 = 86_400;

/// What a length of time is expected to look like.
const EXPECTED: &str = r#"a duration with its unit, such as "1s", "250ms" or "2m""#;

/// Writes a duration with its unit.
///
/// # Errors
///
/// Those of the serializer.
pub fn serialize<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    humantime::format_duration(*time)
        .to_string()
        .serialize(serializer)
}

/// Reads a duration that is more than 0 and at most 1,000 days.
///
/// # Errors
///
/// If it is anything else; the error says what was expected.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    at_most::<MAX_MS, D>(deserializer)
}

/// Reads a duration that is more than 0 and at most this many milliseconds.
pub(crate) fn at_most<'de, const MAX_MS: u64, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Duration, D::Error> {
    let time = any::deserialize(deserializer)?;
    let max = Duration::from_millis(MAX_MS);
    if time.is_zero() || time > max {
        let max = match max.as_secs().checked_rem(SECONDS_OF_A_DAY) {
            Some(0) => format!("{} days", max.as_secs() / SECONDS_OF_A_DAY),
            _ => humantime::format_duration(max).to_string(),
        };
        let message = format_args!("it must be more than 0 and at most {max}");
        return Err(D::Error::custom(message));
    }
    Ok(time)
}

/// A duration that is bounded elsewhere.
pub(crate) mod any {
    use super::{Deserializer, Duration, Text};

    pub(crate) use super::serialize;

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        deserializer.deserialize_str(Text)
    }
}

/// Visits a text, and no value of another type.
struct Text;

/// `true` if a text names a unit whose length depends on the calendar.
fn names_a_calendar_unit(text: &str) -> bool {
    let mut units = text.split(|c: char| !c.is_alphabetic());
    units.any(|unit| {
        matches!(
            unit,
            "M" | "month" | "months" | "y" | "yr" | "yrs" | "year" | "years"
        )
    })
}

impl Visitor<'_> for Text {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Duration, E> {
        if names_a_calendar_unit(text) {
            let message =
                "months and years differ in length: say it in days, or set a job's \"cron\"";
            return Err(E::custom(message));
        }
        humantime::parse_duration(text).map_err(|_| E::custom(format_args!("expected {EXPECTED}")))
    }
}
