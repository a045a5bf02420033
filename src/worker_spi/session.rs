//! Where a worker's statements run: on its home connection, or on one of its own.

use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use tracing::warn;

use super::statement::ProbeSql;
use super::{ConnectionKind, Fold, Settings};
use crate::context::{WorkerContext, WorkerError};
use crate::database::{
    Connection, Database, DatabaseError, HomeConnection, HomeProbe, Parameters, Statement, Tid,
    probe_all,
};

/// By so much of itself a nap is longer or shorter, at most, while it comes into step.
const STEP: u32 = 6;

/// Shorter naps are left alone.
const COMPANY_FROM: Duration = Duration::from_millis(100);

/// A way to run one statement at a time.
pub(super) enum Session {
    Home(HomeConnection),
    Own(Box<Connection>),
}

/// A probe that is run again and again.
pub(super) enum PreparedProbe {
    Home(HomeProbe),
    Own(Statement),
}

// === impl Session ===

impl Session {
    /// Opens what the settings ask for, and waits until there is room for it. A home connection is opened later,
    /// by its first statement.
    pub(super) async fn open(
        context: &WorkerContext,
        settings: &Settings,
    ) -> Result<Self, WorkerError> {
        Ok(match (settings.connection, settings.fold) {
            (ConnectionKind::Home, Fold::Delete) => {
                Self::Home(context.home(settings.database.as_deref())?)
            }
            (ConnectionKind::Own, _) | (_, Fold::Truncate) => {
                let connection = match context.database() {
                    Some(database) => connect(context, database, settings).await?,
                    // It says why not.
                    None => context.connect(None).await?,
                };
                Self::Own(Box::new(connection))
            }
        })
    }

    /// Sees to it that the next statement runs in a session that begins anew: what is fixed when a session begins
    /// may be what is wrong.
    ///
    /// # Errors
    ///
    /// If there is no other connection; then the old one is gone too.
    pub(super) async fn renew(
        &mut self,
        context: &WorkerContext,
        settings: &Settings,
    ) -> Result<(), DatabaseError> {
        match (self, context.database()) {
            (Self::Home(home), _) => home.renew(),
            (Self::Own(connection), Some(database)) => {
                // Its place may be the only one.
                connection.abort();
                **connection = connect(context, database, settings).await?;
            }
            (Self::Own(_), None) => {}
        }
        Ok(())
    }

    /// Whether it has ended, and has to be renewed.
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

    /// Runs statements as one transaction.
    pub(super) async fn batch_execute(
        &self,
        doing: &'static str,
        sql: &str,
    ) -> Result<(), DatabaseError> {
        match self {
            Self::Home(home) => home.batch_execute(doing, sql).await,
            Self::Own(connection) => connection.batch_execute(doing, sql).await,
        }
    }

    /// Gets a probe ready to be run again and again.
    pub(super) async fn prepare(
        &self,
        doing: &'static str,
        probe: ProbeSql,
    ) -> Result<PreparedProbe, DatabaseError> {
        Ok(match self {
            Self::Home(home) => {
                PreparedProbe::Home(home.prepare_probe(probe.prober, probe.scalars))
            }
            Self::Own(connection) => {
                let sql =
                    probe_all([(probe.prober.as_str(), probe.scalars.as_slice())].into_iter());
                PreparedProbe::Own(connection.prepare(doing, &sql).await?)
            }
        })
    }

    /// Runs a probe, and returns what it found.
    pub(super) async fn run(
        &self,
        doing: &'static str,
        probe: &PreparedProbe,
    ) -> Result<Vec<Option<Tid>>, DatabaseError> {
        match (self, probe) {
            (Self::Home(home), PreparedProbe::Home(probe)) => home.run_probe(doing, probe).await,
            (Self::Own(connection), PreparedProbe::Own(statement)) => {
                let rows = connection.query_prepared(doing, statement).await?;
                Ok(rows.first().map_or_else(Vec::new, |row| row.get(0)))
            }
            (Self::Home(_), PreparedProbe::Own(_)) | (Self::Own(_), PreparedProbe::Home(_)) => {
                unreachable!("a probe is run where it was prepared")
            }
        }
    }

    /// Whether the server is in recovery.
    pub(super) async fn is_in_recovery(&self) -> Result<bool, DatabaseError> {
        let doing = "ask whether the server is in recovery";
        let sql = "SELECT pg_catalog.pg_is_in_recovery()";
        let rows = self.query(doing, sql, Parameters::new()).await?;
        Ok(rows.first().is_some_and(|row| row.get(0)))
    }

    /// Whether a statement was sent and has not been answered.
    pub(super) fn is_at_work(&self) -> bool {
        match self {
            Self::Home(home) => home.is_at_work(),
            Self::Own(connection) => connection.is_at_work(),
        }
    }

    /// Cancels what runs, and gives the connection up.
    pub(super) async fn cancel(&self) {
        match self {
            Self::Home(home) => home.give_up(),
            Self::Own(connection) => connection.cancel_token().cancel().await,
        }
    }

    /// A nap of about this length, which comes into step with those of neighbours, so that their probes
    /// are asked together: it costs both sides less to be woken once.
    pub(super) fn in_company(&self, nap: Duration) -> Duration {
        match self {
            Self::Home(home) if nap >= COMPANY_FROM => into_step(nap, home.since_beat(nap)),
            Self::Home(_) | Self::Own(_) => nap,
        }
    }

    /// Ends it. A home connection stays, for the others.
    pub(super) async fn close(self) {
        match self {
            Self::Home(_) => {}
            Self::Own(connection) => connection.close().await,
        }
    }
}

/// Opens a connection of the worker's own. While there is no room for one, the worker says so, and waits.
async fn connect(
    context: &WorkerContext,
    database: &Database,
    settings: &Settings,
) -> Result<Connection, DatabaseError> {
    let worker = context.name();
    let dbname = settings.database.as_deref();
    let full = |error: &DatabaseError| {
        warn!(
            worker,
            "{worker} waits for room for its connection: {error}"
        );
        context.progress().failed(error.to_string());
    };
    let connecting = database.connect_when_there_is_room(worker, dbname, full);
    let connection = connecting.await?;
    if looks_in_order(settings, context) {
        let sql = "SET max_parallel_workers_per_gather = 0";
        connection.batch_execute("set the session up", sql).await?;
    }
    Ok(connection)
}

/// Whether a look finds the first delta of the table, and not any: sessions set `synchronize_seqscans = off`, and keep
/// looks in one process, since parallel workers would return what they meet first. Those of a pooler are not ours to
/// set, and one that truncates wants its sums in parallel.
pub(super) fn looks_in_order(settings: &Settings, context: &WorkerContext) -> bool {
    let database = context.database();
    settings.fold == Fold::Delete && database.is_none_or(|database| database.settings().prepare)
}

/// A nap that ends nearer to a beat, of which the last was so long ago.
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
