//! What the built-in worker needs before its first cycle: made where it is missing, refused where
//! it is of no use.
//!
//! Looks first and makes only what is missing, so that a role without the right to make anything
//! works where all is there. What exists is never changed.

use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};

use super::session::Session;
use super::table::Table;
use crate::database::{DatabaseError, Parameters};

/// A table that the worker cannot work on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum UnusableTable {
    /// The name belongs to a view, a sequence, an index, a partitioned table.
    #[error("{table} is not an ordinary table")]
    NotATable {
        /// Which.
        table: String,
    },
    /// A column is missing or cannot hold what it must.
    #[error(
        "{table} has the wrong shape: column \"{column}\" must be {expected}, but is {found}; this mends it: {mend}"
    )]
    Column {
        /// Which table.
        table: String,
        /// Which column.
        column: &'static str,
        /// The types that will do.
        expected: &'static str,
        /// What it is.
        found: String,
        /// The statement.
        mend: String,
    },
    /// Nothing keeps the total the only one.
    #[error("{table} has no unique index on its total; this makes one: {mend}")]
    NoUniqueIndex {
        /// Which table.
        table: String,
        /// The statement.
        mend: String,
    },
    /// There is more than one total.
    #[error("{table} has more than one total; this makes them one, and keeps it so: {mend}")]
    SeveralTotals {
        /// Which table.
        table: String,
        /// The statements.
        mend: String,
    },
}

