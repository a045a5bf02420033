//! The statements that each run of a job that is one transaction calls, prepared once on a connection.

use std::borrow::Cow;

use super::claim::CLAIM;
use super::mark;

/// Both of them; a mark depends on whether the tables have the columns of declarations.
pub(super) fn all(has_declarations: bool) -> [Cow<'static, str>; 2] {
    [
        CLAIM.as_str().into(),
        mark::in_transaction(has_declarations).into(),
    ]
}
