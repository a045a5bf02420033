//! Tables that a roll-up cannot work on: what is wrong, and the statement that repairs it.
//!
//! A statement is given only if it works as it stands and loses nothing. Nothing here talks to a server.

use thiserror::Error;

use crate::spelling;

/// A queue, totals or a view that a roll-up cannot work on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum UnusableRollup {
    /// A table does not exist.
    #[error("{relation} does not exist{}{}", may_be_meant(.meant.as_deref()), this_makes_it(.mend.as_deref()))]
    Missing {
        /// The table.
        relation: String,
        /// A table with a name much like it, which the configuration may have meant.
        meant: Option<Box<str>>,
        /// The statements that create it, if the types of its columns follow from the other table.
        mend: Option<String>,
    },
    /// Neither table exists, so the types of the queue's columns are not known.
    #[error(
        "{relation} does not exist{}; this makes it, once \"text\" and \"bigint\" are replaced by the types of your \
         columns where these are others: {mend}",
        may_be_meant(.meant.as_deref())
    )]
    NoTables {
        /// The queue.
        relation: String,
        /// A table with a name much like it, which the configuration may have meant.
        meant: Option<Box<str>>,
        /// The statements.
        mend: String,
    },
    /// The name belongs to something else.
    #[error("{relation} is {found}: it must be {expected}{}", this_mends_it(.mend.as_deref()))]
    Kind {
        /// The relation that has the name.
        relation: String,
        /// What it is.
        found: String,
        /// What it must be.
        expected: &'static str,
        /// The statements that take its children from it, if these are what is wrong.
        mend: Option<String>,
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
    #[error(
        "{relation} has no column \"{column}\"{}{}{}; its columns are {has}",
        may_be_meant(.meant.as_deref()), renamed(.rename.as_deref()), this_makes_it_at_0(.mend.as_deref())
    )]
    Column {
        /// The table.
        relation: String,
        /// The column.
        column: String,
        /// The columns that the table has.
        has: String,
        /// A column with a name much like it, which the configuration may have meant.
        meant: Option<Box<str>>,
        /// A column that may be this one under an earlier name, and the statement that renames it.
        rename: Option<Box<(String, String)>>,
        /// The statement that adds it, if its type follows from the other table.
        mend: Option<String>,
    },
    /// A column of the key has different types in the two tables: one may hold what the other cannot.
    #[error(
        "the key \"{column}\" is {queue} in the queue and {totals} in the totals: they must be the same{}{}",
        after(.used_by), this_mends_it(.mend.as_deref())
    )]
    KeyTypes {
        /// The column.
        column: String,
        /// Its type in the queue.
        queue: String,
        /// Its type in the totals.
        totals: String,
        /// What has to be dropped before the type can be changed.
        used_by: Box<[String]>,
        /// The statement, where there is one that keeps every value.
        mend: Option<String>,
    },
    /// The values of a column of the key cannot be told apart in the way an index does.
    #[error(
        "the key \"{column}\" is {found}, which {why}{}{}",
        after(.used_by), this_mends_it(.mend.as_deref())
    )]
    Key {
        /// The column.
        column: String,
        /// Its type, or its collation.
        found: String,
        /// What is wrong with it.
        why: &'static str,
        /// What has to be dropped before the type can be changed.
        used_by: Box<[String]>,
        /// The statements, where there are some that work.
        mend: Option<String>,
    },
    /// A column of the key may be NULL, and a unique index does not keep NULL unique.
    #[error("the key \"{column}\" of {relation} may be NULL{}; this refuses it: {mend}", without_key(.move_rows.as_deref()))]
    NullableKey {
        /// The queue.
        relation: String,
        /// The column.
        column: String,
        /// The statements that move rows with NULL away, if there are some.
        move_rows: Option<String>,
        /// The statement.
        mend: String,
    },
    /// The sums of a column would not be exact.
    #[error(
        "the sum \"{column}\" cannot be exact: {why}{}{}",
        after(.used_by), this_mends_it(.mend.as_deref())
    )]
    Inexact {
        /// The column.
        column: String,
        /// Why they would not be exact.
        why: String,
        /// What has to be dropped before the type can be changed.
        used_by: Box<[String]>,
        /// The statement, where there is one that keeps every value.
        mend: Option<String>,
    },
    /// The server itself generates the values of a column that the worker must write.
    #[error(
        "the server alone writes the column \"{column}\" of {relation}{}",
        .mend.as_ref().map_or_else(String::new, |mend| format!("; this lets others: {mend}"))
    )]
    Computed {
        /// The totals.
        relation: String,
        /// The column.
        column: String,
        /// The statement, where there is one.
        mend: Option<String>,
    },
    /// A column that the worker does not write must have a value.
    #[error(
        "the column \"{column}\" of {relation} must not be NULL, has no default, and is neither key nor sum{}",
        required(.default.as_deref(), .mend.as_deref())
    )]
    Required {
        /// The totals.
        relation: String,
        /// The column.
        column: String,
        /// The statement that gives it a default, if it is a time.
        default: Option<String>,
        /// The statement that lets it be NULL, if it may be.
        mend: Option<String>,
    },
    /// No index ensures that a key has only one total.
    #[error(
        "{relation} has no unique index on exactly ({keys}), without a condition{}{}",
        several(.duplicates.as_deref()),
        .mend.as_ref().map_or_else(String::new, |mend| format!("; this makes one: {mend}"))
    )]
    NoUniqueIndex {
        /// The totals.
        relation: String,
        /// The columns of the key.
        keys: String,
        /// The statements that show keys with several totals, and that make each one total, if there are such keys.
        duplicates: Option<Box<(String, Option<String>)>>,
        /// The statement, if such an index can be made.
        mend: Option<String>,
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
    #[error("the view {view} {why}{}; this {how}: {mend}", after(.used_by))]
    View {
        /// The view.
        view: String,
        /// What is wrong with it.
        why: String,
        /// What the statements do to it.
        how: &'static str,
        /// What has to be dropped before the view can be.
        used_by: Box<[String]>,
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

// === impl UnusableRollup ===

impl UnusableRollup {
    /// `true` if a column is missing, and no statement adds it: the configuration names another one, most likely.
    pub(super) fn is_wrong_name(&self) -> bool {
        match self {
            Self::Column {
                meant,
                rename,
                mend,
                ..
            } => meant.is_some() || rename.is_none() && mend.is_none(),
            _ => false,
        }
    }
}

fn this_mends_it(mend: Option<&str>) -> String {
    mend.map_or_else(String::new, |mend| format!("; this corrects it: {mend}"))
}

fn this_makes_it(mend: Option<&str>) -> String {
    mend.map_or_else(String::new, |mend| format!("; this makes it: {mend}"))
}

fn this_makes_it_at_0(mend: Option<&str>) -> String {
    mend.map_or_else(String::new, |mend| {
        format!("; this makes it, and it begins at 0 in totals that exist: {mend}")
    })
}

fn may_be_meant(name: Option<&str>) -> String {
    name.map_or_else(String::new, |name| {
        let question = spelling::did_you_mean(name);
        format!(" ({question} Then correct the configuration)")
    })
}

fn renamed(rename: Option<&(String, String)>) -> String {
    rename.map_or_else(String::new, |(other, rename)| {
        format!("; if \"{other}\" is this column under another name, this renames it: {rename}")
    })
}

fn after(used_by: &[String]) -> String {
    if used_by.is_empty() {
        return String::new();
    }
    let used_by = used_by.join(", ");
    format!("; first drop what depends on it ({used_by}), and make that again afterwards")
}

fn without_key(move_rows: Option<&str>) -> String {
    move_rows.map_or_else(String::new, |move_rows| {
        format!(
            ", and is in some rows, which belong to no total: give them a key, or this moves them to another table: {move_rows}"
        )
    })
}

fn required(default: Option<&str>, mend: Option<&str>) -> String {
    match (default, mend) {
        (None, None) => {
            ", and it identifies the rows: give it a default, or make it a key".to_owned()
        }
        (Some(default), None) => format!("; this gives it a default: {default}"),
        (None, Some(mend)) => format!("; this lets it be NULL: {mend}"),
        (Some(default), Some(mend)) => {
            format!("; this gives it a default: {default}; or this lets it be NULL: {mend}")
        }
    }
}

fn several(duplicates: Option<&(String, Option<String>)>) -> String {
    match duplicates {
        None => String::new(),
        Some((show, None)) => {
            format!(
                "; some keys may have several totals, which this shows: {show}; make each of them one first"
            )
        }
        Some((show, Some(fold))) => format!(
            "; some keys may have several totals, which this shows: {show}; this adds them up and makes the index: {fold}"
        ),
    }
}
