//! Home connections: many workers share a few, and no worker is harmed by its neighbours.

use std::time::{Duration, Instant};

use bgworker::BackgroundWorker;
use bgworker::database::{self, ConnInfo, Database};
use bgworker::supervision::{Limits, Shutdown};
use bgworker::worker_spi::ROWS_FOLDED;
use bgworker::{Postmaster, WorkerContext};
use tracing::Level;

use crate::support::database::{TestDatabase, TestWorker, brisk, brisk_on_its_own, table};
use crate::support::log::Log;
use crate::support::stage::Stage;
use crate::support::{busy, eventually, within};

const SECOND: Duration = Duration::from_secs(1);

/// The backends of this database that are home connections.
const HOMES: &str = "SELECT count(*) FROM pg_stat_activity \
                     WHERE datname = current_database() AND application_name = 'bgworker'";

fn with_connections(conninfo: &str, connections: usize) -> Database {
    let settings = database::Settings::default().connections(connections);
    Database::new(ConnInfo::parse(conninfo, |_| None).unwrap(), settings).unwrap()
}

#[actix::test]
async fn a_hundred_workers_share_eight_connections_and_all_fold() {
    let db = TestDatabase::new().await;
    let postmaster = db.postmaster();
    for n in 0..100 {
        let counted = table("s", &format!("t{n}"));
        db.worker(&postmaster, &format!("w{n}"), brisk(&counted))
            .await;
    }
    for n in 0..100 {
        let sql = format!("INSERT INTO s.t{n} VALUES ('total', 0), ('delta', {n}), ('delta', 1)");
        db.execute(&sql).await;
    }
    for n in 0..100 {
        let counted = table("s", &format!("t{n}"));
        db.wait_for_rows(&counted, &[&format!("total|{}", n + 1)])
            .await;
    }
    assert_eq!(db.value::<i64>(HOMES).await, 8);
    postmaster.shut_down(Shutdown::Smart);
    postmaster.exited().await.unwrap();
    within(SECOND, "no connection is left", || async {
        db.value::<i64>(HOMES).await == 0
    })
    .await;
}

#[actix::test]
async fn a_statement_that_fails_harms_no_neighbour() {
    let db = TestDatabase::new().await;
    let database = with_connections(db.conninfo(), 1);
    let homes: Vec<_> = (0..3).map(|slot| database.home(slot, None)).collect();
    let one = homes[0].statement("SELECT 1").unwrap();
    let wrong = homes[1].statement("SELECT 1 / 0").unwrap();
    let three = homes[2].statement("SELECT 3").unwrap();
    for _ in 0..10 {
        let (first, second, third) = tokio::join!(
            homes[0].run("first", &one),
            homes[1].run("second", &wrong),
            homes[2].run("third", &three),
        );
        assert_eq!(first.unwrap()[0].get::<_, i32>(0), 1);
        assert_eq!(second.unwrap_err().sqlstate(), Some("22012"));
        assert_eq!(third.unwrap()[0].get::<_, i32>(0), 3);
    }
    assert_eq!(db.value::<i64>(HOMES).await, 1);
}

#[actix::test]
async fn statements_that_could_affect_the_session_of_neighbours_are_refused() {
    let db = TestDatabase::new().await;
    let home = db.database.home(0, None);
    for sql in [
        "BEGIN",
        "/* a comment */ /* and another */ set lock_timeout = 0",
        "COPY t FROM STDIN",
        "LISTEN x",
        "DO 'BEGIN END'",
        "",
        "/* unended SELECT",
    ] {
        let error = home.statement(sql).unwrap_err();
        assert!(
            error.to_string().contains("connection of the worker's own"),
            "{sql}"
        );
    }
    home.statement("/* bgworker: w */ SELECT 1").unwrap();
}

