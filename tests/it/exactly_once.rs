//! Over thousands of ticks, each runs once or is given up and recorded so, whatever ends sessions and cuts answers off.

use std::time::Duration;

use bgworker::database::{self, ConnInfo, Database};
use bgworker::supervision::Shutdown;

use crate::support::database::TestDatabase;
use crate::support::jobs::{
    EFFECT, EFFECTS, Instance, every, has_caught_up, runs, set_back, stage,
};
use crate::support::proxy::{Fault, Proxy};
use crate::support::server::{TestServer, conninfo};
use crate::support::ticks::assert_exact;
use crate::support::{LONG, eventually, machine, within};

/// Counts the inexact ticks, and all ticks. A tick is exact if it is done and has one effect, or if it is recorded as
/// given up and has none.
const INEXACT: &str = "SELECT count(*) FILTER (WHERE \
     (coalesce(n, 0), done, given_up) NOT IN ((1, 1, 0), (0, 0, 1)) IS NOT FALSE), count(*) FROM (SELECT \
     generate_series(min(tick), (SELECT last_tick FROM bgworker.job), '1 s') AS tick FROM bgworker.job_run) AS t \
     LEFT JOIN (SELECT tick, count(*) AS n FROM effect GROUP BY tick) AS e USING (tick) \
     LEFT JOIN (SELECT tick, count(*) FILTER (WHERE outcome = 'done') AS done, \
     count(*) FILTER (WHERE outcome = 'given up') AS given_up FROM bgworker.job_run GROUP BY tick) AS r USING (tick)";

#[actix::test]
async fn ten_thousand_ticks_are_done_once_or_given_up_though_sessions_are_ended_and_statements_fail()
 {
    let _machine = machine();
    let db = stage().await;
    // One run in ten fails, before its effect or after it.
    let fails = "SELECT 1 / (random() > 0.05)::int";
    let keys = format!(
        "missed = \"each\"\nattempts = 2\nrestart_time = \"1ms\"\nhistory = 1000000\n{}",
        every("1s", &format!("{fails}; {EFFECT}; {fails}"))
    );
    let mut instances = Vec::new();
    for _ in 0..8 {
        instances.push(Instance::new(&db, &keys).await);
    }
    // Ends sessions of the job at any point, and occasionally one that looks.
    let end = "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity \
               WHERE datname = current_database() AND application_name = \
               CASE WHEN random() < 0.01 THEN 'bgworker' ELSE 'j' END \
               ORDER BY random() LIMIT 1) AS one";
    let killer = db.connect().await;
    let (mut ended, mut given_up) = (0, 0);
    for _ in 0..11 {
        let begin = set_back(&db, 900).await;
        let done = within(2 * LONG, "it has caught up", || has_caught_up(&db, begin));
        let ends = async {
            loop {
                let rows = killer.query("end a session", end, &[]).await.unwrap();
                ended += rows[0].get::<_, i64>(0);
                tokio::time::sleep(Duration::from_millis(fastrand::u64(20..150))).await;
            }
        };
        tokio::select! {
            () = done => {}
            () = ends => {}
        }
        // No instance runs the job while the two tables are compared.
        let transaction = db.connect().await;
        let lock = "BEGIN; LOCK TABLE bgworker.job";
        transaction.batch_execute("lock", lock).await.unwrap();
        let rows = transaction.query("compare", INEXACT, &[]).await.unwrap();
        let [inexact, ticks] = [0, 1].map(|column| rows[0].get::<_, i64>(column));
        assert_eq!(inexact, 0);
        assert!(ticks >= 900, "{ticks}");
        given_up += runs(&db, "outcome = 'given up'").await;
        transaction.batch_execute("unlock", "COMMIT").await.unwrap();
    }
    for instance in instances {
        instance.stop(Shutdown::Smart).await;
    }
    assert!(ended > 100, "{ended} sessions were ended");
    assert!(given_up > 10, "{given_up} ticks were given up");
}

#[actix::test]
async fn an_answer_cut_off_anywhere_even_that_to_a_commit_repeats_no_tick() {
    let _machine = machine();
    let server = TestServer::start();
    let db = TestDatabase::at(&server.conninfo()).await;
    db.execute(EFFECTS).await;
    let proxy = Proxy::to(server.port);
    let through = ConnInfo::parse(&conninfo(proxy.port), |_| None).unwrap();
    let through = Database::new(through, database::Settings::default()).unwrap();
    let keys = format!("missed = \"each\"\n{}", every("1s", EFFECT));
    let instance = Instance::on(through, &db, &keys).await;
    let begin = set_back(&db, 150).await;
    let done = async || db.value::<i64>("SELECT count(*) FROM effect").await;
    for _ in 0..15 {
        // The server's answers to one run, from its claim to the end of its commit, are a few hundred bytes.
        proxy.set(Some(Fault::SilenceAfter(fastrand::usize(0..4_000))));
        tokio::time::sleep(Duration::from_millis(40)).await;
        proxy.cut();
        proxy.set(None);
        let before = done().await;
        eventually("it goes on", async || done().await > before).await;
    }
    eventually("it has caught up", || has_caught_up(&db, begin)).await;
    instance.stop(Shutdown::Smart).await;
    assert_exact(&db).await;
}
