//! The ring of runs that is kept of a job: a run has the place `run % history`. A change of `history` moves the newest runs
//! to their new places, and deletes the others, if the role may.

use tokio_postgres::types::Type;
use tracing::{info, warn};

use super::tables;
use crate::database::{DatabaseError, Parameters};
use crate::functions::quote::literal;
use crate::functions::relation;
use crate::functions::session::Session;

/// The runs of a job `j` that a ring of this size does not keep, or keeps in another place.
const MISPLACED: &str = "\
    CASE WHEN HISTORY::pg_catalog.int8 OPERATOR(pg_catalog.=) 0 THEN true \
    ELSE r.run OPERATOR(pg_catalog.<=) (j.runs OPERATOR(pg_catalog.-) HISTORY::pg_catalog.int8) \
    OR r.slot::pg_catalog.int8 OPERATOR(pg_catalog.<>) (r.run OPERATOR(pg_catalog.%) HISTORY::pg_catalog.int8) END";

/// Counts them, and those in places that no later run takes.
const LOOK: &str = "\
    SELECT pg_catalog.count(*), pg_catalog.count(*) FILTER (WHERE r.slot::pg_catalog.int8 OPERATOR(pg_catalog.>=) $2), \
    pg_catalog.has_table_privilege('bgworker.job_run', 'DELETE'), current_user::pg_catalog.text \
    FROM bgworker.job AS j JOIN bgworker.job_run AS r ON r.name OPERATOR(pg_catalog.=) j.name \
    WHERE j.name OPERATOR(pg_catalog.=) $1 AND MISPLACED";

/// Moves them. All are deleted before the first one is inserted, because the rows are sorted. A run that ends at the same
/// time may have taken the place of an older one.
const MOVE: &str = "\
    WITH moved AS (DELETE FROM bgworker.job_run AS r USING bgworker.job AS j \
    WHERE j.name OPERATOR(pg_catalog.=) NAME AND r.name OPERATOR(pg_catalog.=) j.name AND MISPLACED \
    RETURNING r.*, j.runs) \
    INSERT INTO bgworker.job_run (name, slot, run, tick, started_at, finished_at, outcome, attempt, rows, sqlstate, message) \
    SELECT m.name, (m.run OPERATOR(pg_catalog.%) HISTORY::pg_catalog.int8)::pg_catalog.int4, m.run, m.tick, m.started_at, \
    m.finished_at, m.outcome, m.attempt, m.rows, m.sqlstate, m.message FROM moved AS m \
    WHERE HISTORY::pg_catalog.int8 OPERATOR(pg_catalog.>) 0 \
    AND m.run OPERATOR(pg_catalog.>) (m.runs OPERATOR(pg_catalog.-) HISTORY::pg_catalog.int8) \
    ORDER BY m.run DESC ON CONFLICT (name, slot) DO NOTHING";

/// What to do with runs that are not where a ring of the new size has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ring {
    Fits,
    Move,
    /// The role may not delete, and this number of runs would stay for good.
    Stays(i64),
}

/// Decides that, from how many runs are misplaced, and how many of them no later run replaces.
fn decide(misplaced: i64, stay: i64, may_delete: bool) -> Ring {
    match (misplaced, stay, may_delete) {
        (0, ..) | (_, 0, false) => Ring::Fits,
        (.., true) => Ring::Move,
        (_, stay, false) => Ring::Stays(stay),
    }
}

/// Has the runs that are kept of a job fit its `history`.
pub(super) async fn fit(
    session: &Session,
    (worker, name): (&str, &str),
    seal: &str,
    history: u32,
) -> Result<(), DatabaseError> {
    let parameters: Parameters = vec![
        (Box::new(name.to_owned()), Type::TEXT),
        (Box::new(i64::from(history)), Type::INT8),
    ];
    let look = with(LOOK, "$2");
    let rows = session.query("look at the runs", &look, parameters).await?;
    let Some(row) = rows.first() else {
        return Ok(());
    };
    match decide(row.get(0), row.get(1), row.get(2)) {
        Ring::Fits => {}
        Ring::Move => {
            let sql = with(MOVE, &history.to_string()).replace("NAME", &literal(name));
            let sql = tables::write(seal, &sql);
            let moving = session.batch_execute("move the runs", &sql);
            moving.await?;
            info!(
                worker,
                "{worker}: bgworker.job_run keeps the last {history} runs of the job from now on"
            );
        }
        Ring::Stays(stay) => {
            let role = relation::role(row.get(3));
            warn!(
                worker,
                "{worker}: bgworker.job_run has {stay} old runs of the job beyond \"history = {history}\", which stay, since \
                 the role may not delete them: to have them deleted at the next start, the owner runs: GRANT DELETE ON \
                 bgworker.job_run TO {role}"
            );
        }
    }
    Ok(())
}

/// SQL about a ring of this size.
fn with(sql: &str, history: &str) -> String {
    let sql = sql.replace("MISPLACED", MISPLACED);
    sql.replace("HISTORY", history)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_moved_by_a_role_that_may_delete_and_stay_otherwise() {
        for (misplaced, stay, may_delete, expected) in [
            (0, 0, true, Ring::Fits),
            (0, 0, false, Ring::Fits),
            (5, 0, true, Ring::Move),
            (20, 15, true, Ring::Move),
            // Later runs take their places.
            (5, 0, false, Ring::Fits),
            (20, 15, false, Ring::Stays(15)),
        ] {
            let decided = decide(misplaced, stay, may_delete);
            assert_eq!(decided, expected, "{misplaced} {stay} {may_delete}");
        }
    }
}