/// What keeps a worker from its first cycle.
#[derive(Debug, Error)]
pub(super) enum InitializeError {
    #[error(transparent)]
    Unusable(#[from] UnusableTable),
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

/// What earlier incarnations found out about the table, as long as it has not been disproved: so that a
/// fleet that comes back all at once need not look again. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Known(Arc<Mutex<Option<bool>>>);

/// How often to look again at once after somebody else made something first.
const ATTEMPTS_MAX: usize = 5;

/// What there is, in one row: the schema, the kind of the table, the types of its two columns,
/// whether `value` refuses NULL, and whether a unique index keeps the total the only one.
const LOOK: &str = "\
    SELECT n.oid IS NOT NULL, c.relkind::text, \
    format_type(t.atttypid, NULL), format_type(v.atttypid, NULL), v.attnotnull, \
    EXISTS (SELECT FROM pg_catalog.pg_index AS i WHERE i.indrelid = c.oid \
        AND i.indisunique AND i.indisvalid AND i.indnkeyatts = 1 AND i.indkey[0] = t.attnum \
        AND pg_get_expr(i.indpred, i.indrelid) \
            IN ('(type = ''total''::text)', '((type)::text = ''total''::text)')) \
    FROM (VALUES ($1::text, $2::text)) AS wanted (schema, name) \
    LEFT JOIN pg_catalog.pg_namespace AS n ON n.nspname = wanted.schema \
    LEFT JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = wanted.name \
    LEFT JOIN pg_catalog.pg_attribute AS t \
        ON t.attrelid = c.oid AND t.attname = 'type' AND NOT t.attisdropped \
    LEFT JOIN pg_catalog.pg_attribute AS v \
        ON v.attrelid = c.oid AND v.attname = 'value' AND NOT v.attisdropped";

/// Sees to it that the table can be worked on, and says whether its values may be NULL.
///
/// # Errors
///
/// If it cannot be made, or what is there is of no use.
pub(super) async fn initialize(
    session: &Session,
    table: &Table,
    initial_total: Option<i64>,
) -> Result<bool, InitializeError> {
    let mut attempts = 1..=ATTEMPTS_MAX;
    let may_be_null = loop {
        match look_and_make(session, table).await {
            Ok(Some(may_be_null)) => break may_be_null,
            Ok(None) => {}
            Err(InitializeError::Database(error))
                if somebody_was_first(&error) && attempts.next().is_some() => {}
            Err(error) => return Err(error),
        }
    };
    if let Some(total) = initial_total {
        insert_initial_total(session, table, total).await?;
    }
    Ok(may_be_null)
}

impl Known {
    /// Whether the table's values may be NULL, if its last fold succeeded. Forgotten by being told, so
    /// that the next one who fails does look again.
    pub(super) fn take(&self) -> Option<bool> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// A fold has succeeded.
    pub(super) fn set(&self, may_be_null: bool) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(may_be_null);
    }
}

/// Looks, and makes one thing that is missing. `None` if there was one: look again.
async fn look_and_make(session: &Session, table: &Table) -> Result<Option<bool>, InitializeError> {
    let name = |name: &str| -> (Box<dyn ToSql + Sync + Send>, Type) {
        (Box::new(name.to_owned()), Type::TEXT)
    };
    let names = vec![name(table.schema()), name(table.name())];
    let rows = session.query("look for the table", LOOK, names).await?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let has_schema: bool = row.get(0);
    let kind: Option<String> = row.get(1);
    let (doing, sql) = match kind {
        None if has_schema => ("create the table", table.create_table()),
        None => ("create the schema", table.create_schema()),
        Some(kind) => {
            let may_be_null = check_shape(table, &kind, row.get(2), row.get(3), row.get(4))?;
            if !row.get::<_, bool>(5) {
                return Err(without_index(session, table).await?.into());
            }
            return Ok(Some(may_be_null));
        }
    };
    session.batch_execute(doing, &sql).await?;
    Ok(None)
}

fn check_shape(
    table: &Table,
    kind: &str,
    type_type: Option<String>,
    value_type: Option<String>,
    value_not_null: Option<bool>,
) -> Result<bool, UnusableTable> {
    if kind != "r" {
        return Err(UnusableTable::NotATable {
            table: table.to_string(),
        });
    }
    let column = |column, expected, mended, found: Option<String>| {
        let mend = match found {
            Some(_) => table.alter_column(column, mended),
            None => table.add_column(column, mended),
        };
        Err(UnusableTable::Column {
            table: table.to_string(),
            column,
            expected,
            found: found.unwrap_or_else(|| "missing".to_owned()),
            mend,
        })
    };
    match type_type.as_deref() {
        Some("text" | "character varying") => {}
        _ => return column("type", "text", "text", type_type),
    }
    match value_type.as_deref() {
        Some("bigint" | "integer" | "smallint") => {}
        _ => return column("value", "bigint or integer", "bigint", value_type),
    }
    Ok(value_not_null != Some(true))
}

/// What is wrong with a table that has no unique index on its total.
async fn without_index(session: &Session, table: &Table) -> Result<UnusableTable, DatabaseError> {
    let doing = "count the totals";
    let rows = session
        .query(doing, &table.count_totals(), Vec::new())
        .await?;
    let totals: i64 = rows.first().map_or(0, |row| row.get(0));
    Ok(if totals > 1 {
        UnusableTable::SeveralTotals {
            table: table.to_string(),
            mend: table.merge_totals(),
        }
    } else {
        UnusableTable::NoUniqueIndex {
            table: table.to_string(),
            mend: table.create_index(),
        }
    })
}

async fn insert_initial_total(
    session: &Session,
    table: &Table,
    total: i64,
) -> Result<(), DatabaseError> {
    let doing = "insert the initial total";
    let total: Parameters = vec![(Box::new(total), Type::INT8)];
    session
        .query(doing, &table.insert_initial_total(), total)
        .await?;
    Ok(())
}

/// Whether somebody else made the same thing at the same time.
fn somebody_was_first(error: &DatabaseError) -> bool {
    let races = [
        SqlState::DUPLICATE_SCHEMA,
        SqlState::DUPLICATE_TABLE,
        SqlState::DUPLICATE_OBJECT,
        SqlState::UNIQUE_VIOLATION,
    ];
    let code = error.sqlstate();
    races.iter().any(|race| Some(race.code()) == code)
}
