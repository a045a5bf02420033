//! Why a fold has undone itself: a word in what its statement said, and what the word means. Pure.
//!
//! A statement undoes itself by a cast to a number that fails, of a text such as `bgworker[kept]: of 3 deltas 2 could be
//! deleted`. The word is for the worker, the sentence for people.

use crate::database::{self, DatabaseError};

/// Why a fold has undone itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::functions) enum Undone {
    /// What the worker found out about its tables no longer holds.
    Changed,
    /// The queue or the totals have a trigger, which a fold at one snapshot cannot allow for.
    NotPlain,
    /// Some of the deltas could not be deleted.
    Kept,
    /// None of the deltas could be deleted.
    KeptAll,
    /// The server has deleted another number of rows than were added up.
    Miscounted,
    /// A sum is NaN or infinite.
    NotANumber,
    /// A total is not what it should be.
    Altered,
}

// === impl Undone ===

impl Undone {
    const ALL: [Self; 7] = [
        Self::Changed,
        Self::NotPlain,
        Self::Kept,
        Self::KeptAll,
        Self::Miscounted,
        Self::NotANumber,
        Self::Altered,
    ];

    const fn word(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::NotPlain => "not plain",
            Self::Kept => "kept",
            Self::KeptAll => "kept all",
            Self::Miscounted => "miscounted",
            Self::NotANumber => "not a number",
            Self::Altered => "altered",
        }
    }

    /// The word as a statement says it, by which it is told from others in SQL.
    pub(in crate::functions) fn mark(self) -> String {
        format!("[{}]: ", self.word())
    }

    /// An expression of type integer that undoes its statement. Each `%s` of the sentence stands for one of the arguments,
    /// which must depend on rows: the planner would evaluate it otherwise.
    pub(in crate::functions) fn sql(self, sentence: &str, arguments: &str) -> String {
        let mark = self.mark();
        format!("pg_catalog.format('bgworker{mark}{sentence}', {arguments})::pg_catalog.int4")
    }

    /// Why the statement undid itself that failed with this error; `None` if it did not.
    pub(in crate::functions) fn of(error: &DatabaseError) -> Option<Self> {
        error.undone().and_then(|(word, _)| Self::named(word))
    }

    /// Why a statement undid itself that failed with this SQLSTATE and message, and its sentence; `None` if it did not.
    pub(in crate::functions) fn said<'m>(
        sqlstate: &str,
        message: &'m str,
    ) -> Option<(Self, &'m str)> {
        let (word, why) = database::undone(sqlstate, message)?;
        Some((Self::named(word)?, why))
    }

    fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|undone| undone.word() == word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::UNDONE;

    #[test]
    fn what_a_statement_says_is_what_it_meant() {
        for undone in Undone::ALL {
            let text = format!("bgworker{}of 3 deltas [2]: no", undone.mark());
            let message = format!("invalid input syntax for type integer: \"{text}\"");
            let expected = Some((undone, "of 3 deltas [2]: no"));
            assert_eq!(Undone::said(UNDONE, &message), expected);
            assert_eq!(Undone::said("22003", &message), None);
        }
        assert_eq!(Undone::said(UNDONE, "bgworker[?]: no"), None);
        assert_eq!(Undone::said(UNDONE, "no number"), None);
    }
}
