//! Tables that the built-in worker cannot work on: what is wrong, and the statement that fixes it.
//!
//! A statement is named only if it works as it stands and loses nothing. Nothing here talks to a server.

use thiserror::Error;

/// A table that the worker cannot work on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum UnusableTable {
    /// The name belongs to something else, such as a view, a sequence, an index or a partitioned table.
    #[error("{table} is not an ordinary table")]
    NotATable {
        /// The table.
        table: String,
    },
    /// It does not exist, and the role may not make it.
    #[error("{table} does not exist, and the role may not create it; this lets it: {mend}")]
    NotMade {
        /// The table.
        table: String,
        /// The statement.
        mend: String,
    },
    /// The worker's role lacks a privilege.
    #[error("the role may not {lacking} {table}; to grant that, the owner runs: {mend}")]
    Privileges {
        /// The table.
        table: String,
        /// What the role may not do, in SQL's words.
        lacking: String,
        /// The statements.
        mend: String,
    },
    /// Policies could hide deltas or the total from the worker.
    #[error(
        "{table} has row security that applies to the role: deltas that it hides would never be folded; this \
         lets the role see all rows, run by a superuser: {mend}"
    )]
    RowSecurity {
        /// The table.
        table: String,
        /// The statement.
        mend: String,
    },
    /// A rule would do something other than what the worker asks for.
    #[error("{table} has a rule on UPDATE or DELETE, which folding does not support")]
    Rules {
        /// The table.
        table: String,
    },
    /// The server computes the values.
    #[error(
        "{table}: column \"value\" is generated from other columns: no total can be stored in it"
    )]
    Generated {
        /// The table.
        table: String,
    },
    /// Only the server assigns values.
    #[error(
        "{table}: column \"value\" is GENERATED ALWAYS AS IDENTITY; this lets totals be stored: {mend}"
    )]
    Identity {
        /// The table.
        table: String,
        /// The statement.
        mend: String,
    },
    /// A column is missing or cannot hold what it must.
    #[error(
        "{table} has the wrong shape: column \"{column}\" must be {expected}, but is {found}{}",
        this_mends_it(.mend.as_deref())
    )]
    Column {
        /// The table.
        table: String,
        /// The column.
        column: &'static str,
        /// The types that fit.
        expected: &'static str,
        /// Its type, or that it is missing.
        found: String,
        /// The statement, if there is one that keeps every value.
        mend: Option<String>,
    },
    /// No unique index keeps the total the only one.
    #[error("{table} has no unique index on its total; this makes one: {mend}")]
    NoUniqueIndex {
        /// The table.
        table: String,
        /// The statement.
        mend: String,
    },
    /// There is more than one total.
    #[error("{table} has more than one total, and no unique index that keeps it the only one{}", this_makes_it_one(.mend.as_deref()))]
    SeveralTotals {
        /// The table.
        table: String,
        /// The statements, if there are some that lose nothing.
        mend: Option<String>,
    },
}

fn this_mends_it(mend: Option<&str>) -> String {
    mend.map_or_else(String::new, |mend| format!("; this corrects it: {mend}"))
}

fn this_makes_it_one(mend: Option<&str>) -> String {
    mend.map_or_else(
        || ": keep the right one, and create such an index".to_owned(),
        |mend| format!("; this merges them, and keeps the total unique: {mend}"),
    )
}
