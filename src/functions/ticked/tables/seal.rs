//! The seal of the tables of jobs: what they were when they were looked at, and SQL that writes only while they are the same.
//!
//! A trigger on them would run with the rights of the worker's role, so each claim and each write compares it.

use std::sync::LazyLock;

use super::{INSTANCES, JOB, JOB_RUN, SCHEMA};
use crate::database::DatabaseError;
use crate::functions::ownership::RUNS_CODE;
use crate::functions::quote::literal;

/// A scalar that claims compare with what it was when the tables were looked at: which tables they are, whose, who may put
/// triggers on them, and whether they have some. Whatever else runs code, only their owners can make. It is cheap, since
/// each claim asks for it.
pub(in crate::functions::ticked) static SEAL: LazyLock<String> =
    LazyLock::new(|| of_named(&[JOB, JOB_RUN]));

/// The same for the table of instances, which no run needs.
static INSTANCES_SEAL: LazyLock<String> = LazyLock::new(|| of_named(&[INSTANCES]));

/// Locks the tables in a transaction that writes to them: from here on, no other session can give them a trigger or a rule,
/// or put others in their place. It comes before the snapshot in which [`SEAL`] is compared, or a trigger that was
/// committed between the two would run. It keeps no run of another job away.
pub(in crate::functions::ticked) const LOCK: &str =
    "LOCK TABLE bgworker.job, bgworker.job_run IN ROW EXCLUSIVE MODE";

/// The same for the table of instances.
const LOCK_INSTANCES: &str = "LOCK TABLE bgworker.job_instance IN ROW EXCLUSIVE MODE";

/// The word with which a write undoes itself.
const CHANGED: &str = "tables changed";

/// The seal of the tables among these relations `c`. A change of the owner, of the grants on the table, of row security or of the
/// number of columns writes the row of `pg_class`, and so changes `xmin`. A further trigger need not, so triggers are asked for.
pub(super) fn of(tables: &str) -> String {
    format!(
        "ARRAY(SELECT pg_catalog.concat_ws(' ', c.oid, c.xmin, \
         c.relhastriggers AND EXISTS (SELECT FROM pg_catalog.pg_trigger AS t \
         WHERE t.tgrelid OPERATOR(pg_catalog.=) c.oid AND {RUNS_CODE})) FROM {tables} ORDER BY c.oid)::pg_catalog.text"
    )
}

fn of_named(names: &[&str]) -> String {
    let named: Vec<_> = names
        .iter()
        .map(|name| format!("pg_catalog.to_regclass('{SCHEMA}.{name}')"))
        .collect();
    of(&format!(
        "pg_catalog.pg_class AS c WHERE c.oid OPERATOR(pg_catalog.=) ANY (ARRAY[{}]::pg_catalog.oid[])",
        named.join(", ")
    ))
}

/// SQL that writes to the tables, as one transaction that first makes sure that they are as they were when they were
/// looked at. [`are_changed`] tells the error if they are not.
pub(in crate::functions::ticked) fn write(seal: &str, sql: &str) -> String {
    format!("{LOCK}; {}; {sql}", unless_changed(&SEAL, seal))
}

/// The same for the table of instances; `sql` may read the other two.
pub(in crate::functions::ticked) fn write_instances(seal: &str, sql: &str) -> String {
    format!(
        "{LOCK_INSTANCES}; {}; {sql}",
        unless_changed(&INSTANCES_SEAL, seal)
    )
}

fn unless_changed(now: &str, then: &str) -> String {
    format!(
        "SELECT CASE WHEN {now} OPERATOR(pg_catalog.=) {} THEN 0 ELSE pg_catalog.format(\
         'bgworker[{CHANGED}]: the tables in %s were changed', s.nspname)::pg_catalog.int4 END FROM pg_catalog.pg_namespace AS s \
         WHERE s.nspname OPERATOR(pg_catalog.=) '{SCHEMA}'",
        literal(then)
    )
}

/// `true` for the error of a write if the tables are no longer as they were when they were looked at.
pub(in crate::functions::ticked) fn are_changed(error: &DatabaseError) -> bool {
    error.undone().is_some_and(|(word, _)| word == CHANGED)
}
