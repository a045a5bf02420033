//! The cost of jobs between their ticks: one look a minute for all of them together, and no writes.

use bgworker::embedded::{Cluster, ClusterSettings};
use bgworker::supervision::Shutdown;

use crate::support::database::TestDatabase;
use crate::support::eventually;
use crate::support::jobs::{Instance, runs};
use crate::support::proxy::Proxy;
use crate::support::server::{TestServer, conninfo};

const YEARLY: &str = "cron = \"@yearly\"\nsql = \"SELECT 1\"";

/// Waits until each worker has done `more` cycles beyond the least that any has done now. Returns that goal.
async fn cycles(instance: &Instance, more: u64) -> u64 {
    let least = || async {
        let workers = instance.postmaster.workers().await.unwrap();
        let cycles = workers.registered.iter().map(|worker| worker.report.cycles);
        cycles.min().unwrap_or(0)
    };
    let goal = least().await + more;
    eventually("each has looked", || async { least().await >= goal }).await;
    goal
}

#[actix::test]
async fn all_jobs_of_a_database_look_with_one_select() {
    let server = TestServer::start_with(&[("log_statement", "all")]);
    let db = TestDatabase::at(&server.conninfo()).await;
    let instance = Instance::with_many(&db, 100, YEARLY).await;
    let looks = || server.log().matches("LEFT JOIN bgworker.job").count();
    cycles(&instance, 1).await;
    let before = looks();
    // Wakes all of them, as the end of the minute would.
    instance.postmaster.sighup();
    cycles(&instance, 1).await;
    assert_eq!(looks() - before, 1);
    instance.stop(Shutdown::Smart).await;
}

#[actix::test]
async fn between_ticks_three_instances_with_a_hundred_jobs_write_only_that_they_are_there() {
    let settings = ClusterSettings::temporary()
        .option("fsync", "off")
        .option("autovacuum", "off")
        .option("wal_level", "minimal")
        .option("max_wal_senders", "0");
    let cluster = Cluster::start(settings).unwrap();
    let db = TestDatabase::at(&cluster.conninfo()).await;
    let mut instances = Vec::new();
    for _ in 0..3 {
        let instance = Instance::with_many(&db, 100, YEARLY).await;
        cycles(&instance, 1).await;
        instances.push(instance);
    }
    eventually("each has told its jobs, and tells again in a minute that it is there", async || {
        for instance in &instances {
            instance.postmaster.sighup();
        }
        let told = "SELECT count(*) FROM bgworker.job_instance WHERE (SELECT count(*) FROM jsonb_object_keys(jobs)) = 100";
        db.value::<i64>(told).await == 3
    })
    .await;
    let written = "SELECT concat_ws(' ', pg_current_wal_insert_lsn(), pg_snapshot_xmax(pg_current_snapshot()))";
    let mut before: String = db.value(written).await;
    for round in 0..3 {
        for instance in &instances {
            instance.postmaster.sighup();
            cycles(instance, 1).await;
        }
        let after: String = db.value(written).await;
        // The first look after a write may make PostgreSQL prune a page.
        assert!(round == 0 || before == after, "{before}, {after}");
        before = after;
    }
    for instance in instances {
        instance.stop(Shutdown::Smart).await;
    }
}

#[actix::test]
async fn a_tick_with_its_statement_takes_a_look_and_three_round_trips() {
    let server = TestServer::start();
    let db = TestDatabase::at(&server.conninfo()).await;
    let proxy = Proxy::to(server.port);
    let through = crate::support::database::database(&conninfo(proxy.port));
    let keys = "every = \"1s\"\nsql = \"SELECT 1\"";
    let instance = Instance::on(through, &db, keys).await;
    eventually("it runs", async || runs(&db, "true").await > 0).await;
    let mut before = (runs(&db, "true").await, proxy.round_trips());
    let mut fewest = u32::MAX;
    for _ in 0..3 {
        eventually("a tick is done", async || {
            runs(&db, "true").await > before.0
        })
        .await;
        let now = (runs(&db, "true").await, proxy.round_trips());
        fewest = fewest.min(now.1 - before.1);
        before = now;
    }
    // The look, the claim, the statement, and the end.
    assert_eq!(fewest, 4);
    instance.stop(Shutdown::Smart).await;
}
