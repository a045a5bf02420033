//! Decides whether columns can be folded: both tables must tell keys apart alike, and sums must be exact. Pure.

use super::objects;
use super::settings::Settings;
use super::shape::{Number, Sum};
use super::tables::{Columns, Table, TableColumn, Tables};
use super::unusable::UnusableRollup;
use crate::functions::relation::Relation;

/// Finds a column that must exist; `mend` creates it.
pub(super) fn has_column<'t>(
    relation: &Relation,
    table: &'t Table,
    column: &str,
    mend: Option<String>,
) -> Result<&'t TableColumn, UnusableRollup> {
    table
        .columns
        .get(column)
        .ok_or_else(|| UnusableRollup::Column {
            relation: relation.to_string(),
            column: column.to_owned(),
            has: table.columns.names(),
            mend,
        })
}

pub(super) fn check_key(
    settings: &Settings,
    key: &str,
    tables: &Tables,
) -> Result<(), UnusableRollup> {
    let of_queue = has_column(&settings.queue, &tables.queue, key, None)?;
    let of_totals = has_column(&settings.totals, &tables.totals, key, None)?;
    let both = |kind: &str| {
        format!(
            "{}; {}",
            objects::alter_column(&settings.queue, key, kind, false),
            objects::alter_column(&settings.totals, key, kind, false),
        )
    };
    for column in [of_queue, of_totals] {
        if !column.can_be_key {
            return Err(UnusableRollup::Key {
                column: key.to_owned(),
                found: column.shown.clone(),
                why: "has no built-in sort order",
                mend: both("text"),
            });
        }
        if !column.is_deterministic {
            let kind = format!("{} COLLATE \"default\"", column.shown);
            return Err(UnusableRollup::Key {
                column: key.to_owned(),
                found: format!(
                    "of the collation {}",
                    column.collation.as_deref().unwrap_or("of its type")
                ),
                why: "treats different texts as equal",
                mend: both(&kind),
            });
        }
    }
    if of_queue.shown != of_totals.shown {
        return Err(UnusableRollup::KeyTypes {
            column: key.to_owned(),
            queue: of_queue.shown.clone(),
            totals: of_totals.shown.clone(),
            mend: widen_key(settings, of_queue, of_totals),
        });
    }
    if of_queue.collation != of_totals.collation {
        let collation = of_queue.collation.as_deref().unwrap_or("\"default\"");
        let kind = format!("{} COLLATE {collation}", of_queue.shown);
        return Err(UnusableRollup::Key {
            column: key.to_owned(),
            found: format!("of the collation {collation} in the queue"),
            why: "is another one in the totals",
            mend: objects::alter_column(&settings.totals, key, &kind, false),
        });
    }
    if !of_queue.not_null {
        return Err(UnusableRollup::NullableKey {
            relation: settings.queue.to_string(),
            column: key.to_owned(),
            mend: objects::set_not_null(&settings.queue, key),
        });
    }
    is_written(&settings.totals, of_totals)
}

/// The statement that changes the narrower of two types to the wider one, if every value of the one is a value of the
/// other.
fn widen_key(settings: &Settings, queue: &TableColumn, totals: &TableColumn) -> Option<String> {
    let rank = |column: &TableColumn| match (column.kind.as_deref()?, column.number()) {
        (_, Some(Number::SmallInt)) => Some((0, 0)),
        (_, Some(Number::Integer)) => Some((0, 1)),
        (_, Some(Number::BigInt)) => Some((0, 2)),
        ("varchar", _) => Some((1, 0)),
        ("text", _) => Some((1, 1)),
        _ => None,
    };
    let ((kind, narrow), (other, wide)) = (rank(queue)?, rank(totals)?);
    let column = &queue.name;
    if kind != other || narrow == wide {
        return None;
    }
    Some(if narrow < wide {
        objects::alter_column(&settings.queue, column, &totals.shown, false)
    } else {
        objects::alter_column(&settings.totals, column, &queue.shown, false)
    })
}

