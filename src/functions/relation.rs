//! A table or a view, by its schema and its name: as it stands in a statement, and as people write it.
//!
//! Pure text. Names are taken as they are, and quoted when they go out.

use std::fmt;

use super::quote::{identifier, literal};

/// The names of a table or a view.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Relation {
    pub(super) schema: String,
    pub(super) name: String,
}

// === impl Relation ===

impl Relation {
    /// `schema.name`, quoted for a statement.
    pub(super) fn sql(&self) -> String {
        format!("{}.{}", identifier(&self.schema), identifier(&self.name))
    }

    /// An expression of the type `regclass`.
    pub(super) fn regclass(&self) -> String {
        format!("{}::pg_catalog.regclass", literal(&self.sql()))
    }

    /// How many blocks the table has, as an expression.
    pub(super) fn blocks(&self) -> String {
        format!(
            "(pg_catalog.pg_relation_size({}) OPERATOR(pg_catalog./) \
             pg_catalog.current_setting('block_size')::pg_catalog.int8)",
            self.regclass()
        )
    }
}

impl fmt::Display for Relation {
    /// `schema.name`, each in quotes unless it is [plain](is_plain).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", shown(&self.schema), shown(&self.name))
    }
}

/// A name as people write it: in quotes unless it is plain.
pub(super) fn shown(name: &str) -> String {
    if is_plain(name) {
        name.to_owned()
    } else {
        identifier(name)
    }
}

/// Whether a name needs no quotes in a statement: lower-case letters, digits and underscores.
pub(super) fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    name.chars().all(plain) && !name.starts_with(|c: char| c.is_ascii_digit())
}
