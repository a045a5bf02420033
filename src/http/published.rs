//! What of an error is for everyone who reaches the page. Pure.

use crate::database::{DETAIL, HINT};

/// An error without the server's DETAIL, which quotes rows: `Key (email)=(…) already exists.` The log has it.
pub(super) fn published(error: &str) -> String {
    let Some((begin, rest)) = error.split_once(DETAIL) else {
        return error.to_owned();
    };
    match rest.split_once(HINT) {
        Some((_, hint)) => format!("{begin}{HINT}{}", published(hint)),
        None => begin.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_is_left_out_and_a_hint_is_kept() {
        for (error, expected) in [
            ("the disk is on fire", "the disk is on fire"),
            (
                "add: ERROR: duplicate key (SQLSTATE 23505); DETAIL: Key (k)=(a@b) exists.",
                "add: ERROR: duplicate key (SQLSTATE 23505)",
            ),
            ("e; DETAIL: Key; HINT: try", "e; HINT: try"),
            ("e; HINT: try", "e; HINT: try"),
            (
                "e; DETAIL: a; HINT: b; f; DETAIL: c; HINT: d",
                "e; HINT: b; f; HINT: d",
            ),
        ] {
            assert_eq!(published(error), expected);
        }
    }
}
