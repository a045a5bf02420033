//! Looks up the tables and the view of a roll-up in the database, with one query for each kind of object.

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::settings::Settings;
use super::shape::Number;
use crate::database::{DatabaseError, Parameters};
use crate::functions::folding::{COLUMN_VERSIONS, HAS_CHILDREN, IS_BARE, Layout};
use crate::functions::ownership::{self, Facts};
use crate::functions::relation::Relation;
use crate::functions::session::Session;

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
    /// The columns of each usable unique index of the totals.
    pub(super) unique: Vec<Vec<String>>,
    /// The deferrable unique constraints of the totals.
    pub(super) deferrable: Vec<Deferrable>,
    /// The columns of the totals that are part of any index.
    pub(super) indexed: Vec<String>,
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
    pub(super) row_security: bool,
    /// A rule on INSERT, UPDATE or DELETE.
    pub(super) rule: Option<String>,
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
    pub(super) is_identity: bool,
    pub(super) has_default: bool,
    /// Whether an index tells its values apart, by operators of `pg_catalog`.
    pub(super) can_be_key: bool,
}

/// The wanted relations: names, each with its place.
const WANTED: &str = "(VALUES (0, $1::pg_catalog.text, $2::pg_catalog.text), (1, $3, $4), (2, $5, $6), (3, $7, $8)) \
    AS wanted (place, schema, name) \
    LEFT JOIN pg_catalog.pg_namespace AS n ON n.nspname OPERATOR(pg_catalog.=) wanted.schema \
    LEFT JOIN pg_catalog.pg_class AS c ON c.relnamespace OPERATOR(pg_catalog.=) n.oid \
    AND c.relname OPERATOR(pg_catalog.=) wanted.name";

/// One row for each relation that is wanted.
///
/// A view that a worker has made is known by a name in its query. It is looked for in the server's own form of the query,
/// since to show it in SQL, the server itself uses operators that it looks up in the search path.
const RELATIONS: &str = "\
    SELECT place, current_user::pg_catalog.text AS role, c.relkind::pg_catalog.text AS kind, \
    c.oid AS oid, pg_catalog.row_security_active(c.oid) AS row_security, \
    (SELECT rulename::pg_catalog.text FROM pg_catalog.pg_rewrite WHERE ev_class OPERATOR(pg_catalog.=) c.oid \
    AND ev_type OPERATOR(pg_catalog.<>) '1' ORDER BY rulename LIMIT 1) AS rule, \
    pg_catalog.has_schema_privilege(n.oid, 'USAGE') AS may_use_schema, \
    pg_catalog.has_schema_privilege(n.oid, 'CREATE') AS may_create, \
    pg_catalog.has_table_privilege(c.oid, 'SELECT') AS may_select, \
    pg_catalog.has_table_privilege(c.oid, 'INSERT') AS may_insert, \
    pg_catalog.has_table_privilege(c.oid, 'UPDATE') AS may_update, \
    pg_catalog.has_table_privilege(c.oid, 'DELETE') AS may_delete, \
    ARRAY(SELECT part FROM pg_catalog.pg_rewrite AS w \
    JOIN pg_catalog.pg_depend AS d ON d.objid OPERATOR(pg_catalog.=) w.oid \
    AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid \
    JOIN pg_catalog.pg_class AS r ON r.oid OPERATOR(pg_catalog.=) d.refobjid \
    JOIN pg_catalog.pg_namespace AS rn ON rn.oid OPERATOR(pg_catalog.=) r.relnamespace \
    LEFT JOIN pg_catalog.pg_attribute AS ra ON ra.attrelid OPERATOR(pg_catalog.=) d.refobjid \
    AND d.refobjsubid OPERATOR(pg_catalog.>) 0 AND ra.attnum OPERATOR(pg_catalog.=) d.refobjsubid \
    CROSS JOIN LATERAL pg_catalog.unnest(ARRAY[rn.nspname::pg_catalog.text, r.relname::pg_catalog.text, \
    coalesce(ra.attname::pg_catalog.text, '')]) AS part \
    WHERE w.ev_class OPERATOR(pg_catalog.=) c.oid AND r.oid OPERATOR(pg_catalog.<>) c.oid) AS reads, \
    pg_catalog.pg_has_role(c.relowner, 'USAGE') AS is_owned, \
    (SELECT CASE WHEN pg_catalog.strpos(tree, ':aliasname one ') OPERATOR(pg_catalog.>) 0 \
    AND pg_catalog.strpos(tree, ':aliasname rows ') OPERATOR(pg_catalog.>) 0 THEN 'rows' \
    ELSE pg_catalog.substring(tree, ':aliasname (rows_[0-9a-f]{8}) ') END \
    FROM (SELECT ev_action::pg_catalog.text AS tree FROM pg_catalog.pg_rewrite \
    WHERE ev_class OPERATOR(pg_catalog.=) c.oid AND ev_type OPERATOR(pg_catalog.=) '1') AS view) AS rows";

