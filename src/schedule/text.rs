//! A schedule as text, as declarations have it: for people, and for instances with another schedule. Each version must
//! read what each other version writes.

use super::{Kind, Schedule, seconds};

// === impl Schedule ===

impl Schedule {
    /// The schedule as its keys in a configuration have it: `every="90s"`, or `cron="15 2 * * *" zone="Europe/Berlin"`.
    pub(crate) fn text(&self) -> String {
        match &self.0 {
            Kind::Every(every) => format!("every={}", quoted(&seconds(*every))),
            Kind::Cron(cron) => {
                let (expression, zone) = cron.written();
                format!("cron={} zone={}", quoted(expression), quoted(zone))
            }
        }
    }

    /// Reads a schedule from a [`text`](Self::text), whatever follows there.
    pub(crate) fn of_text(text: &str) -> Option<Self> {
        let (every, rest) = value(text, "every");
        if let Some(every) = every {
            return Self::every(humantime::parse_duration(&every).ok()?).ok();
        }
        let (expression, rest) = value(rest, "cron");
        let (zone, _) = value(rest.trim_start(), "zone");
        Self::cron(&expression?, &zone?).ok()
    }
}

/// A text in double quotes.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\t' => quoted.push_str("\\t"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

/// The value of this key, if the text begins with it, and what follows.
fn value<'t>(text: &'t str, key: &str) -> (Option<String>, &'t str) {
    let Some(rest) = (text.strip_prefix(key)).and_then(|rest| rest.strip_prefix("=\"")) else {
        return (None, text);
    };
    let (mut value, mut chars) = (String::new(), rest.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (Some(value), &rest[at + 1..]),
            '\\' => match chars.next() {
                Some((_, 't')) => value.push('\t'),
                Some((_, 'n')) => value.push('\n'),
                Some((_, 'r')) => value.push('\r'),
                Some((_, c)) => value.push(c),
                None => break,
            },
            c => value.push(c),
        }
    }
    (None, text)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_schedule_is_written_as_its_keys_and_read_again() {
        let every = |milliseconds| Schedule::every(Duration::from_millis(milliseconds)).unwrap();
        let cron = |expression, zone| Schedule::cron(expression, zone).unwrap();
        for (schedule, text) in [
            (every(50), "every=\"50ms\""),
            (every(60_001), "every=\"60.001s\""),
            (every(86_400_000), "every=\"86400s\""),
            (
                cron("15 2 * * *", "Europe/Berlin"),
                "cron=\"15 2 * * *\" zone=\"Europe/Berlin\"",
            ),
            (cron("@daily", "UTC"), "cron=\"@daily\" zone=\"UTC\""),
            (
                cron(" 0\t3 * * mon", "UTC"),
                "cron=\" 0\\t3 * * mon\" zone=\"UTC\"",
            ),
        ] {
            assert_eq!(schedule.text(), text);
            let read = Schedule::of_text(&format!("{text} transaction=true later=\"key\""));
            assert_eq!(
                read.map(|read| read.declaration()),
                Some(schedule.declaration())
            );
        }
    }

    #[test]
    fn what_is_no_schedule_is_none() {
        for text in [
            "",
            "every=\"",
            "every=\"1ms\"",
            "cron=\"x\" zone=\"UTC\"",
            "cron=\"@daily\"",
            "on=\"x\"",
        ] {
            assert!(Schedule::of_text(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_quoted_text_is_read_as_it_was() {
        for text in ["", "a \"b\" \\ c\t\n\r", "\\", "\"", "ä"] {
            let quoted = format!("k={} z", quoted(text));
            assert_eq!(value(&quoted, "k"), (Some(text.to_owned()), " z"));
        }
    }
}
