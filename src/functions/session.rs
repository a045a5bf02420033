//! Where a worker's statements run: on its home connection, or on its own connection.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, SimpleQueryRow};
use tracing::warn;

use crate::context::{WorkerContext, WorkerError};
use crate::database::Answer;
use crate::database::{
    Connection, Database, DatabaseError, HomeConnection, HomeProbe, Parameters, Statement, Tid,
    probe_all,
};

/// Divisor for the largest correction to a nap while it comes into step: one sixth of it.
const STEP: u32 = 6;

/// Shortest nap that comes into step.
const COMPANY_FROM: Duration = Duration::from_millis(100);

/// Which connection a worker uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConnectionKind {
    /// A connection shared with other workers. The statements of all of them are pipelined on it.
    #[default]
    Home,
    /// A connection of its own, for statements that take long.
    Own,
}

/// Where the statements of a worker run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'s> {
    /// The database, if not the one of the connection settings.
    pub(super) dbname: Option<&'s str>,
    pub(super) connection: ConnectionKind,
    /// `true` if looks must find the first row of a table, not just any: parallel workers return what they meet
    /// first.
    pub(super) in_order: bool,
}

/// A way to run one statement at a time.
pub(super) enum Session {
    Home(HomeConnection),
    /// Shared only with its probes.
    Own(Rc<Connection>),
}

/// What an idle cycle asks the server for: scalars of type `tid`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProbeSql {
    /// The worker's name, as it stands in a comment.
    pub(super) prober: String,
    /// Scalar subqueries of type `tid`.
    pub(super) scalars: Vec<String>,
}

/// A probe that is run again and again on the connection it was prepared for.
pub(super) enum Probe {
    Home(HomeProbe),
    Own(Rc<Connection>, Statement),
}

// === impl Place ===

impl Place<'_> {
    /// The home connection of the database that the connection settings name.
    pub(super) const HOME: Self = Self {
        dbname: None,
        connection: ConnectionKind::Home,
        in_order: false,
    };
}

// === impl Probe ===

impl Probe {
    /// Runs it, and returns what it found.
    pub(super) async fn run(&self, doing: &'static str) -> Result<Vec<Option<Tid>>, DatabaseError> {
        match self {
            Self::Home(probe) => probe.run(doing).await,
            Self::Own(connection, statement) => {
                let rows = connection.query_prepared(doing, statement).await?;
                Ok(rows.first().map_or_else(Vec::new, |row| row.get(0)))
            }
        }
    }
}

// === impl Session ===

impl Session {
    /// Opens the connection that `place` asks for, and waits until there is room for it. A home connection is opened
    /// later, by its first statement.
    pub(super) async fn open(
        context: &WorkerContext,
        place: Place<'_>,
    ) -> Result<Self, WorkerError> {
        Ok(match (place.connection, context.database()) {
            (ConnectionKind::Home, _) => Self::Home(context.home(place.dbname)?),
            (ConnectionKind::Own, Some(database)) => {
                Self::Own(Rc::new(connect(context, database, place).await?))
            }
            // The error says why there is none.
            (ConnectionKind::Own, None) => Self::Own(Rc::new(context.connect(None).await?)),
        })
    }

    /// Makes the next statement run in a new session, since what is fixed when a session begins may be what is wrong.
    /// A home connection that is only a few seconds old stays.
    ///
    /// # Errors
    ///
    /// If no new connection can be opened; the old one is closed even then.
    pub(super) async fn renew(
        &mut self,
        context: &WorkerContext,
        place: Place<'_>,
    ) -> Result<(), DatabaseError> {
        match (self, context.database()) {
            (Self::Home(home), _) => home.renew(),
            (Self::Own(connection), Some(database)) => {
                // There may be room for only one connection.
                connection.abort();
                *connection = Rc::new(connect(context, database, place).await?);
            }
            (Self::Own(_), None) => {}
        }
        Ok(())
    }

    /// `true` if the session has ended and must be renewed.
    pub(super) fn is_closed(&self) -> bool {
        match self {
            Self::Home(_) => false,
            Self::Own(connection) => connection.is_closed(),
        }
    }

    /// Runs a statement once.
    pub(super) async fn query(
        &self,
        doing: &'static str,
        sql: &str,
        parameters: Parameters,
    ) -> Result<Vec<Row>, DatabaseError> {
        match self {
            Self::Home(home) => home.query(doing, sql, parameters).await,
            Self::Own(connection) => {
                let parameters: Vec<_> = parameters
                    .iter()
                    .map(|(value, kind)| (&**value as &(dyn ToSql + Sync), kind.clone()))
                    .collect();
                connection.query(doing, sql, &parameters).await
            }
        }
    }

    /// The answer to a query that was sent at `not_before` or later. Workers on home connections to a database share
    /// it.
    pub(super) async fn query_together(
        &self,
        doing: &'static str,
        sql: &'static str,
        not_before: Instant,
    ) -> Result<Arc<Answer>, DatabaseError> {
        match self {
            Self::Home(home) => home.query_together(doing, sql, not_before).await,
            Self::Own(connection) => {
                let asked = Instant::now();
                let rows = connection.query(doing, sql, &[]).await?;
                Ok(Arc::new(Answer { asked, rows }))
            }
        }
    }

