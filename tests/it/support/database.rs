//! A real server for the tests: one per test process, one database per test.
//!
//! `TEST_DATABASE_URL` names a server to use instead; its role must be a superuser. Without it, and
//! without PostgreSQL's binaries, tests fail and say what to install: none is skipped.

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bgworker::database::{self, ConnInfo, Connection, Database, DatabaseError};
use bgworker::embedded::{Cluster, ClusterSettings};
use bgworker::supervision::{Limits, Shutdown};
use bgworker::worker_spi::{self, ConnectionKind, Settings, Table};
use bgworker::{Access, BackgroundWorker, Postmaster, PostmasterHandle, RestartTime, WorkerId};
use tokio::sync::{OnceCell, watch};

use super::{LONG, eventually};

/// The server of this process. It is never dropped: its watchdog stops it when the process ends.
static SERVER: OnceLock<Server> = OnceLock::new();

static DATABASES: AtomicU64 = AtomicU64::new(0);

enum Server {
    Private(Cluster),
    Given(String),
}

/// A database that belongs to one test.
pub(crate) struct TestDatabase {
    conninfo: String,
    pub(crate) database: Database,
    pub(crate) client: Connection,
}

/// Set once the server is rid of what earlier processes left behind.
static SWEPT: OnceCell<()> = OnceCell::const_new();

/// Drops the databases and roles of test processes that are gone. A private server has none; on another one
/// nothing else would drop them.
async fn sweep(admin: &Connection) {
    let left = "SELECT datname::text FROM pg_database WHERE datname ~ '^bgworker_[0-9]+_[0-9]+$'";
    for row in admin.query("look for leftovers", left, &[]).await.unwrap() {
        let name: String = row.get(0);
        let pid = name.split('_').nth(1).unwrap();
        if !Path::new("/proc").join(pid).exists() {
            let drop = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
            admin.batch_execute("sweep", &drop).await.unwrap();
            let drop = format!("DROP ROLE IF EXISTS {name}_role");
            admin.batch_execute("sweep", &drop).await.unwrap();
        }
    }
}

/// A built-in worker of a test, and the sender that changes its settings.
pub(crate) struct TestWorker {
    pub(crate) id: WorkerId,
    pub(crate) settings: watch::Sender<Settings>,
}

impl Server {
    fn get() -> &'static Self {
        SERVER.get_or_init(|| {
            if let Ok(url) = std::env::var("TEST_DATABASE_URL") {
                return Self::Given(url);
            }
            let settings = ClusterSettings::temporary()
                .option("fsync", "off")
                .option("max_connections", "200");
            match Cluster::start(settings) {
                Ok(cluster) => Self::Private(cluster),
                Err(error) => panic!("the tests need a PostgreSQL server: {error}"),
            }
        })
    }

    fn conninfo(&self) -> String {
        match self {
            Self::Private(cluster) => cluster.conninfo(),
            Self::Given(url) => url.clone(),
        }
    }
}

/// Reads a connection string, without environment variables.
pub(crate) fn database(conninfo: &str) -> Database {
    let conninfo = ConnInfo::parse(conninfo, |_| None).expect("a connection string");
    Database::new(conninfo, database::Settings::default()).expect("TLS can be set up")
}

/// A connection of a test itself, which waits as long as a busy machine takes.
async fn patient_client(conninfo: &str) -> Connection {
    let settings = database::Settings::default();
    let settings = settings.connect_timeout(LONG).statement_timeout(LONG);
    let conninfo = ConnInfo::parse(conninfo, |_| None).expect("a connection string");
    let database = Database::new(conninfo, settings).expect("TLS can be set up");
    let begin = Instant::now();
    loop {
        match database.connect("tests", None).await {
            // The deadline for files is not one that settings lengthen.
            Err(error @ DatabaseError::FilesDeadline { .. }) if begin.elapsed() < LONG => {
                println!("after {:?}: {error}", begin.elapsed());
            }
            connected => {
                let client = connected.unwrap();
                // What a test changes may have to wait for a fold, and a new database for that of another test.
                let patient = "SET lock_timeout = '30s'";
                client.batch_execute("be patient", patient).await.unwrap();
                return client;
            }
        }
    }
}

