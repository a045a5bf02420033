//! Declares a job now, on request: also if another instance has it declared differently, or replaced this declaration before.

use std::rc::Rc;

use thiserror::Error;
use tokio::time::Instant;

use super::declare::Declaring;
use super::job::Job;
use super::row;
use super::surroundings;
use super::tables::{self, TablesError};
use super::when::When;
use crate::database::{Database, DatabaseError};
use crate::functions::session::Session;

/// What a declaration was made in the place of.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Redeclared {
    /// Nothing: the job is new, and begins with its next tick.
    New,
    /// Nothing has changed: the job was declared this way.
    Unchanged,
    /// What this instance had declared. Instances with that declaration stand by from now on.
    InPlaceOf(String),
}

/// Why a job was not declared.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RedeclareError {
    /// It has no ticks, so no instance declares it.
    #[error(
        "it has no ticks, which are what instances declare: each instance does its work by itself"
    )]
    NoTicks,
    /// The tables of jobs cannot be used.
    #[error(transparent)]
    Tables(Box<dyn std::error::Error + Send + Sync>),
    /// The tables of jobs were changed meanwhile.
    #[error("the tables of jobs were changed while they were used: nothing is declared")]
    Changed,
    /// A run is under way, which a declaration does not touch.
    #[error("the job runs now{}: declare it when it is done, or end that session", pid(*.holder))]
    Running {
        /// The process on the server that runs it, if one was found.
        holder: Option<i32>,
    },
    /// The database could not be reached, or reported an error.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

fn pid(holder: Option<i32>) -> String {
    holder.map_or_else(String::new, |pid| format!(" (PID {pid})"))
}

impl From<TablesError> for RedeclareError {
    fn from(error: TablesError) -> Self {
        match error {
            TablesError::Database(error) => Self::Database(error),
            error => Self::Tables(Box::new(error)),
        }
    }
}

/// Declares a worker's job as it is given here: instances that have it this way do it from their next look on, which is within
/// a minute, and others stand by. Creates the tables of jobs if they are missing.
///
/// # Errors
///
/// If it was not declared: nothing has changed then.
pub async fn redeclare(
    database: &Database,
    worker: &str,
    when: &When,
) -> Result<Redeclared, RedeclareError> {
    let When::Ticks(job) = when else {
        return Err(RedeclareError::NoTicks);
    };
    let name = &*Job::name(worker, database.settings().namespace.as_deref());
    let connection = Rc::new(database.connect(worker, job.database.as_deref()).await?);
    let session = Session::Own(connection);
    let tables = tables::make(&session, &database.settings().trusted_owners, true).await?;
    let own = surroundings::ask(&session, Some(database)).await?;
    let declaring = Declaring {
        name,
        job,
        by: &surroundings::instance(&own),
        tables: &tables,
    };
    let before = row::look(&session, name, Instant::now()).await?;
    match declaring.declare(&session, before.now, true).await {
        Err(error) if tables::are_changed(&error) => return Err(RedeclareError::Changed),
        declared => declared?,
    }
    let after = row::look(&session, name, Instant::now()).await?;
    if after.row.is_none_or(|row| row.declared != job.declared) {
        let holder = row::holder(&session, name).await?;
        return Err(RedeclareError::Running { holder });
    }
    Ok(match before.row {
        None => Redeclared::New,
        Some(row) if row.declared == job.declared => Redeclared::Unchanged,
        Some(row) => Redeclared::InPlaceOf(row.declared_by),
    })
}
