//! What the built-in worker needs before its first cycle: made if it is missing, refused if the worker cannot use it.
//!
//! Looks first and makes only what is missing, so that a role without the right to make anything works if everything
//! exists. Never changes what exists.

use thiserror::Error;
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use super::shape::Shape;
use super::table::Table;
use super::unusable::UnusableTable;
use crate::database::{DatabaseError, Parameters, is_made_already};
use crate::functions::folding::{
    COLUMN_VERSIONS, HAS_CHILDREN, HAS_RULES, IS_BARE, Layout, bypass_row_security,
};
use crate::functions::runner::CycleError;
use crate::functions::session::Session;

/// What keeps a worker from its first cycle.
#[derive(Debug, Error)]
pub(super) enum InitializeError {
    #[error(transparent)]
    Unusable(#[from] UnusableTable),
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl From<InitializeError> for CycleError {
    fn from(error: InitializeError) -> Self {
        match error {
            InitializeError::Unusable(table) => Self::Unusable(Box::new(table)),
            InitializeError::Database(error) => Self::Database(error),
        }
    }
}

/// How often to look again at once after another session made something first.
const ATTEMPTS_MAX: usize = 5;

/// The rest of a query for what exists, in one row: the schema, the table, its two columns, and whether a unique index
/// keeps the total the only one.
///
/// Types are recognized by their names in `pg_catalog`, and shown as the server shows them, which depends on the
/// search path. How the server shows the predicate of an index depends on it too. The predicate is compared as text,
/// and its qualified form counts as the same.
const LOOK: &str = "\
    n.oid IS NOT NULL AS has_schema, c.relkind::pg_catalog.text AS kind, \
    current_user::pg_catalog.text AS role, \
    pg_catalog.has_schema_privilege(n.oid, 'USAGE') AS may_use_schema, \
    pg_catalog.has_table_privilege(c.oid, 'SELECT') AS may_select, \
    pg_catalog.has_table_privilege(c.oid, 'DELETE') AS may_delete, \
    pg_catalog.has_column_privilege(c.oid, v.attnum, 'UPDATE') AS may_update, \
    pg_catalog.has_table_privilege(c.oid, 'INSERT') AS may_insert, \
    pg_catalog.row_security_active(c.oid) AS row_security, \
    c.relispartition OR c.reloftype OPERATOR(pg_catalog.<>) 0::pg_catalog.oid AS is_bound, \
    pg_catalog.format_type(t.atttypid, NULL::pg_catalog.int4) AS type_type, \
    pg_catalog.format_type(v.atttypid, NULL::pg_catalog.int4) AS value_type, \
    (SELECT y.typname::pg_catalog.text FROM pg_catalog.pg_type AS y \
        WHERE y.oid OPERATOR(pg_catalog.=) t.atttypid AND y.typnamespace OPERATOR(pg_catalog.=) p.oid) AS type_name, \
    (SELECT y.typname::pg_catalog.text FROM pg_catalog.pg_type AS y \
        WHERE y.oid OPERATOR(pg_catalog.=) v.atttypid AND y.typnamespace OPERATOR(pg_catalog.=) p.oid) AS value_name, \
    (SELECT b.typname::pg_catalog.text FROM pg_catalog.pg_type AS y, pg_catalog.pg_type AS b \
        WHERE y.oid OPERATOR(pg_catalog.=) v.atttypid AND y.typtype OPERATOR(pg_catalog.=) 'd' \
        AND b.oid OPERATOR(pg_catalog.=) y.typbasetype \
        AND b.typnamespace OPERATOR(pg_catalog.=) p.oid) AS value_base, \
    v.attnotnull AS value_not_null, v.attgenerated OPERATOR(pg_catalog.<>) '' AS value_generated, \
    v.attidentity OPERATOR(pg_catalog.=) 'a' AS value_identity, \
    t.attinhcount OPERATOR(pg_catalog.>) 0 OR EXISTS (SELECT FROM pg_catalog.pg_depend AS d \
        WHERE d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid \
        AND d.refobjid OPERATOR(pg_catalog.=) c.oid AND d.refobjsubid OPERATOR(pg_catalog.=) t.attnum) AS type_is_used, \
    v.attinhcount OPERATOR(pg_catalog.>) 0 OR EXISTS (SELECT FROM pg_catalog.pg_depend AS d \
        WHERE d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid \
        AND d.refobjid OPERATOR(pg_catalog.=) c.oid AND d.refobjsubid OPERATOR(pg_catalog.=) v.attnum \
        AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint AS o \
            WHERE o.oid OPERATOR(pg_catalog.=) d.objid AND o.contype OPERATOR(pg_catalog.=) 'n')) AS value_is_used, \
    EXISTS (SELECT FROM pg_catalog.pg_index AS i, \
        pg_catalog.replace(pg_catalog.replace(pg_catalog.pg_get_expr(i.indpred, i.indrelid), \
            'OPERATOR(pg_catalog.=)', '='), 'pg_catalog.text', 'text') AS predicate \
        WHERE i.indrelid OPERATOR(pg_catalog.=) c.oid \
        AND i.indisunique AND i.indisvalid AND i.indnkeyatts OPERATOR(pg_catalog.=) 1 \
        AND i.indkey[0] OPERATOR(pg_catalog.=) t.attnum \
        AND (predicate OPERATOR(pg_catalog.=) '(type = ''total''::text)' \
            OR predicate OPERATOR(pg_catalog.=) '((type)::text = ''total''::text)')) AS has_index \
    FROM (VALUES ($1::pg_catalog.text, $2::pg_catalog.text)) AS wanted (schema, name) \
    JOIN pg_catalog.pg_namespace AS p ON p.nspname OPERATOR(pg_catalog.=) 'pg_catalog' \
    LEFT JOIN pg_catalog.pg_namespace AS n ON n.nspname OPERATOR(pg_catalog.=) wanted.schema \
    LEFT JOIN pg_catalog.pg_class AS c ON c.relnamespace OPERATOR(pg_catalog.=) n.oid \
        AND c.relname OPERATOR(pg_catalog.=) wanted.name \
    LEFT JOIN pg_catalog.pg_attribute AS t ON t.attrelid OPERATOR(pg_catalog.=) c.oid \
        AND t.attname OPERATOR(pg_catalog.=) 'type' AND NOT t.attisdropped \
    LEFT JOIN pg_catalog.pg_attribute AS v ON v.attrelid OPERATOR(pg_catalog.=) c.oid \
        AND v.attname OPERATOR(pg_catalog.=) 'value' AND NOT v.attisdropped";

/// Makes the table if it is missing, checks that the worker can use it, and returns its shape.
///
/// # Errors
///
/// If the table cannot be made, or the existing one cannot be used.
pub(super) async fn initialize(
    session: &Session,
    table: &Table,
    initial_total: Option<i64>,
) -> Result<Shape, InitializeError> {
    let mut attempts = 1..=ATTEMPTS_MAX;
    let shape = loop {
        match look_and_make(session, table, initial_total.is_some()).await {
            Ok(Some(shape)) => break shape,
            Ok(None) => {}
            Err(InitializeError::Database(error))
                if error.sqlstate().is_some_and(is_made_already) && attempts.next().is_some() => {}
            Err(error) => return Err(error),
        }
    };
    if let Some(total) = initial_total {
        insert_initial_total(session, table, total).await?;
    }
    Ok(shape)
}

/// Inserts a total if there is none.
pub(super) async fn insert_initial_total(
    session: &Session,
    table: &Table,
    total: i64,
) -> Result<(), DatabaseError> {
    let doing = "insert the initial total";
    let total: Parameters = vec![(Box::new(total), Type::INT8)];
    let sql = table.insert_initial_total();
    session.query(doing, &sql, total).await.map(drop)
}

/// The error for policies that hide rows of a table, but did not when the worker first looked at it.
pub(super) async fn hidden_by_row_security(
    session: &Session,
    table: &Table,
) -> Result<UnusableTable, DatabaseError> {
    let sql = "SELECT current_user::pg_catalog.text";
    let rows = session.query("ask for the role", sql, Vec::new()).await?;
    let role: String = rows.first().map_or_else(String::new, |row| row.get(0));
    Ok(UnusableTable::RowSecurity {
        table: table.to_string(),
        mend: bypass_row_security(&role),
    })
}

/// Looks, and makes one thing that is missing. `None` if something was missing: look again.
async fn look_and_make(
    session: &Session,
    table: &Table,
    inserts: bool,
) -> Result<Option<Shape>, InitializeError> {
    let name = |name: &str| -> (Box<dyn ToSql + Sync + Send>, Type) {
        (Box::new(name.to_owned()), Type::TEXT)
    };
    let names = vec![name(table.schema()), name(table.name())];
    let look = format!(
        "SELECT {COLUMN_VERSIONS} AS columns, {IS_BARE} AS is_bare, {HAS_CHILDREN} AS has_children, \
         {HAS_RULES} AS has_rules, {LOOK}"
    );
    let rows = session.query("look for the table", &look, names).await?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let kind: Option<String> = row.get("kind");
    let (doing, sql) = match kind {
        None if row.get("has_schema") => ("create the table", table.create_table()),
        None => ("create the schema", table.create_schema()),
        Some(kind) => return check(session, table, &kind, row, inserts).await.map(Some),
    };
    session.batch_execute(doing, &sql).await?;
    Ok(None)
}

/// Refuses an existing table that cannot be worked on; returns its shape.
async fn check(
    session: &Session,
    table: &Table,
    kind: &str,
    row: &Row,
    inserts: bool,
) -> Result<Shape, InitializeError> {
    let shown = || table.to_string();
    let is = |column: &str| row.get::<_, Option<bool>>(column) == Some(true);
    if kind != "r" {
        return Err(UnusableTable::NotATable { table: shown() }.into());
    }
    if is("has_rules") {
        return Err(UnusableTable::Rules { table: shown() }.into());
    }
    check_type(table, row)?;
    check_value(session, table, row).await?;
    check_access(table, row, inserts)?;
    if !is("has_index") {
        return Err(without_index(session, table, row).await?.into());
    }
    Ok(Shape {
        may_be_null: !is("value_not_null"),
        layout: Layout {
            columns: row.get("columns"),
            is_bare: is("is_bare"),
            has_children: is("has_children"),
        },
    })
}

fn check_type(table: &Table, row: &Row) -> Result<(), UnusableTable> {
    let found: Option<String> = row.get("type_type");
    let name: Option<&str> = row.get("type_name");
    let can_be_altered =
        !is_bound(row) && row.get::<_, Option<bool>>("type_is_used") == Some(false);
    let mend = match (&found, name) {
        (_, Some("text" | "varchar")) => return Ok(()),
        (None, _) => (!is_bound(row)).then(|| table.add_column("type", "text")),
        // Every value of every type has a text form.
        (Some(_), _) => can_be_altered.then(|| table.alter_column("type", "text")),
    };
    Err(column(table, "type", "text", found, mend))
}

async fn check_value(session: &Session, table: &Table, row: &Row) -> Result<(), InitializeError> {
    let is = |column: &str| row.get::<_, Option<bool>>(column) == Some(true);
    if is("value_generated") {
        let table = table.to_string();
        return Err(UnusableTable::Generated { table }.into());
    }
    if is("value_identity") {
        let mend = table.make_identity_optional();
        let table = table.to_string();
        return Err(UnusableTable::Identity { table, mend }.into());
    }
    let found: Option<String> = row.get("value_type");
    let name: Option<&str> = row.get("value_name");
    let base: Option<&str> = row.get("value_base");
    let is_used = is_bound(row) || is("value_is_used");
    let mend = match (name, base) {
        (Some("int8" | "int4" | "int2"), _) => return Ok(()),
        _ if found.is_none() => (!is_bound(row)).then(|| table.add_column("value", "int8")),
        _ if is_used => None,
        (_, Some("int8" | "int4" | "int2")) => Some(table.alter_column("value", "int8")),
        (Some("numeric" | "float4" | "float8"), _) => {
            // A fraction would be rounded away.
            let sql = table.has_whole_values();
            let rows = session.query("look at the values", &sql, Parameters::new());
            let is_whole = rows.await?.first().is_some_and(|row| row.get(0));
            is_whole.then(|| table.alter_column("value", "int8"))
        }
        _ => None,
    };
    Err(column(table, "value", "bigint or integer", found, mend).into())
}

/// `true` if something else determines the table's shape: it is a partition, or a table of a type.
fn is_bound(row: &Row) -> bool {
    row.get::<_, Option<bool>>("is_bound") == Some(true)
}

fn column(
    table: &Table,
    column: &'static str,
    expected: &'static str,
    found: Option<String>,
    mend: Option<String>,
) -> UnusableTable {
    UnusableTable::Column {
        table: table.to_string(),
        column,
        expected,
        found: found.unwrap_or_else(|| "missing".to_owned()),
        mend,
    }
}

/// Refuses a table that the role may not work on, or would not see all of.
fn check_access(table: &Table, row: &Row, inserts: bool) -> Result<(), UnusableTable> {
    let lacks = |column: &str| row.get::<_, Option<bool>>(column) == Some(false);
    let role: String = row.get("role");
    let lacking: Vec<_> = [
        ("may_use_schema", "use the schema of", true),
        ("may_select", "SELECT from", true),
        ("may_update", "UPDATE", true),
        ("may_delete", "DELETE from", true),
        ("may_insert", "INSERT into", inserts),
    ]
    .into_iter()
    .filter(|(column, _, needed)| *needed && lacks(column))
    .map(|(_, what, _)| what)
    .collect();
    if !lacking.is_empty() {
        return Err(UnusableTable::Privileges {
            table: table.to_string(),
            lacking: lacking.join(", "),
            mend: table.grant(&role),
        });
    }
    if row.get::<_, Option<bool>>("row_security") == Some(true) {
        return Err(UnusableTable::RowSecurity {
            table: table.to_string(),
            mend: bypass_row_security(&role),
        });
    }
    Ok(())
}

/// What is wrong with a table that has no unique index on its total.
async fn without_index(
    session: &Session,
    table: &Table,
    row: &Row,
) -> Result<UnusableTable, DatabaseError> {
    let value_max = match row.get::<_, Option<&str>>("value_name") {
        Some("int2") => i64::from(i16::MAX),
        Some("int4") => i64::from(i32::MAX),
        _ => i64::MAX,
    };
    let sql = table.look_at_totals(value_max);
    let rows = session.query("count the totals", &sql, Parameters::new());
    let found = rows.await?;
    let are_several = found.first().is_some_and(|row| row.get(0));
    let can_be_one = found.first().is_some_and(|row| row.get(1));
    let shown = table.to_string();
    Ok(if are_several {
        UnusableTable::SeveralTotals {
            table: shown,
            mend: can_be_one.then(|| table.merge_totals()),
        }
    } else {
        UnusableTable::NoUniqueIndex {
            table: shown,
            mend: table.create_index(),
        }
    })
}
