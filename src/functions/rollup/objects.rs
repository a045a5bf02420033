//! The statements that create a roll-up's tables, and repair what is wrong with them. Pure text.

use super::settings::Settings;
use super::shape::Number;
use super::tables::{Columns, Deferrable, TableColumn};
use crate::functions::quote::identifier;
use crate::functions::relation::{self, NAME_MAX, Relation};

/// Suffix that turns the queue's name into the name of a table for rows without a key.
const NULL: &str = "_null";

/// Creates the table that poison is moved to.
pub(super) fn create_rejected(settings: &Settings, rejected: &Relation) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {} (LIKE {})",
        rejected.sql(),
        settings.queue.sql()
    )
}

/// Grants a role what a worker needs.
pub(super) fn grant(settings: &Settings, role: &str) -> Vec<String> {
    let role = relation::role(role);
    let mut schemas = vec![&settings.queue.schema];
    if settings.totals.schema != settings.queue.schema {
        schemas.push(&settings.totals.schema);
    }
    let schemas = schemas
        .into_iter()
        .map(|schema| format!("GRANT USAGE ON SCHEMA {} TO {role}", identifier(schema)));
    let tables = [
        grant_queue(&settings.queue, &role),
        grant_totals(&settings.totals, &role),
    ];
    let rejected = settings
        .rejected()
        .map(|rejected| grant_rejected(&rejected, &role));
    schemas.chain(tables).chain(rejected).collect()
}

/// Grants what a worker needs on its queue; the role is already quoted.
pub(super) fn grant_queue(queue: &Relation, role: &str) -> String {
    format!("GRANT SELECT, DELETE ON {} TO {role}", queue.sql())
}

/// Grants what a worker needs on its totals; the role is already quoted.
pub(super) fn grant_totals(totals: &Relation, role: &str) -> String {
    format!("GRANT SELECT, INSERT, UPDATE ON {} TO {role}", totals.sql())
}

/// Grants what a worker needs on the table for poison; the role is already quoted.
pub(super) fn grant_rejected(rejected: &Relation, role: &str) -> String {
    format!("GRANT INSERT ON {} TO {role}", rejected.sql())
}

/// Creates the totals that fit a queue. `None` if the queue's columns do not determine them.
pub(super) fn create_totals(settings: &Settings, queue: &Columns) -> Option<String> {
    let keys = settings
        .keys
        .iter()
        .map(|key| Some(format!("{} NOT NULL", declared(queue.get(key)?))));
    let mut columns = keys.collect::<Option<Vec<_>>>()?;
    for column in &settings.sum.0 {
        let kind = total_type(queue.get(&column.delta)?)?;
        columns.push(format!(
            "{} {kind} NOT NULL DEFAULT 0",
            identifier(&column.total)
        ));
    }
    if let Some(count) = &settings.count {
        columns.push(format!("{} bigint NOT NULL DEFAULT 0", identifier(count)));
    }
    Some(format!(
        "CREATE TABLE {} ({}, PRIMARY KEY ({})) WITH (fillfactor = 50)",
        settings.totals.sql(),
        columns.join(", "),
        key_list(&settings.keys),
    ))
}

/// Creates a queue. Columns have the types of the totals, or the usual ones where there are none.
pub(super) fn create_queue(settings: &Settings, totals: &Columns) -> String {
    let keys = settings.keys.iter().map(|key| {
        let column = totals.get(key);
        let column = column.map_or_else(|| format!("{} text", identifier(key)), declared);
        format!("{column} NOT NULL")
    });
    let deltas = settings.sum.0.iter().map(|column| {
        let total = totals.get(&column.total);
        let kind = total.map_or("bigint", |total| &total.shown);
        format!("{} {kind} NOT NULL", identifier(&column.delta))
    });
    let columns: Vec<_> = keys.chain(deltas).collect();
    format!(
        "CREATE TABLE {} ({})",
        settings.queue.sql(),
        columns.join(", ")
    )
}

/// The type of totals that loses nothing of these deltas. `None` if they are neither integers nor numeric.
pub(super) fn total_type(delta: &TableColumn) -> Option<&'static str> {
    Some(match delta.number()? {
        Number::Numeric => "numeric",
        _ => "bigint",
    })
}

/// Adds a column to the totals.
pub(super) fn add_total(totals: &Relation, column: &str, kind: &str) -> String {
    format!(
        "ALTER TABLE {} ADD COLUMN {} {kind} NOT NULL DEFAULT 0",
        totals.sql(),
        identifier(column)
    )
}

/// Gives a column the name that the settings have for it.
pub(super) fn rename(table: &Relation, from: &str, to: &str) -> String {
    format!(
        "ALTER TABLE {} RENAME COLUMN {} TO {}",
        table.sql(),
        identifier(from),
        identifier(to)
    )
}

/// Changes the type of a column, by way of its text if `by_text`.
pub(super) fn alter_column(table: &Relation, column: &str, kind: &str, by_text: bool) -> String {
    let column = identifier(column);
    let using = if by_text {
        format!(" USING {column}::text::{kind}")
    } else {
        String::new()
    };
    format!(
        "ALTER TABLE {} ALTER COLUMN {column} TYPE {kind}{using}",
        table.sql()
    )
}

