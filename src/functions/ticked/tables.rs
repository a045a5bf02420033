//! The tables of jobs, in each database that has jobs.
//!
//! Tables that another role has made are looked at before they are used, and again in each claim. Columns and tables are only
//! ever added: while one is missing, what needs it is off, and everything else runs.

mod seal;

use std::sync::LazyLock;

use thiserror::Error;
use tokio::time::Instant;
use tokio_postgres::Row;
use tracing::info;

pub(super) use self::seal::{LOCK, SEAL, are_changed, write, write_instances};
use crate::database::{DatabaseError, is_locked, is_made_already};
use crate::functions::ownership::{self, Facts, UntrustedTables};
use crate::functions::privileges::Creating;
use crate::functions::relation::{self, Relation, shown};
use crate::functions::runner::CycleError;
use crate::functions::session::Session;

/// Their schema.
const SCHEMA: &str = "bgworker";

/// The rows of jobs.
const JOB: &str = "job";

/// The runs that are kept of each.
const JOB_RUN: &str = "job_run";

/// Which instances there are, and which jobs each has.
const INSTANCES: &str = "job_instance";

/// The tables of jobs, as they were when they were looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tables {
    /// What claims and writes compare with [`SEAL`].
    pub(super) seal: String,
    /// The rows of jobs have the columns that those of the first versions lack.
    pub(super) has_declarations: bool,
    /// What writes to the table of instances compare; `None` if it is missing or cannot be used.
    pub(super) instances: Option<String>,
    /// What is missing.
    pub(super) lacks: Option<Lacks>,
}

/// What tables of an earlier version lack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lacks {
    /// Statements that add it, and whether the role may run each.
    statements: Vec<(String, bool)>,
    /// Why what is there cannot be used.
    doubts: Option<UntrustedTables>,
}

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
         CASE WHEN NOT pg_catalog.has_table_privilege(c.oid, 'UPDATE') THEN 'UPDATE' END, \
         CASE WHEN wanted.name OPERATOR(pg_catalog.=) '{INSTANCES}' \
         AND NOT pg_catalog.has_table_privilege(c.oid, 'DELETE') THEN 'DELETE from' END], NULL) AS lacking, \
         pg_catalog.pg_has_role(c.relowner, 'USAGE') AS is_owner, \
         3 OPERATOR(pg_catalog.=) (SELECT pg_catalog.count(*) FROM pg_catalog.pg_attribute AS a \
         WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid AND NOT a.attisdropped \
         AND a.attname OPERATOR(pg_catalog.=) ANY ('{{declaration,declared_before,running_tick}}'::pg_catalog.name[])) \
         AS has_declarations, {} AS seal, {} AS instances_seal, {} \
         FROM (VALUES ('{JOB}'), ('{JOB_RUN}'), ('{INSTANCES}')) AS wanted (name) \
         LEFT JOIN pg_catalog.pg_namespace AS n ON n.nspname OPERATOR(pg_catalog.=) '{SCHEMA}' \
         LEFT JOIN pg_catalog.pg_class AS c ON c.relnamespace OPERATOR(pg_catalog.=) n.oid \
         AND c.relname OPERATOR(pg_catalog.=) wanted.name ORDER BY wanted.name",
        seal_of(&[JOB, JOB_RUN]),
        seal_of(&[INSTANCES]),
        ownership::columns()
    )
});

/// The seal of these tables. Unlike a cast to regclass, this needs no right on the schema.
fn seal_of(names: &[&str]) -> String {
    let names: Vec<_> = names.iter().map(|name| format!("'{name}'")).collect();
    seal::of(&format!(
        "pg_catalog.pg_namespace AS n JOIN pg_catalog.pg_class AS c ON c.relnamespace OPERATOR(pg_catalog.=) n.oid \
         WHERE n.nspname OPERATOR(pg_catalog.=) '{SCHEMA}' AND c.relname OPERATOR(pg_catalog.=) ANY (ARRAY[{}]::pg_catalog.name[])",
        names.join(", ")
    ))
}

