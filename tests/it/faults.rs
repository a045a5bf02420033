//! Faults of servers and of the network to them: what bgworker promises, and how long until workers fold again.

use std::time::{Duration, Instant};

use bgworker::PostmasterHandle;
use bgworker::database::{self, ConnInfo, Database};
use bgworker::supervision::{Limits, Shutdown, WorkerState};
use bgworker::worker_spi::Settings;
use bgworker::{BackgroundWorker, Postmaster, RestartTime, StartTime};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tracing::Level;

use crate::support::database::{
    TestDatabase, TestWorker, brisk, brisk_on_its_own, database as patient, table,
};
use crate::support::log::Log;
use crate::support::proxy::{Fault, Proxy, impostor};
use crate::support::server::{TestServer, conninfo};
use crate::support::{busy, eventually, machine, within};
use bgworker::testing::{Probe, Script};

const SECOND: Duration = Duration::from_secs(1);

/// A database with timeouts of one second, so that tests need not wait a minute.
fn impatient(conninfo: &str) -> Database {
    let settings = database::Settings::default()
        .connect_timeout(SECOND)
        .statement_timeout(SECOND);
    Database::new(ConnInfo::parse(conninfo, |_| None).unwrap(), settings).unwrap()
}

fn postmaster(conninfo: &str) -> PostmasterHandle {
    Postmaster::launch(Limits::default(), Some(impatient(conninfo))).unwrap()
}

/// Registers a worker on `s.NAME`, which has a total of 0 afterwards.
async fn worker(
    db: &TestDatabase,
    postmaster: &PostmasterHandle,
    name: &str,
    settings: fn(&bgworker::worker_spi::Table) -> Settings,
) -> TestWorker {
    let worker = db
        .worker(postmaster, name, settings(&table("s", name)))
        .await;
    db.execute(&format!("INSERT INTO s.{name} VALUES ('total', 0)"))
        .await;
    worker
}

/// A server, a proxy in front of it, a Postmaster that knows only the proxy, and a connection that bypasses it.
async fn behind_a_proxy() -> (TestServer, Proxy, PostmasterHandle, TestDatabase) {
    let server = TestServer::start();
    let proxy = Proxy::to(server.port);
    let postmaster = postmaster(&conninfo(proxy.port));
    let db = TestDatabase::at(&server.conninfo()).await;
    (server, proxy, postmaster, db)
}

/// Inserts a delta of 1 and measures how long it takes until it is folded.
async fn time_to_fold(db: &TestDatabase, name: &str) -> Duration {
    let begin = Instant::now();
    let total = format!("SELECT value::bigint FROM s.{name} WHERE type = 'total'");
    let before: i64 = db.value(&total).await;
    db.execute(&format!("INSERT INTO s.{name} VALUES ('delta', 1)"))
        .await;
    eventually(&format!("{name} is folded"), || async {
        db.value::<i64>(&total).await == before + 1
    })
    .await;
    begin.elapsed()
}

async fn starts(postmaster: &PostmasterHandle, worker: &TestWorker) -> u64 {
    let status = postmaster.worker(worker.id).await.unwrap();
    status.expect("it has ended").starts
}

async fn state(postmaster: &PostmasterHandle, worker: &TestWorker) -> WorkerState {
    let status = postmaster.worker(worker.id).await.unwrap();
    status.expect("it has ended").state
}

// The server.

#[actix::test]
async fn all_workers_fold_again_within_2_s_of_an_immediate_stop_and_start() {
    let _machine = machine();
    let log = Log::capture();
    let mut server = TestServer::start();
    let postmaster = postmaster(&server.conninfo());
    let db = TestDatabase::at(&server.conninfo()).await;
    let home = worker(&db, &postmaster, "home", brisk).await;
    let own = worker(&db, &postmaster, "own", brisk_on_its_own).await;
    drop(db);
    server.stop_immediately();
    within(2 * SECOND, "both are parked", || async {
        postmaster.status().await.unwrap().counts.parked == 2
    })
    .await;
    tokio::time::sleep(10 * SECOND).await; // the outage
    server.start_again();
    let ready = Instant::now();
    let db = TestDatabase::at(&server.conninfo()).await;
    time_to_fold(&db, "home").await;
    time_to_fold(&db, "own").await;
    println!("fold again {:?} after readiness", ready.elapsed());
    assert!(ready.elapsed() < busy(2 * SECOND), "{:?}", ready.elapsed());
    assert_eq!(starts(&postmaster, &home).await, 2);
    assert!(starts(&postmaster, &own).await <= 4);
    let complaints = log.with(Level::WARN, "");
    assert!(complaints.len() < 12, "{complaints:#?}");
}

