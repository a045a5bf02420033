//! Decides whether a roll-up's relations are there, are of the right kind, and let the role do its work. Pure.

use super::objects;
use super::settings::Settings;
use super::tables::{Table, Tables};
use crate::functions::ownership::UntrustedTables;
use crate::functions::quote::identifier;
use crate::functions::refusal::{CORRECTS, GRANTS, Refusal, row_security};
use crate::functions::relation::{self, Relation};
use crate::spelling::nearly;

/// Looks for what is wrong with the queue and the totals as a whole. `true` if there are columns to look at.
pub(super) fn check(settings: &Settings, tables: &Tables, faults: &mut Vec<Refusal>) -> bool {
    let Tables { queue, totals, .. } = tables;
    let wanted = [
        (&settings.queue, queue, &["r"][..], "an ordinary table"),
        (&settings.totals, totals, &["r", "p"], "a table"),
    ];
    let mut are_tables = true;
    for (relation, table, kinds, expected) in wanted {
        let of_kind = is_kind(relation, table, kinds, expected);
        are_tables &= table.kind.is_some() && of_kind.is_ok();
        if table.kind.is_none() {
            faults.push(missing(settings, tables, relation));
            continue;
        }
        if let Err(fault) = of_kind {
            faults.push(fault);
            continue;
        }
        if table.layout.has_children {
            let what = format!("{relation} is a table with children: it must be an ordinary table");
            let fault = Refusal::new(what).mend(CORRECTS, table.disinherit.clone());
            faults.push(fault);
        }
        faults.extend(has_rule(relation, table));
        faults.extend(hides_rows(relation, table, &tables.role));
    }
    check_privileges(settings, tables, faults);
    are_tables
}

/// A queue or totals that do not exist. Their types follow from the other table.
fn missing(settings: &Settings, tables: &Tables, relation: &Relation) -> Refusal {
    let Tables {
        queue,
        totals,
        role,
        ..
    } = tables;
    let role = relation::role(role);
    let (is_queue, shown) = (*relation == settings.queue, relation.to_string());
    let (table, sql, grant) = if is_queue {
        let sql = objects::create_queue(settings, &totals.columns);
        let grant = objects::grant_queue(relation, &role);
        (queue, Some(sql), grant)
    } else {
        let sql = objects::create_totals(settings, &queue.columns);
        let grant = objects::grant_totals(relation, &role);
        (totals, sql, grant)
    };
    // A role that may not make the table is not the one that will own it.
    let sql = sql.map(|sql| made_in(relation, table, sql));
    let mend = sql.map(|sql| match table.may_create {
        true => sql,
        false => {
            let schema = identifier(&relation.schema);
            format!("{sql}; GRANT USAGE ON SCHEMA {schema} TO {role}; {grant}")
        }
    });
    let used = [&settings.queue, &settings.totals].map(ToString::to_string);
    let others = tables.others.iter().map(String::as_str);
    let meant = nearly(
        &shown,
        others.filter(|other| used.iter().all(|used| used != other)),
    );
    let fault = Refusal::new(format!("{shown} does not exist")).meant(meant);
    let are_types_known = !is_queue || totals.kind.is_some();
    let what_it_does = if are_types_known {
        "this makes it"
    } else {
        "this makes it, once \"text\" and \"bigint\" are replaced by the types of your columns where these are others"
    };
    fault.mend(what_it_does, mend)
}

/// Statements that make something in a schema, which they make first if it does not exist.
pub(super) fn made_in(relation: &Relation, table: &Table, sql: String) -> String {
    if table.has_schema {
        return sql;
    }
    let schema = identifier(&relation.schema);
    format!("CREATE SCHEMA IF NOT EXISTS {schema}; {sql}")
}

/// Refuses a relation of another kind.
pub(super) fn is_kind(
    relation: &Relation,
    table: &Table,
    kinds: &[&str],
    expected: &'static str,
) -> Result<(), Refusal> {
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
    let what = format!("{relation} is {found}: it must be {expected}");
    Err(Refusal::new(what))
}

fn has_rule(relation: &Relation, table: &Table) -> Option<Refusal> {
    table.rule.as_ref().map(|rule| {
        let what = format!("{relation} has the rule \"{rule}\", which folding does not support");
        Refusal::new(what).mend("this drops it", Some(objects::drop_rule(relation, rule)))
    })
}

/// Refuses a table whose row security could hide rows from the role.
pub(super) fn hides_rows(relation: &Relation, table: &Table, role: &str) -> Option<Refusal> {
    table
        .row_security
        .then(|| row_security(&relation.to_string(), role))
}

fn check_privileges(settings: &Settings, tables: &Tables, faults: &mut Vec<Refusal>) {
    let role = relation::role(&tables.role);
    let mut check = |relation: &Relation, table: &Table, needs: &[(bool, &str)], grant: String| {
        let schema = (table.may_use_schema, "use the schema of");
        let lacking = std::iter::once(&schema)
            .chain(needs)
            .filter(|(may, _)| !may);
        let lacking: Vec<_> = lacking.map(|(_, what)| *what).collect();
        if table.kind.is_none() || lacking.is_empty() {
            return;
        }
        let schema = identifier(&relation.schema);
        let mend = format!("GRANT USAGE ON SCHEMA {schema} TO {role}; {grant}");
        let what = format!("the role may not {} {relation}", lacking.join(", "));
        faults.push(Refusal::new(what).mend(GRANTS, Some(mend)));
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
    check(&settings.queue, queue, &needs, grant);
    let grant = objects::grant_totals(&settings.totals, &role);
    let needs = [
        (totals.may_select, "SELECT from"),
        (totals.may_insert, "INSERT into"),
        (totals.may_update, "UPDATE"),
    ];
    check(&settings.totals, totals, &needs, grant);
    if let Some(relation) = settings.rejected() {
        let grant = objects::grant_rejected(&relation, &role);
        let needs = [(rejected.may_insert, "INSERT into")];
        check(&relation, rejected, &needs, grant);
    }
}

/// Refuses a table for poison that would run the code of a role that is not trusted. Roles that can run code by way of the
/// queue are trusted: its owner, and the roles that may put triggers on it.
pub(super) fn is_trusted(relation: &Relation, tables: &Tables) -> Result<(), Refusal> {
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
    UntrustedTables::refuse(role, doubts).map_err(|error| Refusal::new(error.to_string()))
}
