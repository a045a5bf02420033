//! What a fold relies on in a table: a look finds it out, and each fold asks again before it does anything. Pure text.
//!
//! A fold that finds something else undoes itself, and the worker looks at its tables again.

use crate::functions::quote::literal;
use crate::functions::relation::Relation;

/// An expression of type bigint that changes whenever a column of the table `c` does: the sum of the transactions that have
/// written the description of a column.
pub(in crate::functions) const COLUMN_VERSIONS: &str = "(SELECT pg_catalog.sum(a.xmin::pg_catalog.text::pg_catalog.int8) \
    FROM pg_catalog.pg_attribute AS a WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid)::pg_catalog.int8";

/// A condition: the table `c` certainly has neither rules nor children nor triggers. The server sets these marks at once,
/// and takes them back late.
pub(in crate::functions) const IS_BARE: &str =
    "NOT (c.relhasrules OR c.relhassubclass OR c.relhastriggers)";

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
    /// Its OID: another table can take its name.
    pub(in crate::functions) oid: u32,
    /// The value of [`COLUMN_VERSIONS`].
    pub(in crate::functions) columns: i64,
    /// The value of [`IS_BARE`].
    pub(in crate::functions) is_bare: bool,
    /// The value of [`HAS_CHILDREN`].
    pub(in crate::functions) has_children: bool,
}

// === impl Layout ===

impl Layout {
    /// A condition: the table is still like this.
    fn holds(&self) -> String {
        format!(
            "EXISTS (SELECT FROM pg_catalog.pg_class AS c WHERE c.oid OPERATOR(pg_catalog.=) {}::pg_catalog.oid \
             AND NOT {HAS_RULES} AND {HAS_CHILDREN} OPERATOR(pg_catalog.=) {} \
             AND {COLUMN_VERSIONS} OPERATOR(pg_catalog.=) {}::pg_catalog.int8)",
            self.oid, self.has_children, self.columns,
        )
    }
}

/// A condition: these tables are still like this. They must be locked before the statement takes its snapshot, as the
/// target of a deletion or an insertion is.
///
/// The names are looked up when the statement runs: by then, it has locked what they mean, while before, another table
/// could still take a name.
///
/// Bare tables are asked about together, since most tables are, and each subquery costs the server a tenth of a
/// millisecond to plan.
pub(in crate::functions) fn hold(tables: &[(&Relation, &Layout)]) -> String {
    let are_they = tables.iter().map(|(table, layout)| {
        format!(
            "pg_catalog.to_regclass({}) OPERATOR(pg_catalog.=) {}::pg_catalog.oid",
            literal(&table.sql()),
            layout.oid
        )
    });
    let are_they = are_they.collect::<Vec<_>>().join(" AND ");
    if tables.iter().any(|(_, layout)| !layout.is_bare) {
        let each = tables.iter().map(|(_, layout)| layout.holds());
        let each = each.collect::<Vec<_>>().join(" AND ");
        return format!("(({are_they} AND {each}) IS TRUE)");
    }
    let oids = tables.iter().map(|(_, layout)| layout.oid.to_string());
    let columns = tables.iter().map(|(_, layout)| {
        format!(
            "pg_catalog.sum(a.xmin::pg_catalog.text::pg_catalog.int8) \
             FILTER (WHERE a.attrelid OPERATOR(pg_catalog.=) {}::pg_catalog.oid) OPERATOR(pg_catalog.=) {}::pg_catalog.numeric",
            layout.oid, layout.columns
        )
    });
    format!(
        "(({are_they} AND (SELECT pg_catalog.count(*) FROM pg_catalog.pg_class AS c \
         WHERE c.oid OPERATOR(pg_catalog.=) ANY ('{{{oids}}}'::pg_catalog.oid[]) AND {IS_BARE}) OPERATOR(pg_catalog.=) {tables} \
         AND (SELECT {columns} FROM pg_catalog.pg_attribute AS a \
         WHERE a.attrelid OPERATOR(pg_catalog.=) ANY ('{{{oids}}}'::pg_catalog.oid[]))) IS TRUE)",
        oids = oids.collect::<Vec<_>>().join(","),
        tables = tables.len(),
        columns = columns.collect::<Vec<_>>().join(" AND "),
    )
}