/// Creates the tables as the first versions have made them. Columns are only ever added, with defaults, so that instances of
/// two versions can work together.
const CREATE: &str = "\
    CREATE SCHEMA IF NOT EXISTS bgworker; \
    CREATE TABLE IF NOT EXISTS bgworker.job (name pg_catalog.text PRIMARY KEY, declared pg_catalog.text NOT NULL, declared_by pg_catalog.text NOT NULL, \
    last_tick pg_catalog.timestamptz NOT NULL, last_done pg_catalog.timestamptz NOT NULL, runs bigint NOT NULL DEFAULT 0, \
    attempt int NOT NULL DEFAULT 0, attempt_tick pg_catalog.timestamptz, retry_at pg_catalog.timestamptz, running_since pg_catalog.timestamptz) WITH (fillfactor = 50); \
    CREATE TABLE IF NOT EXISTS bgworker.job_run (name pg_catalog.text, slot int, run bigint NOT NULL, tick pg_catalog.timestamptz NOT NULL, \
    started_at pg_catalog.timestamptz NOT NULL, finished_at pg_catalog.timestamptz NOT NULL, outcome pg_catalog.text NOT NULL, attempt int NOT NULL, \
    rows bigint, sqlstate pg_catalog.text, message pg_catalog.text, PRIMARY KEY (name, slot)) WITH (fillfactor = 50)";

/// Adds what rows of jobs lack that the first versions have made.
const ADD_DECLARATIONS: &str = "\
    ALTER TABLE bgworker.job ADD COLUMN IF NOT EXISTS declaration pg_catalog.text, \
    ADD COLUMN IF NOT EXISTS declared_before pg_catalog.text[] NOT NULL DEFAULT '{}', \
    ADD COLUMN IF NOT EXISTS running_tick pg_catalog.timestamptz";

/// Creates the table of instances.
const CREATE_INSTANCES: &str = "\
    CREATE TABLE IF NOT EXISTS bgworker.job_instance (instance pg_catalog.text PRIMARY KEY, seen_at pg_catalog.timestamptz NOT NULL, \
    jobs pg_catalog.jsonb NOT NULL) WITH (fillfactor = 50)";

/// Keeps a change of the tables from waiting behind a run of an hour, since each look would wait behind the change.
const AT_ONCE: &str = "SELECT pg_catalog.set_config('lock_timeout', '50ms', true)";

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

// === impl Lacks ===

impl Lacks {
    /// What is off because of it, and what mends it.
    pub(super) fn said(&self) -> String {
        let statements: Vec<_> = self.statements.iter().map(|(sql, _)| &**sql).collect();
        let mend = match &self.doubts {
            Some(doubts) => doubts.to_string(),
            None => format!("its owner runs: {}", statements.join("; ")),
        };
        format!(
            "the schema {SCHEMA} was made by an earlier version, and lacks what this one writes there: until it is added, no job \
             that stands by takes over what no instance runs. {mend}"
        )
    }
}

/// Creates the tables, unless they exist, and looks at what exists: `trusted` are the owners that the settings trust.
/// Adds what they lack if `completes` and the role may. Looks again if another session created them at the same time.
pub(super) async fn make(
    session: &Session,
    trusted: &[String],
    mut completes: bool,
) -> Result<Tables, TablesError> {
    loop {
        let looking = session.query_together("look for the tables of jobs", &LOOK, Instant::now());
        let found = looking.await?;
        let Some(tables) = judge(&found.rows, trusted)? else {
            let create = if is_there(&found.rows, JOB) {
                // Its owner may be another role.
                CREATE.to_owned()
            } else {
                format!("{CREATE}; {ADD_DECLARATIONS}; {CREATE_INSTANCES}")
            };
            match session
                .batch_execute("make the tables of jobs", &create)
                .await
            {
                Err(error) if !error.sqlstate().is_some_and(is_made_already) => {
                    return Err(error.into());
                }
                Err(_) => {}
                Ok(()) => info!("made the tables of jobs in the schema bgworker"),
            }
            continue;
        };
        let lacks = tables.lacks.iter().flat_map(|lacks| &lacks.statements);
        let to_run: Vec<_> = lacks.filter(|(_, may)| *may).map(|(sql, _)| sql).collect();
        if to_run.is_empty() || !std::mem::take(&mut completes) {
            return Ok(tables);
        }
        for sql in to_run {
            complete(session, sql).await?;
        }
    }
}