/// The columns that are added up, if their sums can be exact.
pub(super) fn sums(settings: &Settings, tables: &Tables) -> Result<Vec<Sum>, UnusableRollup> {
    let mut sums = Vec::new();
    for column in &settings.sum.0 {
        let delta = has_column(&settings.queue, &tables.queue, &column.delta, None)?;
        sums.push(sum(settings, tables, &column.total, Some(delta))?);
    }
    if let Some(count) = &settings.count {
        let delta = tables.queue.columns.get(count);
        sums.push(sum(settings, tables, count, delta)?);
    }
    Ok(sums)
}

/// A column that is added up; without a `delta`, it counts rows.
fn sum(
    settings: &Settings,
    tables: &Tables,
    total: &str,
    delta: Option<&TableColumn>,
) -> Result<Sum, UnusableRollup> {
    let inexact = |column: &str, why: String, mend: Option<String>| UnusableRollup::Inexact {
        column: column.to_owned(),
        why,
        mend,
    };
    // A floating-point column becomes numeric by way of its text, which keeps every digit.
    let alter = |relation: &Relation, column: &TableColumn| {
        let is_float = matches!(column.kind.as_deref(), Some("float4" | "float8"));
        is_float.then(|| objects::alter_column(relation, &column.name, "numeric", true))
    };
    let of_delta = match delta {
        None => Number::BigInt,
        Some(delta) => delta.number().ok_or_else(|| {
            let why = format!(
                "\"{}\" of the queue is {}, and not numeric or an integer",
                delta.name, delta.shown
            );
            inexact(&delta.name, why, alter(&settings.queue, delta))
        })?,
    };
    let kind = delta.map_or(Some("bigint"), objects::total_type);
    let mend = kind.map(|kind| objects::add_total(&settings.totals, total, kind));
    let column = has_column(&settings.totals, &tables.totals, total, mend)?;
    let number = column.number().ok_or_else(|| {
        let why = format!(
            "\"{total}\" of the totals is {}, and not numeric or an integer",
            column.shown
        );
        inexact(total, why, alter(&settings.totals, column))
    })?;
    let digits = match (of_delta, delta.and_then(|delta| delta.scale)) {
        (Number::Numeric, None) => None,
        (Number::Numeric, Some(scale)) => Some(scale.max(0)),
        _ => Some(0),
    };
    let rounds = match (number, column.scale, digits) {
        (Number::Numeric, None, _) => false,
        (Number::Numeric, Some(scale), Some(digits)) => digits > scale,
        (Number::Numeric, Some(_), None) => true,
        (_, _, Some(0)) => of_delta == Number::Numeric,
        _ => true,
    };
    if rounds {
        let shown = delta.map_or("bigint", |delta| &delta.shown);
        let why = format!(
            "its deltas are {shown}, and {} would round them",
            column.shown
        );
        let mend = objects::alter_column(&settings.totals, total, "numeric", false);
        return Err(inexact(total, why, Some(mend)));
    }
    is_written(&settings.totals, column)?;
    Ok(Sum {
        total: total.to_owned(),
        delta: delta.map(|delta| delta.name.clone()),
    })
}

/// Refuses a column that only the server may write.
fn is_written(totals: &Relation, column: &TableColumn) -> Result<(), UnusableRollup> {
    if !column.is_generated && !column.is_identity {
        return Ok(());
    }
    Err(UnusableRollup::Computed {
        relation: totals.to_string(),
        column: column.name.clone(),
        mend: objects::let_be_written(totals, &column.name, column.is_generated),
    })
}

/// Refuses other columns of the totals that need a value in each new row.
pub(super) fn check_other_columns(
    settings: &Settings,
    totals: &Columns,
) -> Result<(), UnusableRollup> {
    let is_ours = |name: &str| {
        settings.keys.iter().any(|key| key == name)
            || settings.total_columns().any(|total| total == name)
    };
    let required = totals.0.iter().find(|column| {
        column.not_null && !column.has_default && !column.is_generated && !is_ours(&column.name)
    });
    match required {
        None => Ok(()),
        Some(column) => Err(UnusableRollup::Required {
            relation: settings.totals.to_string(),
            column: column.name.clone(),
            mend: objects::drop_not_null(&settings.totals, &column.name),
        }),
    }
}
