//! Statements that a connection has prepared, to be called by name in batches of SQL. Where none may be prepared, a batch has their
//! text.
//!
//! A statement has parameters `$1`, `$2`, … and an argument is SQL: a literal, with its type where the statement does not say it.

use std::fmt::Write;
use std::sync::{LazyLock, Mutex, PoisonError};

/// The texts of the statements that a session has prepared. The place of each is its name.
#[derive(Debug, Default)]
pub(super) struct Prepared(Mutex<Vec<&'static str>>);

/// SQL that runs a statement that need not be prepared.
pub(crate) fn in_full(statement: &str, arguments: &[String]) -> String {
    let mut sql = String::with_capacity(statement.len());
    let mut rest = statement;
    while let Some(at) = rest.find('$') {
        let (before, parameter) = rest.split_at(at);
        let digits = parameter[1..].bytes().take_while(u8::is_ascii_digit);
        let end = 1 + digits.count();
        let number: Option<usize> = parameter[1..end].parse().ok();
        let argument = number.and_then(|number| arguments.get(number.checked_sub(1)?));
        sql.push_str(before);
        sql.push_str(argument.map_or(&parameter[..end], String::as_str));
        rest = &parameter[end..];
    }
    sql + rest
}

/// A part of each name, so that no other statement has the same: to run that one would be to run nothing.
static OURS: LazyLock<u64> = LazyLock::new(|| fastrand::u64(..));

/// The name that a session knows a statement by.
fn name(place: usize) -> String {
    format!("\"bgworker {:x} {place}\"", *OURS)
}

// === impl Prepared ===

impl Prepared {
    /// SQL that prepares those of these statements that are not prepared yet. `None` if all are.
    pub(super) fn prepare(&self, statements: &[&'static str]) -> Option<String> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = statements.iter().filter(|one| !known.contains(one));
        let mut sql = String::new();
        for (place, statement) in (known.len()..).zip(new) {
            let _ = write!(sql, "PREPARE {} AS {statement};", name(place));
        }
        (!sql.is_empty()).then_some(sql)
    }

    /// What [`prepare`](Self::prepare) returned was run.
    pub(super) fn are(&self, statements: &[&'static str]) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for statement in statements {
            if !known.contains(statement) {
                known.push(statement);
            }
        }
    }

    /// SQL that runs a statement: by its name if it is prepared, or else in full.
    pub(super) fn call(&self, statement: &str, arguments: &[String]) -> String {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match known.iter().position(|one| *one == statement) {
            Some(place) if arguments.is_empty() => format!("EXECUTE {}", name(place)),
            Some(place) => format!("EXECUTE {}({})", name(place), arguments.join(", ")),
            None => in_full(statement, arguments),
        }
    }

    /// `true` if these are the names of all of them and of nothing else, as the text of an array.
    pub(super) fn are_all(&self, names: &str) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut length = 2 + known.len().saturating_sub(1);
        let mut ours = (0..known.len()).map(name);
        ours.all(|name| {
            length += name.len();
            names.contains(&name)
        }) && names.len() == length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_argument_takes_the_place_of_its_parameter_and_none_of_what_another_says() {
        let arguments: Vec<_> = (1..=10).map(|n| format!("'${n} and ${}'", n + 1)).collect();
        assert_eq!(
            in_full("SELECT $10, $1::text, '$', $11", &arguments),
            "SELECT '$10 and $11', '$1 and $2'::text, '$', $11"
        );
        assert_eq!(in_full("SELECT 1", &[]), "SELECT 1");
    }

    #[test]
    fn a_statement_is_prepared_once_and_called_by_its_name_from_then_on() {
        let prepared = Prepared::default();
        let both = ["SELECT 1", "SELECT $1"];
        let five = ["5".to_owned()];
        assert_eq!(prepared.call("SELECT $1", &five), "SELECT 5");
        assert_eq!(
            prepared.prepare(&both[1..]).unwrap(),
            format!("PREPARE {} AS SELECT $1;", name(0))
        );
        prepared.are(&both[1..]);
        assert_eq!(
            prepared.call("SELECT $1", &five),
            format!("EXECUTE {}(5)", name(0))
        );
        assert_eq!(
            prepared.prepare(&both).unwrap(),
            format!("PREPARE {} AS SELECT 1;", name(1))
        );
        prepared.are(&both);
        assert_eq!(prepared.prepare(&both), None);
        assert_eq!(
            prepared.call("SELECT 1", &[]),
            format!("EXECUTE {}", name(1))
        );
        let (one, two) = (name(0), name(1));
        for (names, are_all) in [
            (format!("{{{two},{one}}}"), true),
            (format!("{{{two},{one},p1}}"), false),
            (format!("{{{two},p1}}"), false),
            ("{}".to_owned(), false),
        ] {
            assert_eq!(prepared.are_all(&names), are_all, "{names}");
        }
        assert!(Prepared::default().are_all("{}"));
    }
}
