//! Tables that a roll-up cannot work on: what is wrong, and the statement that mends it.
//!
//! A statement is named only where it works as it stands and loses nothing. Nothing here talks to a server.

use thiserror::Error;

/// A queue, totals or a view that a roll-up cannot work on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum UnusableRollup {
    /// A table is not there.
    #[error("{relation} does not exist{}", this_makes_it(.mend.as_deref()))]
    Missing {
        /// The table.
        relation: String,
        /// The statement, where the types of its columns follow from the other table.
        mend: Option<String>,
    },
    /// The name belongs to something else.
    #[error("{relation} is {found}: it must be {expected}")]
    Kind {
        /// What has the name.
        relation: String,
        /// What it is.
        found: String,
        /// What it must be.
        expected: &'static str,
    },
    /// A rule would do something else than what the worker asks for.
    #[error(
        "{relation} has the rule \"{rule}\", which folding cannot do with; this takes it away: {mend}"
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
    #[error("the role may not {lacking} {relation}; this lets it, run by the owner: {mend}")]
    Privileges {
        /// The table.
        relation: String,
        /// What it may not do, in SQL's words.
        lacking: String,
        /// The statements.
        mend: String,
    },
    /// A column is not there.
    #[error("{relation} has no column \"{column}\"{}; its columns are {has}", this_makes_it(.mend.as_deref()))]
    Column {
        /// The table.
        relation: String,
        /// The column.
        column: String,
        /// The columns that it has.
        has: String,
        /// The statement, where the type follows from the other table.
        mend: Option<String>,
    },
    /// A column of the key has two types, of which the one may hold what the other cannot.
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
    /// Values of a column of the key cannot be told apart as an index does.
    #[error("the key \"{column}\" is {found}, which {why}; this mends it: {mend}")]
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
    /// The key may be NULL, which a unique index does not keep unique.
    #[error("the key \"{column}\" of {relation} may be NULL; this refuses it: {mend}")]
    NullableKey {
        /// The queue.
        relation: String,
        /// The column.
        column: String,
        /// The statement.
        mend: String,
    },
    /// Sums would not be exact.
    #[error("the sum \"{column}\" cannot be exact: {why}{}", this_mends_it(.mend.as_deref()))]
    Inexact {
        /// The column.
        column: String,
        /// Why.
        why: String,
        /// The statement, where there is one that keeps every value.
        mend: Option<String>,
    },
    /// The server computes or hands out the values of a column that is to be written.
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
    /// A column that is not written must have a value.
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
    /// Nothing keeps the total of a key the only one.
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
    /// A constraint on the key is checked late, which no upsert can rely on.
    #[error(
        "the constraint \"{constraint}\" of {relation} is deferrable, which no upsert can rely on; this mends it: {mend}"
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
    #[error("the view {view} {why}; this makes it anew: {mend}")]
    View {
        /// The view.
        view: String,
        /// What is wrong with it.
        why: String,
        /// The statements.
        mend: String,
    },
    /// What is missing cannot be made.
    #[error("the role may not create {relation}; this makes it, run by a role that may: {mend}")]
    NotMade {
        /// What is missing.
        relation: String,
        /// The statements.
        mend: String,
    },
}

fn this_mends_it(mend: Option<&str>) -> String {
    mend.map_or_else(String::new, |mend| format!("; this mends it: {mend}"))
}

fn this_makes_it(mend: Option<&str>) -> String {
    mend.map_or_else(String::new, |mend| format!("; this makes it: {mend}"))
}
