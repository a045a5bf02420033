//! What the built-in worker needs before its first cycle: made if it is missing, refused if the worker cannot use it.
//!
//! Looks first and makes only what is missing, so that a role without the right to make anything works if everything
//! exists. Never changes what exists.

use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};
use tracing::info;

use super::check::{InitializeError, check};
use super::shape::Shape;
use super::table::Table;
use crate::database::{DatabaseError, Parameters, is_made_already};
use crate::functions::folding::{COLUMN_VERSIONS, HAS_CHILDREN, HAS_RULES, IS_BARE};
use crate::functions::privileges::Creating;
use crate::functions::refusal::{Refusal, row_security};
use crate::functions::session::Session;

/// How often to look again at once after another session made something first.
const ATTEMPTS_MAX: usize = 5;

/// The rest of a query for what exists, in one row: the schema, the table, its two columns, and whether a unique index
/// keeps the total the only one.
///
/// Types are recognized by their names in `pg_catalog`, and shown as the server shows them, which depends on the
/// search path. How the server shows the predicate of an index depends on it too. The predicate is compared as text,
/// and its qualified form counts as the same.
const LOOK: &str = "\
    n.oid IS NOT NULL AS has_schema, pg_catalog.current_database()::pg_catalog.text AS database, \
    CASE WHEN n.oid IS NULL \
        THEN pg_catalog.has_database_privilege(pg_catalog.current_database()::pg_catalog.text, 'CREATE') \
        ELSE pg_catalog.has_schema_privilege(n.oid, 'CREATE') END AS may_create, \
    c.relkind::pg_catalog.text AS kind, \
    current_user::pg_catalog.text AS role, \
    pg_catalog.has_schema_privilege(n.oid, 'USAGE') AS may_use_schema, \
    pg_catalog.has_table_privilege(c.oid, 'SELECT') AS may_select, \
    pg_catalog.has_table_privilege(c.oid, 'DELETE') AS may_delete, \
    pg_catalog.has_column_privilege(c.oid, v.attnum, 'UPDATE') AS may_update, \
    pg_catalog.has_table_privilege(c.oid, 'INSERT') AS may_insert, \
    pg_catalog.row_security_active(c.oid) AS row_security, \
    c.relispartition OR c.reloftype OPERATOR(pg_catalog.<>) 0::pg_catalog.oid AS is_bound, \
    CASE WHEN t.attnum IS NULL OR v.attnum IS NULL THEN NOT EXISTS (SELECT FROM pg_catalog.pg_attribute AS o \
        WHERE o.attrelid OPERATOR(pg_catalog.=) c.oid AND o.attnum OPERATOR(pg_catalog.>) 0 AND NOT o.attisdropped \
        AND o.attname OPERATOR(pg_catalog.<>) 'type' AND o.attname OPERATOR(pg_catalog.<>) 'value') \
        OR pg_catalog.pg_relation_size(c.oid) OPERATOR(pg_catalog.=) 0 END AS may_be_added, \
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
) -> Result<Refusal, DatabaseError> {
    let sql = "SELECT current_user::pg_catalog.text";
    let rows = session.query("ask for the role", sql, Vec::new()).await?;
    let role: String = rows.first().map_or_else(String::new, |row| row.get(0));
    Ok(row_security(&table.to_string(), &role))
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
        "SELECT c.oid AS oid, {COLUMN_VERSIONS} AS columns, {IS_BARE} AS is_bare, {HAS_CHILDREN} AS has_children, \
         {HAS_RULES} AS has_rules, {LOOK}"
    );
    let rows = session.query("look for the table", &look, names).await?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let kind: Option<&str> = row.get("kind");
    if kind.is_none() && row.get::<_, Option<bool>>("may_create") == Some(false) {
        return Err(InitializeError::Unusable(not_made(table, row).into()));
    }
    match kind {
        Some(kind) => return check(session, table, kind, row, inserts).await.map(Some),
        None if row.get("has_schema") => {
            let sql = table.create_table();
            session.batch_execute("create the table", &sql).await?;
            info!("made the table {table}");
        }
        None => {
            let (schema, sql) = (table.schema(), table.create_schema());
            session.batch_execute("create the schema", &sql).await?;
            info!("made the schema {schema}");
        }
    }
    Ok(None)
}

/// Says that the role may not make the table, and which statement lets it.
fn not_made(table: &Table, row: &Row) -> Refusal {
    let creating = Creating {
        role: row.get("role"),
        database: row.get("database"),
        schema: row.get::<_, bool>("has_schema").then(|| table.schema()),
    };
    let what = format!("{table} does not exist, and the role may not create it");
    Refusal::new(what).mend("this lets it", Some(creating.grant()))
}
