//! What is wrong with an existing table of the built-in worker: all of it at once, each with the statement that mends it.

use thiserror::Error;
use tokio_postgres::Row;

use super::shape::Shape;
use super::table::Table;
use crate::database::{DatabaseError, Parameters};
use crate::functions::faults::Faults;
use crate::functions::folding::Layout;
use crate::functions::refusal::{CORRECTS, GRANTS, Refusal, row_security};
use crate::functions::runner::CycleError;
use crate::functions::session::Session;

/// What keeps a worker from its first cycle.
#[derive(Debug, Error)]
pub(super) enum InitializeError {
    #[error("{0}")]
    Unusable(Faults<Refusal>),
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl From<InitializeError> for CycleError {
    fn from(error: InitializeError) -> Self {
        match error {
            InitializeError::Unusable(faults) => Self::Unusable(faults.into_error()),
            InitializeError::Database(error) => Self::Database(error),
        }
    }
}

/// Refuses an existing table that cannot be worked on, with all that is wrong with it; returns its shape.
pub(super) async fn check(
    session: &Session,
    table: &Table,
    kind: &str,
    row: &Row,
    inserts: bool,
) -> Result<Shape, InitializeError> {
    let is = |column: &str| row.get::<_, Option<bool>>(column) == Some(true);
    if kind != "r" {
        let fault = Refusal::new(format!("{table} is not an ordinary table"));
        return Err(InitializeError::Unusable(fault.into()));
    }
    let mut faults = Vec::new();
    if is("has_rules") {
        let what =
            format!("{table} has a rule on UPDATE or DELETE, which folding does not support");
        faults.push(Refusal::new(what));
    }
    check_access(table, row, inserts, &mut faults);
    let may_read = is("may_use_schema") && is("may_select") && !is("row_security");
    let columns = faults.len();
    faults.extend(check_type(table, row).err());
    faults.extend(check_value(session, table, row, may_read).await?);
    let is_missing = |column: &str| row.get::<_, Option<String>>(column).is_none();
    let has_names = !(is_missing("type_type") || is_missing("value_type")) || is_to_be_added(row);
    if !is("has_index") && has_names {
        let has_columns = faults.len() == columns;
        let may_look = may_read && has_columns;
        faults.push(without_index(session, table, row, may_look).await?);
    }
    Faults::refuse(faults).map_err(InitializeError::Unusable)?;
    Ok(Shape {
        may_be_null: !is("value_not_null"),
        layout: Layout {
            oid: row.get("oid"),
            columns: row.get("columns"),
            is_bare: is("is_bare"),
            has_children: is("has_children"),
        },
    })
}

fn check_type(table: &Table, row: &Row) -> Result<(), Refusal> {
    let found: Option<String> = row.get("type_type");
    let name: Option<&str> = row.get("type_name");
    let can_be_altered =
        !is_bound(row) && row.get::<_, Option<bool>>("type_is_used") == Some(false);
    let mend = match (&found, name) {
        (_, Some("text" | "varchar")) => return Ok(()),
        (None, _) => is_to_be_added(row).then(|| table.add_column("type", "text")),
        // Every value of every type has a text form.
        (Some(_), _) => can_be_altered.then(|| table.alter_column("type", "text")),
    };
    Err(column(table, "type", "text", found, mend))
}

/// What is wrong with the values. Whether they are whole numbers is only asked if the role may read them.
async fn check_value(
    session: &Session,
    table: &Table,
    row: &Row,
    may_read: bool,
) -> Result<Option<Refusal>, DatabaseError> {
    let is = |column: &str| row.get::<_, Option<bool>>(column) == Some(true);
    if is("value_generated") {
        let what = format!(
            "{table}: column \"value\" is generated from other columns: no total can be stored in it"
        );
        return Ok(Some(Refusal::new(what)));
    }
    if is("value_identity") {
        let what = format!("{table}: column \"value\" is GENERATED ALWAYS AS IDENTITY");
        let mend = table.make_identity_optional();
        let fault = Refusal::new(what).mend("this lets totals be stored", Some(mend));
        return Ok(Some(fault));
    }
    let found: Option<String> = row.get("value_type");
    let name: Option<&str> = row.get("value_name");
    let base: Option<&str> = row.get("value_base");
    let is_used = is_bound(row) || is("value_is_used");
    let mend = match (name, base) {
        (Some("int8" | "int4" | "int2"), _) => return Ok(None),
        _ if found.is_none() => is_to_be_added(row).then(|| table.add_column("value", "int8")),
        _ if is_used => None,
        (_, Some("int8" | "int4" | "int2")) => Some(table.alter_column("value", "int8")),
        (Some("numeric" | "float4" | "float8"), _) if may_read => {
            // A fraction would be rounded away.
            let sql = table.has_whole_values();
            let rows = session.query("look at the values", &sql, Parameters::new());
            let is_whole = rows.await?.first().is_some_and(|row| row.get(0));
            is_whole.then(|| table.alter_column("value", "int8"))
        }
        _ => None,
    };
    let expected = "bigint or integer";
    Ok(Some(column(table, "value", expected, found, mend)))
}

/// `true` if a column that is missing can be added. If there are rows and other columns, one of these may have what is looked
/// for, under another name.
fn is_to_be_added(row: &Row) -> bool {
    !is_bound(row) && row.get::<_, Option<bool>>("may_be_added") == Some(true)
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
) -> Refusal {
    let found = found.as_deref().unwrap_or("missing");
    let what = format!(
        "{table} has the wrong shape: column \"{column}\" must be {expected}, but is {found}"
    );
    Refusal::new(what).mend(CORRECTS, mend)
}

/// Refuses a table that the role may not work on, or would not see all of.
fn check_access(table: &Table, row: &Row, inserts: bool, faults: &mut Vec<Refusal>) {
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
        let what = format!("the role may not {} {table}", lacking.join(", "));
        faults.push(Refusal::new(what).mend(GRANTS, Some(table.grant(&role))));
    }
    if row.get::<_, Option<bool>>("row_security") == Some(true) {
        faults.push(row_security(&table.to_string(), &role));
    }
}

/// What is wrong with a table that has no unique index on its total. Its totals are only counted if the role may read them
/// and their columns are as they must be.
async fn without_index(
    session: &Session,
    table: &Table,
    row: &Row,
    may_look: bool,
) -> Result<Refusal, DatabaseError> {
    if !may_look {
        return Ok(no_unique_index(table));
    }
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
    if !are_several {
        return Ok(no_unique_index(table));
    }
    let what =
        format!("{table} has more than one total, and no unique index that keeps it the only one");
    let fault = Refusal::new(what);
    Ok(if can_be_one {
        let merge = table.merge_totals();
        fault.mend("this merges them, and keeps the total unique", Some(merge))
    } else {
        fault.note(": keep the right one, and create such an index")
    })
}

fn no_unique_index(table: &Table) -> Refusal {
    let fault = Refusal::new(format!("{table} has no unique index on its total"));
    fault.mend("this makes one", Some(table.create_index()))
}