pub(super) fn set_not_null(table: &Relation, column: &str) -> String {
    format!(
        "ALTER TABLE {} ALTER COLUMN {} SET NOT NULL",
        table.sql(),
        identifier(column)
    )
}

/// Shows the rows of a queue that belong to no key.
pub(super) fn show_null(queue: &Relation, key: &str) -> String {
    format!(
        "SELECT FROM {} WHERE {} IS NULL",
        queue.sql(),
        identifier(key)
    )
}

/// Moves the rows of a queue that belong to no key to a table of their own.
pub(super) fn move_null(queue: &Relation, key: &str) -> String {
    let name = match &*queue.name {
        name if name.len() <= NAME_MAX - NULL.len() => format!("{name}{NULL}"),
        _ => format!("rows{NULL}"),
    };
    let kept = Relation {
        schema: queue.schema.clone(),
        name,
    };
    let (queue, kept, key) = (queue.sql(), kept.sql(), identifier(key));
    format!(
        "CREATE TABLE IF NOT EXISTS {kept} (LIKE {queue}); ALTER TABLE {kept} ALTER COLUMN {key} DROP NOT NULL; \
         WITH moved AS (DELETE FROM {queue} WHERE {key} IS NULL RETURNING *) INSERT INTO {kept} SELECT * FROM moved"
    )
}

/// Gives new totals a time of their own.
pub(super) fn set_default_now(table: &Relation, column: &str) -> String {
    format!(
        "ALTER TABLE {} ALTER COLUMN {} SET DEFAULT pg_catalog.now()",
        table.sql(),
        identifier(column)
    )
}

pub(super) fn drop_not_null(table: &Relation, column: &str) -> String {
    format!(
        "ALTER TABLE {} ALTER COLUMN {} DROP NOT NULL",
        table.sql(),
        identifier(column)
    )
}

/// Makes a generated column or an identity column writable.
pub(super) fn let_be_written(table: &Relation, column: &str, is_generated: bool) -> String {
    let how = if is_generated {
        "DROP EXPRESSION"
    } else {
        "SET GENERATED BY DEFAULT"
    };
    format!(
        "ALTER TABLE {} ALTER COLUMN {} {how}",
        table.sql(),
        identifier(column)
    )
}

pub(super) fn create_index(totals: &Relation, keys: &[String]) -> String {
    format!(
        "CREATE UNIQUE INDEX ON {} ({})",
        totals.sql(),
        key_list(keys)
    )
}

/// Shows the keys that have several totals.
pub(super) fn show_duplicates(settings: &Settings) -> String {
    let keys = key_list(&settings.keys);
    format!(
        "SELECT {keys}, pg_catalog.count(*) FROM {} WHERE ({keys}) IS NOT NULL GROUP BY {keys} \
         HAVING pg_catalog.count(*) OPERATOR(pg_catalog.>) 1",
        settings.totals.sql()
    )
}

/// Adds up the totals of each key that has several, and makes the index that keeps one the only one.
pub(super) fn fold_duplicates(settings: &Settings) -> String {
    let (totals, keys) = (settings.totals.sql(), key_list(&settings.keys));
    let columns: Vec<_> = settings.total_columns().map(identifier).collect();
    let sums = columns.iter().map(|name| format!("pg_catalog.sum({name})"));
    let sums: Vec<_> = sums.collect();
    format!(
        "BEGIN; LOCK TABLE {totals}; WITH several AS (DELETE FROM ONLY {totals} WHERE ctid OPERATOR(pg_catalog.=) ANY \
         (ARRAY(SELECT place FROM (SELECT ctid AS place, pg_catalog.count(*) OVER (PARTITION BY {keys}) AS n \
         FROM ONLY {totals} WHERE ({keys}) IS NOT NULL) AS t WHERE n OPERATOR(pg_catalog.>) 1)) RETURNING *) \
         INSERT INTO {totals} ({keys}, {columns}) SELECT {keys}, {sums} FROM several GROUP BY {keys}; {index}; COMMIT",
        columns = columns.join(", "),
        sums = sums.join(", "),
        index = create_index(&settings.totals, &settings.keys),
    )
}

/// Replaces a deferrable constraint by one that is checked at once.
pub(super) fn check_at_once(totals: &Relation, found: &Deferrable) -> String {
    let Deferrable {
        constraint,
        kind,
        keys,
    } = found;
    let constraint = identifier(constraint);
    format!(
        "ALTER TABLE {} DROP CONSTRAINT {constraint}, ADD CONSTRAINT {constraint} {kind} ({})",
        totals.sql(),
        key_list(keys)
    )
}

pub(super) fn drop_rule(table: &Relation, rule: &str) -> String {
    format!("DROP RULE {} ON {}", identifier(rule), table.sql())
}

/// A column with its type and its collation, as in `CREATE TABLE`.
fn declared(column: &TableColumn) -> String {
    let collation = column.collation.as_ref();
    let collation = collation.map_or_else(String::new, |name| format!(" COLLATE {name}"));
    format!("{} {}{collation}", identifier(&column.name), column.shown)
}

/// The columns of a key, separated by commas.
pub(super) fn key_list(keys: &[String]) -> String {
    let keys: Vec<_> = keys.iter().map(|key| identifier(key)).collect();
    keys.join(", ")
}