#[actix::test]
async fn a_lock_that_one_worker_waits_for_delays_its_neighbour_by_the_lock_timeout_at_most() {
    let db = TestDatabase::new().await;
    let database = with_connections(db.conninfo(), 1);
    let postmaster = Postmaster::launch(Limits::default(), Some(database)).unwrap();
    let (blocked, free) = (table("s", "blocked"), table("s", "free"));
    let mut long = brisk(&blocked);
    long.naptime = Duration::from_secs(86_400);
    let waiting = db.worker(&postmaster, "blocked", long).await;
    let neighbour = db.worker(&postmaster, "free", brisk(&free)).await;
    eventually("it naps", || async {
        let status = postmaster.worker(waiting.id).await.unwrap().unwrap();
        status.report.napping && status.report.cycles == 1
    })
    .await;
    db.execute(
        "INSERT INTO s.blocked VALUES ('total', 0), ('delta', 7); \
         INSERT INTO s.free VALUES ('total', 0)",
    )
    .await;
    let holder = db.connect_plainly().await;
    holder
        .batch_execute("BEGIN; SELECT FROM s.blocked WHERE type = 'delta' FOR UPDATE")
        .await
        .unwrap();
    (waiting.settings).send_modify(|settings| settings.naptime = Duration::from_millis(10));
    postmaster.sighup();
    let mut longest = Duration::ZERO;
    for n in 1..=20 {
        let begin = Instant::now();
        db.execute("INSERT INTO s.free VALUES ('delta', 1)").await;
        within(SECOND, "the neighbour folds", || async {
            db.rows(&free).await == [format!("total|{n}")]
        })
        .await;
        longest = longest.max(begin.elapsed());
    }
    println!("a neighbour's fold took {longest:?} at most");
    // The lock timeout of 100 ms, the fold and the insert; other tests run at the same time.
    assert!(longest < Duration::from_millis(800), "{longest:?}");
    let status = postmaster.worker(waiting.id).await.unwrap().unwrap();
    assert!(status.report.consecutive_failures > 0);
    holder.batch_execute("COMMIT").await.unwrap();
    db.wait_for_rows(&blocked, &["total|7"]).await;
    for worker in [waiting, neighbour] {
        let status = postmaster.worker(worker.id).await.unwrap().unwrap();
        assert_eq!(status.starts, 1, "a lock is no failure of the worker");
    }
}

#[actix::test]
async fn a_terminated_home_connection_is_replaced_at_once_and_no_worker_is_restarted() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    let postmaster = db.postmaster();
    let mut workers = Vec::new();
    for n in 0..20 {
        let counted = table("s", &format!("t{n}"));
        workers.push(
            db.worker(&postmaster, &format!("w{n}"), brisk(&counted))
                .await,
        );
        db.execute(&format!("INSERT INTO s.t{n} VALUES ('total', 0)"))
            .await;
    }
    let home = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'bgworker'";
    let mut shortest = Duration::MAX;
    for round in 1..=3 {
        // Each connection is replaced when a worker next needs it: the totals can be there before the last one is.
        eventually("eight home connections", async || {
            db.value::<i64>(&format!("SELECT count(*) {home}")).await == 8
        })
        .await;
        let killed: i64 = db
            .value(&format!("SELECT count(pg_terminate_backend(pid)) {home}"))
            .await;
        assert_eq!(killed, 8);
        let begin = Instant::now();
        for n in 0..20 {
            db.execute(&format!("INSERT INTO s.t{n} VALUES ('delta', 1)"))
                .await;
        }
        for n in 0..20 {
            db.wait_for_rows(&table("s", &format!("t{n}")), &[&format!("total|{round}")])
                .await;
        }
        shortest = shortest.min(begin.elapsed());
    }
    // A wait before each reconnection would show in each round, another test only in some.
    assert!(shortest < busy(SECOND), "{shortest:?}");
    for worker in workers {
        let status = postmaster.worker(worker.id).await.unwrap().unwrap();
        assert_eq!(status.starts, 1);
    }
    let lost = log.with(Level::WARN, "home connection was lost");
    assert!((1..=24).contains(&lost.len()), "one for each: {lost:?}");
    assert_eq!(
        log.with(Level::WARN, "").len(),
        lost.len(),
        "{}",
        log.text()
    );
}