    /// Runs statements as one transaction, and returns their rows, whose values are text.
    pub(super) async fn simple_query(
        &self,
        doing: &'static str,
        sql: &str,
    ) -> Result<Vec<SimpleQueryRow>, DatabaseError> {
        match self {
            Self::Home(home) => home.simple_query(doing, sql).await,
            Self::Own(connection) => connection.simple_query(doing, sql).await,
        }
    }

    /// Runs statements as one transaction.
    pub(super) async fn batch_execute(
        &self,
        doing: &'static str,
        sql: &str,
    ) -> Result<(), DatabaseError> {
        match self {
            Self::Home(home) => home.simple_query(doing, sql).await.map(drop),
            Self::Own(connection) => connection.batch_execute(doing, sql).await,
        }
    }

    /// Prepares a probe that is run again and again.
    pub(super) async fn prepare(
        &self,
        doing: &'static str,
        probe: ProbeSql,
    ) -> Result<Probe, DatabaseError> {
        Ok(match self {
            Self::Home(home) => Probe::Home(home.prepare_probe(probe.prober, probe.scalars)),
            Self::Own(connection) => {
                let sql =
                    probe_all([(probe.prober.as_str(), probe.scalars.as_slice())].into_iter());
                let statement = connection.prepare(doing, &sql).await?;
                Probe::Own(Rc::clone(connection), statement)
            }
        })
    }

    /// Asks whether the server is in recovery.
    pub(super) async fn is_in_recovery(&self) -> Result<bool, DatabaseError> {
        let doing = "ask whether the server is in recovery";
        let sql = "SELECT pg_catalog.pg_is_in_recovery()";
        let rows = self.query(doing, sql, Parameters::new()).await?;
        Ok(rows.first().is_some_and(|row| row.get(0)))
    }

    /// `true` if a statement was sent and has not been answered.
    pub(super) fn is_at_work(&self) -> bool {
        match self {
            Self::Home(home) => home.is_at_work(),
            Self::Own(connection) => connection.is_at_work(),
        }
    }

    /// Cancels what runs. A home connection is given up, with everything that runs on it.
    pub(super) async fn cancel(&self) {
        match self {
            Self::Home(home) => home.give_up(),
            Self::Own(connection) => connection.cancel_token().cancel().await,
        }
    }

    /// A nap of about this length that comes into step with the naps of neighbours, so that their probes are sent
    /// together: being woken once costs both sides less.
    pub(super) fn in_company(&self, nap: Duration) -> Duration {
        match self {
            Self::Home(home) if nap >= COMPANY_FROM => into_step(nap, home.since_beat(nap)),
            Self::Home(_) | Self::Own(_) => nap,
        }
    }

    /// Ends the session. A home connection stays open for other workers.
    pub(super) async fn close(self) {
        match self {
            Self::Home(_) => {}
            // Its probes are gone by now.
            Self::Own(connection) => {
                if let Some(connection) = Rc::into_inner(connection) {
                    Box::pin(connection.close()).await;
                }
            }
        }
    }
}

/// Opens a connection of the worker's own. If there is no room for one, the worker reports that, and waits.
async fn connect(
    context: &WorkerContext,
    database: &Database,
    place: Place<'_>,
) -> Result<Connection, DatabaseError> {
    let worker = context.name();
    let full = |error: &DatabaseError| {
        warn!(
            worker,
            "{worker} waits for room for its connection: {error}"
        );
        context.progress().failed(error.to_string());
    };
    let connecting = database.connect_when_there_is_room(worker, place.dbname, full);
    let connection = Box::pin(connecting).await?;
    if looks_in_order(context, place) {
        let sql = "SET max_parallel_workers_per_gather = 0";
        connection.batch_execute("set the session up", sql).await?;
    }
    Ok(connection)
}

/// `true` if looks find the first row of a table, not just any. Sessions set `synchronize_seqscans = off`, and keep
/// looks in one process if `place` asks for it; a pooler's sessions are not bgworker's to set.
pub(super) fn looks_in_order(context: &WorkerContext, place: Place<'_>) -> bool {
    let database = context.database();
    place.in_order && database.is_none_or(Database::sessions_are_ours)
}

/// The nap, corrected to end nearer to a beat. The last beat was `since_beat` ago.
fn into_step(nap: Duration, since_beat: Duration) -> Duration {
    if since_beat <= nap / 2 {
        nap - since_beat.min(nap / STEP)
    } else {
        nap + (nap - since_beat).min(nap / STEP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn naps_come_into_step_within_three_and_none_is_more_than_a_sixth_off() {
        let nap = Duration::from_secs(60);
        for second in 0..60 {
            let mut now = Duration::from_secs(second);
            for _ in 0..3 {
                let since_beat = Duration::from_secs(now.as_secs() % 60);
                let next = into_step(nap, since_beat);
                assert!(next.abs_diff(nap) <= nap / STEP, "{second}: {next:?}");
                now += next;
            }
            assert_eq!(now.as_secs() % 60, 0, "{second}");
        }
    }
}
