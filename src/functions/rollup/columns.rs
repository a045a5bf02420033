//! Decides whether columns can be folded: both tables must tell keys apart alike, and sums must be exact. Pure.

use super::objects;
use super::settings::Settings;
use super::shape::{Number, Sum};
use super::tables::{Table, TableColumn, Tables};
use crate::functions::refusal::{CORRECTS, Refusal};
use crate::functions::relation::Relation;
use crate::spelling::nearest;

/// What is wrong, as it is found.
type Faults = Vec<Refusal>;

/// What has to be dropped before columns can be changed, and the statements that change them, if some can.
type Altered = (Box<[String]>, Option<String>);

/// Finds a column that must exist; `fits` tells which other column may be this one under another name, and `mend` adds it.
fn has_column<'t>(
    (relation, table): (&Relation, &'t Table),
    column: &str,
    fits: impl Fn(&TableColumn) -> bool,
    mend: Option<String>,
    settings: &Settings,
    faults: &mut Faults,
) -> Option<&'t TableColumn> {
    let found = table.columns.get(column);
    if found.is_none() {
        let columns = table.columns.0.iter().map(|other| &*other.name);
        let unused = columns.filter(|other| !settings.names(other));
        let mut others = table
            .columns
            .0
            .iter()
            .filter(|other| !settings.names(&other.name) && !other.is_generated && fits(other));
        let rename = match (others.next(), others.next()) {
            (Some(other), None) if !table.is_bound => Some(&other.name),
            _ => None,
        };
        let meant = nearest(column, unused);
        let mend = mend.filter(|_| !table.is_bound && meant.is_none());
        let is_wrong = meant.is_some() || rename.is_none() && mend.is_none();
        let fault = Refusal::new(format!("{relation} has no column \"{column}\"")).meant(meant);
        let fault = match rename {
            Some(other) => {
                let does =
                    format!("if \"{other}\" is this column under another name, this renames it");
                fault.mend(&does, Some(objects::rename(relation, other, column)))
            }
            None => fault,
        };
        let does = "this makes it, and it begins at 0 in totals that exist";
        let has = table.columns.names();
        let fault = (fault.mend(does, mend)).note(&format!("; its columns are {has}"));
        faults.push(if is_wrong {
            fault.of_a_wrong_name()
        } else {
            fault
        });
    }
    found
}

/// A change of the types of columns: the statements, if they work once what uses the columns is dropped, and what does.
fn alter(columns: &[(&Relation, &Table, &TableColumn)], kind: &str, by_text: bool) -> Altered {
    let used_by = columns.iter().flat_map(|(_, _, column)| &column.used_by);
    let mut used_by: Vec<_> = used_by.cloned().collect();
    used_by.sort();
    used_by.dedup();
    let can_be_altered = |(_, table, column): &(&Relation, &Table, &TableColumn)| {
        !table.is_bound && !column.is_in_partition_key
    };
    let alter = columns
        .iter()
        .map(|(relation, _, column)| objects::alter_column(relation, &column.name, kind, by_text));
    let statements: Vec<_> = alter.collect();
    let mend = columns.iter().all(can_be_altered);
    (used_by.into(), mend.then(|| statements.join("; ")))
}

/// Looks for what is wrong with a column of the key.
pub(super) fn check_key(settings: &Settings, key: &str, tables: &Tables, faults: &mut Faults) {
    let (queue, totals) = (
        (&settings.queue, &tables.queue),
        (&settings.totals, &tables.totals),
    );
    let fits = |other: &'_ Table| {
        let shown = other.columns.get(key).map(|column| column.shown.clone());
        move |column: &TableColumn| shown.as_ref() == Some(&column.shown)
    };
    let of_queue = has_column(queue, key, fits(totals.1), None, settings, faults);
    let of_totals = has_column(totals, key, fits(queue.1), None, settings, faults);
    if let (Some(of_queue), Some(of_totals)) = (of_queue, of_totals) {
        faults.extend(key_types(settings, tables, of_queue, of_totals));
    }
    if of_queue.is_some_and(|column| !column.not_null) {
        let has_null = tables.with_null.iter().any(|column| column == key);
        let what = format!("the key \"{key}\" of {} may be NULL", settings.queue);
        let fault = Refusal::new(what);
        let fault = if has_null {
            let sql = objects::move_null(&settings.queue, key);
            fault.note(&format!(
                ", and is in some rows, which belong to no total: give them a key, or this moves them to another table: {sql}"
            ))
        } else {
            fault
        };
        let refuse = objects::set_not_null(&settings.queue, key);
        faults.push(fault.mend("this refuses it", Some(refuse)));
    }
    if let Some(of_totals) = of_totals {
        faults.extend(is_computed(settings, tables, of_totals));
    }
}