#[actix::test]
async fn a_demotion_parks_workers_that_write_and_a_promotion_brings_them_back() {
    let primary = TestServer::start();
    let standby = primary.standby().await;
    let proxy = Proxy::to(primary.port);
    let postmaster = postmaster(&conninfo(proxy.port));
    let probe = Probe::new();
    let reader = BackgroundWorker::new("reader")
        .start_time(StartTime::ConsistentState)
        .restart_time(RestartTime::Never);
    let reader = postmaster
        .register(reader, probe.main(Script::NAPS))
        .await
        .unwrap();
    let on_primary = TestDatabase::at(&primary.conninfo()).await;
    let home = worker(&on_primary, &postmaster, "home", brisk).await;
    let own = worker(&on_primary, &postmaster, "own", brisk_on_its_own).await;
    let lsn: String = on_primary.value("SELECT pg_current_wal_lsn()::text").await;
    let on_standby = TestDatabase::at(&standby.conninfo()).await;
    eventually("the standby is there", || async {
        let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'");
        on_standby.value::<bool>(&sql).await
    })
    .await;

    let demoted = Instant::now();
    proxy.lead_to(standby.port);
    within(2 * SECOND, "those that write are parked", || async {
        postmaster.status().await.unwrap().counts.parked == 2
    })
    .await;
    println!("parked {:?} after the demotion", demoted.elapsed());
    let status = postmaster.worker(reader.id()).await.unwrap().unwrap();
    assert_eq!((status.state, status.starts), (WorkerState::Running, 1));

    let promoted = Instant::now();
    assert!(on_standby.value::<bool>("SELECT pg_promote()").await);
    let readable = Instant::now();
    time_to_fold(&on_standby, "home").await;
    time_to_fold(&on_standby, "own").await;
    println!(
        "fold again {:?} after pg_promote began, {:?} after it returned",
        promoted.elapsed(),
        readable.elapsed()
    );
    assert!(
        readable.elapsed() < busy(2 * SECOND),
        "{:?}",
        readable.elapsed()
    );
    for writer in [&home, &own] {
        assert_eq!(state(&postmaster, writer).await, WorkerState::Running);
    }
}

#[actix::test]
async fn a_primary_with_read_only_sessions_is_not_a_standby_and_the_deltas_wait() {
    let primary = TestServer::start();
    let postmaster = postmaster(&primary.conninfo());
    let db = TestDatabase::at(&primary.conninfo()).await;
    let home = worker(&db, &postmaster, "home", brisk).await;
    // As close to a standby as a primary gets: all its sessions are read-only.
    db.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        .await;
    db.execute("SELECT pg_reload_conf()").await;
    db.execute("SET default_transaction_read_only = off").await;
    db.execute("INSERT INTO s.home VALUES ('delta', 1)").await;
    eventually("it is reported", || async {
        let status = postmaster.worker(home.id).await.unwrap().unwrap();
        let error = status.report.last_error;
        error.is_some_and(|error| error.contains("25006"))
    })
    .await;
    db.execute("ALTER SYSTEM RESET default_transaction_read_only")
        .await;
    db.execute("SELECT pg_reload_conf()").await;
    db.wait_for_rows(&table("s", "home"), &["total|1"]).await;
    assert_eq!(starts(&postmaster, &home).await, 1, "it is no standby");
}

#[actix::test]
async fn a_frozen_backend_is_given_up_within_the_deadline_and_nothing_is_lost() {
    let log = Log::capture();
    let server = TestServer::start();
    let postmaster = postmaster(&server.conninfo());
    let db = TestDatabase::at(&server.conninfo()).await;
    worker(&db, &postmaster, "home", brisk).await;
    let backend = "SELECT pid FROM pg_stat_activity WHERE application_name = 'bgworker' \
                   AND query LIKE '%bgworker: home %'";
    let pid = Pid::from_raw(db.value::<i32>(backend).await);
    kill(pid, Signal::SIGSTOP).unwrap();
    let begin = Instant::now();
    within(6 * SECOND, "its connection is given up", || async {
        !log.with(Level::WARN, "home connection was lost").is_empty()
    })
    .await;
    kill(pid, Signal::SIGCONT).unwrap();
    let took = time_to_fold(&db, "home").await;
    println!(
        "folded {took:?} after the backend went on, {:?} after it froze",
        begin.elapsed()
    );
    assert!(took < 2 * SECOND, "{took:?}");
}