/// Adds something to the tables, unless that would have to wait.
async fn complete(session: &Session, sql: &str) -> Result<(), DatabaseError> {
    let sql_at_once = format!("{AT_ONCE}; {sql}");
    let adding = session.batch_execute("add to the tables of jobs", &sql_at_once);
    match adding.await {
        Ok(()) => info!("added to the tables of jobs what an earlier version has not made: {sql}"),
        Err(error)
            if error
                .sqlstate()
                .is_some_and(|code| is_locked(code) || is_made_already(code)) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// `true` if this table was found.
fn is_there(rows: &[Row], name: &str) -> bool {
    let row = rows.iter().find(|row| row.get::<_, &str>("name") == name);
    row.is_some_and(|row| row.get::<_, Option<&str>>("kind").is_some())
}

/// The tables.
pub(super) fn relations() -> Vec<Relation> {
    let relation = |name: &str| Relation {
        schema: SCHEMA.to_owned(),
        name: name.to_owned(),
    };
    vec![relation(JOB), relation(JOB_RUN)]
}

/// Decides whether the tables that were found can be used. `None` if one is missing without which no job can run.
fn judge(rows: &[Row], trusted: &[String]) -> Result<Option<Tables>, TablesError> {
    let (mut doubts, mut missing, mut lacking) = (Vec::new(), None, Vec::new());
    let mut tables = Tables::default();
    let mut lacks = Lacks {
        statements: Vec::new(),
        doubts: None,
    };
    for row in rows {
        let (facts, role): (_, String) = (Facts::of(row), row.get("role"));
        let relation = Relation {
            schema: SCHEMA.to_owned(),
            name: row.get("name"),
        };
        if relation.name == INSTANCES {
            tables.instances =
                judge_instances(row, (&facts, &relation, &role), trusted, &mut lacks);
            continue;
        }
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
        if relation.name == JOB {
            tables.has_declarations = row.get("has_declarations");
        }
        tables.seal = row.get::<_, Option<_>>("seal").unwrap_or_default();
    }
    let role = rows.first().map_or("", |row| row.get("role"));
    UntrustedTables::refuse(role, doubts)?;
    if missing.is_none() && !lacking.is_empty() {
        let (lacking, mend) = (lacking.join("; "), grant(role).join("; "));
        return Err(TablesError::Privileges { lacking, mend });
    }
    if !tables.has_declarations {
        let job = rows.iter().find(|row| row.get::<_, &str>("name") == JOB);
        let is_owner = job.and_then(|row| row.get("is_owner")) == Some(true);
        lacks
            .statements
            .push((ADD_DECLARATIONS.to_owned(), is_owner));
    }
    tables.lacks =
        Some(lacks).filter(|lacks| !lacks.statements.is_empty() || lacks.doubts.is_some());
    match missing {
        None => Ok(Some(tables)),
        Some(row) if row.get("may_create") => Ok(None),
        Some(row) => Err(not_made(row)),
    }
}

/// Decides whether the table of instances that was found can be used, and if so, returns its seal.
fn judge_instances(
    row: &Row,
    (facts, relation, role): (&Facts, &Relation, &str),
    trusted: &[String],
    lacks: &mut Lacks,
) -> Option<String> {
    if row.get::<_, Option<&str>>("kind").is_none() {
        let may_create = row.get("may_create");
        lacks
            .statements
            .push((CREATE_INSTANCES.to_owned(), may_create));
        return None;
    }
    let doubts = facts.doubts(relation, role, trusted);
    lacks.doubts = UntrustedTables::refuse(role, doubts).err();
    if !row.get::<_, Vec<String>>("lacking").is_empty() {
        lacks.statements.push((grant_instances(role), false));
    } else if lacks.doubts.is_none() {
        return row.get("instances_seal");
    }
    None
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
    let added = [ADD_DECLARATIONS, CREATE_INSTANCES];
    let statements = CREATE.split("; ").chain(added).map(str::to_owned);
    let grants = grant(role).into_iter().chain([grant_instances(role)]);
    statements.chain(grants).collect()
}

/// The statements that let a role run jobs.
fn grant(role: &str) -> [String; 2] {
    let role = relation::role(role);
    [
        format!("GRANT USAGE ON SCHEMA {SCHEMA} TO {role}"),
        format!("GRANT SELECT, INSERT, UPDATE ON {SCHEMA}.job, {SCHEMA}.job_run TO {role}"),
    ]
}

/// The statement that lets a role tell that it is there.
fn grant_instances(role: &str) -> String {
    let role = relation::role(role);
    format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {SCHEMA}.{INSTANCES} TO {role}")
}