/// What is wrong with the types of a column of the key.
fn key_types(
    settings: &Settings,
    tables: &Tables,
    of_queue: &TableColumn,
    of_totals: &TableColumn,
) -> Option<Refusal> {
    let queue = (&settings.queue, &tables.queue, of_queue);
    let totals = (&settings.totals, &tables.totals, of_totals);
    let name = &of_queue.name;
    let key = |found: String, why: &str, (used_by, mend): Altered| {
        let fault = Refusal::new(format!("the key \"{name}\" is {found}, which {why}"));
        Some(fault.after(&used_by).mend(CORRECTS, mend))
    };
    for column in [of_queue, of_totals] {
        if !column.can_be_key {
            let both = alter(&[queue, totals], "text", false);
            return key(column.shown.clone(), "has no built-in sort order", both);
        }
        if !column.is_deterministic {
            let collation = column.collation.as_deref().unwrap_or("of its type");
            let found = format!("of the collation {collation}");
            let kind = format!("{} COLLATE \"default\"", column.shown);
            let both = alter(&[queue, totals], &kind, false);
            return key(found, "treats different texts as equal", both);
        }
    }
    if of_queue.shown != of_totals.shown {
        let (used_by, mend) = match widens(of_queue, of_totals) {
            Some(true) => alter(&[queue], &of_totals.shown, false),
            Some(false) => alter(&[totals], &of_queue.shown, false),
            None => (Box::default(), None),
        };
        let fault = Refusal::new(format!(
            "the key \"{name}\" is {} in the queue and {} in the totals: they must be the same",
            of_queue.shown, of_totals.shown
        ));
        return Some(fault.after(&used_by).mend(CORRECTS, mend));
    }
    if of_queue.collation != of_totals.collation {
        let collation = of_queue.collation.as_deref().unwrap_or("\"default\"");
        let found = format!("of the collation {collation} in the queue");
        let kind = format!("{} COLLATE {collation}", of_queue.shown);
        let altered = alter(&[totals], &kind, false);
        return key(found, "is another one in the totals", altered);
    }
    None
}

/// Whether the type of the queue's column is the narrower one, if every value of the one is a value of the other.
fn widens(queue: &TableColumn, totals: &TableColumn) -> Option<bool> {
    let rank = |column: &TableColumn| match (column.kind.as_deref()?, column.number()) {
        (_, Some(Number::SmallInt)) => Some((0, 0)),
        (_, Some(Number::Integer)) => Some((0, 1)),
        (_, Some(Number::BigInt)) => Some((0, 2)),
        ("varchar", _) => Some((1, 0)),
        ("text", _) => Some((1, 1)),
        _ => None,
    };
    let ((kind, narrow), (other, wide)) = (rank(queue)?, rank(totals)?);
    (kind == other && narrow != wide).then_some(narrow < wide)
}

/// The columns that are added up, as far as their sums can be exact.
pub(super) fn sums(settings: &Settings, tables: &Tables, faults: &mut Faults) -> Vec<Sum> {
    let mut sums = Vec::new();
    for column in &settings.sum.0 {
        let queue = (&settings.queue, &tables.queue);
        let is_number = |other: &TableColumn| other.number().is_some();
        let delta = has_column(queue, &column.delta, is_number, None, settings, faults);
        let totals = (&settings.totals, &tables.totals);
        match delta {
            Some(_) => sums.extend(sum(settings, tables, &column.total, delta, faults)),
            // The totals may lack it as well.
            None => drop(has_column(
                totals,
                &column.total,
                is_number,
                None,
                settings,
                faults,
            )),
        }
    }
    if let Some(count) = &settings.count {
        let delta = tables.queue.columns.get(count);
        sums.extend(sum(settings, tables, count, delta, faults));
    }
    sums
}