#[actix::test]
async fn max_connections_reached_is_waited_out() {
    let _machine = machine();
    let server = TestServer::start_with(&[
        ("max_connections", "12"),
        ("superuser_reserved_connections", "2"),
    ]);
    let db = TestDatabase::at(&server.conninfo()).await;
    db.execute("CREATE ROLE app LOGIN; GRANT ALL ON DATABASE postgres TO app")
        .await;
    let app = server.conninfo().replace("user=postgres", "user=app");
    let crowd: Vec<_> = {
        let mut crowd = Vec::new();
        while let Ok(connection) = patient(&app).connect("crowd", None).await {
            crowd.push(connection);
        }
        crowd
    };
    assert!(crowd.len() > 5, "{}", crowd.len());
    let postmaster = postmaster(&app);
    let mut settings = brisk(&table("s", "t"));
    settings.initial_total = Some(0);
    let (_sender, receiver) = tokio::sync::watch::channel(settings);
    let worker = BackgroundWorker::new("w").restart_time(RestartTime::Never);
    let worker = postmaster
        .register(worker, bgworker::worker_spi::main(receiver))
        .await
        .unwrap();
    tokio::time::sleep(3 * SECOND).await; // a few attempts
    assert!(worker.ended().is_none(), "not the worker's fault");
    drop(crowd);
    within(2 * SECOND, "it folds", || async {
        let status = postmaster.worker(worker.id()).await.unwrap().unwrap();
        status.report.cycles > 0
    })
    .await;
}

#[actix::test]
async fn a_permanent_refusal_by_the_server_fails_the_worker_and_says_why() {
    let server = TestServer::start();
    let db = TestDatabase::at(&server.conninfo()).await;
    db.execute("CREATE ROLE nobody NOLOGIN").await;
    db.execute("CREATE DATABASE closed").await;
    db.execute("ALTER DATABASE closed ALLOW_CONNECTIONS false")
        .await;
    let nobody = server.conninfo().replace("user=postgres", "user=nobody");
    let closed = server
        .conninfo()
        .replace("dbname=postgres", "dbname=closed");
    for (conninfo, sqlstate, text) in [
        (&nobody, "28000", "not permitted to log in"),
        (&closed, "55000", "not currently accepting connections"),
    ] {
        for settings in [brisk, brisk_on_its_own] {
            let postmaster = postmaster(conninfo);
            let (_sender, receiver) = tokio::sync::watch::channel(settings(&table("s", "t")));
            let worker = BackgroundWorker::new("w").restart_time(RestartTime::Never);
            let worker = postmaster
                .register(worker, bgworker::worker_spi::main(receiver))
                .await
                .unwrap();
            let ended = worker.stopped().await.unwrap();
            let reason = ended.reason.unwrap();
            assert!(
                reason.contains(sqlstate) && reason.contains(text),
                "{reason}"
            );
        }
    }
}

#[actix::test]
async fn a_wrong_database_is_tried_once_for_each_restart_time_and_harms_no_neighbour() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    let postmaster = db.postmaster();
    let mut good = brisk(&table("s", "good"));
    good.naptime = SECOND / 20;
    let good = db.worker(&postmaster, "good", good).await;
    for settings in [brisk, brisk_on_its_own] {
        let mut settings = settings(&table("s", "lost"));
        settings.database = Some("nowhere".to_owned());
        let name = format!("lost {:?}", settings.connection);
        let (_sender, receiver) = tokio::sync::watch::channel(settings);
        let worker = BackgroundWorker::new(name).restart_time(RestartTime::After(SECOND));
        let main = bgworker::worker_spi::main(receiver);
        let worker = postmaster.register(worker, main).await.unwrap();
        let cycles = async || {
            let status = postmaster.worker(good.id).await.unwrap().unwrap();
            status.report.cycles
        };
        let before = cycles().await;
        tokio::time::sleep(4 * SECOND).await; // four restart times
        let done = cycles().await - before;
        assert!(
            (40..=82).contains(&done),
            "{done} cycles of the good one, 50 ms apart"
        );
        let status = postmaster.worker(worker.id()).await.unwrap().unwrap();
        assert!((3..=5).contains(&status.starts), "{} starts", status.starts);
        assert!(status.reason.unwrap().contains("3D000"));
        worker.terminate();
        worker.stopped().await.unwrap();
    }
    assert!(!log.with(Level::WARN, "exited").is_empty());
}

