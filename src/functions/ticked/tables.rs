//! The tables of jobs, in each database that has jobs.
//!
//! Tables that another role has made are looked at before they are used, and again in each claim: a trigger on them
//! would run with the rights of the worker's role.

use std::sync::LazyLock;

use thiserror::Error;
use tokio::time::Instant;
use tokio_postgres::Row;
use tracing::info;

use crate::database::{DatabaseError, is_made_already};
use crate::functions::ownership::{self, Facts, RUNS_CODE, UntrustedTables};
use crate::functions::privileges::Creating;
use crate::functions::quote::literal;
use crate::functions::relation::{self, Relation, shown};
use crate::functions::runner::CycleError;
use crate::functions::session::Session;

/// Their schema.
const SCHEMA: &str = "bgworker";

/// A scalar that claims compare with what it was when the tables were looked at: which tables they are, whose, who may put
/// triggers on them, and whether they have some. Whatever else runs code, only their owners can make. It is cheap, since
/// each claim asks for it.
pub(super) static SEAL: LazyLock<String> = LazyLock::new(|| {
    seal(&format!(
        "pg_catalog.pg_class AS c WHERE c.oid OPERATOR(pg_catalog.=) ANY (\
         ARRAY[pg_catalog.to_regclass('{SCHEMA}.job'), pg_catalog.to_regclass('{SCHEMA}.job_run')]::pg_catalog.oid[])"
    ))
});

/// The seal of the tables among these relations `c`.
fn seal(tables: &str) -> String {
    format!(
        "(SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', c.oid, c.relowner, c.relkind, c.relacl, \
         c.relhasrules, c.relhassubclass, c.relispartition, c.relrowsecurity, c.relchecks, c.relnatts, \
         CASE WHEN c.relhastriggers THEN (SELECT pg_catalog.count(*) FROM pg_catalog.pg_trigger AS t \
         WHERE t.tgrelid OPERATOR(pg_catalog.=) c.oid AND {RUNS_CODE}) ELSE 0 END), ', ' ORDER BY c.relname) FROM {tables})"
    )
}

/// Locks the tables in a transaction that writes to them: from here on, no other session can give them a trigger or a rule,
/// or put others in their place. It comes before the snapshot in which [`SEAL`] is compared, or a trigger that was
/// committed between the two would run. It keeps no run of another job away.
pub(super) const LOCK: &str = "LOCK TABLE bgworker.job, bgworker.job_run IN ROW EXCLUSIVE MODE";

/// Looks at the tables, one row for each.
static LOOK: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT wanted.name, n.oid IS NOT NULL AS has_schema, c.relkind::pg_catalog.text AS kind, \
         current_user::pg_catalog.text AS role, pg_catalog.current_database()::pg_catalog.text AS database, \
         CASE WHEN n.oid IS NULL \
         THEN pg_catalog.has_database_privilege(pg_catalog.current_database()::pg_catalog.text, 'CREATE') \
         ELSE pg_catalog.has_schema_privilege(n.oid, 'CREATE') END AS may_create, \
         pg_catalog.array_remove(ARRAY[CASE WHEN NOT pg_catalog.has_schema_privilege(n.oid, 'USAGE') THEN 'use the schema of' END, \
         CASE WHEN NOT pg_catalog.has_table_privilege(c.oid, 'SELECT') THEN 'SELECT from' END, \
         CASE WHEN NOT pg_catalog.has_table_privilege(c.oid, 'INSERT') THEN 'INSERT into' END, \
         CASE WHEN NOT pg_catalog.has_table_privilege(c.oid, 'UPDATE') THEN 'UPDATE' END], NULL) AS lacking, \
         {} AS seal, {} \
         FROM (VALUES ('job'), ('job_run')) AS wanted (name) \
         LEFT JOIN pg_catalog.pg_namespace AS n ON n.nspname OPERATOR(pg_catalog.=) '{SCHEMA}' \
         LEFT JOIN pg_catalog.pg_class AS c ON c.relnamespace OPERATOR(pg_catalog.=) n.oid \
         AND c.relname OPERATOR(pg_catalog.=) wanted.name ORDER BY wanted.name",
        seal(&format!(
            // Unlike a cast to regclass, this needs no right on the schema.
            "pg_catalog.pg_namespace AS n JOIN pg_catalog.pg_class AS c ON c.relnamespace OPERATOR(pg_catalog.=) n.oid \
             WHERE n.nspname OPERATOR(pg_catalog.=) '{SCHEMA}' \
             AND (c.relname OPERATOR(pg_catalog.=) 'job' OR c.relname OPERATOR(pg_catalog.=) 'job_run')"
        )),
        ownership::columns()
    )
});

