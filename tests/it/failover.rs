//! The primary freezes without closing a connection, and another server takes its place.

use std::time::{Duration, Instant};

use bgworker::database::{self, ConnInfo, Database};
use bgworker::reload::InForce;
use bgworker::supervision::Limits;
use bgworker::worker_spi::{Settings, Table};
use bgworker::{Postmaster, PostmasterHandle};
use tracing::Level;

use crate::support::database::{TestDatabase, brisk, brisk_on_its_own, register, table};
use crate::support::jobs::{EFFECT, EFFECTS, every, settings_of};
use crate::support::log::Log;
use crate::support::proxy::Proxy;
use crate::support::server::TestServer;
use crate::support::{eventually, machine, within};

const SECOND: Duration = Duration::from_secs(1);

/// Settings of a worker on a table.
type On = fn(&Table) -> Settings;

/// A primary and its standby, and a client of each.
struct Pair {
    on_primary: TestDatabase,
    on_standby: TestDatabase,
    primary: TestServer,
    standby: TestServer,
}

impl Pair {
    async fn start() -> Self {
        let primary = TestServer::start();
        let standby = primary.standby().await;
        Self {
            on_primary: TestDatabase::at(&primary.conninfo()).await,
            on_standby: TestDatabase::at(&standby.conninfo()).await,
            primary,
            standby,
        }
    }

    /// Both servers, with defaults.
    fn both(&self) -> Database {
        self.both_as("postgres")
    }

    fn both_as(&self, user: &str) -> Database {
        let ports = format!("{},{}", self.primary.port, self.standby.port);
        read_write(&format!(
            "host=127.0.0.1,127.0.0.1 port={ports} user={user}"
        ))
    }

    fn postmaster(&self) -> PostmasterHandle {
        Postmaster::launch(Limits::default(), Some(self.both())).unwrap()
    }

    /// Waits until the standby has all that the primary has committed so far.
    async fn caught_up(&self) {
        let lsn: String = (self.on_primary)
            .value("SELECT pg_current_wal_lsn()::text")
            .await;
        let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'");
        eventually("the standby has caught up", || {
            self.on_standby.value::<bool>(&sql)
        })
        .await;
    }

    async fn promote(&self) {
        assert!(self.on_standby.value::<bool>("SELECT pg_promote()").await);
    }
}

/// A server at one of several addresses that accepts writes.
fn read_write(conninfo: &str) -> Database {
    let conninfo = format!("{conninfo} dbname=postgres target_session_attrs=read-write");
    let conninfo = ConnInfo::parse(&conninfo, |_| None).unwrap();
    Database::new(conninfo, database::Settings::default()).unwrap()
}

/// Number of statements like this that run on a server.
async fn running(db: &TestDatabase, like: &str) -> i64 {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid() AND query LIKE '{like}'"
    );
    db.value(&sql).await
}