#[actix::test]
async fn a_role_that_may_not_log_in_for_a_while_ends_no_worker_at_home() {
    let log = Log::capture();
    let server = TestServer::start();
    let db = TestDatabase::at(&server.conninfo()).await;
    db.execute("CREATE ROLE app LOGIN SUPERUSER").await;
    let postmaster = postmaster(&server.conninfo().replace("user=postgres", "user=app"));
    let home = worker(&db, &postmaster, "home", brisk).await;
    db.execute("ALTER ROLE app NOLOGIN").await;
    db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'")
        .await;
    eventually("it is refused, and says so once", || async {
        !log.with(Level::ERROR, "not permitted to log in").is_empty()
    })
    .await;
    db.execute("ALTER ROLE app LOGIN").await;
    time_to_fold(&db, "home").await;
    assert_eq!(starts(&postmaster, &home).await, 1);
    let refusals = log.with(Level::ERROR, "not permitted to log in");
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    assert_eq!(
        refusals[0].matches("not permitted").count(),
        1,
        "{refusals:?}"
    );
}

// The network.

#[actix::test]
async fn a_server_that_falls_silent_is_given_up_and_found_again_when_it_speaks() {
    let (_server, proxy, postmaster, db) = behind_a_proxy().await;
    let home = worker(&db, &postmaster, "home", brisk).await;
    let own = worker(&db, &postmaster, "own", brisk_on_its_own).await;
    proxy.set(Some(Fault::Silence));
    // The deadline of the statement, the attempt to cancel it, and the grace; then the deadline of the probe.
    let begin = Instant::now();
    within(8 * SECOND, "both are parked", || async {
        postmaster.status().await.unwrap().counts.parked == 2
    })
    .await;
    println!("parked {:?} after the silence began", begin.elapsed());
    proxy.set(None);
    let begin = Instant::now();
    time_to_fold(&db, "home").await;
    time_to_fold(&db, "own").await;
    println!("fold again {:?} after it ended", begin.elapsed());
    assert!(begin.elapsed() < busy(3 * SECOND), "{:?}", begin.elapsed());
    for worker in [home, own] {
        assert_eq!(state(&postmaster, &worker).await, WorkerState::Running);
    }
}

#[actix::test]
async fn a_connection_that_is_cut_is_made_again_at_once() {
    let (_server, proxy, postmaster, db) = behind_a_proxy().await;
    worker(&db, &postmaster, "home", brisk).await;
    worker(&db, &postmaster, "own", brisk_on_its_own).await;
    for _ in 0..3 {
        proxy.cut();
        let took = time_to_fold(&db, "home").await;
        let too = time_to_fold(&db, "own").await;
        println!("fold again {took:?} (home) and {too:?} (own) after the cut");
        assert!(took < busy(SECOND) && too < busy(SECOND));
    }
}

#[actix::test]
async fn a_server_that_stops_in_the_middle_of_a_row_or_talks_nonsense_is_given_up() {
    let (_server, proxy, postmaster, db) = behind_a_proxy().await;
    worker(&db, &postmaster, "home", brisk).await;
    for fault in [Fault::SilenceAfter(30), Fault::Garbage] {
        proxy.set(Some(fault));
        tokio::time::sleep(4 * SECOND).await; // every deadline passes
        proxy.set(None);
        let took = time_to_fold(&db, "home").await;
        println!("folded {took:?} after {fault:?} ended");
        assert!(took < 3 * SECOND, "{fault:?}: {took:?}");
    }
}

#[actix::test]
async fn each_kind_of_impostor_is_found_out_within_the_deadline() {
    // The error of severity FATAL that a server sends while it starts up.
    const STARTING_UP: &[u8] = b"E\x00\x00\x00\x3eSFATAL\0VFATAL\0C57P03\0\
                                 Mthe database system is starting up\0\0";
    for (says, waits, expected) in [
        (&b""[..], 60 * SECOND, "within 1s"),
        (b"", Duration::ZERO, "could not connect"),
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            60 * SECOND,
            "could not connect",
        ),
        (STARTING_UP, Duration::ZERO, "57P03"),
    ] {
        let port = impostor(says, waits);
        let database = impatient(&format!("{} sslmode=disable", conninfo(port)));
        let begin = Instant::now();
        let error = database.connect("test", None).await.unwrap_err();
        assert!(
            begin.elapsed() < busy(2 * SECOND),
            "{error}: {:?}",
            begin.elapsed()
        );
        assert!(error.to_string().contains(expected), "{says:?}: {error}");
    }
}

