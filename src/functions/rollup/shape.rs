//! The shape of a roll-up's tables, as its statements need it.

use crate::functions::folding::Layout;

/// The columns of a queue and its totals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// The columns of the key.
    pub(super) keys: Vec<String>,
    /// The columns that are added up.
    pub(super) sums: Vec<Sum>,
    pub(super) queue: Layout,
    pub(super) totals: Layout,
    /// The oid of the view, if there is to be one.
    pub(super) view: Option<u32>,
}

/// A column of the totals that is added to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) total: String,
    /// The column of the queue that is added; `None` counts rows.
    pub(super) delta: Option<String>,
}

/// The types whose sums are exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Number {
    SmallInt,
    Integer,
    BigInt,
    Numeric,
}

// === impl Number ===

impl Number {
    /// The type of this name in `pg_catalog`.
    pub(super) fn of(typname: &str) -> Option<Self> {
        match typname {
            "int2" => Some(Self::SmallInt),
            "int4" => Some(Self::Integer),
            "int8" => Some(Self::BigInt),
            "numeric" => Some(Self::Numeric),
            _ => None,
        }
    }
}
