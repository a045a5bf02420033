//! What is likely meant by an expression that is not cron's, or that means less than it seems to. Pure.

use std::fmt::Write as _;

/// What to write instead of an expression that other tools know, or that cron would take for something else; `is_cron` tells
/// whether that can be written.
pub(super) fn meant(expression: &str, is_cron: fn(&str) -> bool) -> Option<String> {
    let expression = expression.trim();
    let lower = expression.to_ascii_lowercase();
    if let Some(interval) = lower.strip_prefix("@every ") {
        return Some(format!("set every = \"{}\" instead", interval.trim()));
    }
    if let Some(every) = interval(&lower) {
        return Some(format!("set every = \"{every}\" instead"));
    }
    let fields: Vec<_> = expression.split_whitespace().collect();
    match fields[..] {
        [_, minute, hour, day, month, weekday] | [_, minute, hour, day, month, weekday, _] => {
            let (day, weekday) = (day.replace('?', "*"), weekday.replace('?', "*"));
            let five = format!("{minute} {hour} {day} {month} {weekday}");
            if is_cron(&five) {
                return Some(format!(
                    "cron has neither seconds nor years: write \"{five}\", or set \"every\" for less than a minute"
                ));
            }
            // A line of /etc/crontab names a user behind the five fields.
            let first = fields.iter().take(5).copied().collect::<Vec<_>>().join(" ");
            (fields.len() == 6 && is_cron(&first))
                .then(|| format!("write \"{first}\": there is no user to run as"))
        }
        [minute, hour, day, month, weekday] => {
            if day == "$" || day.eq_ignore_ascii_case("l") {
                return Some(format!(
                    "cron has no last day of a month: write \"{minute} {hour} 28-31 {month} {weekday}\", and let the \
                     statement do its work only if tomorrow is a first"
                ));
            }
            if fields.iter().any(|field| field.contains('?')) {
                let plain = expression.replace('?', "*");
                return is_cron(&plain).then(|| format!("write \"{plain}\""));
            }
            if weekday.contains('#') || weekday.to_ascii_lowercase().ends_with('l') {
                return Some(
                    "cron has no such day of a month: name the days of the month, and let the statement do its \
                     work only on the right day of the week"
                        .to_owned(),
                );
            }
            let is_hashed = |field: &&&str| field.eq_ignore_ascii_case("h");
            if fields.iter().any(|field| is_hashed(&field)) {
                return Some("write a number in the place of H".to_owned());
            }
            long_step(&fields)
                .and_then(|(field, step)| instead_of_step(&fields, field, step, is_cron))
        }
        _ => None,
    }
}

/// An interval in words, such as `30 seconds`, as `every` takes it.
fn interval(text: &str) -> Option<String> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(end);
    if number.is_empty() {
        return None;
    }
    let unit = match unit.trim() {
        "s" | "sec" | "secs" | "second" | "seconds" => "s",
        "m" | "min" | "mins" | "minute" | "minutes" => "m",
        "h" | "hour" | "hours" => "h",
        "d" | "day" | "days" => "d",
        _ => return None,
    };
    Some(format!("{number}{unit}"))
}

/// A step that is as long as its whole field or longer, so that it selects only the first value: the place of the field,
/// and the step.
pub(super) fn long_step(fields: &[&str]) -> Option<(usize, u32)> {
    let steps = fields.iter().zip(LENGTHS).enumerate();
    let mut steps = steps.filter_map(|(place, (field, length))| {
        let step = field.strip_prefix("*/")?.parse().ok()?;
        (step >= length).then_some((place, step))
    });
    steps.next()
}

/// How many values each field has, and its name.
const LENGTHS: [u32; 5] = [60, 24, 31, 12, 7];
pub(super) const NAMES: [&str; 5] = ["minute", "hour", "day of month", "month", "day of week"];

fn instead_of_step(
    fields: &[&str],
    place: usize,
    step: u32,
    is_cron: fn(&str) -> bool,
) -> Option<String> {
    let first = if place == 2 || place == 3 { "1" } else { "0" };
    let mut once = String::new();
    for (at, field) in fields.iter().enumerate() {
        let field = if at == place { first } else { *field };
        let between = if at == 0 { "" } else { " " };
        // Writing to a text cannot fail.
        let _ = write!(once, "{between}{field}");
    }
    is_cron(&once).then(|| match ["m", "h", "d"].get(place) {
        Some(unit) => format!("write \"{once}\", or set every = \"{step}{unit}\""),
        None => format!("write \"{once}\""),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_tools_write_is_told_in_the_words_of_this_one() {
        for (expression, expected) in [
            ("30 seconds", "set every = \"30s\" instead"),
            ("5 Minutes", "set every = \"5m\" instead"),
            ("@every 1h30m", "set every = \"1h30m\" instead"),
            (
                "0 30 2 * * ?",
                "cron has neither seconds nor years: write \"30 2 * * *\", or set \"every\" for less than a minute",
            ),
            (
                "0 3 $ * *",
                "cron has no last day of a month: write \"0 3 28-31 * *\", and let the statement do its work only if \
                 tomorrow is a first",
            ),
            ("0 3 ? * 1", "write \"0 3 * * 1\""),
            ("H 3 * * *", "write a number in the place of H"),
            (
                "*/90 * * * *",
                "write \"0 * * * *\", or set every = \"90m\"",
            ),
            (
                "0 */36 * * *",
                "write \"0 0 * * *\", or set every = \"36h\"",
            ),
            ("0 0 1 */12 *", "write \"0 0 1 1 *\""),
        ] {
            let said = meant(expression, |_| true);
            assert_eq!(said.as_deref(), Some(expected), "{expression}");
        }
        assert!(meant("0 0 * * 1#2", |_| true).is_some());
        for expression in ["*/15 * * * *", "0 25 * * *", "@daily", ""] {
            assert_eq!(meant(expression, |_| true), None, "{expression}");
        }
        let of_crontab = meant("*/7 * * * * root", |it| !it.ends_with("root"));
        let expected = "write \"*/7 * * * *\": there is no user to run as";
        assert_eq!(of_crontab.as_deref(), Some(expected));
        // What is wrong besides would be wrong in what is suggested.
        for expression in ["0 25 ? * *", "*/70 2 * * 8", "0 0 30 2 * x"] {
            assert_eq!(meant(expression, |_| false), None, "{expression}");
        }
    }
}
