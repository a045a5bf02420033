//! bgworker's advisory locks: the classes, and the SQL that takes and finds them. Pure text.
//!
//! A lock has two keys: its class, and what it is of. Another lock with the number of one of these classes would keep workers
//! from their work, so all of them are here.

use std::fmt;

use super::relation::Relation;

/// What a lock is for: its first key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LockClass {
    /// A job that runs outside of a transaction, by the hash of its name.
    Job = 1_651_994_417,
    /// A queue that a roll-up folds, by its OID.
    Queue = 1_651_994_418,
    /// Totals to which a roll-up adds, by their OID.
    Totals = 1_651_994_419,
}

/// The condition for a lock `pg_locks` on something in this database.
pub(super) const IN_THIS_DATABASE: &str = "database OPERATOR(pg_catalog.=) (SELECT oid FROM pg_catalog.pg_database \
    WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database())";

// === impl LockClass ===

impl LockClass {
    /// Both keys of the lock of the thing with this number, an expression of type integer.
    pub(super) fn keys(self, number: &str) -> String {
        format!("{self}, {number}")
    }

    /// The condition for a lock in `pg_locks`: it is that of the thing with this number.
    pub(super) fn is_of(self, number: &str) -> String {
        format!(
            "locktype OPERATOR(pg_catalog.=) 'advisory' AND {IN_THIS_DATABASE} \
             AND classid OPERATOR(pg_catalog.=) {self}::pg_catalog.oid \
             AND objid::pg_catalog.int8 OPERATOR(pg_catalog.=) \
             (({number})::pg_catalog.int8 OPERATOR(pg_catalog.&) 4294967295) \
             AND objsubid OPERATOR(pg_catalog.=) 2::pg_catalog.int2"
        )
    }
}

impl fmt::Display for LockClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", *self as i32)
    }
}

/// The number of a table: its OID as an integer.
pub(super) fn of_table(table: &Relation) -> String {
    let regclass = table.regclass();
    format!("{regclass}::pg_catalog.oid::pg_catalog.int8::pg_catalog.bit(32)::pg_catalog.int4")
}