impl TestDatabase {
    /// Creates a database for one test.
    pub(crate) async fn new() -> Self {
        // Starting the server blocks; the threads of other tests wait for it here.
        let server = Server::get().conninfo();
        let number = DATABASES.fetch_add(1, Ordering::Relaxed);
        let name = format!("bgworker_{}_{number}", std::process::id());
        let admin = patient_client(&server).await;
        SWEPT.get_or_init(|| sweep(&admin)).await;
        admin
            .batch_execute(
                "make a database",
                &format!("DROP DATABASE IF EXISTS {name}"),
            )
            .await
            .unwrap();
        admin
            .batch_execute("make a database", &format!("CREATE DATABASE {name}"))
            .await
            .unwrap();
        admin.close().await;
        Self::at(&with_dbname(&server, &name)).await
    }

    /// Connects to a database that exists.
    pub(crate) async fn at(conninfo: &str) -> Self {
        let database = database(conninfo);
        let client = patient_client(conninfo).await;
        Self {
            conninfo: conninfo.to_owned(),
            database,
            client,
        }
    }

    /// The connection string of the database.
    pub(crate) fn conninfo(&self) -> &str {
        &self.conninfo
    }

    /// The connection string with one more setting, as a URL or as key-value pairs.
    pub(crate) fn conninfo_with(&self, keyword: &str, value: &str) -> String {
        let conninfo = &self.conninfo;
        if !conninfo.contains("://") {
            return format!("{conninfo} {keyword}='{value}'");
        }
        let separator = if conninfo.contains('?') { '&' } else { '?' };
        let value = value.replace(' ', "%20").replace('=', "%3D");
        format!("{conninfo}{separator}{keyword}={value}")
    }

    /// Opens another connection to the database.
    pub(crate) async fn connect(&self) -> Connection {
        patient_client(&self.conninfo).await
    }

    /// Opens a connection like any other client's, with the defaults of the database.
    pub(crate) async fn connect_plainly(&self) -> tokio_postgres::Client {
        let (client, connection) = tokio_postgres::connect(&self.conninfo, tokio_postgres::NoTls)
            .await
            .unwrap();
        tokio::spawn(connection);
        client
    }

    /// Runs statements.
    pub(crate) async fn execute(&self, sql: &str) {
        if let Err(error) = self.client.batch_execute("test", sql).await {
            panic!("{sql}: {error}");
        }
    }

    /// The only value of the only row of a query.
    pub(crate) async fn value<T: for<'a> tokio_postgres::types::FromSql<'a>>(
        &self,
        sql: &str,
    ) -> T {
        match self.client.query("test", sql, &[]).await {
            Ok(rows) => rows[0].get(0),
            Err(error) => panic!("{sql}: {error}"),
        }
    }

    /// The rows of a table as `type|value`, sorted.
    pub(crate) async fn rows(&self, table: &Table) -> Vec<String> {
        let sql = format!(
            "SELECT coalesce(string_agg(row, ',' ORDER BY row), '') FROM (\
             SELECT concat_ws('|', type, coalesce(value::text, 'NULL')) AS row FROM {}) AS rows",
            table.sql()
        );
        let rows: String = self.value(&sql).await;
        rows.split(',')
            .filter(|row| !row.is_empty())
            .map(str::to_owned)
            .collect()
    }

    /// The total, plus all deltas: what no fold may change.
    pub(crate) async fn sum(&self, table: &Table) -> i64 {
        self.value(&format!("SELECT sum(value)::bigint FROM {}", table.sql()))
            .await
    }

    /// Waits until a table has exactly these rows.
    pub(crate) async fn wait_for_rows(&self, table: &Table, rows: &[&str]) {
        eventually(&format!("{table} is {rows:?}"), || async {
            self.rows(table).await == rows
        })
        .await;
    }

