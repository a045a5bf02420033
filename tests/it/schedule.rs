//! Schedules: the ticks are those of Debian's cron, also around clock changes.

use std::time::Duration;

use bgworker::schedule::{InvalidSchedule, Schedule, Timestamp};
use proptest::prelude::*;

/// Windows around clock changes in four zones, with every tick of Debian's cron in them. Three sources agree on
/// them: cron 3.0pl1 on a fake clock, a simulation of its loop, and rules on the transitions of a zone.
const GOLDEN: &str = include_str!("ticks.json");

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn ticks(schedule: &Schedule, after: Timestamp, before: Timestamp) -> Vec<Timestamp> {
    std::iter::successors(schedule.next(after), |tick| schedule.next(*tick))
        .take_while(|tick| *tick < before)
        .collect()
}

#[test]
fn ticks_around_each_change_of_the_clocks_are_those_of_debians_cron() {
    let windows: Vec<serde_json::Value> = serde_json::from_str(GOLDEN).unwrap();
    assert!(windows.len() >= 176);
    for window in windows {
        let text = |key: &str| window[key].as_str().unwrap();
        let schedule = Schedule::cron(text("expr"), text("zone")).unwrap();
        let expected = window["ticks"].as_array().unwrap().iter();
        let expected: Vec<_> = expected.map(|tick| time(tick.as_str().unwrap())).collect();
        let (after, before) = (time(text("after")), time(text("before")));
        assert_eq!(ticks(&schedule, after, before), expected, "{window}");
        for tick in expected {
            assert_eq!(schedule.newest(tick), Some(tick), "{window}");
        }
    }
}

#[test]
fn intervals_are_aligned_to_the_epoch() {
    let schedule = Schedule::every(Duration::from_secs(300)).unwrap();
    let next = |text| schedule.next(time(text)).unwrap().to_string();
    assert_eq!(next("2026-11-26T20:02:03.5Z"), "2026-11-26T20:05:00Z");
    assert_eq!(next("2026-11-26T20:05:00Z"), "2026-11-26T20:10:00Z");
    assert_eq!(next("1969-12-31T23:59:59.9Z"), "1970-01-01T00:00:00Z");
    let newest = |text| schedule.newest(time(text)).unwrap().to_string();
    assert_eq!(newest("2026-11-26T20:05:00Z"), "2026-11-26T20:05:00Z");
    assert_eq!(
        newest("2026-11-26T20:04:59.999999Z"),
        "2026-11-26T20:00:00Z"
    );
    assert_eq!(newest("1969-12-31T23:59:59.9Z"), "1969-12-31T23:55:00Z");
    for short in [0, 49] {
        let refused = Schedule::every(Duration::from_millis(short)).unwrap_err();
        assert_eq!(refused, InvalidSchedule::Every);
    }
}

#[test]
fn an_invalid_schedule_is_refused_with_field_place_and_bounds() {
    for (expression, expected) in [
        (
            "15 24 * * *",
            "hour: 24 is not in 0 to 23 (characters 4 to 5)",
        ),
        (
            "15 2 * *",
            "there are 4 fields: minute, hour, day of month, month and day of week are expected",
        ),
        (
            "15 2 * foo *",
            "month: this is not allowed here (character 8)",
        ),
        ("5-1 * * * *", "minute: 5 is after 1 (characters 1 to 3)"),
        ("*/0 * * * *", "minute: the step must not be 0"),
        ("", "it is empty"),
        ("@nightly", "the nicknames are @hourly, @daily,"),
        ("@reboot", "\"@reboot\" is not a recurring time"),
        ("0 0 30 2 *", "it never comes"),
        ("0 0 31 4,6 *", "it never comes"),
        ("MON * * * *", "minute: "),
        ("1,,2 * * * *", "minute: "),
    ] {
        let refused = Schedule::cron(expression, "UTC").unwrap_err().to_string();
        assert!(refused.starts_with(expected), "{expression}: {refused}");
    }
    let refused = Schedule::cron("@daily", "Europe/Berln").unwrap_err();
    assert_eq!(refused, InvalidSchedule::Zone);
}

#[test]
fn a_rare_day_is_found_even_years_away() {
    // 29 February: every four years, but eight years across 2100.
    let schedule = Schedule::cron("0 0 29 2 *", "UTC").unwrap();
    assert_eq!(
        schedule.next(time("2096-03-01T00:00:00Z")),
        Some(time("2104-02-29T00:00:00Z"))
    );
    let newest = schedule.newest(time("2104-02-28T23:59:59Z"));
    assert_eq!(newest, Some(time("2096-02-29T00:00:00Z")));
}

fn expression() -> impl Strategy<Value = String> {
    let minute = prop_oneof![
        "[1-5]?[0-9]",
        "\\*/[1-9]",
        Just("*".to_owned()),
        "[1-5]?[0-9],[1-5]?[0-9]"
    ];
    let hour = prop_oneof![
        "1?[0-9]",
        "\\*/[1-9]",
        Just("*".to_owned()),
        Just("1-3".to_owned())
    ];
    let day = prop_oneof![Just("*".to_owned()), "[12][0-9]", "[1-9]"];
    let weekday = prop_oneof![Just("*".to_owned()), "[0-7]"];
    (minute, hour, day, weekday)
        .prop_map(|(minute, hour, day, weekday)| format!("{minute} {hour} {day} * {weekday}"))
}

proptest! {
    #[test]
    fn next_and_newest_agree_and_only_go_forward(
        expression in expression(),
        zone in prop_oneof![Just("Europe/Berlin"), Just("Australia/Lord_Howe"), Just("America/New_York"), Just("UTC")],
        second in 1_700_000_000_i64..1_900_000_000,
    ) {
        let schedule = Schedule::cron(&expression, zone).unwrap();
        let now = Timestamp::from_second(second).unwrap();
        let next = schedule.next(now).unwrap();
        let newest = schedule.newest(now).unwrap();
        prop_assert!(newest <= now && now < next, "{newest} {now} {next}");
        prop_assert_eq!(schedule.newest(next), Some(next));
        prop_assert_eq!(schedule.next(newest), Some(next), "nothing lies between them");
        prop_assert_eq!(next.as_nanosecond() % 60_000_000_000, 0, "a whole minute");
    }
}