#[actix::test]
async fn a_workers_prepared_statements_are_gone_when_it_has_ended() {
    let db = TestDatabase::new().await;
    let database = with_connections(db.conninfo(), 1);
    let postmaster = Postmaster::launch(Limits::default(), Some(database.clone())).unwrap();
    let home = database.home(0, None);
    // One statement may look for several workers.
    let count = "SELECT count(*) FROM generate_series(0, 9) AS n WHERE EXISTS \
                 (SELECT FROM pg_prepared_statements WHERE statement ~ format('^/\\* bgworker: .*w%s[, ]', n))";
    let prepared = home.statement(count).unwrap();
    let count = || async {
        let rows = home.run("count", &prepared).await.unwrap();
        rows[0].get::<_, i64>(0)
    };
    let mut workers = Vec::new();
    for n in 0..10 {
        let counted = table("s", &format!("t{n}"));
        workers.push(
            db.worker(&postmaster, &format!("w{n}"), brisk(&counted))
                .await,
        );
    }
    eventually("ten are prepared", || async { count().await == 10 }).await;
    for worker in workers {
        postmaster.terminate(worker.id).await.unwrap();
    }
    eventually("none is left", || async { count().await == 0 }).await;
}

/// Workers on one home connection, each on its own table with a total, that nap long enough to come into step.
async fn in_step(db: &TestDatabase, many: usize) -> (bgworker::PostmasterHandle, Vec<TestWorker>) {
    let database = with_connections(db.conninfo(), 1);
    let postmaster = Postmaster::launch(Limits::default(), Some(database)).unwrap();
    let mut workers = Vec::new();
    for n in 0..many {
        let settings = brisk(&table("s", &format!("t{n}")))
            .naptime(Duration::from_millis(100))
            .initial_total(0);
        workers.push(db.worker(&postmaster, &format!("w{n}"), settings).await);
    }
    let sql = format!(
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND {many} = \
         (SELECT count(*) FROM generate_series(0, {many}) AS n \
          WHERE query ~ format('^/\\* bgworker: .*w%s[, ]', n)))"
    );
    eventually("one statement asks for all workers", || async {
        db.value::<bool>(&sql).await
    })
    .await;
    (postmaster, workers)
}

#[actix::test]
async fn neighbours_that_wake_together_ask_in_one_statement_and_each_folds_its_own() {
    let db = TestDatabase::new().await;
    let (postmaster, workers) = in_step(&db, 20).await;
    for n in [0, 7, 19] {
        db.execute(&format!(
            "INSERT INTO s.t{n} VALUES ('delta', {n}), ('delta', 1)"
        ))
        .await;
    }
    for n in 0..20 {
        let total = if [0, 7, 19].contains(&n) { n + 1 } else { 0 };
        db.wait_for_rows(&table("s", &format!("t{n}")), &[&format!("total|{total}")])
            .await;
    }
    for (n, worker) in workers.iter().enumerate() {
        let rows = if [0, 7, 19].contains(&n) { 2 } else { 0 };
        eventually("it reports what it has folded", || async {
            let report = postmaster.worker(worker.id).await.unwrap().unwrap().report;
            assert_eq!(report.last_error, None, "w{n}");
            report.count(ROWS_FOLDED) == rows
        })
        .await;
    }
}

