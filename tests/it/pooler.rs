//! Behind a pooler that may assign another session to each transaction.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bgworker::Postmaster;
use bgworker::database::{self, ConnInfo, Database, ServerState};
use bgworker::supervision::{Limits, Shutdown};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tracing::Level;

use crate::support::database::{TestDatabase, brisk, brisk_on_its_own, register, table};
use crate::support::files::{give_to_the_server, reachable_directory};
use crate::support::jobs::{EFFECT, EFFECTS, Instance, every, runs};
use crate::support::log::Log;
use crate::support::proxy::free_port;
use crate::support::server::{TestServer, conninfo};
use crate::support::{eventually, within};

const SECOND: Duration = Duration::from_secs(1);

/// PgBouncer in transaction mode, with two sessions for all clients. It is killed on drop.
struct Pooler {
    port: u16,
    child: Child,
    /// All of its configuration but where it leads to.
    configuration: String,
    directory: tempfile::TempDir,
}

impl Pooler {
    fn before(server: &TestServer) -> Self {
        Self::with(server, "")
    }

    /// Starts a pooler with further settings.
    fn with(server: &TestServer, settings: &str) -> Self {
        let directory = reachable_directory();
        give_to_the_server(directory.path());
        let port = free_port();
        let ini = directory.path().join("pgbouncer.ini");
        let users = directory.path().join("users");
        fs::write(&users, "\"postgres\" \"\"\n").unwrap();
        let configuration = format!(
            "[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\n\
             auth_file = {}\npool_mode = transaction\ndefault_pool_size = 2\nunix_socket_dir =\n{settings}\n",
            users.display(),
        );
        fs::write(&ini, format!("{configuration}{}", leading_to(server))).unwrap();
        let mut command = Command::new("pgbouncer");
        command.arg(&ini).stderr(Stdio::null());
        // PgBouncer refuses to run as root.
        let user = nix::unistd::User::from_name("postgres").unwrap();
        if let (true, Some(user)) = (nix::unistd::Uid::effective().is_root(), user) {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        let child = command.spawn().unwrap_or_else(|error| {
            panic!("this test needs PgBouncer (apt-get install pgbouncer): {error}")
        });
        Self {
            port,
            child,
            configuration,
            directory,
        }
    }

    /// Leads to another server from now on. Clients keep their connections.
    fn lead_to(&self, server: &TestServer) {
        let ini = self.directory.path().join("pgbouncer.ini");
        let configuration = &self.configuration;
        fs::write(&ini, format!("{configuration}{}", leading_to(server))).unwrap();
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGHUP).unwrap();
    }
}