/// One row for each column of these relations.
///
/// The values of a key are told apart by the default btree operator class of its type, or of a type to which it is
/// binary-coercible, such as text for varchar.
const COLUMNS: &str = "\
    SELECT place, a.attname::pg_catalog.text AS name, pg_catalog.format_type(a.atttypid, a.atttypmod) AS shown, \
    CASE WHEN tn.nspname OPERATOR(pg_catalog.=) 'pg_catalog' THEN y.typname::pg_catalog.text END AS kind, \
    CASE WHEN y.typname OPERATOR(pg_catalog.=) 'numeric' AND a.atttypmod OPERATOR(pg_catalog.>=) 4 \
    THEN (((a.atttypmod OPERATOR(pg_catalog.-) 4) OPERATOR(pg_catalog.&) 2047) \
    OPERATOR(pg_catalog.#) 1024) OPERATOR(pg_catalog.-) 1024 END AS scale, \
    CASE WHEN a.attcollation OPERATOR(pg_catalog.<>) y.typcollation \
    THEN pg_catalog.format('%I.%I', ln.nspname, l.collname) END AS collation, \
    coalesce(l.collisdeterministic, true) AS is_deterministic, \
    a.attnotnull AS not_null, a.attgenerated OPERATOR(pg_catalog.<>) '' AS is_generated, \
    a.attidentity OPERATOR(pg_catalog.=) 'a' AS is_identity, \
    a.atthasdef OR a.attidentity OPERATOR(pg_catalog.<>) '' AS has_default, \
    b.typtype OPERATOR(pg_catalog.=) 'e' OR bn.nspname OPERATOR(pg_catalog.=) 'pg_catalog' \
    AND b.typtype OPERATOR(pg_catalog.=) 'b' AND b.typcategory OPERATOR(pg_catalog.<>) 'A' \
    AND EXISTS (SELECT FROM pg_catalog.pg_opclass AS o JOIN pg_catalog.pg_am AS m ON m.oid OPERATOR(pg_catalog.=) o.opcmethod \
    WHERE m.amname OPERATOR(pg_catalog.=) 'btree' AND o.opcdefault AND (o.opcintype OPERATOR(pg_catalog.=) b.oid \
    OR EXISTS (SELECT FROM pg_catalog.pg_cast AS t WHERE t.castsource OPERATOR(pg_catalog.=) b.oid \
    AND t.casttarget OPERATOR(pg_catalog.=) o.opcintype AND t.castmethod OPERATOR(pg_catalog.=) 'b' \
    AND t.castcontext OPERATOR(pg_catalog.=) 'i'))) AS can_be_key FROM ";

/// The rest of that query, after the wanted relations.
const COLUMNS_OF: &str = " \
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid OPERATOR(pg_catalog.=) c.oid \
    AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped \
    JOIN pg_catalog.pg_type AS y ON y.oid OPERATOR(pg_catalog.=) a.atttypid \
    JOIN pg_catalog.pg_namespace AS tn ON tn.oid OPERATOR(pg_catalog.=) y.typnamespace \
    JOIN pg_catalog.pg_type AS b ON b.oid OPERATOR(pg_catalog.=) \
    CASE WHEN y.typtype OPERATOR(pg_catalog.=) 'd' THEN y.typbasetype ELSE y.oid END \
    JOIN pg_catalog.pg_namespace AS bn ON bn.oid OPERATOR(pg_catalog.=) b.typnamespace \
    LEFT JOIN pg_catalog.pg_collation AS l ON l.oid OPERATOR(pg_catalog.=) a.attcollation \
    LEFT JOIN pg_catalog.pg_namespace AS ln ON ln.oid OPERATOR(pg_catalog.=) l.collnamespace \
    ORDER BY place, a.attnum";

