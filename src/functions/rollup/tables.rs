//! What a look at the tables and the view of a roll-up has found.

use tokio_postgres::Row;

use super::shape::Number;
use crate::functions::folding::Layout;
use crate::functions::ownership::Facts;
use crate::functions::relation::Relation;

/// What a look at a roll-up's tables has found.
#[derive(Clone, Debug, Default)]
pub(super) struct Tables {
    /// The role that the worker runs as.
    pub(super) role: String,
    pub(super) queue: Table,
    pub(super) totals: Table,
    /// The view, if there is to be one.
    pub(super) view: Table,
    /// The table for poison, if there is to be one.
    pub(super) rejected: Table,
    /// Some keys have several totals. Asked only if no index prevents that.
    pub(super) has_duplicates: bool,
    /// Columns of the key that may be NULL in the queue, and are in some rows.
    pub(super) with_null: Vec<String>,
    /// The columns of the totals that identify their rows, which must not be NULL.
    pub(super) identity: Vec<String>,
    /// The columns of each usable unique index of the totals.
    pub(super) unique: Vec<Vec<String>>,
    /// The deferrable unique constraints of the totals.
    pub(super) deferrable: Vec<Deferrable>,
    /// The columns of the totals that are part of any index.
    pub(super) indexed: Vec<String>,
    /// All tables, if the queue or the totals do not exist: their names may be misspelt.
    pub(super) others: Vec<String>,
    /// The owners that the settings trust.
    pub(super) trusted_owners: Vec<String>,
}

/// A deferrable unique constraint, which keeps an upsert from relying on any index on its columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Deferrable {
    pub(super) constraint: String,
    /// `PRIMARY KEY` or `UNIQUE`.
    pub(super) kind: &'static str,
    pub(super) keys: Vec<String>,
}

/// What a look at a table or a view has found.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    /// `relkind`; `None` if the relation does not exist.
    pub(super) kind: Option<String>,
    pub(super) oid: Option<u32>,
    pub(super) layout: Layout,
    /// The statements that take its children from an ordinary table.
    pub(super) disinherit: Option<String>,
    pub(super) row_security: bool,
    /// A rule on INSERT, UPDATE or DELETE.
    pub(super) rule: Option<String>,
    pub(super) has_schema: bool,
    /// Something else determines its columns: it is a partition, or a table of a type.
    pub(super) is_bound: bool,
    /// Views and functions that read it, as they are told.
    pub(super) readers: Vec<String>,
    pub(super) may_use_schema: bool,
    pub(super) may_create: bool,
    pub(super) may_select: bool,
    pub(super) may_insert: bool,
    pub(super) may_update: bool,
    pub(super) may_delete: bool,
    /// The role may do what only the owner may.
    pub(super) is_owned: bool,
    /// What a view reads: schema, name and column of each in turn; the column is empty for the relation itself.
    pub(super) reads: Vec<String>,
    /// The name of a subquery by which a view is known as a worker's.
    pub(super) rows: Option<String>,
    pub(super) columns: Columns,
    /// Whose it is, and what runs code in it.
    pub(super) facts: Facts,
}

/// The columns of a table.
#[derive(Clone, Debug, Default)]
pub(super) struct Columns(pub(super) Vec<TableColumn>);

/// A column of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TableColumn {
    pub(super) name: String,
    /// Its type, as the server shows it.
    pub(super) shown: String,
    /// The name of its type, if the type is in `pg_catalog`.
    pub(super) kind: Option<String>,
    /// The scale of a numeric that declares one.
    pub(super) scale: Option<i32>,
    /// Its collation, quoted, if it is not the default of its type.
    pub(super) collation: Option<String>,
    pub(super) is_deterministic: bool,
    pub(super) not_null: bool,
    pub(super) is_generated: bool,
    /// It is computed when it is read, and cannot become a column that is written.
    pub(super) is_virtual: bool,
    pub(super) is_identity: bool,
    pub(super) has_default: bool,
    /// Whether an index tells its values apart, by operators of `pg_catalog`.
    pub(super) can_be_key: bool,
    /// It is part of a partition key.
    pub(super) is_in_partition_key: bool,
    /// What has to be dropped before its type can be changed: views, triggers and others, as they are told.
    pub(super) used_by: Vec<String>,
}