#[actix::test]
async fn a_stop_while_the_server_is_silent_is_quick_and_clean() {
    let (_server, proxy, postmaster, db) = behind_a_proxy().await;
    worker(&db, &postmaster, "home", brisk).await;
    worker(&db, &postmaster, "own", brisk_on_its_own).await;
    proxy.set(Some(Fault::Silence));
    tokio::time::sleep(SECOND / 10).await; // so that both wait for an answer
    let begin = Instant::now();
    postmaster.shut_down(Shutdown::Fast);
    let exit = postmaster.exited().await.unwrap();
    println!("exited {:?} after a fast shutdown", begin.elapsed());
    assert!(begin.elapsed() < busy(6 * SECOND), "{:?}", begin.elapsed());
    assert_eq!(exit.aborted, [] as [std::sync::Arc<str>; 0]);
}

// Everything at once.

#[actix::test]
async fn a_thousand_workers_lose_nothing_when_the_server_is_restarted_under_load() {
    let _machine = machine();
    const WORKERS: usize = 1_000;
    let mut server = TestServer::start_with(&[("max_connections", "50")]);
    let postmaster = postmaster(&server.conninfo());
    let mut workers = Vec::new();
    for n in 0..WORKERS {
        let mut settings = brisk(&table("s", &format!("t{n}")));
        settings.naptime = SECOND / 2;
        settings.initial_total = Some(0);
        let name = format!("w{n}");
        workers.push(crate::support::database::register(&postmaster, &name, settings).await);
    }
    let all_work = |more: u64, before: Vec<u64>| {
        let postmaster = postmaster.clone();
        async move {
            let now = postmaster.workers().await.unwrap().registered;
            now.len() == WORKERS
                && std::iter::zip(now, before)
                    .all(|(now, before)| now.report.cycles >= before + more)
        }
    };
    let cycles = || async {
        let workers = postmaster.workers().await.unwrap().registered;
        workers
            .iter()
            .map(|worker| worker.report.cycles)
            .collect::<Vec<_>>()
    };
    eventually("all work", || all_work(1, vec![0; WORKERS])).await;

    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut inserting = Vec::new();
    for client in 0..4 {
        let (conninfo, stop) = (server.conninfo(), std::sync::Arc::clone(&stop));
        inserting.push(actix_rt::spawn(insert(conninfo, client, WORKERS, stop)));
    }
    tokio::time::sleep(2 * SECOND).await; // under load
    server.stop_immediately();
    within(3 * SECOND, "all are parked", || async {
        postmaster.status().await.unwrap().counts.parked == WORKERS
    })
    .await;
    server.start_again();
    let ready = Instant::now();
    let before = cycles().await;
    within(6 * SECOND, "all fold again", || all_work(1, before.clone())).await;
    println!(
        "1,000 workers fold again {:?} after readiness",
        ready.elapsed()
    );
    tokio::time::sleep(SECOND).await; // more load
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut sure = vec![0; WORKERS];
    let mut unsure = vec![0; WORKERS];
    for client in inserting {
        let (acknowledged, unknown) = client.await.unwrap();
        for n in 0..WORKERS {
            sure[n] += acknowledged[n];
            unsure[n] += unknown[n];
        }
    }
    let db = TestDatabase::at(&server.conninfo()).await;
    let homes = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'bgworker'";
    assert!(db.value::<i64>(homes).await <= 9, "eight, and the probe");
    for n in 0..WORKERS {
        let sum = db.sum(&table("s", &format!("t{n}"))).await;
        // An insert that was under way at the crash may or may not have been committed.
        assert!(
            (sure[n]..=sure[n] + unsure[n]).contains(&sum),
            "t{n}: {sum} of {}",
            sure[n]
        );
    }
    println!("{} inserts, all there", sure.iter().sum::<i64>());
    let status = postmaster.status().await.unwrap();
    assert_eq!(status.counts.running, WORKERS);
}

/// Inserts ones into each table in turn. Returns, for each table, how many inserts were acknowledged and how many
/// more may have been committed.
async fn insert(
    conninfo: String,
    client: usize,
    tables: usize,
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
) -> (Vec<i64>, Vec<i64>) {
    let (mut sure, mut unsure) = (vec![0; tables], vec![0; tables]);
    let mut n = client * 250;
    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
        let Ok(connection) = impatient(&conninfo).connect("client", None).await else {
            tokio::time::sleep(SECOND / 20).await;
            continue;
        };
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            n = (n + 1) % tables;
            let sql = format!("INSERT INTO s.t{n} VALUES ('delta', 1)");
            match connection.batch_execute("insert", &sql).await {
                Ok(()) => sure[n] += 1,
                Err(_) => {
                    unsure[n] += 1;
                    break;
                }
            }
        }
    }
    (sure, unsure)
}