#[actix::test]
async fn a_probe_that_fails_holds_up_no_neighbour() {
    let db = TestDatabase::new().await;
    let (postmaster, workers) = in_step(&db, 8).await;
    let report = async |n: usize| {
        postmaster
            .worker(workers[n].id)
            .await
            .unwrap()
            .unwrap()
            .report
    };
    // A client locks the table of one worker, so that looks at it fail.
    let holder = db.connect_plainly().await;
    holder
        .batch_execute("BEGIN; LOCK TABLE s.t3 IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    eventually("it is refused", || async {
        let report = report(3).await;
        report.consecutive_failures > 3 && report.last_error.unwrap().contains("55P03")
    })
    .await;
    for n in [0, 1, 2, 4, 5, 6, 7] {
        let before = report(n).await.cycles;
        eventually("a neighbour goes on", || async {
            let report = report(n).await;
            assert_eq!(report.consecutive_failures, 0, "{:?}", report.last_error);
            report.cycles > before + 2
        })
        .await;
    }
    // A worker that failed looks in its own statement while it keeps failing, though neighbours look at the same time.
    for neighbour in [0, 1, 2, 4, 5, 6, 7] {
        (workers[neighbour].settings).send_modify(|settings| settings.naptime = Duration::ZERO);
    }
    postmaster.sighup();
    let failures = report(3).await.consecutive_failures;
    while report(3).await.consecutive_failures < failures + 5 {
        let with_others = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() \
                           AND query ~ '^/\\* bgworker: [^*]*(w3,|, w3)')";
        assert!(!db.value::<bool>(with_others).await);
    }
    holder.batch_execute("COMMIT").await.unwrap();
    db.execute("INSERT INTO s.t3 VALUES ('delta', 5)").await;
    db.wait_for_rows(&table("s", "t3"), &["total|5"]).await;
    // If the table is gone, only that worker fails.
    db.execute("DROP TABLE s.t5").await;
    eventually("it has failed", || async {
        let status = postmaster.worker(workers[5].id).await.unwrap();
        status.is_none_or(|status| status.starts > 1 || status.report.last_error.is_some())
    })
    .await;
    for n in [0, 1, 2, 3, 4, 6, 7] {
        let status = postmaster.worker(workers[n].id).await.unwrap().unwrap();
        assert_eq!(status.starts, 1, "w{n}");
        assert!(n == 3 || status.report.last_error.is_none(), "w{n}");
    }
}

#[actix::test]
async fn a_crash_replaces_the_home_connections() {
    let stage = Stage::new().await;
    let pid = "SELECT min(pid) FROM pg_stat_activity \
               WHERE datname = current_database() AND application_name = 'bgworker'";
    eventually("it is at home", || async {
        stage.value::<i64>(HOMES).await == 1
    })
    .await;
    let before: i32 = stage.value(pid).await;
    let bomb = BackgroundWorker::new("bomb")
        .access(bgworker::Access::Shared)
        .restart_time(bgworker::RestartTime::Never);
    let main = |_: WorkerContext| async { panic!("a crash") };
    stage.postmaster.register(bomb, main).await.unwrap();
    eventually("it started again", || async {
        let status = stage.status().await;
        status.starts == 2 && status.report.napping
    })
    .await;
    eventually("the old one is gone", || async {
        stage.value::<i64>(HOMES).await == 1
    })
    .await;
    assert_ne!(stage.value::<i32>(pid).await, before);
}

#[actix::test]
async fn each_database_has_home_connections_of_its_own() {
    let db = TestDatabase::new().await;
    let other = TestDatabase::new().await;
    let postmaster = db.postmaster();
    let mut settings = brisk(&table("s", "t"));
    settings.database = Some(other.value("SELECT current_database()::text").await);
    let there = other.worker(&postmaster, "there", settings).await;
    let here = db
        .worker(&postmaster, "here", brisk(&table("s", "t")))
        .await;
    for id in [there.id, here.id] {
        eventually("it works", || async {
            postmaster.worker(id).await.unwrap().unwrap().report.cycles > 0
        })
        .await;
    }
    for db in [&db, &other] {
        assert_eq!(db.value::<i64>(HOMES).await, 1);
        assert!(
            db.value::<bool>("SELECT to_regclass('s.t') IS NOT NULL")
                .await
        );
    }
}

#[actix::test]
async fn a_worker_with_a_connection_of_its_own_needs_no_home() {
    let stage = Stage::with(brisk_on_its_own).await;
    stage
        .execute("INSERT INTO s.t VALUES ('total', 0), ('delta', 1)")
        .await;
    stage.becomes(&["total|1"]).await;
    assert_eq!(stage.value::<i64>(HOMES).await, 0);
}