#[actix::test]
async fn after_a_failover_from_a_frozen_primary_everything_runs_on_the_new_one_soon() {
    let _machine = machine();
    let pair = Pair::start().await;
    pair.on_primary.execute(EFFECTS).await;
    let log = Log::capture();
    let postmaster = pair.postmaster();
    let settings: [(_, On); 2] = [("home", brisk), ("own", brisk_on_its_own)];
    for (name, settings) in settings {
        register(
            &postmaster,
            name,
            settings(&table("s", name)).initial_total(0),
        )
        .await;
    }
    let mut jobs = vec![
        ("often".to_owned(), every("1s", EFFECT)),
        ("long".to_owned(), every("1s", "SELECT pg_sleep(3601)")),
        (
            "outside".to_owned(),
            every("1s", "SELECT pg_sleep(3602)") + "\ntransaction = false\nattempts = 1",
        ),
    ];
    // They run together, and leave a connection each.
    jobs.extend((0..5).map(|n| (format!("rare {n}"), every("3s", "SELECT pg_sleep(0.5)"))));
    let jobs: Vec<_> = (jobs.iter())
        .map(|(name, keys)| (name.clone(), keys.as_str()))
        .collect();
    let settings = settings_of(&pair.on_primary, &jobs);
    let _in_force = InForce::register(settings, postmaster.clone())
        .await
        .unwrap();
    eventually("all run", || async {
        running(&pair.on_primary, "SELECT pg_sleep(360_)").await == 2
            && running(&pair.on_primary, "SELECT pg_sleep(0.5)").await == 5
    })
    .await;
    eventually("five connections are kept", || async {
        running(&pair.on_primary, "SELECT pg_sleep(0.5)").await == 0
    })
    .await;
    pair.caught_up().await;

    let _frozen = pair.primary.freeze();
    pair.promote().await;
    let promoted = Instant::now();
    let since: String = pair
        .on_standby
        .value("SELECT clock_timestamp()::text")
        .await;
    for name in ["home", "own"] {
        let delta = format!("INSERT INTO s.{name} VALUES ('delta', 1)");
        pair.on_standby.execute(&delta).await;
    }
    let ticks = format!("SELECT count(*) FROM effect WHERE tick > '{since}'");
    within(20 * SECOND, "it ticks", || async {
        pair.on_standby.value::<i64>(&ticks).await > 0
    })
    .await;
    println!("ticks {:?} after the promotion", promoted.elapsed());
    within(
        20 * SECOND,
        "the runs are begun again, and the deltas folded",
        || async {
            running(&pair.on_standby, "SELECT pg_sleep(3601)").await == 1
                && running(&pair.on_standby, "SELECT pg_sleep(3602)").await == 1
                && pair.on_standby.rows(&table("s", "home")).await == ["total|1"]
                && pair.on_standby.rows(&table("s", "own")).await == ["total|1"]
        },
    )
    .await;
    println!("all is well {:?} after the promotion", promoted.elapsed());
    let attempts = "SELECT string_agg(DISTINCT j.name, ',') FROM bgworker.job_run AS j \
                    WHERE outcome NOT IN ('done', 'lost')";
    let counted: Option<String> = pair.on_standby.value(attempts).await;
    assert_eq!(
        counted.as_deref(),
        Some("outside"),
        "only it may have done something"
    );
    for name in ["long", "outside"] {
        let line = format!("{name}: lost its run of the tick ");
        let told = log.with(Level::WARN, &line);
        assert_eq!(told.len(), 1, "{name}: {}", log.text());
    }
    assert!(
        !log.with(Level::WARN, "the primary is now").is_empty(),
        "{}",
        log.text()
    );
}

#[actix::test]
async fn an_old_primary_that_comes_back_does_not_take_the_place_of_the_new_one_that_is_full() {
    let _machine = machine();
    for may_ask in [
        "GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC",
        "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC",
    ] {
        an_old_primary_comes_back(may_ask).await;
    }
}

async fn an_old_primary_comes_back(may_ask: &str) {
    let pair = Pair::start().await;
    let grants = "CREATE ROLE app LOGIN; GRANT ALL ON DATABASE postgres TO app";
    pair.on_primary
        .execute(&format!("{grants}; {may_ask}"))
        .await;
    pair.on_primary
        .execute(&format!(
            "{EFFECTS}; GRANT ALL ON effect, effect_id_seq TO app"
        ))
        .await;
    pair.caught_up().await;
    let log = Log::capture();
    let conninfo = pair.both_as("app");
    let postmaster = Postmaster::launch(Limits::default(), Some(conninfo)).unwrap();
    let jobs = [("often".to_owned(), &*every("1s", EFFECT))];
    let settings = settings_of(&pair.on_primary, &jobs);
    let _in_force = InForce::register(settings, postmaster).await.unwrap();
    let ticks = "SELECT count(*) FROM effect";
    eventually("it ticks", || async {
        pair.on_primary.value::<i64>(ticks).await > 0
    })
    .await;
    let frozen = pair.primary.freeze();
    pair.promote().await;
    let before: i64 = pair.on_standby.value(ticks).await;
    eventually("it ticks on the new primary", || async {
        pair.on_standby.value::<i64>(ticks).await > before
    })
    .await;
    // Not fenced, it goes on to accept writes.
    drop(frozen);
    let stale: i64 = pair.on_primary.value(ticks).await;
    pair.on_standby
        .execute("ALTER ROLE app CONNECTION LIMIT 0")
        .await;
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'app'";
    pair.on_standby.value::<i64>(end).await;
    eventually("both have been asked", || async {
        log.text().contains("server is on an older timeline")
    })
    .await;
    pair.on_standby
        .execute("ALTER ROLE app CONNECTION LIMIT -1")
        .await;
    let before: i64 = pair.on_standby.value(ticks).await;
    eventually("it goes on with the new primary", || async {
        pair.on_standby.value::<i64>(ticks).await > before
    })
    .await;
    assert_eq!(pair.on_primary.value::<i64>(ticks).await, stale);
    let moved = log.with(Level::WARN, "the primary is now");
    assert_eq!(moved.len(), 1, "{}", log.text());
}

