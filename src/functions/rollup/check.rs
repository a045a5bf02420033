//! Decides whether a roll-up can work on the tables found: a shape, something to create first, or a refusal. Pure.

use super::columns::{check_key, check_other_columns, has_column, sums};
use super::objects;
use super::settings::Settings;
use super::shape::Shape;
use super::tables::{Table, Tables};
use super::unusable::UnusableRollup;
use super::view::{self, Flaw};
use crate::functions::folding::bypass_row_security;
use crate::functions::ownership::UntrustedTables;
use crate::functions::quote::identifier;
use crate::functions::relation::Relation;

/// What to do first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing: the tables can be worked on.
    Usable(Shape),
    /// Create what is missing, or replace the view, in one transaction.
    Make {
        what: &'static str,
        /// What the log says afterwards.
        told: String,
        sql: String,
    },
}

/// Decides what a worker does with the tables found.
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
    for (relation, table) in [(&settings.queue, queue), (&settings.totals, totals)] {
        if table.layout.has_children {
            return Err(UnusableRollup::Kind {
                relation: relation.to_string(),
                found: "a table with children".to_owned(),
                expected: "an ordinary table",
            });
        }
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
        queue: queue.layout.clone(),
        totals: totals.layout.clone(),
        view: tables.view.oid,
    }))
}

/// Warns of what may cost more than it should, or fail sometimes.
pub(super) fn warnings(settings: &Settings, tables: &Tables) -> Vec<String> {
    let totals = &settings.totals;
    let indexed = settings
        .total_columns()
        .find(|total| tables.indexed.iter().any(|column| column == total));
    let indexed = indexed.map(|total| {
        format!("{totals}: column \"{total}\" is indexed, so each fold writes to the index as well: consider dropping the index")
    });
    let second = tables.unique.iter().find(|keys| !is_key(settings, keys));
    let second = second.map(|keys| {
        format!(
            "{totals} has a second unique index, on ({}): a new total that it refuses is poison",
            objects::key_list(keys)
        )
    });
    let view = settings.view.as_ref().and_then(|view| {
        let flaw = view::flaw(settings, tables)?;
        Some(unusable_view(settings, view, tables, flaw).to_string())
    });
    indexed.into_iter().chain(second).chain(view).collect()
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

/// Refuses a table whose row security could hide rows from the role.
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
        mend: bypass_row_security(role),
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

/// Refuses a table for poison that would run the code of a role that is not trusted. Roles that can run code by way of the
/// queue are trusted: its owner, and the roles that may put triggers on it.
fn is_trusted(relation: &Relation, tables: &Tables) -> Result<(), UnusableRollup> {
    let Tables {
        queue,
        rejected,
        role,
        ..
    } = tables;
    let trusted = tables.trusted_owners.iter();
    let trusted = trusted
        .chain(&queue.facts.owner)
        .chain(&queue.facts.trigger_makers);
    let trusted: Vec<_> = trusted.cloned().collect();
    let mut facts = rejected.facts.clone();
    // The types of the queue's columns are trusted with the queue.
    facts.made_types.retain(|name| {
        let kind = |table: &Table| table.columns.get(name).map(|column| column.shown.clone());
        kind(rejected) != kind(queue)
    });
    let doubts = facts.doubts(relation, role, &trusted);
    UntrustedTables::refuse(role, doubts).map_err(|error| UnusableRollup::Untrusted {
        why: error.to_string(),
    })
}

/// What is missing and can be created: the table for poison, then the view.
fn missing(settings: &Settings, tables: &Tables) -> Result<Option<Verdict>, UnusableRollup> {
    if let Some(relation) = settings.rejected() {
        if tables.rejected.kind.is_none() {
            let sql = objects::create_rejected(settings, &relation);
            let made = Verdict::Make {
                what: "create the table for poison",
                told: format!("made {relation}, to which poison is moved"),
                sql,
            };
            return make(&relation, &tables.rejected, made).map(Some);
        }
        is_kind(&relation, &tables.rejected, &["r"], "an ordinary table")?;
        is_trusted(&relation, tables)?;
    }
    match &settings.view {
        None => Ok(None),
        Some(view) => missing_view(settings, view, tables),
    }
}

/// Creates what is missing, or refuses to work without it if the role may not.
fn make(relation: &Relation, table: &Table, made: Verdict) -> Result<Verdict, UnusableRollup> {
    match made {
        Verdict::Make { sql, .. } if !table.may_create => Err(UnusableRollup::NotMade {
            relation: relation.to_string(),
            mend: sql,
        }),
        made => Ok(made),
    }
}

/// Creates the view if it is missing, and replaces one that a worker made before. Refuses one that shows something else.
fn missing_view(
    settings: &Settings,
    view: &Relation,
    tables: &Tables,
) -> Result<Option<Verdict>, UnusableRollup> {
    let sql = view::create(settings, view, view::count(settings, tables)).join("; ");
    if tables.view.kind.is_none() {
        let made = Verdict::Make {
            what: "create the view",
            told: format!(
                "made the view {view}: only its owner may read it until others are granted SELECT"
            ),
            sql,
        };
        return make(view, &tables.view, made).map(Some);
    }
    is_kind(view, &tables.view, &["v"], "a view")?;
    let Some(flaw) = view::flaw(settings, tables) else {
        return Ok(None);
    };
    let may_be_replaced = tables.view.may_create && tables.view.is_owned;
    if flaw.is_ours && flaw.is_replaceable && may_be_replaced {
        return Ok(Some(Verdict::Make {
            what: "replace the view",
            told: format!(
                "replaced the view {view}, which {}; its grants stay",
                flaw.why
            ),
            sql,
        }));
    }
    if flaw.is_wrong {
        return Err(unusable_view(settings, view, tables, flaw));
    }
    Ok(None)
}

/// A view with this flaw, and the statements that mend it.
fn unusable_view(
    settings: &Settings,
    view: &Relation,
    tables: &Tables,
    flaw: Flaw,
) -> UnusableRollup {
    let sql = view::create(settings, view, view::count(settings, tables)).join("; ");
    let (how, mend) = if flaw.is_replaceable {
        ("replaces it, and its grants stay", sql)
    } else {
        let drop = format!("DROP VIEW {}; {sql}", view.sql());
        ("recreates it, without its grants", drop)
    };
    UnusableRollup::View {
        view: view.to_string(),
        why: flaw.why,
        how,
        mend,
    }
}
