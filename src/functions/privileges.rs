//! The privilege to create something that is missing. Pure text.

use super::quote::identifier;
use super::relation;

/// What a role needs to create tables.
pub(super) struct Creating<'c> {
    pub(super) role: &'c str,
    pub(super) database: &'c str,
    /// The schema, unless that is missing too.
    pub(super) schema: Option<&'c str>,
}

// === impl Creating ===

impl Creating<'_> {
    /// The statement that lets the role create them.
    pub(super) fn grant(&self) -> String {
        let role = relation::role(self.role);
        match self.schema {
            Some(schema) => {
                format!(
                    "GRANT USAGE, CREATE ON SCHEMA {} TO {role}",
                    identifier(schema)
                )
            }
            None => format!(
                "GRANT CREATE ON DATABASE {} TO {role}",
                identifier(self.database)
            ),
        }
    }
}