/// One row for each index of a table: its columns, and whether it keeps them unique at every moment.
const INDEXES: &str = "\
    SELECT i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL AS is_usable, \
    CASE WHEN NOT i.indimmediate THEN (SELECT conname::pg_catalog.text FROM pg_catalog.pg_constraint AS o \
    WHERE o.conindid OPERATOR(pg_catalog.=) i.indexrelid AND o.conrelid OPERATOR(pg_catalog.=) i.indrelid \
    AND o.contype OPERATOR(pg_catalog.<>) 'x' LIMIT 1) END AS deferrable, i.indisprimary AS is_primary, \
    ARRAY(SELECT a.attname::pg_catalog.text FROM pg_catalog.unnest(i.indkey) WITH ORDINALITY AS k (attnum, n) \
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid OPERATOR(pg_catalog.=) i.indrelid \
    AND a.attnum OPERATOR(pg_catalog.=) k.attnum WHERE k.n OPERATOR(pg_catalog.<=) i.indnkeyatts) AS keys, \
    ARRAY(SELECT a.attname::pg_catalog.text FROM pg_catalog.unnest(i.indkey) AS k (attnum) \
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid OPERATOR(pg_catalog.=) i.indrelid \
    AND a.attnum OPERATOR(pg_catalog.=) k.attnum) AS columns \
    FROM pg_catalog.pg_index AS i JOIN pg_catalog.pg_class AS c ON c.oid OPERATOR(pg_catalog.=) i.indrelid \
    JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace \
    WHERE n.nspname OPERATOR(pg_catalog.=) $1::pg_catalog.text AND c.relname OPERATOR(pg_catalog.=) $2::pg_catalog.text";

/// Looks at the relations, their columns, and the indexes of the totals.
pub(super) async fn look(
    session: &Session,
    settings: &Settings,
    trusted_owners: &[String],
) -> Result<Tables, DatabaseError> {
    let (view, rejected) = (settings.view.clone(), settings.rejected());
    let wanted = [
        Some(&settings.queue),
        Some(&settings.totals),
        view.as_ref(),
        rejected.as_ref(),
    ];
    let names = || {
        let names = wanted.iter().flat_map(|relation| name(*relation));
        names.collect::<Parameters>()
    };
    let doing = "look for the tables";
    let sql = format!(
        "{RELATIONS}, {COLUMN_VERSIONS} AS layout, {IS_BARE} AS is_bare, {HAS_CHILDREN} AS has_children, {} FROM {WANTED}",
        ownership::columns()
    );
    let mut tables = Tables {
        trusted_owners: trusted_owners.to_vec(),
        ..Tables::default()
    };
    for row in session.query(doing, &sql, names()).await? {
        tables.role = row.get("role");
        if let Some(table) = tables.at(row.get("place")) {
            *table = Table::from(&row);
        }
    }
    let doing = "look at the columns";
    let sql = format!("{COLUMNS}{WANTED}{COLUMNS_OF}");
    for row in session.query(doing, &sql, names()).await? {
        if let Some(table) = tables.at(row.get("place")) {
            table.columns.0.push(TableColumn::from(&row));
        }
    }
    let names: Parameters = name(Some(&settings.totals)).collect();
    for row in session.query("look at the indexes", INDEXES, names).await? {
        if row.get("is_usable") {
            tables.unique.push(row.get("keys"));
        }
        if let Some(constraint) = row.get("deferrable") {
            let is_primary: bool = row.get("is_primary");
            tables.deferrable.push(Deferrable {
                constraint,
                kind: if is_primary { "PRIMARY KEY" } else { "UNIQUE" },
                keys: row.get("keys"),
            });
        }
        tables.indexed.extend(row.get::<_, Vec<String>>("columns"));
    }
    Ok(tables)
}

/// A schema and a name, as parameters.
fn name(
    relation: Option<&Relation>,
) -> impl Iterator<Item = (Box<dyn tokio_postgres::types::ToSql + Sync + Send>, Type)> + use<> {
    let schema = relation.map(|relation| relation.schema.clone());
    let name = relation.map(|relation| relation.name.clone());
    [schema, name].into_iter().map(|name| {
        let name: Box<dyn tokio_postgres::types::ToSql + Sync + Send> = Box::new(name);
        (name, Type::TEXT)
    })
}

// === impl Tables ===

impl Tables {
    fn at(&mut self, place: i32) -> Option<&mut Table> {
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
                columns: row.get::<_, Option<i64>>("layout").unwrap_or_default(),
                is_bare: is("is_bare"),
                has_children: is("has_children"),
            },
            row_security: is("row_security"),
            rule: row.get("rule"),
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
            is_identity: row.get("is_identity"),
            has_default: row.get("has_default"),
            can_be_key: row.get("can_be_key"),
        }
    }
}

// === impl Table ===

impl Table {
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
