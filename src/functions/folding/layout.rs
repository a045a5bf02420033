//! What a fold relies on in a table: a look finds it out, and each fold asks again before it does anything. Pure text.
//!
//! A fold that finds something else undoes itself, and the worker looks at its tables again.

use crate::functions::relation::Relation;

/// Why a fold undoes itself before it has done anything: what the worker found out no longer holds.
pub(in crate::functions) const CHANGED: &str = "its tables are no longer what they were";

/// An expression of type numeric that changes whenever a column of the table `c` does: a number of each transaction that
/// has written the description of a column.
pub(in crate::functions) const COLUMN_VERSIONS: &str = "(SELECT pg_catalog.sum(a.xmin::pg_catalog.text::pg_catalog.int8) \
    FROM pg_catalog.pg_attribute AS a WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid)";

/// A condition: the table `c` has children, which may have rows, columns and triggers of their own.
pub(in crate::functions) const HAS_CHILDREN: &str = "(c.relhassubclass AND c.relkind OPERATOR(pg_catalog.=) 'r' \
    AND EXISTS (SELECT FROM pg_catalog.pg_inherits AS i WHERE i.inhparent OPERATOR(pg_catalog.=) c.oid))";

/// A condition: a rule makes the server do something else with the table `c` than it was asked for.
pub(in crate::functions) const HAS_RULES: &str = "(c.relhasrules AND EXISTS (SELECT FROM pg_catalog.pg_rewrite AS r \
    WHERE r.ev_class OPERATOR(pg_catalog.=) c.oid AND (r.ev_type OPERATOR(pg_catalog.=) '2' \
    OR r.ev_type OPERATOR(pg_catalog.=) '4')))";

/// What a look has found out about a table that has no rule on UPDATE or DELETE.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::functions) struct Layout {
    /// The value of [`COLUMN_VERSIONS`], as text.
    pub(in crate::functions) columns: String,
    /// The value of [`HAS_CHILDREN`].
    pub(in crate::functions) has_children: bool,
}

// === impl Layout ===

impl Layout {
    /// A condition: the table is still like this. The table must be locked before the statement takes its snapshot, as
    /// the target of a deletion or an insertion is.
    pub(in crate::functions) fn holds(&self, table: &Relation) -> String {
        let columns: String = self.columns.chars().filter(char::is_ascii_digit).collect();
        format!(
            "EXISTS (SELECT FROM pg_catalog.pg_class AS c WHERE c.oid OPERATOR(pg_catalog.=) {}::pg_catalog.oid \
             AND NOT {HAS_RULES} AND {HAS_CHILDREN} OPERATOR(pg_catalog.=) {} \
             AND {COLUMN_VERSIONS} OPERATOR(pg_catalog.=) '{columns}'::pg_catalog.numeric)",
            table.regclass(),
            self.has_children,
        )
    }
}