fn leading_to(server: &TestServer) -> String {
    let port = server.port;
    format!("[databases]\npostgres = host=127.0.0.1 port={port} user=postgres\n")
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn through(pooler: &Pooler, prepare: bool) -> Database {
    let conninfo = ConnInfo::parse(&conninfo(pooler.port), |_| None).unwrap();
    let settings = database::Settings::default().prepare(prepare);
    Database::new(conninfo, settings).unwrap()
}

#[actix::test]
async fn without_preparing_workers_fold_through_a_transaction_pooler() {
    let server = TestServer::start();
    let pooler = Pooler::before(&server);
    let db = TestDatabase::at(&server.conninfo()).await;
    let postmaster = Postmaster::launch(Limits::default(), Some(through(&pooler, false))).unwrap();
    for n in 0..10 {
        let counted = table("s", &format!("t{n}"));
        let settings = if n % 2 == 0 {
            brisk(&counted)
        } else {
            brisk_on_its_own(&counted)
        };
        db.worker(&postmaster, &format!("w{n}"), settings).await;
    }
    for round in 1..=5 {
        for n in 0..10 {
            let total = if round == 1 { "('total', 0), " } else { "" };
            db.execute(&format!("INSERT INTO s.t{n} VALUES {total}('delta', 1)"))
                .await;
        }
        for n in 0..10 {
            let counted = table("s", &format!("t{n}"));
            db.wait_for_rows(&counted, &[&format!("total|{round}")])
                .await;
        }
    }
    postmaster.shut_down(Shutdown::Smart);
    postmaster.exited().await.unwrap();
}

#[actix::test]
async fn a_job_leaves_nothing_in_a_session_that_the_pooler_hands_on() {
    let server = TestServer::start();
    let pooler = Pooler::before(&server);
    let db = TestDatabase::at(&server.conninfo()).await;
    db.execute(EFFECTS).await;
    let sets = format!(
        "{EFFECT};\nSET search_path = pg_temp; SET ROLE pg_monitor; SELECT pg_advisory_lock(1); PREPARE p1 AS SELECT 1"
    );
    let keys = every("1s", &sets);
    let instances = [
        Instance::on(through(&pooler, false), &db, &keys).await,
        Instance::on(through(&pooler, false), &db, &keys).await,
    ];
    let client = through(&pooler, false)
        .connect("other", None)
        .await
        .unwrap();
    within(20 * SECOND, "three ticks are done", || async {
        let sql = "SELECT current_setting('search_path') || current_setting('role') || \
                   (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()) || \
                   (SELECT count(*) FROM pg_prepared_statements WHERE from_sql)";
        let rows = client.query("look at the session", sql, &[]).await.unwrap();
        assert_eq!(rows[0].get::<_, &str>(0), "\"$user\", publicnone00");
        db.value::<i64>("SELECT count(*) FROM effect").await >= 3
    })
    .await;
    for instance in instances {
        instance.stop(Shutdown::Smart).await;
    }
    let twice = "SELECT count(*) - count(DISTINCT tick) FROM effect";
    assert_eq!(db.value::<i64>(twice).await, 0);
    assert_eq!(runs(&db, "outcome <> 'done'").await, 0);
}

#[actix::test]
async fn a_run_that_takes_longer_than_the_pooler_allows_is_an_attempt() {
    let server = TestServer::start();
    let pooler = Pooler::with(&server, "query_timeout = 1");
    let db = TestDatabase::at(&server.conninfo()).await;
    let keys = format!("attempts = 1\n{}", every("1s", "SELECT pg_sleep(3)"));
    let instance = Instance::on(through(&pooler, false), &db, &keys).await;
    within(60 * SECOND, "it is given up", || async {
        runs(&db, "outcome = 'given up'").await > 0
    })
    .await;
    instance.stop(Shutdown::Fast).await;
    let message: String = db
        .value("SELECT message FROM bgworker.job_run LIMIT 1")
        .await;
    assert!(message.contains("query timeout"), "{message}");
}

#[actix::test]
async fn a_cancellation_over_a_silent_server_ends_no_pooler() {
    let server = TestServer::start();
    let mut pooler = Pooler::before(&server);
    let db = TestDatabase::at(&server.conninfo()).await;
    let plain = through(&pooler, false);
    eventually("the pooler listens", async || {
        plain.connect("test", None).await.is_ok()
    })
    .await;
    let connection = plain.connect("test", None).await.unwrap();
    let cancelled = async {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        eventually("it sleeps", async || db.value::<i64>(sql).await == 1).await;
        let frozen = server.freeze();
        connection.cancel_token().cancel().await;
        drop(frozen);
    };
    let sleeping = connection.query("sleep", "SELECT pg_sleep(30)", &[]);
    let (slept, ()) = tokio::join!(sleeping, cancelled);
    assert_eq!(slept.unwrap_err().sqlstate(), Some("57014"));
    assert_eq!(pooler.child.try_wait().unwrap(), None);
}

#[actix::test]
async fn a_job_that_a_pooler_leads_to_a_standby_waits_for_the_primary_and_goes_on_with_it() {
    let log = Log::capture();
    let primary = TestServer::start();
    let standby = primary.standby().await;
    let pooler = Pooler::before(&primary);
    let db = TestDatabase::at(&primary.conninfo()).await;
    db.execute(EFFECTS).await;
    let instance = Instance::on(through(&pooler, false), &db, &every("1s", EFFECT)).await;
    let ticks = async || db.value::<i64>("SELECT count(*) FROM effect").await;
    eventually("it ticks", async || ticks().await > 0).await;
    pooler.lead_to(&standby);
    eventually("there is no primary", async || {
        !log.with(Level::WARN, "no host is the primary").is_empty()
    })
    .await;
    let reason = instance
        .postmaster
        .status()
        .await
        .unwrap()
        .server
        .unwrap()
        .reason;
    assert!(reason.unwrap().contains("server is in hot standby mode"));
    let before = ticks().await;
    pooler.lead_to(&primary);
    within(20 * SECOND, "it ticks again", async || {
        ticks().await > before
    })
    .await;
    let mistakes = log.with(Level::ERROR, "");
    assert!(mistakes.is_empty(), "{mistakes:?}");
    instance.stop(Shutdown::Smart).await;
}

#[actix::test]
async fn with_preparing_a_pooler_refuses_the_session_and_the_error_says_what() {
    let server = TestServer::start();
    let pooler = Pooler::before(&server);
    let plain = through(&pooler, false);
    within(10 * SECOND, "the pooler listens", || async {
        plain.connect("test", None).await.is_ok()
    })
    .await;
    let error = through(&pooler, true)
        .connect("test", None)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("unsupported startup parameter"),
        "{error}"
    );
}

