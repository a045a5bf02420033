//! The timeline of a server that accepts writes: of two of one system, the one on the older timeline has been replaced.
//!
//! A primary that froze, or was cut off, may come back after another server was promoted, and accept writes that no other
//! server will ever have.

/// The timeline of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timeline {
    /// What a server has in common with those that were made from it; `None` if the role may not ask for that.
    system: Option<i64>,
    /// Each promotion begins another one, with a higher number.
    number: u32,
}

// === impl Timeline ===

impl Timeline {
    /// The name of the file that a primary writes its log to, for [`of`](Self::of).
    pub(super) const FILE: &str =
        "SELECT pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn())";

    /// The identifier of its system. A role may lack the right to ask for it.
    pub(super) const SYSTEM: &str =
        "SELECT s.system_identifier FROM pg_catalog.pg_control_system() AS s";

    /// The timeline of a primary that writes to this file: its first eight digits.
    pub(super) fn of(file: &str, system: Option<i64>) -> Option<Self> {
        let number = u32::from_str_radix(file.get(..8)?, 16).ok()?;
        Some(Self { system, number })
    }

    /// `true` if the server on this timeline is no longer the primary of its system, since the other one is.
    pub(super) fn was_replaced_by(self, other: Self) -> bool {
        let is_same = match (self.system, other.system) {
            (Some(own), Some(other)) => own == other,
            _ => true,
        };
        is_same && self.number < other.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_one_system_the_older_timeline_was_replaced() {
        let of = |number: u32, system| {
            Timeline::of(&format!("{number:08X}0000000300000004"), system).unwrap()
        };
        let (one, other) = (Some(1), Some(2));
        for (own, now, expected) in [
            (of(1, one), of(2, one), true),
            (of(9, one), of(10, one), true),
            (of(2, one), of(2, one), false),
            (of(3, one), of(2, one), false),
            // Another system at the same address.
            (of(1, other), of(2, one), false),
            // It is not known whether it is another one.
            (of(1, None), of(2, one), true),
        ] {
            assert_eq!(own.was_replaced_by(now), expected, "{own:?} {now:?}");
        }
        assert_eq!(Timeline::of("", None), None);
    }
}
