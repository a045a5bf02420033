//! Where a bench takes place: in schemas that it made, its own and that of the jobs, and nowhere else.

use std::error::Error;

use bgworker::database::{self, ConnInfo, Connection, Database};
use bgworker::worker_spi::Table;

/// The schema, and the comment that shows that a bench made it.
pub(super) const SCHEMA: &str = "bgworker_bench";
const MARK: &str = "made by bgworker bench";

/// How many tables one statement makes or drops: each table takes locks.
const TABLES_PER_STATEMENT: usize = 50;

/// A server, and the bench's schema on it.
pub(super) struct Ground {
    pub(super) conninfo: ConnInfo,
    pub(super) client: Connection,
}

// === impl Ground ===

impl Ground {
    /// Makes the schema, in place of one that an earlier bench left. Fails, and changes nothing, if there is one of
    /// that name that no bench made.
    pub(super) async fn prepare(conninfo: ConnInfo) -> Result<Self, Box<dyn Error>> {
        let database = Database::new(conninfo.clone(), database::Settings::default())?;
        let client = database.connect("bgworker bench", None).await?;
        let ground = Self { conninfo, client };
        let look = format!(
            "SELECT coalesce(pg_catalog.obj_description(oid, 'pg_namespace'), '') \
             FROM pg_catalog.pg_namespace WHERE nspname OPERATOR(pg_catalog.=) '{SCHEMA}'"
        );
        let rows = ground
            .client
            .query("look for the schema", &look, &[])
            .await?;
        match rows.first().map(|row| row.get::<_, String>(0)) {
            None => {}
            Some(mark) if mark == MARK => ground.clear().await?,
            Some(_) => {
                let refusal = format!(
                    "there is a schema \"{SCHEMA}\" that bgworker bench did not make: it is left alone"
                );
                return Err(refusal.into());
            }
        }
        let make = format!("CREATE SCHEMA {SCHEMA}; COMMENT ON SCHEMA {SCHEMA} IS '{MARK}'");
        ground
            .client
            .batch_execute("make the schema", &make)
            .await?;
        Ok(ground)
    }

    /// Makes tables with a total of 0.
    pub(super) async fn tables(
        &self,
        prefix: &str,
        count: usize,
    ) -> Result<Vec<Table>, Box<dyn Error>> {
        let tables: Result<Vec<_>, _> = (0..count)
            .map(|n| Table::new(SCHEMA, format!("{prefix}_{n}")))
            .collect();
        let tables = tables?;
        for some in tables.chunks(TABLES_PER_STATEMENT) {
            let sql: String = some
                .iter()
                .map(|table| {
                    let sql = table.sql();
                    format!(
                        "CREATE TABLE {sql} (type text NOT NULL, value bigint NOT NULL) \
                         WITH (fillfactor = 90); \
                         CREATE UNIQUE INDEX ON {sql} (type) WHERE type = 'total'; \
                         INSERT INTO {sql} VALUES ('total', 0);"
                    )
                })
                .collect();
            self.client.batch_execute("make tables", &sql).await?;
        }
        Ok(tables)
    }

    /// Fails unless the total and the deltas of a table add up to `expected`.
    pub(super) async fn check(&self, table: &Table, expected: i64) -> Result<(), Box<dyn Error>> {
        let sql = format!(
            "SELECT coalesce(pg_catalog.sum(value), 0)::pg_catalog.int8 FROM {}",
            table.sql()
        );
        let found: i64 = self.value(&sql).await?;
        if found == expected {
            return Ok(());
        }
        Err(format!("{table}: {found} is there of {expected}: deltas were lost").into())
    }

    /// Returns the only value of the only row of a query.
    pub(super) async fn value<T: for<'a> tokio_postgres::types::FromSql<'a>>(
        &self,
        sql: &str,
    ) -> Result<T, Box<dyn Error>> {
        let rows = self.client.query("measure", sql, &[]).await?;
        let row = rows.first().ok_or("the query returned no row")?;
        Ok(row.try_get(0)?)
    }

