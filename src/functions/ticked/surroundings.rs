//! What a job runs with beside its statements: the role, the search path and the options of its sessions. Two instances that
//! differ in these do different things at the ticks of one job.
//!
//! They are not part of what is declared, since a rollout may change them. The instance that declares a job, or starts with
//! others than the instance before it, writes them behind its name, so that the others notice.

use crate::database::{Database, DatabaseError, Parameters};
use crate::functions::session::Session;

use super::job::digest;

/// What stands between an instance and its surroundings.
const AS: &str = ") as ";

/// What to do about it.
const MEND: &str = "Each tick runs once, on either of them. Give each instance a \"namespace\" of its own in [database], \
    or all the same role, search_path and options";

/// Asks for the role and the search path of this instance's sessions.
pub(super) async fn ask(
    session: &Session,
    database: Option<&Database>,
) -> Result<String, DatabaseError> {
    let sql = "SELECT CURRENT_USER::pg_catalog.text, pg_catalog.current_setting('search_path')";
    let doing = "ask for the role and the search path";
    let rows = session.query(doing, sql, Parameters::new()).await?;
    let (role, path) = rows.first().map_or_else(
        || (String::new(), String::new()),
        |row| (row.get(0), row.get(1)),
    );
    // They may hold anything, so they are not shown.
    let options = database.and_then(|database| database.conninfo().options());
    let options = options.map_or(String::new(), |options| {
        format!(", options {}", digest(options))
    });
    Ok(format!("{role}, search_path {path}{options}"))
}

/// An instance with its surroundings.
pub(super) fn instance(surroundings: &str) -> String {
    let host = whoami::hostname().unwrap_or_default();
    format!("{host} ({}{AS}{surroundings}", std::process::id())
}

/// What an instance that declared a job runs it with; `None` if it is of a version that does not say.
pub(super) fn of(declared_by: &str) -> Option<&str> {
    declared_by
        .split_once(AS)
        .map(|(_, surroundings)| surroundings)
}

/// What to say if another instance runs the job with other surroundings than these.
pub(super) fn difference(declared_by: &str, own: &str) -> Option<String> {
    of(declared_by).filter(|theirs| *theirs != own)?;
    Some(format!(
        "another instance, {declared_by}, has this job too, and this one runs it as {own}. {MEND}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_are_compared_by_what_stands_behind_their_names() {
        let own = "app, search_path tenant_a";
        assert_eq!(difference(&instance(own), own), None);
        assert_eq!(difference("host (12)", own), None);
        let found = difference("host (12) as app, search_path tenant_b", own).unwrap();
        assert!(
            found.contains("tenant_a") && found.contains("tenant_b"),
            "{found}"
        );
    }
}
