//! Ticks of a cron expression in a time zone, by the rules of Debian's cron.
//!
//! `cronp` parses the expression; this module decides which instants it means, also when the clocks change.

use cronp::{Calendar, CivilDateTime, ErrorKind, ParseError, Vixie};
use jiff::civil::{Date, DateTime, time};
use jiff::tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase};
use jiff::{Span, Timestamp, ZonedDateTime};

use super::InvalidSchedule;
use super::meant::{NAMES, long_step};

/// No schedule has two ticks further apart: 29 February on a given day of the week comes again within 40 years.
const DAYS_MAX: u32 = 366 * 41;

/// An expression in a time zone.
#[derive(Clone, Debug)]
pub(super) struct Cron {
    calendar: Calendar<Vixie>,
    zone: TimeZone,
    /// Its minute or its hour begins with `*`: it means minutes that the clocks show, not times of day.
    is_wild: bool,
    /// An hour and a minute that match on each day that matches, to test a day with.
    some_time: (i8, i8),
    /// The expression and the name of the zone, as they were given.
    written: Box<(String, String)>,
}

// === impl Cron ===

impl Cron {
    pub(super) fn new(expression: &str, zone: &str) -> Result<Self, InvalidSchedule> {
        let parsed =
            cronp::Schedule::<Vixie>::parse(expression).map_err(|error| invalid(&error))?;
        let Some(calendar) = parsed.calendar() else {
            let nickname = expression.trim().to_owned();
            return Err(InvalidSchedule::Nickname { nickname });
        };
        let written = Box::new((expression.to_owned(), zone.to_owned()));
        let zone = TimeZoneDatabase::bundled().get(zone);
        let zone = zone.map_err(|_| InvalidSchedule::Zone)?;
        let all: Vec<_> = expression.split_whitespace().collect();
        if let Some((place, step)) = long_step(&all) {
            let field = NAMES[place];
            let what = format!(
                "{field}: a step of {step} is no shorter than the field, and would select its first value alone"
            );
            return Err(InvalidSchedule::Cron { what, at: None });
        }
        let mut fields = all.into_iter();
        let first = fields.next().unwrap_or_default();
        let is_wild = match first.strip_prefix('@') {
            Some(nickname) => nickname.eq_ignore_ascii_case("hourly"),
            None => [first, fields.next().unwrap_or_default()]
                .iter()
                .any(|field| field.starts_with('*')),
        };
        let minute = (0..60).find(|minute| calendar.admits_minute(*minute));
        let hour = (0..24).find(|hour| calendar.admits_hour(*hour));
        let some_time = (
            hour.unwrap_or(0).cast_signed(),
            minute.unwrap_or(0).cast_signed(),
        );
        let cron = Self {
            calendar: *calendar,
            zone,
            is_wild,
            some_time,
            written,
        };
        if cron.next(Timestamp::UNIX_EPOCH).is_none() {
            return Err(InvalidSchedule::Never);
        }
        Ok(cron)
    }

    /// The expression and the name of the zone, as they were given.
    pub(super) fn written(&self) -> (&str, &str) {
        let (expression, zone) = &*self.written;
        (expression, zone)
    }