    /// Writes out dirty pages, so that they are not written while something is measured.
    pub(super) async fn checkpoint(&self) -> Result<(), Box<dyn Error>> {
        let checkpointed = self.client.batch_execute("checkpoint", "CHECKPOINT").await;
        Ok(checkpointed?)
    }

    /// Fails if jobs may be at work: their tables are always in the schema `bgworker`.
    pub(super) async fn has_no_jobs(&self) -> Result<(), Box<dyn Error>> {
        let sql = "SELECT pg_catalog.to_regnamespace('bgworker') IS NOT NULL";
        if self.value::<bool>(sql).await? {
            let refusal = "there is a schema \"bgworker\", which jobs use: it is left alone; \
                           measure jobs in a database without it, or name the other scenarios";
            return Err(refusal.into());
        }
        Ok(())
    }

    /// Drops the tables of the jobs that were measured.
    pub(super) async fn clear_jobs(&self) -> Result<(), Box<dyn Error>> {
        let sql = "DROP TABLE bgworker.job, bgworker.job_run, bgworker.job_instance; DROP SCHEMA bgworker";
        Ok(self.client.batch_execute("drop the jobs", sql).await?)
    }

    /// How long after its tick each run was marked, in seconds, except for the first run of each job. Fails if
    /// a tick was done twice or not at all.
    pub(super) async fn lateness(&self) -> Result<Vec<f64>, Box<dyn Error>> {
        let wrong = "SELECT pg_catalog.count(*) FROM (SELECT tick OPERATOR(pg_catalog.-) \
             pg_catalog.lag(tick) OVER (PARTITION BY name ORDER BY tick) AS gap FROM bgworker.job_run) AS gaps \
             WHERE gap OPERATOR(pg_catalog.<>) '1 second'::pg_catalog.interval";
        let wrong: i64 = self.value(wrong).await?;
        if wrong > 0 {
            return Err(format!("{wrong} ticks were done twice or not at all").into());
        }
        let late = "SELECT pg_catalog.array_agg(extract(epoch FROM finished_at OPERATOR(pg_catalog.-) tick)::pg_catalog.float8) \
             FROM bgworker.job_run WHERE run OPERATOR(pg_catalog.>) 1";
        self.value(late).await
    }

    /// How long after a tick the last of this many jobs was marked, in seconds, for the last tick that all of them did.
    pub(super) async fn lateness_of_whole_tick(&self, jobs: usize) -> Result<f64, Box<dyn Error>> {
        let sql = format!(
            "SELECT extract(epoch FROM pg_catalog.max(finished_at) OPERATOR(pg_catalog.-) tick)::pg_catalog.float8 \
             FROM bgworker.job_run GROUP BY tick HAVING pg_catalog.count(*) OPERATOR(pg_catalog.=) {jobs} \
             AND pg_catalog.min(run) OPERATOR(pg_catalog.>) 1 ORDER BY tick DESC LIMIT 1"
        );
        self.value(&sql).await
    }

    pub(super) async fn drop(&self, table: &Table) -> Result<(), Box<dyn Error>> {
        self.drop_all(&[table.sql()]).await
    }

    async fn drop_all(&self, tables: &[String]) -> Result<(), Box<dyn Error>> {
        // A vacuum may hold a lock: wait for it without limit.
        let sql = format!(
            "SET LOCAL lock_timeout = 0; DROP TABLE {}",
            tables.join(", ")
        );
        Ok(self.client.batch_execute("drop tables", &sql).await?)
    }

    /// Drops the schema, its tables a few at a time.
    pub(super) async fn clear(&self) -> Result<(), Box<dyn Error>> {
        let list = format!(
            "SELECT coalesce(pg_catalog.array_agg(pg_catalog.format('%I.%I', schemaname, tablename)), '{{}}') \
             FROM pg_catalog.pg_tables WHERE schemaname OPERATOR(pg_catalog.=) '{SCHEMA}'"
        );
        let tables: Vec<String> = self.value(&list).await?;
        for some in tables.chunks(TABLES_PER_STATEMENT) {
            self.drop_all(some).await?;
        }
        let sql = format!("DROP SCHEMA IF EXISTS {SCHEMA}");
        self.client.batch_execute("drop the schema", &sql).await?;
        Ok(())
    }
}
