//! Tells other instances, in the database, that this process is there and which jobs it has: what no instance has that was
//! seen of late, another one may take over.

use std::collections::BTreeMap;

use super::tables::{self, Tables};
use crate::database::{DatabaseError, Instance, News};
use crate::functions::quote::literal;
use crate::functions::session::Session;

/// Forgets the instances that have not been seen for a day.
const FORGET: &str = "DELETE FROM bgworker.job_instance AS i WHERE i.seen_at OPERATOR(pg_catalog.<) \
    (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) '1 day'::pg_catalog.interval)";

/// Tells what is to be told of this process now, if anything: one worker does it for all of a database.
///
/// # Errors
///
/// If it could not be told. It is told with the next news then.
pub(super) async fn tell(
    session: &Session,
    tables: &Tables,
    instance: &Instance,
    dbname: Option<&str>,
) -> Result<(), DatabaseError> {
    let Some(seal) = &tables.instances else {
        return Ok(());
    };
    let Some(news) = instance.news(dbname) else {
        return Ok(());
    };
    let sql = match news {
        News::Jobs(jobs) => has(instance.name(), &jobs),
        News::Alive => is_alive(instance.name()),
    };
    let sql = tables::write_instances(seal, &format!("{FORGET}; {sql}"));
    let told = session
        .simple_query("tell which jobs there are", &sql)
        .await;
    let is_told = |row: &tokio_postgres::SimpleQueryRow| row.try_get("is_told").is_ok();
    if !told.as_ref().is_ok_and(|rows| rows.iter().any(is_told)) {
        instance.was_not_told(dbname);
    }
    told.map(|_| ())
}

/// The statement that tells which jobs an instance has.
fn has(name: &str, jobs: &BTreeMap<String, String>) -> String {
    let jobs = serde_json::json!(jobs).to_string();
    format!(
        "INSERT INTO bgworker.job_instance AS i (instance, seen_at, jobs) \
         VALUES ({}, pg_catalog.clock_timestamp(), {}::pg_catalog.jsonb) \
         ON CONFLICT (instance) DO UPDATE SET seen_at = excluded.seen_at, jobs = excluded.jobs RETURNING true AS is_told",
        literal(name),
        literal(&jobs)
    )
}

/// The statement that tells that an instance is still there. Its jobs stay as they are, which writes little.
fn is_alive(name: &str) -> String {
    format!(
        "UPDATE bgworker.job_instance AS i SET seen_at = pg_catalog.clock_timestamp() \
         WHERE i.instance OPERATOR(pg_catalog.=) {} RETURNING true AS is_told",
        literal(name)
    )
}