    /// The first tick after a time.
    pub(super) fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let today = self.zone.to_datetime(after).date();
        // The clocks may go back over midnight, so that a day can have ticks after the first tick of the next day.
        let days = days(today.yesterday().ok()?, Span::new().days(1));
        let found = self.search(days, |tick| tick > after);
        found.into_iter().min()
    }

    pub(super) fn show(&self, tick: Timestamp) -> String {
        let shown = match self.zone.iana_name() {
            Some("UTC") | None => tick.to_string(),
            Some(_) => ZonedDateTime::new(tick, self.zone.clone()).to_string(),
        };
        let civil = self.zone.to_datetime(tick);
        if self.means(civil.date(), (civil.hour(), civil.minute())) {
            shown
        } else {
            format!("{shown} (the clocks skip its time)")
        }
    }

    /// The last tick that is not after a time.
    pub(super) fn newest(&self, until: Timestamp) -> Option<Timestamp> {
        let today = self.zone.to_datetime(until).date();
        let days = days(today.tomorrow().ok()?, Span::new().days(-1));
        let found = self.search(days, |tick| tick <= until);
        found.into_iter().max()
    }

    /// The oldest of the newest ticks, this many of them at most, that are after one time and not after another. It
    /// reads the ticks of a day at once, and none if there cannot be more ticks than that.
    pub(super) fn oldest_of_newest(
        &self,
        most: usize,
        after: Timestamp,
        until: Timestamp,
    ) -> Option<Timestamp> {
        let first = self.next(after).filter(|first| *first <= until)?;
        // No two ticks are less than a minute apart.
        let minutes = until.duration_since(first).as_secs() / 60;
        if usize::try_from(minutes).is_ok_and(|minutes| minutes < most) {
            return Some(first);
        }
        let day_of = |time| self.zone.to_datetime(time).date();
        let first_day = day_of(first).yesterday().ok()?;
        let days = days(day_of(until).tomorrow().ok()?, Span::new().days(-1));
        let mut ticks = Vec::new();
        for day in days.take_while(|day| *day >= first_day) {
            // Where the clocks go back over midnight, the day before has ticks after the first ones of a day.
            let had_enough = ticks.len() >= most;
            if self.means(day, self.some_time) {
                let of_day = self.ticks_of(day).into_iter();
                ticks.extend(of_day.filter(|tick| *tick > after && *tick <= until));
            }
            if had_enough {
                break;
            }
        }
        ticks.sort_unstable();
        ticks.dedup();
        ticks.get(ticks.len().saturating_sub(most)).copied()
    }

    /// The ticks that suit, of the first day that has one and of the day after it in this order.
    fn search(
        &self,
        days: impl Iterator<Item = Date>,
        suits: impl Fn(Timestamp) -> bool,
    ) -> Vec<Timestamp> {
        let mut found = Vec::new();
        for day in days {
            let had_one = !found.is_empty();
            if self.means(day, self.some_time) {
                found.extend(self.ticks_of(day).into_iter().filter(|tick| suits(*tick)));
            }
            if had_one {
                break;
            }
        }
        found
    }

    /// The instants that the matching minutes of a day mean.
    fn ticks_of(&self, day: Date) -> Vec<Timestamp> {
        let mut ticks = Vec::new();
        let hours = (0..24_u8).filter(|hour| self.calendar.admits_hour(*hour));
        for hour in hours.map(u8::cast_signed) {
            let minutes = (0..60_u8).filter(|minute| self.calendar.admits_minute(*minute));
            for minute in minutes.map(u8::cast_signed) {
                self.instants(day.to_datetime(time(hour, minute, 0, 0)), &mut ticks);
            }
        }
        ticks
    }

    /// Adds the instants that a minute on the clock means.
    fn instants(&self, civil: DateTime, ticks: &mut Vec<Timestamp>) {
        match self.zone.to_ambiguous_timestamp(civil).offset() {
            AmbiguousOffset::Unambiguous { offset } => ticks.extend(offset.to_timestamp(civil)),
            AmbiguousOffset::Fold { before, after } => {
                ticks.extend(before.to_timestamp(civil));
                if self.is_wild {
                    ticks.extend(after.to_timestamp(civil));
                }
            }
            AmbiguousOffset::Gap { before, .. } if !self.is_wild => {
                // At the offset before the change, this minute is after the change.
                let past = before.to_timestamp(civil).ok();
                let past = past.and_then(|past| past.checked_add(Span::new().nanoseconds(1)).ok());
                let change = past.and_then(|past| self.zone.preceding(past).next());
                ticks.extend(change.map(|change| change.timestamp()));
            }
            AmbiguousOffset::Gap { .. } => {}
        }
    }

    /// `true` if a minute of a day matches.
    fn means(&self, day: Date, (hour, minute): (i8, i8)) -> bool {
        let civil = CivilDateTime::new(
            day.year().cast_unsigned(),
            day.month().cast_unsigned(),
            day.day().cast_unsigned(),
            hour.cast_unsigned(),
            minute.cast_unsigned(),
            0,
        );
        civil.is_ok_and(|civil| self.calendar.matches(civil))
    }
}

/// The days from this one on, in steps of `step`: at most [`DAYS_MAX`].
fn days(from: Date, step: Span) -> impl Iterator<Item = Date> {
    std::iter::successors(Some(from), move |day| day.checked_add(step).ok()).take(DAYS_MAX as usize)
}

/// Says what is wrong with an expression, in which field, at which characters, and what would be right.
fn invalid(error: &ParseError) -> InvalidSchedule {
    let field = error
        .field()
        .map_or_else(String::new, |field| format!("{field}: "));
    let what = match error.kind() {
        ErrorKind::ValueOutOfRange { value, min, max } => {
            format!("{field}{value} is not in {min} to {max}")
        }
        ErrorKind::WrongFieldCount { found, .. } => {
            format!(
                "there are {found} fields: minute, hour, day of month, month and day of week are expected"
            )
        }
        ErrorKind::EmptyExpression => "it is empty".to_owned(),
        ErrorKind::UnknownMacro => {
            "the nicknames are @hourly, @daily, @midnight, @weekly, @monthly, @yearly and @annually"
                .to_owned()
        }
        ErrorKind::UnknownName => format!("{field}this name is not known here"),
        ErrorKind::ReversedRange { start, end } => format!("{field}{start} is after {end}"),
        ErrorKind::ZeroStep => format!("{field}the step must not be 0"),
        ErrorKind::UnexpectedEnd => format!("{field}it ends too early"),
        _ => format!("{field}this is not allowed here"),
    };
    let span = error.span();
    let at = (!span.is_empty()).then(|| (span.start() + 1, span.end()));
    InvalidSchedule::Cron { what, at }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn the_oldest_of_the_newest_ticks_is_the_one_that_a_search_tick_by_tick_finds() {
        for expression in [
            "* * * * *",
            "*/7 * * * *",
            "30 2 * * *",
            "15 0,2,23 * * 1,4",
            "0 0 29 2 *",
        ] {
            for (after, until) in [
                ("2026-03-27T11:00:30Z", "2026-03-30T07:00:00Z"),
                ("2026-10-24T21:59:00Z", "2026-10-26T12:34:56Z"),
                ("2024-01-31T00:00:00Z", "2026-11-29T00:00:00Z"),
                ("2026-11-29T10:00:00Z", "2026-11-29T10:00:30Z"),
            ] {
                let cron = Cron::new(expression, "Europe/Berlin").unwrap();
                let (after, until) = (time(after), time(until));
                let back = |tick: &Timestamp| {
                    cron.newest(tick.checked_sub(Span::new().nanoseconds(1)).ok()?)
                };
                let newest_first = std::iter::successors(cron.newest(until), back);
                let most = 60;
                let expected = newest_first
                    .take(most)
                    .take_while(|tick| *tick > after)
                    .last();
                let found = cron.oldest_of_newest(most, after, until);
                assert_eq!(found, expected, "{expression} {after} {until}");
            }
        }
    }
}