/// A column that is added up; without a `delta`, it counts rows.
fn sum(
    settings: &Settings,
    tables: &Tables,
    total: &str,
    delta: Option<&TableColumn>,
    faults: &mut Faults,
) -> Option<Sum> {
    let kind = delta.map_or(Some("bigint"), objects::total_type);
    let mend = kind.map(|kind| objects::add_total(&settings.totals, total, kind));
    let is_number = |other: &TableColumn| other.number().is_some();
    let totals = (&settings.totals, &tables.totals);
    let column = has_column(totals, total, is_number, mend, settings, faults);
    if let Some(delta) = delta.filter(|delta| delta.number().is_none()) {
        faults.push(not_exact((&settings.queue, &tables.queue, delta), "queue"));
    }
    let column = column?;
    let found = faults.len();
    match column.number() {
        None => faults.push(not_exact((totals.0, totals.1, column), "totals")),
        Some(number) if does_round(delta, column, number) => {
            let shown = delta.map_or("bigint", |delta| &delta.shown);
            let why = format!(
                "its deltas are {shown}, and {} would round them",
                column.shown
            );
            let (used_by, mend) = alter(&[(totals.0, totals.1, column)], "numeric", false);
            let fault = Refusal::new(format!("the sum \"{total}\" cannot be exact: {why}"));
            faults.push(fault.after(&used_by).mend(CORRECTS, mend));
        }
        Some(_) => {}
    }
    faults.extend(is_computed(settings, tables, column));
    (faults.len() == found).then(|| Sum {
        total: total.to_owned(),
        delta: delta.map(|delta| delta.name.clone()),
    })
}

/// A column that holds no exact numbers. A floating-point column becomes numeric by way of its text, which keeps every
/// digit.
fn not_exact(at: (&Relation, &Table, &TableColumn), whose: &str) -> Refusal {
    let TableColumn {
        name, shown, kind, ..
    } = at.2;
    let is_float = matches!(kind.as_deref(), Some("float4" | "float8"));
    let (used_by, mend) = if is_float {
        alter(&[at], "numeric", true)
    } else {
        (Box::default(), None)
    };
    let fault = Refusal::new(format!(
        "the sum \"{name}\" cannot be exact: \"{name}\" of the {whose} is {shown}, and not numeric or an integer"
    ));
    fault.after(&used_by).mend(CORRECTS, mend)
}

/// `true` if deltas would be rounded in this column of the totals.
fn does_round(delta: Option<&TableColumn>, column: &TableColumn, number: Number) -> bool {
    let of_delta = delta.map_or(Some(Number::BigInt), TableColumn::number);
    let digits = match (of_delta, delta.and_then(|delta| delta.scale)) {
        // That is another fault.
        (None, _) => return false,
        (Some(Number::Numeric), None) => None,
        (Some(Number::Numeric), Some(scale)) => Some(scale.max(0)),
        _ => Some(0),
    };
    match (number, column.scale, digits) {
        (Number::Numeric, None, _) => false,
        (Number::Numeric, Some(scale), Some(digits)) => digits > scale,
        (Number::Numeric, Some(_), None) => true,
        (_, _, Some(0)) => of_delta == Some(Number::Numeric),
        _ => true,
    }
}

/// Refuses a column of the totals that only the server may write.
fn is_computed(settings: &Settings, tables: &Tables, column: &TableColumn) -> Option<Refusal> {
    let totals = &settings.totals;
    let can_be_written = !(column.is_virtual || tables.totals.is_bound && column.is_generated);
    (column.is_generated || column.is_identity).then(|| {
        let name = &column.name;
        let mend =
            can_be_written.then(|| objects::let_be_written(totals, name, column.is_generated));
        let what = format!("the server alone writes the column \"{name}\" of {totals}");
        Refusal::new(what).mend("this lets others", mend)
    })
}

/// Refuses other columns of the totals that need a value in each new row.
pub(super) fn check_other_columns(settings: &Settings, tables: &Tables, faults: &mut Faults) {
    let required = tables
        .totals
        .columns
        .0
        .iter()
        .filter(|column| column.not_null && !column.has_default && !column.is_generated);
    for column in required.filter(|column| !settings.is_of_totals(&column.name)) {
        let (totals, name) = (&settings.totals, &column.name);
        let is_time = matches!(
            column.kind.as_deref(),
            Some("timestamptz" | "timestamp" | "date" | "timetz" | "time")
        );
        let may_be_null = !tables.totals.is_bound && !tables.identity.contains(name);
        let what = format!(
            "the column \"{name}\" of {totals} must not be NULL, has no default, and is neither key nor sum"
        );
        let mut fault = Refusal::new(what);
        if !is_time && !may_be_null {
            fault = fault.note(", and it identifies the rows: give it a default, or make it a key");
        }
        let default = is_time.then(|| objects::set_default_now(totals, name));
        let be_null = if is_time {
            "or this lets it be NULL"
        } else {
            "this lets it be NULL"
        };
        let fault = fault.mend("this gives it a default", default);
        let null = may_be_null.then(|| objects::drop_not_null(totals, name));
        faults.push(fault.mend(be_null, null));
    }
}
