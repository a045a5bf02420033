//! What a worker cannot work on: what is wrong, and the statement that mends it. Pure.
//!
//! A statement is named only if it works as it stands and loses nothing.

use thiserror::Error;

use super::folding::bypass_row_security;
use crate::spelling;

/// What a statement does that changes a table so that it can be worked on.
pub(super) const CORRECTS: &str = "this corrects it";

/// Something that a worker cannot work on, as it is told.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text}")]
pub(super) struct Refusal {
    text: String,
    /// The configuration names something that is not there.
    is_wrong_name: bool,
}

/// What a statement does that grants a privilege.
pub(super) const GRANTS: &str = "to grant that, the owner runs";

/// Refuses a table whose policies could hide rows from the role.
pub(super) fn row_security(table: &str, role: &str) -> Refusal {
    let what = format!(
        "{table} has row security that applies to the role: rows that it hides would never be folded"
    );
    let does = "this lets the role see all rows, run by a superuser";
    Refusal::new(what).mend(does, Some(bypass_row_security(role)))
}

// === impl Refusal ===

impl Refusal {
    /// What is wrong.
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self {
            text: what.into(),
            is_wrong_name: false,
        }
    }

    /// Adds a statement, if there is one, and what it does.
    pub(super) fn mend(mut self, what_it_does: &str, sql: Option<String>) -> Self {
        if let Some(sql) = sql {
            self.text += &format!("; {what_it_does}: {sql}");
        }
        self
    }

    /// Adds what has to be dropped before the statement that follows.
    pub(super) fn after(mut self, used_by: &[String]) -> Self {
        if !used_by.is_empty() {
            let used_by = used_by.join(", ");
            self.text += &format!(
                "; first drop what depends on it ({used_by}), and make that again afterwards"
            );
        }
        self
    }

    /// Adds a name that the configuration may have meant, if there is one.
    pub(super) fn meant(mut self, name: Option<&str>) -> Self {
        if let Some(name) = name {
            let question = spelling::did_you_mean(name);
            self.text += &format!(" ({question} Then correct the configuration)");
        }
        self
    }

    /// Adds something that a person should know.
    pub(super) fn note(mut self, note: &str) -> Self {
        self.text += note;
        self
    }

    /// What follows from the name is not told, since the name is wrong, most likely.
    pub(super) fn of_a_wrong_name(mut self) -> Self {
        self.is_wrong_name = true;
        self
    }

    /// `true` if the configuration has a wrong name, most likely.
    pub(super) fn is_wrong_name(&self) -> bool {
        self.is_wrong_name
    }
}
