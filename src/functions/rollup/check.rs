//! Decides whether what there is can be worked on: what was found in, a shape or a refusal out. Pure.

use super::objects;
use super::settings::Settings;
use super::shape::{Number, Shape, Sum};
use super::tables::{Columns, Table, TableColumn, Tables};
use super::unusable::UnusableRollup;
use crate::functions::quote::identifier;
use crate::functions::relation::Relation;

/// What to do first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing: it can be worked on.
    Usable(Shape),
    /// Make what is missing, as one transaction.
    Make { what: &'static str, sql: String },
}

/// Judges what there is.
pub(super) fn check(settings: &Settings, tables: &Tables) -> Result<Verdict, UnusableRollup> {
    let Tables {
        queue,
        totals,
        role,
        ..
    } = tables;
    are_there(settings, tables)?;
    is_kind(&settings.queue, queue, &["r"], "an ordinary table")?;
    is_kind(&settings.totals, totals, &["r", "p"], "a table")?;
    if queue.has_children {
        return Err(UnusableRollup::Kind {
            relation: settings.queue.to_string(),
            found: "a table with children".to_owned(),
            expected: "an ordinary table",
        });
    }
    for (relation, table) in [(&settings.queue, queue), (&settings.totals, totals)] {
        has_no_rule(relation, table)?;
        hides_nothing(relation, table, role)?;
    }
    are_allowed(settings, tables)?;
    for key in &settings.keys {
        check_key(settings, key, tables)?;
    }
    let sums = sums(settings, tables)?;
    check_other_columns(settings, &totals.columns)?;
    has_index(settings, tables)?;
    if let Some(make) = missing(settings, tables)? {
        return Ok(make);
    }
    Ok(Verdict::Usable(Shape {
        keys: settings.keys.clone(),
        sums,
    }))
}

/// What may cost more than it should, or fail sometimes.
pub(super) fn warnings(settings: &Settings, tables: &Tables) -> Vec<String> {
    let totals = &settings.totals;
    let indexed = settings
        .total_columns()
        .find(|total| tables.indexed.iter().any(|column| column == total));
    let indexed = indexed.map(|total| {
        format!("{totals}: column \"{total}\" is in an index, which each fold writes to as well: better without")
    });
    let second = tables.unique.iter().find(|keys| !is_key(settings, keys));
    let second = second.map(|keys| {
        format!(
            "{totals} has a second unique index, on ({}): a new total that it refuses is poison",
            objects::key_list(keys)
        )
    });
    indexed.into_iter().chain(second).collect()
}

fn are_there(
    settings: &Settings,
    Tables { queue, totals, .. }: &Tables,
) -> Result<(), UnusableRollup> {
    let missing = |relation: &Relation, mend| UnusableRollup::Missing {
        relation: relation.to_string(),
        mend,
    };
    match (&queue.kind, &totals.kind) {
        (None, _) => {
            let mend = objects::create_queue(settings, &totals.columns);
            Err(missing(&settings.queue, mend))
        }
        (Some(_), None) => {
            for column in settings
                .keys
                .iter()
                .chain(settings.sum.0.iter().map(|sum| &sum.delta))
            {
                has_column(&settings.queue, queue, column, None)?;
            }
            let mend = objects::create_totals(settings, &queue.columns);
            Err(missing(&settings.totals, mend))
        }
        (Some(_), Some(_)) => Ok(()),
    }
}

fn is_kind(
    relation: &Relation,
    table: &Table,
    kinds: &[&str],
    expected: &'static str,
) -> Result<(), UnusableRollup> {
    let kind = table.kind.as_deref().unwrap_or_default();
    if kinds.contains(&kind) {
        return Ok(());
    }
    let found = match kind {
        "p" => "a partitioned table",
        "v" => "a view",
        "m" => "a materialized view",
        "f" => "a foreign table",
        "r" => "a table",
        _ => "something else",
    };
    Err(UnusableRollup::Kind {
        relation: relation.to_string(),
        found: found.to_owned(),
        expected,
    })
}

fn has_no_rule(relation: &Relation, table: &Table) -> Result<(), UnusableRollup> {
    match &table.rule {
        None => Ok(()),
        Some(rule) => Err(UnusableRollup::Rule {
            relation: relation.to_string(),
            rule: rule.clone(),
            mend: objects::drop_rule(relation, rule),
        }),
    }
}

/// Refuses a table of which the role would not see all rows.
pub(super) fn hides_nothing(
    relation: &Relation,
    table: &Table,
    role: &str,
) -> Result<(), UnusableRollup> {
    if !table.row_security {
        return Ok(());
    }
    Err(UnusableRollup::RowSecurity {
        relation: relation.to_string(),
        mend: format!("ALTER ROLE {} BYPASSRLS", identifier(role)),
    })
}