// === impl Tables ===

impl Tables {
    pub(super) fn at(&mut self, place: i32) -> Option<&mut Table> {
        Some(match place {
            0 => &mut self.queue,
            1 => &mut self.totals,
            2 => &mut self.view,
            3 => &mut self.rejected,
            _ => return None,
        })
    }
}

impl From<&Row> for Table {
    fn from(row: &Row) -> Self {
        let is = |column: &str| row.get::<_, Option<bool>>(column) == Some(true);
        Self {
            kind: row.get("kind"),
            oid: row.get("oid"),
            layout: Layout {
                oid: row.get::<_, Option<u32>>("oid").unwrap_or_default(),
                columns: row.get::<_, Option<i64>>("layout").unwrap_or_default(),
                is_bare: is("is_bare"),
                has_children: is("has_children"),
            },
            disinherit: row.get("disinherit"),
            row_security: is("row_security"),
            rule: row.get("rule"),
            has_schema: is("has_schema"),
            is_bound: is("is_bound"),
            readers: row.get("readers"),
            may_use_schema: is("may_use_schema"),
            may_create: is("may_create"),
            may_select: is("may_select"),
            may_insert: is("may_insert"),
            may_update: is("may_update"),
            may_delete: is("may_delete"),
            is_owned: is("is_owned"),
            reads: row.get("reads"),
            rows: row.get("rows"),
            columns: Columns::default(),
            facts: Facts::of(row),
        }
    }
}

impl From<&Row> for TableColumn {
    fn from(row: &Row) -> Self {
        Self {
            name: row.get("name"),
            shown: row.get("shown"),
            kind: row.get("kind"),
            scale: row.get("scale"),
            collation: row.get("collation"),
            is_deterministic: row.get("is_deterministic"),
            not_null: row.get("not_null"),
            is_generated: row.get("is_generated"),
            is_virtual: row.get("is_virtual"),
            is_identity: row.get("is_identity"),
            has_default: row.get("has_default"),
            can_be_key: row.get("can_be_key"),
            is_in_partition_key: row.get("is_in_partition_key"),
            used_by: row.get("used_by"),
        }
    }
}

// === impl Table ===

impl Table {
    /// `true` if it is a table all of whose rows the role may read.
    pub(super) fn may_read(&self) -> bool {
        let is_table = matches!(self.kind.as_deref(), Some("r" | "p"));
        is_table && self.may_use_schema && self.may_select && !self.row_security
    }

    /// `true` if it is a view that reads this relation. The names are compared unquoted, since the server quotes words
    /// that SQL reserves.
    pub(super) fn does_read(&self, relation: &Relation) -> bool {
        let names = [&relation.schema, &relation.name];
        self.reads
            .chunks(3)
            .any(|read| read.iter().take(2).eq(names))
    }

    /// `true` if it is a view that reads this column of this relation.
    pub(super) fn does_read_column(&self, relation: &Relation, column: &str) -> bool {
        let names = [&*relation.schema, &*relation.name, column];
        self.reads.chunks(3).any(|read| read.iter().eq(names))
    }
}

// === impl Columns ===

impl Columns {
    pub(super) fn get(&self, name: &str) -> Option<&TableColumn> {
        self.0.iter().find(|column| column.name == name)
    }

    /// The names of the columns, quoted and separated by commas.
    pub(super) fn names(&self) -> String {
        let names: Vec<_> = self
            .0
            .iter()
            .map(|column| format!("\"{}\"", column.name))
            .collect();
        names.join(", ")
    }
}

impl TableColumn {
    /// The kind of number that it holds; `None` if its sums would not be exact.
    pub(super) fn number(&self) -> Option<Number> {
        Number::of(self.kind.as_deref()?)
    }
}