#[actix::test]
async fn a_primary_that_hangs_for_some_seconds_keeps_its_runs() {
    let pair = Pair::start().await;
    let postmaster = pair.postmaster();
    let keys = every("1s", "SELECT pg_sleep(5)");
    let settings = settings_of(&pair.on_primary, &[("slow".to_owned(), &keys)]);
    let _in_force = InForce::register(settings, postmaster.clone())
        .await
        .unwrap();
    eventually("it runs", || async {
        running(&pair.on_primary, "SELECT pg_sleep(5)").await == 1
    })
    .await;
    let since: String = (pair.on_primary)
        .value(
            "SELECT min(xact_start)::text FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(5)'",
        )
        .await;
    let frozen = pair.primary.freeze();
    tokio::time::sleep(4 * SECOND).await; // a look has found only the standby meanwhile
    drop(frozen);
    let first = format!(
        "SELECT (SELECT max(outcome) FROM bgworker.job_run WHERE started_at <= '{since}'::timestamptz + '1 s'::interval) = 'done'"
    );
    eventually("the run is done", || async {
        pair.on_primary.value::<Option<bool>>(&first).await == Some(true)
    })
    .await;
}

#[actix::test]
async fn a_server_that_is_promoted_while_the_old_primary_still_answers_is_found_by_a_run_that_takes_long()
 {
    let pair = Pair::start().await;
    pair.on_primary.execute(EFFECTS).await;
    let postmaster = pair.postmaster();
    let (often, long) = (every("1s", EFFECT), every("1s", "SELECT pg_sleep(3603)"));
    let jobs = [("often".to_owned(), &*often), ("long".to_owned(), &*long)];
    let settings = settings_of(&pair.on_primary, &jobs);
    let _in_force = InForce::register(settings, postmaster).await.unwrap();
    eventually("both run", || async {
        let has_run = "SELECT EXISTS (SELECT FROM effect)";
        running(&pair.on_primary, "SELECT pg_sleep(3603)").await == 1
            && pair.on_primary.value::<bool>(has_run).await
    })
    .await;
    pair.caught_up().await;
    pair.promote().await;
    // The old one is not fenced, and would go on without end.
    let newer = "SELECT EXISTS (SELECT FROM effect WHERE tick > now() - interval '2 s')";
    within(20 * SECOND, "jobs run on the new primary", || {
        pair.on_standby.value::<bool>(newer)
    })
    .await;
    eventually("the run on the old one is given up", || async {
        running(&pair.on_primary, "SELECT pg_sleep(3603)").await == 0
    })
    .await;
    let last: i64 = pair.on_primary.value("SELECT count(*) FROM effect").await;
    tokio::time::sleep(3 * SECOND).await; // ticks come, and none is run there
    let now: i64 = pair.on_primary.value("SELECT count(*) FROM effect").await;
    assert_eq!(now, last);
}

#[actix::test]
async fn a_connection_that_reaches_the_new_primary_makes_the_others_leave_the_old_one() {
    let pair = Pair::start().await;
    pair.on_primary.execute(EFFECTS).await;
    let proxy = Proxy::to(pair.primary.port);
    let database = read_write(&format!("host=127.0.0.1 port={} user=postgres", proxy.port));
    let postmaster = Postmaster::launch(Limits::default(), Some(database)).unwrap();
    let home = brisk(&table("s", "home")).initial_total(0);
    register(&postmaster, "home", home).await;
    // Each of its runs has a new connection.
    let often = format!("transaction = false\n{}", every("500ms", EFFECT));
    let settings = settings_of(&pair.on_primary, &[("often".to_owned(), &often)]);
    let _in_force = InForce::register(settings, postmaster).await.unwrap();
    eventually("it runs", || async {
        let has_run = "SELECT EXISTS (SELECT FROM effect)";
        pair.on_primary.value::<bool>(has_run).await
    })
    .await;
    pair.caught_up().await;
    pair.promote().await;
    proxy.lead_new_ones_to(pair.standby.port);
    pair.on_standby
        .execute("INSERT INTO s.home VALUES ('delta', 1)")
        .await;
    within(30 * SECOND, "folds are on the new primary", || async {
        let waits = "SELECT count(*) FROM s.home WHERE type = 'delta'";
        pair.on_standby.value::<i64>(waits).await == 0
    })
    .await;
}