fn are_allowed(settings: &Settings, tables: &Tables) -> Result<(), UnusableRollup> {
    let role = identifier(&tables.role);
    let may = |relation: &Relation, table: &Table, needs: &[(bool, &str)], grant: String| {
        let schema = (table.may_use_schema, "use the schema of");
        let lacking = std::iter::once(&schema)
            .chain(needs)
            .filter(|(may, _)| !may);
        let lacking: Vec<_> = lacking.map(|(_, what)| *what).collect();
        if lacking.is_empty() {
            return Ok(());
        }
        let schema = identifier(&relation.schema);
        Err(UnusableRollup::Privileges {
            relation: relation.to_string(),
            lacking: lacking.join(", "),
            mend: format!("GRANT USAGE ON SCHEMA {schema} TO {role}; {grant}"),
        })
    };
    let Tables {
        queue,
        totals,
        rejected,
        ..
    } = tables;
    let grant = objects::grant_queue(&settings.queue, &role);
    let needs = [
        (queue.may_select, "SELECT from"),
        (queue.may_delete, "DELETE from"),
    ];
    may(&settings.queue, queue, &needs, grant)?;
    let grant = objects::grant_totals(&settings.totals, &role);
    let needs = [
        (totals.may_select, "SELECT from"),
        (totals.may_insert, "INSERT into"),
        (totals.may_update, "UPDATE"),
    ];
    may(&settings.totals, totals, &needs, grant)?;
    if let Some(relation) = settings.rejected()
        && rejected.kind.is_some()
    {
        let grant = objects::grant_rejected(&relation, &role);
        may(
            &relation,
            rejected,
            &[(rejected.may_insert, "INSERT into")],
            grant,
        )?;
    }
    Ok(())
}

/// The column, which must be there. `mend` makes it.
fn has_column<'t>(
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

fn check_key(settings: &Settings, key: &str, tables: &Tables) -> Result<(), UnusableRollup> {
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
                why: "has no order of PostgreSQL's own",
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
                why: "takes different texts for the same",
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

/// Makes the narrower of two types the wider one, where every value of the one is a value of the other.
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

/// The columns that are added up, if that can be exact.
fn sums(settings: &Settings, tables: &Tables) -> Result<Vec<Sum>, UnusableRollup> {
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

/// A column that is added up; the number of rows if the queue has none for it.
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
    // A number of another kind becomes one by its text, of which every digit counts.
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

/// Refuses a column whose values are the server's alone.
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

/// Refuses columns that a new total would have to have.
fn check_other_columns(settings: &Settings, totals: &Columns) -> Result<(), UnusableRollup> {
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

fn is_key(settings: &Settings, columns: &[String]) -> bool {
    columns.len() == settings.keys.len() && settings.keys.iter().all(|key| columns.contains(key))
}

fn has_index(settings: &Settings, tables: &Tables) -> Result<(), UnusableRollup> {
    let mut deferrable = tables.deferrable.iter();
    if let Some(found) = deferrable.find(|found| is_key(settings, &found.keys)) {
        return Err(UnusableRollup::Deferrable {
            relation: settings.totals.to_string(),
            constraint: found.constraint.clone(),
            mend: objects::check_at_once(&settings.totals, found),
        });
    }
    if tables
        .unique
        .iter()
        .any(|columns| is_key(settings, columns))
    {
        return Ok(());
    }
    Err(UnusableRollup::NoUniqueIndex {
        relation: settings.totals.to_string(),
        keys: objects::key_list(&settings.keys),
        mend: objects::create_index(&settings.totals, &settings.keys),
    })
}

/// What is missing and can be made: the table for poison, then the view.
fn missing(settings: &Settings, tables: &Tables) -> Result<Option<Verdict>, UnusableRollup> {
    let make = |relation: &Relation, table: &Table, what, sql: String| {
        if table.may_create {
            return Ok(Some(Verdict::Make { what, sql }));
        }
        Err(UnusableRollup::NotMade {
            relation: relation.to_string(),
            mend: sql,
        })
    };
    if let Some(relation) = settings.rejected() {
        if tables.rejected.kind.is_none() {
            let sql = objects::create_rejected(settings, &relation);
            return make(
                &relation,
                &tables.rejected,
                "create the table for poison",
                sql,
            );
        }
        is_kind(&relation, &tables.rejected, &["r", "p"], "a table")?;
    }
    let Some(view) = &settings.view else {
        return Ok(None);
    };
    if tables.view.kind.is_none() {
        let sql = objects::create_view(settings, view).join("; ");
        return make(view, &tables.view, "create the view", sql);
    }
    is_kind(view, &tables.view, &["v"], "a view")?;
    let reads = |relation: &Relation| {
        let quoted = relation.to_string();
        tables.view.reads.contains(&quoted)
    };
    let columns = settings
        .keys
        .iter()
        .map(String::as_str)
        .chain(settings.total_columns());
    let lacking = columns
        .into_iter()
        .find(|name| tables.view.columns.get(name).is_none());
    let why = match lacking {
        Some(column) => format!("has no column \"{column}\""),
        None if !reads(&settings.queue) => format!("does not read {}", settings.queue),
        None if !reads(&settings.totals) => format!("does not read {}", settings.totals),
        None => return Ok(None),
    };
    Err(UnusableRollup::View {
        view: view.to_string(),
        why,
        mend: objects::replace_view(settings, view),
    })
}
