//! What happens to the tables, the sessions, the instances and the server meanwhile.

use std::cell::Cell;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::Instant;

use crate::configuration::Config;
use crate::program::start;
use crate::support::daemon::Daemon;
use crate::support::database::TestDatabase;
use crate::support::server::TestServer;
use crate::support::within;

/// Ends some sessions of the instances.
const END_SESSIONS: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() \
    AND (application_name = 'ticks' OR application_name LIKE 'bgworker%') AND random() < 0.3";

/// Makes the ledger short again.
const SHORTEN: &str = "WITH g AS (DELETE FROM l.ledger RETURNING *) \
    INSERT INTO l.ledger SELECT what, k, sum(v), sum(n) FROM g GROUP BY what, k";

/// Changes of the tables, and what ends them after a while. A child comes and goes while no reader has the queue: a
/// reader's plan has the children of one moment, its snapshot the rows of another.
const CHANGES: [[&str; 2]; 11] = [
    [
        "CREATE TRIGGER keep BEFORE DELETE ON l.q FOR EACH ROW EXECUTE FUNCTION l.keep()",
        "DROP TRIGGER keep ON l.q",
    ],
    [
        "CREATE TRIGGER keep BEFORE DELETE ON l.p FOR EACH ROW EXECUTE FUNCTION l.keep()",
        "DROP TRIGGER keep ON l.p",
    ],
    [
        "CREATE TRIGGER keep BEFORE DELETE ON l.counted FOR EACH ROW EXECUTE FUNCTION l.keep()",
        "DROP TRIGGER keep ON l.counted",
    ],
    [
        "CREATE TRIGGER alter BEFORE INSERT OR UPDATE ON l.q_total FOR EACH ROW EXECUTE FUNCTION l.alter()",
        "DROP TRIGGER alter ON l.q_total",
    ],
    [
        "CREATE RULE keep AS ON DELETE TO l.q DO INSTEAD NOTHING",
        "DROP RULE keep ON l.q",
    ],
    [
        "LOCK TABLE l.q; CREATE TABLE l.child () INHERITS (l.q); \
         CREATE TRIGGER keep BEFORE DELETE ON l.child FOR EACH ROW EXECUTE FUNCTION l.keep(); \
         WITH d AS (INSERT INTO l.child VALUES (1, 10), (2, 20) RETURNING k, v) \
         INSERT INTO l.ledger SELECT 'q', k, v, 1 FROM d",
        "LOCK TABLE l.q; DROP TRIGGER keep ON l.child; WITH d AS (DELETE FROM l.child RETURNING k, v) INSERT INTO l.q SELECT * FROM d; \
         DROP TABLE l.child",
    ],
    [
        "ALTER TABLE l.p ADD COLUMN note text DEFAULT 'none'",
        "ALTER TABLE l.p DROP COLUMN note",
    ],
    [
        "CREATE TRIGGER keep BEFORE INSERT ON l.p_rejected FOR EACH ROW EXECUTE FUNCTION l.keep()",
        "DROP TRIGGER keep ON l.p_rejected",
    ],
    ["CREATE INDEX during ON l.q (k)", "DROP INDEX l.during"],
    ["CLUSTER l.q_total USING q_total_pkey", "ANALYZE l.q"],
    ["LOCK TABLE l.p_total; SELECT pg_sleep(0.1)", "ANALYZE l.p"],
];

/// The server, the instances, and what disturbs them.
pub(super) struct Disturbances<'c> {
    server: TestServer,
    config: &'c Config,
    instances: Vec<Daemon>,
}

impl<'c> Disturbances<'c> {
    /// Starts three instances on a server.
    pub(super) fn begin(server: TestServer, config: &'c Config) -> Self {
        let instances = (0..3).map(|_| start(&config.path)).collect();
        Self {
            server,
            config,
            instances,
        }
    }

    /// Disturbs everything for this long, and returns how often. The server stops without goodbye in the middle of
    /// that, and every minute.
    pub(super) async fn go_on_for(&mut self, duration: Duration) -> u64 {
        let begin = Instant::now();
        let mut restart_at = begin + duration.min(Duration::from_secs(60)) / 2;
        let mut db = TestDatabase::at(&self.server.conninfo()).await;
        let mut disturbed = 0;
        while begin.elapsed() < duration {
            if Instant::now() > restart_at {
                restart_at += Duration::from_secs(60);
                self.server.stop_immediately();
                self.server.start_again();
                db = TestDatabase::at(&self.server.conninfo()).await;
            }
            match fastrand::u8(0..10) {
                0..3 => db.execute(END_SESSIONS).await,
                3 => self.kill_one(),
                4 => self.freeze_one().await,
                5 => db.execute(SHORTEN).await,
                _ => change_one(&db).await,
            }
            disturbed += 1;
            tokio::time::sleep(Duration::from_millis(fastrand::u64(10..100))).await;
        }
        disturbed
    }

    fn any(&mut self) -> &mut Daemon {
        let one = fastrand::usize(0..self.instances.len());
        &mut self.instances[one]
    }

    /// Kills an instance, and starts another one in its place.
    fn kill_one(&mut self) {
        let path = self.config.path.clone();
        let one = self.any();
        one.signal(Signal::SIGKILL);
        one.wait();
        *one = start(&path);
    }

    /// Freezes an instance for a moment.
    async fn freeze_one(&mut self) {
        let one = self.any();
        one.signal(Signal::SIGSTOP);
        tokio::time::sleep(Duration::from_millis(fastrand::u64(50..700))).await;
        one.signal(Signal::SIGCONT);
    }

    /// The server and the instances, as they are now.
    pub(super) fn end(self) -> (TestServer, Vec<Daemon>) {
        (self.server, self.instances)
    }
}

/// Changes a table for a while.
async fn change_one(db: &TestDatabase) {
    let [change, end] = CHANGES[fastrand::usize(0..CHANGES.len())];
    patiently(db, change).await;
    tokio::time::sleep(Duration::from_millis(fastrand::u64(50..300))).await;
    patiently(db, end).await;
}

/// Runs statements as one transaction, as soon as it gets its locks: the clients and the folders nearly always hold some.
/// Each attempt waits longer, and has others wait behind it.
async fn patiently(db: &TestDatabase, sql: &str) {
    let waits = Cell::new(300);
    within(Duration::from_secs(60), "the table is changed", || async {
        let sql = format!(
            "BEGIN; SET LOCAL lock_timeout = {}; {sql}; COMMIT",
            waits.get()
        );
        let done = db.client.batch_execute("change a table", &sql).await;
        if done.is_err() {
            db.execute("ROLLBACK").await;
            waits.set(10_000.min(waits.get() * 5 / 4));
        }
        done.is_ok()
    })
    .await;
}