#[actix::test]
async fn a_full_pooler_does_not_count_as_server_away() {
    let server = TestServer::start();
    let pooler = Pooler::with(&server, "max_client_conn = 3");
    let plain = through(&pooler, false);
    let crowd = std::cell::RefCell::new(Vec::new());
    within(10 * SECOND, "the pooler is full", || async {
        match plain.connect("test", None).await {
            Ok(connection) => crowd.borrow_mut().push(connection),
            Err(error) if error.is_full() => return true,
            Err(_) => {}
        }
        false
    })
    .await;
    let (state, error) = plain.server_state().await;
    assert_eq!(state, ServerState::Unknown);
    assert!(
        error
            .unwrap()
            .to_string()
            .contains("no more connections allowed")
    );
    let db = TestDatabase::at(&server.conninfo()).await;
    let postmaster = Postmaster::launch(Limits::default(), Some(plain)).unwrap();
    for settings in [brisk, brisk_on_its_own] {
        let name = format!("t{}", crowd.borrow().len());
        let worker = register(
            &postmaster,
            &name,
            settings(&table("s", &name)).initial_total(0),
        )
        .await;
        within(10 * SECOND, "it waits", || async {
            let status = postmaster.worker(worker.id).await.unwrap().unwrap();
            let error = status.report.last_error;
            error.is_some_and(|error| error.contains("no more connections allowed"))
        })
        .await;
        let connection = crowd.borrow_mut().pop().unwrap();
        connection.close().await;
        within(10 * SECOND, "it folds", || async {
            let status = postmaster.worker(worker.id).await.unwrap().unwrap();
            status.report.cycles > 0
        })
        .await;
        let status = postmaster.worker(worker.id).await.unwrap().unwrap();
        assert_eq!(status.starts, 1);
    }
    drop(db);
}

#[actix::test]
async fn a_poolers_error_for_an_unknown_database_is_a_refusal() {
    let server = TestServer::start();
    let pooler = Pooler::before(&server);
    let plain = through(&pooler, false);
    within(10 * SECOND, "the pooler listens", || async {
        plain.connect("test", None).await.is_ok()
    })
    .await;
    let unknown = plain.connect("test", Some("nowhere")).await.unwrap_err();
    assert!(!unknown.is_away() && !unknown.is_full(), "{unknown}");
}

#[actix::test]
async fn a_server_that_is_lost_behind_the_pooler_costs_a_run_no_attempt() {
    let mut server = TestServer::start();
    let pooler = Pooler::before(&server);
    let db = TestDatabase::at(&server.conninfo()).await;
    // The second run need not sleep.
    let sleeps = "SELECT pg_sleep(CASE WHEN count(*) = 0 THEN 60 ELSE 0 END) FROM bgworker.job_run";
    let keys = format!("attempts = 1\n{}", every("1s", sleeps));
    let instance = Instance::on(through(&pooler, false), &db, &keys).await;
    let runs_now = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep')";
    eventually("it runs", async || db.value::<bool>(runs_now).await).await;
    server.stop_immediately();
    server.start_again();
    let db = TestDatabase::at(&server.conninfo()).await;
    eventually("a run is done", async || {
        runs(&db, "outcome = 'done'").await > 0
    })
    .await;
    instance.stop(Shutdown::Smart).await;
    let first = "SELECT concat_ws(' ', outcome, attempt, message) FROM bgworker.job_run ORDER BY run LIMIT 1";
    let first: String = db.value(first).await;
    assert!(first.starts_with("lost 1 "), "{first}");
}
