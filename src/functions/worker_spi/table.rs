//! The table of a built-in worker: two names, checked on input and quoted on output.

use std::fmt;

use thiserror::Error;

use crate::functions::quote::identifier;
use crate::functions::relation::Relation;

/// A table of deltas and their total: two names that PostgreSQL does not truncate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Table(Relation);

/// Why a name cannot name a schema or a table.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InvalidTable {
    /// A name is empty.
    #[error("{what} name is empty")]
    Empty {
        /// Whose name it is: a schema's or a table's.
        what: &'static str,
    },
    /// A name has a NUL in it.
    #[error("{what} name {name:?} must not contain NUL")]
    Nul {
        /// Whose name it is: a schema's or a table's.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A name is too long: PostgreSQL would truncate it, and two names might become the same.
    #[error("{what} name \"{name}\" is {} bytes long: {max} bytes is the limit{reason}", .name.len())]
    TooLong {
        /// Whose name it is: a schema's or a table's.
        what: &'static str,
        /// The name.
        name: String,
        /// The limit in bytes.
        max: usize,
        /// The reason for the limit, if it is not PostgreSQL's own.
        reason: &'static str,
    },
}

/// The suffix that makes a table's name the name of its index, as in PostgreSQL's sample.
const INDEX_SUFFIX: &str = "_unique_total";

// === impl Table ===

impl Table {
    /// Longest name of a schema, in bytes: PostgreSQL truncates longer ones (`NAMEDATALEN - 1`).
    pub const SCHEMA_MAX: usize = 63;

    /// Longest name of a table, in bytes: the longer name of its index must fit too.
    pub const NAME_MAX: usize = Self::SCHEMA_MAX - INDEX_SUFFIX.len();

    /// Names a table.
    ///
    /// # Errors
    ///
    /// If a name is empty, too long, or has a NUL in it.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Result<Self, InvalidTable> {
        Ok(Self(Relation {
            schema: check_schema(schema.into())?,
            name: check_table(name.into())?,
        }))
    }

    /// Names a table by two names that were checked.
    pub(super) fn of_names(schema: &str, name: &str) -> Self {
        Self(Relation {
            schema: schema.to_owned(),
            name: name.to_owned(),
        })
    }

    /// The schema's name and the table's.
    pub(super) fn into_names(self) -> (String, String) {
        (self.0.schema, self.0.name)
    }

    /// The schema's name, unquoted.
    #[must_use]
    pub fn schema(&self) -> &str {
        &self.0.schema
    }

    /// The table's name, unquoted.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// `schema.table`, quoted for a statement.
    #[must_use]
    pub fn sql(&self) -> String {
        self.0.sql()
    }

    /// The table as a relation.
    pub(super) fn relation(&self) -> &Relation {
        &self.0
    }

    /// The name of its index, quoted for a statement.
    pub(super) fn index(&self) -> String {
        identifier(&format!("{}{INDEX_SUFFIX}", self.0.name))
    }
}

impl fmt::Display for Table {
    /// `schema.table`, each in quotes unless it is plain: lower-case letters, digits, underscores.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Reads the name of a schema from its key.
pub(super) fn schema_name<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<String, D::Error> {
    let name = serde::Deserialize::deserialize(deserializer)?;
    check_schema(name).map_err(serde::de::Error::custom)
}

/// Reads the name of a table from its key.
pub(super) fn table_name<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<String, D::Error> {
    let name = serde::Deserialize::deserialize(deserializer)?;
    check_table(name).map_err(serde::de::Error::custom)
}

fn check_schema(name: String) -> Result<String, InvalidTable> {
    check("schema", name, Table::SCHEMA_MAX, "")
}

fn check_table(name: String) -> Result<String, InvalidTable> {
    let reason = ", since the name of its index is 13 bytes longer";
    check("table", name, Table::NAME_MAX, reason)
}

fn check(
    what: &'static str,
    name: String,
    max: usize,
    reason: &'static str,
) -> Result<String, InvalidTable> {
    if name.is_empty() {
        return Err(InvalidTable::Empty { what });
    }
    if name.contains('\0') {
        return Err(InvalidTable::Nul { what, name });
    }
    if name.len() > max {
        return Err(InvalidTable::TooLong {
            what,
            name,
            max,
            reason,
        });
    }
    Ok(name)
}
