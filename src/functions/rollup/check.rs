//! Decides whether a roll-up can work on the tables found: a shape, something to create first, or all that is wrong. Pure.

use super::columns::{check_key, check_other_columns, sums};
use super::objects;
use super::relations::{self, is_kind, is_trusted, made_in};
use super::settings::Settings;
use super::shape::Shape;
use super::tables::{Table, TableColumn, Tables};
use super::view::{self, Flaw};
use crate::functions::faults::Faults;
use crate::functions::refusal::{CORRECTS, Refusal};
use crate::functions::relation::{self, Relation};

/// What to do first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing: the tables can be worked on.
    Usable(Shape),
    /// Create what is missing, or replace the view, in one transaction.
    Make(Make),
}

/// What a worker creates or replaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Make {
    pub(super) what: &'static str,
    /// What the log says afterwards.
    pub(super) told: String,
    pub(super) sql: String,
}

/// Decides what a worker does with the tables found.
pub(super) fn check(settings: &Settings, tables: &Tables) -> Result<Verdict, Faults<Refusal>> {
    let mut faults = Vec::new();
    let mut added = Vec::new();
    let mut have_columns = relations::check(settings, tables, &mut faults);
    if have_columns {
        for key in &settings.keys {
            check_key(settings, key, tables, &mut faults);
        }
        added = sums(settings, tables, &mut faults);
        // If the configuration has a wrong name, all that follows from it is wrong as well.
        have_columns = !faults.iter().any(Refusal::is_wrong_name);
    }
    if have_columns {
        check_other_columns(settings, tables, &mut faults);
        faults.extend(has_no_index(settings, tables));
    }
    let made = [
        missing_rejected(settings, tables),
        missing_view(settings, tables, have_columns),
    ];
    let mut make = None;
    for made in made {
        match made {
            Ok(first) => make = make.or(first),
            Err(fault) => faults.push(fault),
        }
    }
    Faults::refuse(faults)?;
    Ok(match make {
        Some(make) => Verdict::Make(make),
        None => Verdict::Usable(Shape {
            keys: settings.keys.clone(),
            sums: added,
            queue: tables.queue.layout.clone(),
            totals: tables.totals.layout.clone(),
            view: tables.view.oid,
        }),
    })
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
    let second = tables.unique.iter().find(|keys| !settings.is_key(keys));
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

/// Refuses totals of which a key may have several.
fn has_no_index(settings: &Settings, tables: &Tables) -> Option<Refusal> {
    let relation = settings.totals.to_string();
    let mut deferrable = tables.deferrable.iter();
    if let Some(found) = deferrable.find(|found| settings.is_key(&found.keys)) {
        let what = format!(
            "the constraint \"{}\" of {relation} is deferrable, which no upsert can rely on",
            found.constraint
        );
        let mend = objects::check_at_once(&settings.totals, found);
        return Some(Refusal::new(what).mend(CORRECTS, Some(mend)));
    }
    let mut unique = tables.unique.iter();
    if unique.any(|columns| settings.is_key(columns)) {
        return None;
    }
    let columns = &tables.totals.columns;
    let keys = objects::key_list(&settings.keys);
    let mut fault = Refusal::new(format!(
        "{relation} has no unique index on exactly ({keys}), without a condition"
    ));
    let mut is_folded = false;
    if tables.has_duplicates {
        is_folded = can_be_folded(settings, &tables.totals);
        let show = objects::show_duplicates(settings);
        fault = fault.note(&format!(
            "; some keys may have several totals, which this shows: {show}; "
        ));
        fault = if is_folded {
            let fold = objects::fold_duplicates(settings);
            fault.note(&format!("this adds them up and makes the index: {fold}"))
        } else {
            fault.note("make each of them one first")
        };
    }
    // A unique index of a partitioned table must have the columns by which it is partitioned.
    let mut partitioned_by = columns.0.iter().filter(|column| column.is_in_partition_key);
    let can_be_made = partitioned_by.all(|column| settings.keys.contains(&column.name));
    let make = (can_be_made && !is_folded)
        .then(|| objects::create_index(&settings.totals, &settings.keys));
    Some(fault.mend("this makes one", make))
}

/// `true` if several totals of a key can be made one without losing anything: there is nothing but keys and sums.
fn can_be_folded(settings: &Settings, totals: &Table) -> bool {
    let is_known = |column: &TableColumn| settings.is_of_totals(&column.name);
    let is_number = |name: &str| {
        let column = totals.columns.get(name);
        column.and_then(TableColumn::number).is_some()
    };
    totals.kind.as_deref() == Some("r")
        && totals.facts.triggers.is_empty()
        && totals.columns.0.iter().all(is_known)
        && settings.total_columns().all(is_number)
}

/// The table for poison, if it is missing and can be created.
fn missing_rejected(settings: &Settings, tables: &Tables) -> Result<Option<Make>, Refusal> {
    let Some(relation) = settings.rejected() else {
        return Ok(None);
    };
    let rejected = &tables.rejected;
    if rejected.kind.is_some() {
        is_kind(&relation, rejected, &["r"], "an ordinary table")?;
        return is_trusted(&relation, tables).map(|()| None);
    }
    let made = Make {
        what: "create the table for poison",
        told: format!("made {relation}, to which poison is moved"),
        sql: objects::create_rejected(settings, &relation),
    };
    let grant = objects::grant_rejected(&relation, &relation::role(&tables.role));
    make(&relation, rejected, made, Some(grant)).map(Some)
}

/// Creates what is missing, or refuses to work without it if the role may not: `grant` lets it use what another role makes.
fn make(
    relation: &Relation,
    table: &Table,
    made: Make,
    grant: Option<String>,
) -> Result<Make, Refusal> {
    if table.may_create {
        return Ok(made);
    }
    let made = std::iter::once(made.sql).chain(grant);
    let mend = made.collect::<Vec<_>>().join("; ");
    let what = format!("the role may not create {relation}");
    let mend = made_in(relation, table, mend);
    Err(Refusal::new(what).mend("this makes it, run by a role that may", Some(mend)))
}

/// Creates the view if it is missing, and replaces one that a worker made before. Refuses one that shows something else.
fn missing_view(
    settings: &Settings,
    tables: &Tables,
    have_columns: bool,
) -> Result<Option<Make>, Refusal> {
    let Some(view) = &settings.view else {
        return Ok(None);
    };
    let sql = view::create(settings, view, view::count(settings, tables)).join("; ");
    if tables.view.kind.is_none() && !have_columns {
        return Ok(None);
    }
    if tables.view.kind.is_none() {
        let made = Make {
            what: "create the view",
            told: format!(
                "made the view {view}: only its owner may read it until others are granted SELECT"
            ),
            sql,
        };
        return make(view, &tables.view, made, None).map(Some);
    }
    is_kind(view, &tables.view, &["v"], "a view")?;
    let Some(flaw) = view::flaw(settings, tables).filter(|_| have_columns) else {
        return Ok(None);
    };
    let may_be_replaced = tables.view.may_create && tables.view.is_owned;
    if flaw.is_ours && flaw.is_replaceable && may_be_replaced {
        return Ok(Some(Make {
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
fn unusable_view(settings: &Settings, view: &Relation, tables: &Tables, flaw: Flaw) -> Refusal {
    let sql = view::create(settings, view, view::count(settings, tables)).join("; ");
    let fault = Refusal::new(format!("the view {view} {}", flaw.why));
    if flaw.is_replaceable {
        return fault.mend("this replaces it, and its grants stay", Some(sql));
    }
    let drop = format!("BEGIN; DROP VIEW {}; {sql}; COMMIT", view.sql());
    let fault = fault.after(&tables.view.readers);
    fault.mend("this recreates it, without its grants", Some(drop))
}
