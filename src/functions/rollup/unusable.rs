//! Tables that a roll-up cannot work on: what is wrong, and the statement that repairs it.
//!
//! A statement is given only if it works as it stands and loses nothing. Nothing here talks to a server.

use thiserror::Error;

/// A queue, totals or a view that a roll-up cannot work on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum UnusableRollup {
    /// A table does not exist.
    #[error("{relation} does not exist{}", this_makes_it(.mend.as_deref()))]
    Missing {
        /// The table.
        relation: String,
        /// The statement that creates it, if the types of its columns follow from the other table.
        mend: Option<String>,
    },
    /// The name belongs to something else.
    #[error("{relation} is {found}: it must be {expected}")]
    Kind {
        /// The relation that has the name.
        relation: String,
        /// What it is.
        found: String,
        /// What it must be.
        expected: &'static str,
    },
    /// A rule would make the server do something other than what the worker asks for.
    #[error(
        "{relation} has the rule \"{rule}\", which folding does not support; this drops it: {mend}"
    )]
    Rule {
        /// The table.
        relation: String,
        /// The rule.
        rule: String,
        /// The statement.
        mend: String,
    },
    /// Policies could hide rows from the worker.
    #[error(
        "{relation} has row security that applies to the role: rows that it hides would never be folded; this \
         lets the role see all rows, run by a superuser: {mend}"
    )]
    RowSecurity {
        /// The table.
        relation: String,
        /// The statement.
        mend: String,
    },
    /// The worker's role lacks a privilege.
    #[error("the role may not {lacking} {relation}; to grant that, the owner runs: {mend}")]
    Privileges {
        /// The table.
        relation: String,
        /// What the role may not do, in SQL's words.
        lacking: String,
        /// The statements.
        mend: String,
    },
    /// A column does not exist.
    #[error("{relation} has no column \"{column}\"{}; its columns are {has}", this_makes_it(.mend.as_deref()))]
    Column {
        /// The table.
        relation: String,
        /// The column.
        column: String,
        /// The columns that the table has.
        has: String,
        /// The statement that adds it, if its type follows from the other table.
        mend: Option<String>,
    },
    /// A column of the key has different types in the two tables: one may hold what the other cannot.
    #[error(
        "the key \"{column}\" is {queue} in the queue and {totals} in the totals: they must be the same{}",
        this_mends_it(.mend.as_deref())
    )]
    KeyTypes {
        /// The column.
        column: String,
        /// Its type in the queue.
        queue: String,
        /// Its type in the totals.
        totals: String,
        /// The statement, where there is one that keeps every value.
        mend: Option<String>,
    },
    /// The values of a column of the key cannot be told apart in the way an index does.
    #[error("the key \"{column}\" is {found}, which {why}; this corrects it: {mend}")]
    Key {
        /// The column.
        column: String,
        /// Its type, or its collation.
        found: String,
        /// What is wrong with it.
        why: &'static str,
        /// The statements.
        mend: String,
    },
    /// A column of the key may be NULL, and a unique index does not keep NULL unique.
    #[error("the key \"{column}\" of {relation} may be NULL; this refuses it: {mend}")]
    NullableKey {
        /// The queue.
        relation: String,
        /// The column.
        column: String,
        /// The statement.
        mend: String,
    },
    /// The sums of a column would not be exact.
    #[error("the sum \"{column}\" cannot be exact: {why}{}", this_mends_it(.mend.as_deref()))]
    Inexact {
        /// The column.
        column: String,
        /// Why they would not be exact.
        why: String,
        /// The statement, where there is one that keeps every value.
        mend: Option<String>,
    },
    /// The server itself generates the values of a column that the worker must write.
    #[error(
        "the server alone writes the column \"{column}\" of {relation}; this lets others: {mend}"
    )]
    Computed {
        /// The totals.
        relation: String,
        /// The column.
        column: String,
        /// The statement.
        mend: String,
    },
    /// A column that the worker does not write must have a value.
    #[error(
        "the column \"{column}\" of {relation} must not be NULL, has no default, and is neither key nor sum; \
         this lets it be NULL: {mend}"
    )]
    Required {
        /// The totals.
        relation: String,
        /// The column.
        column: String,
        /// The statement.
        mend: String,
    },
    /// No index ensures that a key has only one total.
    #[error(
        "{relation} has no unique index on exactly ({keys}), without a condition; this \
         makes one: {mend}"
    )]
    NoUniqueIndex {
        /// The totals.
        relation: String,
        /// The columns of the key.
        keys: String,
        /// The statement.
        mend: String,
    },
    /// A constraint on the key is deferrable, so an upsert cannot rely on it.
    #[error(
        "the constraint \"{constraint}\" of {relation} is deferrable, which no upsert can rely on; this corrects it: {mend}"
    )]
    Deferrable {
        /// The totals.
        relation: String,
        /// The constraint.
        constraint: String,
        /// The statement.
        mend: String,
    },
    /// The view shows something else.
    #[error("the view {view} {why}; this {how}: {mend}")]
    View {
        /// The view.
        view: String,
        /// What is wrong with it.
        why: String,
        /// What the statements do to it.
        how: &'static str,
        /// The statements.
        mend: String,
    },
    /// Another role made the table for poison, and could run code with the rights of the worker's role.
    #[error("{why}")]
    Untrusted {
        /// What is wrong, and the statements that mend it.
        why: String,
    },
    /// Something is missing, and the role may not create it.
    #[error("the role may not create {relation}; this makes it, run by a role that may: {mend}")]
    NotMade {
        /// What is missing.
        relation: String,
        /// The statements.
        mend: String,
    },
}

fn this_mends_it(mend: Option<&str>) -> String {
    mend.map_or_else(String::new, |mend| format!("; this corrects it: {mend}"))
}

fn this_makes_it(mend: Option<&str>) -> String {
    mend.map_or_else(String::new, |mend| format!("; this makes it: {mend}"))
}