/// Creates the tables. Columns are only ever added, with defaults, so that instances of two versions can work together.
const CREATE: &str = "\
    CREATE SCHEMA IF NOT EXISTS bgworker; \
    CREATE TABLE IF NOT EXISTS bgworker.job (name pg_catalog.text PRIMARY KEY, declared pg_catalog.text NOT NULL, declared_by pg_catalog.text NOT NULL, \
    last_tick pg_catalog.timestamptz NOT NULL, last_done pg_catalog.timestamptz NOT NULL, runs bigint NOT NULL DEFAULT 0, \
    attempt int NOT NULL DEFAULT 0, attempt_tick pg_catalog.timestamptz, retry_at pg_catalog.timestamptz, running_since pg_catalog.timestamptz) WITH (fillfactor = 50); \
    CREATE TABLE IF NOT EXISTS bgworker.job_run (name pg_catalog.text, slot int, run bigint NOT NULL, tick pg_catalog.timestamptz NOT NULL, \
    started_at pg_catalog.timestamptz NOT NULL, finished_at pg_catalog.timestamptz NOT NULL, outcome pg_catalog.text NOT NULL, attempt int NOT NULL, \
    rows bigint, sqlstate pg_catalog.text, message pg_catalog.text, PRIMARY KEY (name, slot)) WITH (fillfactor = 50)";

/// Why the tables of jobs cannot be used.
#[derive(Debug, Error)]
pub(super) enum TablesError {
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error(transparent)]
    Untrusted(#[from] UntrustedTables),
    #[error("the role may not {lacking}; to grant that, the owner runs: {mend}")]
    Privileges { lacking: String, mend: String },
    #[error("{table} is not an ordinary table: jobs need a table of this name")]
    Kind { table: String },
    #[error(
        "the role {} may not create the tables of jobs: \"bgworker ddl\" prints them for a role that may, or this \
         lets the role create them: {mend}",
        shown(.role)
    )]
    NotMade { role: String, mend: String },
}

// === impl TablesError ===

impl From<TablesError> for CycleError {
    fn from(error: TablesError) -> Self {
        match error {
            TablesError::Database(error) => Self::Database(error),
            error => Self::Unusable(Box::new(error)),
        }
    }
}

/// The word with which [`write`] undoes itself.
const CHANGED: &str = "tables changed";

/// SQL that writes to the tables, as one transaction that first makes sure that they are as they were when they were
/// looked at. [`are_changed`] tells the error if they are not.
pub(super) fn write(seal: &str, sql: &str) -> String {
    format!(
        "{LOCK}; SELECT CASE WHEN {} OPERATOR(pg_catalog.=) {} THEN 0 ELSE pg_catalog.format(\
         'bgworker[{CHANGED}]: the tables in %s were changed', s.nspname)::pg_catalog.int4 END FROM pg_catalog.pg_namespace AS s \
         WHERE s.nspname OPERATOR(pg_catalog.=) '{SCHEMA}'; {sql}",
        *SEAL,
        literal(seal)
    )
}

