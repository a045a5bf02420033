//! Judges a key whose deltas could not be added: whether they are at fault, and what becomes of them. Pure.

use std::time::Duration;

use super::halving::PartFailure;
use crate::database::Fault;
use crate::functions::folding::Undone;

/// How long a row to which a delta refers may take to appear, before the delta is moved away.
const REFERENCE_WITHIN: Duration = Duration::from_secs(60);

/// What becomes of the deltas of a key that has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Another client holds its total: not poison.
    Held,
    /// They wait.
    Waits,
    /// Those that fail alone, with this SQLSTATE, are moved away.
    Moves(String),
    /// If no other key goes through, it is not the key that is at fault.
    Everywhere,
}

/// What the fate of a key depends on, beside its failure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Evidence<'e> {
    /// Other keys were folded at about the same time.
    pub(super) others_pass: bool,
    /// What cannot be added is to be moved away.
    pub(super) sets_aside: bool,
    pub(super) keys: &'e [String],
}

/// Judges a key that has failed; `since` is for how long it is known to fail.
pub(super) fn judge(failure: &PartFailure, evidence: Evidence<'_>, since: Duration) -> Fate {
    let PartFailure {
        sqlstate, column, ..
    } = failure;
    let is_key = evidence.keys.contains(column);
    let fault = match failure.undone() {
        Some((Undone::NotANumber, _)) => Fault::Value,
        // A trigger, which keeps deltas in the queue: they cannot be moved away either.
        Some((Undone::Kept | Undone::KeptAll | Undone::Miscounted, _)) => Fault::Table,
        Some(_) => Fault::Unclear,
        None => Fault::of(sqlstate, !failure.constraint.is_empty(), is_key),
    };
    let moves = match fault {
        Fault::Client => return Fate::Held,
        Fault::Statement if !evidence.others_pass => return Fate::Everywhere,
        Fault::Table => false,
        Fault::Value => true,
        Fault::Reference => since >= REFERENCE_WITHIN,
        Fault::Statement | Fault::Unclear => evidence.others_pass,
    };
    if moves && evidence.sets_aside {
        Fate::Moves(sqlstate.clone())
    } else {
        Fate::Waits
    }
}

// === impl PartFailure ===

impl PartFailure {
    /// Why the fold undid itself, if it did.
    fn undone(&self) -> Option<(Undone, &str)> {
        Undone::said(&self.sqlstate, &self.message)
    }

    /// Says why deltas cannot be added, for the log; `at_fault` says what is likely to be the cause.
    pub(super) fn reason(&self, at_fault: fn(Undone) -> &'static str) -> String {
        match self.undone() {
            Some((undone, why)) => format!("{why}: {}", at_fault(undone)),
            None => {
                let one_line = self.message.replace(char::is_control, " ");
                format!("{one_line} (SQLSTATE {})", self.sqlstate)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::UNDONE;

    #[test]
    fn poison_is_what_the_delta_is_guilty_of() {
        let keys = ["k".to_owned()];
        let judged =
            |sqlstate: &str, names: [&str; 2], message: &str, others_pass, minutes: u64| {
                let failure = PartFailure {
                    sqlstate: sqlstate.to_owned(),
                    message: message.to_owned(),
                    constraint: names[0].to_owned(),
                    column: names[1].to_owned(),
                };
                let evidence = Evidence {
                    others_pass,
                    sets_aside: true,
                    keys: &keys,
                };
                judge(&failure, evidence, Duration::from_secs(60 * minutes))
            };
        let moves = |sqlstate: &str| Fate::Moves(sqlstate.to_owned());
        for (sqlstate, names, message, others_pass, minutes, expected) in [
            // A total that another client holds, a deadlock.
            ("55P03", ["", ""], "", true, 9, Fate::Held),
            ("40P01", ["", ""], "", true, 9, Fate::Held),
            // A value that is out of range, a check, a key that is too long for the index.
            ("22003", ["", ""], "", false, 0, moves("22003")),
            ("23514", ["t_v_check", ""], "", false, 0, moves("23514")),
            ("54000", ["", ""], "", false, 0, moves("54000")),
            (
                UNDONE,
                ["", ""],
                "\"bgworker[not a number]: a sum of 1 deltas is NaN\"",
                false,
                0,
                moves(UNDONE),
            ),
            // A missing partition, a column that was added to the totals, a trigger that keeps deltas.
            ("23514", ["", ""], "", true, 9, Fate::Waits),
            ("23502", ["", "added"], "", true, 9, Fate::Waits),
            ("23502", ["", "k"], "", false, 0, moves("23502")),
            (
                UNDONE,
                ["", ""],
                "\"bgworker[kept all]: of 1 deltas 0 could be deleted\"",
                true,
                9,
                Fate::Waits,
            ),
            // A row that another client may be about to insert.
            ("23503", ["fk", ""], "", true, 0, Fate::Waits),
            ("23503", ["fk", ""], "", true, 1, moves("23503")),
            // Triggers raise anything: it is the key's if others go through.
            ("P0001", ["", ""], "", false, 9, Fate::Waits),
            ("P0001", ["", ""], "", true, 0, moves("P0001")),
            ("PT402", ["", ""], "", true, 0, moves("PT402")),
            ("42501", ["", ""], "", true, 0, moves("42501")),
            ("42501", ["", ""], "", false, 0, Fate::Everywhere),
        ] {
            let verdict = judged(sqlstate, names, message, others_pass, minutes);
            assert_eq!(verdict, expected, "{sqlstate} {names:?} {message}");
        }
    }
}
