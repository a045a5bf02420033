//! The shape of a built-in worker's table, as its statements need it.

use crate::functions::folding::Layout;

/// What a look at the table has found out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Shape {
    /// Values may be NULL.
    pub(super) may_be_null: bool,
    pub(super) layout: Layout,
}