/// `true` for the error of [`write`] if the tables are no longer as they were when they were looked at.
pub(super) fn are_changed(error: &DatabaseError) -> bool {
    error.undone().is_some_and(|(word, _)| word == CHANGED)
}

/// Creates the tables, unless they exist, and looks at what exists: `trusted` are the owners that the settings trust.
/// Returns what claims compare with [`SEAL`]. Looks again if another session created them at the same time.
pub(super) async fn make(session: &Session, trusted: &[String]) -> Result<String, TablesError> {
    loop {
        let looking = session.query_together("look for the tables of jobs", &LOOK, Instant::now());
        let found = looking.await?;
        if let Some(seal) = judge(&found.rows, trusted)? {
            return Ok(seal);
        }
        let making = session.batch_execute("make the tables of jobs", CREATE);
        match making.await {
            Err(error) if !error.sqlstate().is_some_and(is_made_already) => {
                return Err(error.into());
            }
            Err(_) => {}
            Ok(()) => info!("made the tables of jobs: bgworker.job, bgworker.job_run"),
        }
    }
}

/// The tables.
pub(super) fn relations() -> Vec<Relation> {
    let relation = |name: &str| Relation {
        schema: SCHEMA.to_owned(),
        name: name.to_owned(),
    };
    vec![relation("job"), relation("job_run")]
}

/// Decides whether the tables that were found can be used. `None` if one is missing.
fn judge(rows: &[Row], trusted: &[String]) -> Result<Option<String>, TablesError> {
    let (mut doubts, mut missing, mut seal) = (Vec::new(), None, None);
    let mut lacking = Vec::new();
    for row in rows {
        let (facts, role): (_, String) = (Facts::of(row), row.get("role"));
        let relation = Relation {
            schema: SCHEMA.to_owned(),
            name: row.get("name"),
        };
        if doubts.is_empty() {
            // It is the same for both.
            doubts.extend(facts.doubt_of_schema(SCHEMA, &role, trusted));
        }
        match row.get::<_, Option<&str>>("kind") {
            Some("r") => doubts.extend(facts.doubts(&relation, &role, trusted)),
            Some(_) => {
                let table = relation.to_string();
                return Err(TablesError::Kind { table });
            }
            None => missing = Some(row),
        }
        let lacks: Vec<String> = row.get("lacking");
        if !lacks.is_empty() {
            lacking.push(format!("{} {relation}", lacks.join(", ")));
        }
        seal = row.get("seal");
    }
    let role = rows.first().map_or("", |row| row.get("role"));
    UntrustedTables::refuse(role, doubts)?;
    if missing.is_none() && !lacking.is_empty() {
        let (lacking, mend) = (lacking.join("; "), grant(role).join("; "));
        return Err(TablesError::Privileges { lacking, mend });
    }
    match missing {
        None => Ok(seal),
        Some(row) if row.get("may_create") => Ok(None),
        Some(row) => Err(not_made(row)),
    }
}

/// Says that the role may not create the tables, and which statement allows it.
fn not_made(row: &Row) -> TablesError {
    let creating = Creating {
        role: row.get("role"),
        database: row.get("database"),
        schema: row.get::<_, bool>("has_schema").then_some(SCHEMA),
    };
    TablesError::NotMade {
        role: creating.role.to_owned(),
        mend: creating.grant(),
    }
}

/// The statements that create the tables, and let a role run jobs.
pub(in crate::functions) fn objects(role: &str) -> Vec<String> {
    let statements = CREATE.split("; ").map(str::to_owned);
    statements.chain(grant(role)).collect()
}

/// The statements that let a role run jobs.
fn grant(role: &str) -> [String; 2] {
    let role = relation::role(role);
    [
        format!("GRANT USAGE ON SCHEMA {SCHEMA} TO {role}"),
        format!("GRANT SELECT, INSERT, UPDATE ON {SCHEMA}.job, {SCHEMA}.job_run TO {role}"),
    ]
}