    /// Launches a Postmaster on this database.
    pub(crate) fn postmaster(&self) -> PostmasterHandle {
        Postmaster::launch(Limits::default(), Some(self.database.clone())).unwrap()
    }

    /// Registers a built-in worker, and waits until it is ready.
    pub(crate) async fn worker(
        &self,
        postmaster: &PostmasterHandle,
        name: &str,
        settings: Settings,
    ) -> TestWorker {
        let worker = register(postmaster, name, settings).await;
        eventually(&format!("\"{name}\" is ready"), || async {
            let status = postmaster.worker(worker.id).await.unwrap();
            let status = status.unwrap_or_else(|| panic!("\"{name}\" has ended"));
            status.state == bgworker::supervision::WorkerState::Running
        })
        .await;
        worker
    }
}

/// Registers a built-in worker that never restarts after a failure of its own.
pub(crate) async fn register(
    postmaster: &PostmasterHandle,
    name: &str,
    settings: Settings,
) -> TestWorker {
    let (sender, receiver) = watch::channel(settings);
    let worker = BackgroundWorker::new(name)
        .access(Access::Database)
        .restart_time(RestartTime::Never);
    let id = postmaster
        .register(worker, worker_spi::main(receiver))
        .await
        .unwrap()
        .id();
    TestWorker {
        id,
        settings: sender,
    }
}

/// Settings with a naptime so short that a test need not wait.
pub(crate) fn brisk(table: &Table) -> Settings {
    let mut settings = Settings::new(table.clone());
    settings.naptime = Duration::from_millis(10);
    settings
}

/// The same, with a connection of the worker's own.
pub(crate) fn brisk_on_its_own(table: &Table) -> Settings {
    let mut settings = brisk(table);
    settings.connection = Some(ConnectionKind::Own);
    settings
}

/// Waits until a worker has done this many more cycles.
pub(crate) async fn cycles(postmaster: &PostmasterHandle, worker: WorkerId, more: u64) {
    let done = || async {
        let status = postmaster.worker(worker).await.unwrap();
        status.expect("the worker has ended").report.cycles
    };
    let goal = done().await + more;
    eventually(&format!("{more} more cycles"), || async {
        done().await >= goal
    })
    .await;
}

/// Registers a worker that naps for a day, and waits until its first cycle is done: nothing happens by itself then.
pub(crate) async fn napping(
    db: &TestDatabase,
    postmaster: &PostmasterHandle,
    table: &Table,
    connection: ConnectionKind,
) -> TestWorker {
    let mut settings = Settings::new(table.clone());
    settings.connection = Some(connection);
    // The first nap is a random part of the naptime, and even that must outlast the test.
    settings.naptime = Duration::from_secs(86_400);
    let worker = db.worker(postmaster, "w", settings).await;
    eventually("it naps", || async {
        let status = postmaster.worker(worker.id).await.unwrap().unwrap();
        status.report.napping && status.report.cycles == 1
    })
    .await;
    worker
}

/// Wakes the worker, and lets it nap for only 10 ms from now on.
pub(crate) fn wake(postmaster: &PostmasterHandle, worker: &TestWorker) {
    (worker.settings).send_modify(|settings| settings.naptime = Duration::from_millis(10));
    postmaster.sighup();
}

pub(crate) async fn shut_down(postmaster: &PostmasterHandle) {
    postmaster.shut_down(Shutdown::Smart);
    assert!(postmaster.exited().await.unwrap().aborted.is_empty());
}

pub(crate) fn table(schema: &str, name: &str) -> Table {
    Table::new(schema, name).unwrap()
}

fn with_dbname(conninfo: &str, dbname: &str) -> String {
    if let Some((start, query)) = conninfo.split_once('?') {
        let (start, _) = start.rsplit_once('/').unwrap_or((start, ""));
        return format!("{start}/{dbname}?{query}");
    }
    if conninfo.contains("://") {
        let (start, _) = conninfo.rsplit_once('/').unwrap_or((conninfo, ""));
        return format!("{start}/{dbname}");
    }
    // A later keyword overrides an earlier one.
    format!("{conninfo} dbname={dbname}")
}
