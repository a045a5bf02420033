//! What a job finds of its past when it is declared: the runs that were kept, its windows, and those of another name.

use bgworker::supervision::Shutdown;
use tracing::Level;

use crate::support::database::{TestDatabase, database};
use crate::support::eventually;
use crate::support::jobs::{EFFECT, Instance, every, runs, settings_of, stage};
use crate::support::log::Log;

/// Waits until the kept runs are the newest ones, this many, each in its place of a ring of this size.
async fn keeps(db: &TestDatabase, kept: i64, history: i64) {
    let keeps = format!(
        "SELECT count(*) = {kept} AND coalesce(bool_and(r.run > j.runs - {kept} AND r.slot = r.run % nullif({history}, 0)), true) \
         FROM bgworker.job AS j JOIN bgworker.job_run AS r USING (name)"
    );
    let what = format!("it keeps {kept} runs in a ring of {history}");
    eventually(&what, async || db.value::<bool>(&keeps).await).await;
}

#[actix::test]
async fn after_a_change_of_history_the_newest_runs_are_kept_in_their_places() {
    let log = Log::capture();
    let db = stage().await;
    let instance = Instance::new(&db, &every("50ms", "SELECT 1")).await;
    eventually("its history is full", async || {
        runs(&db, "run > 27").await > 0
    })
    .await;
    instance.stop(Shutdown::Smart).await;
    let with = |history| format!("history = {history}\n{}", every("999h", "SELECT 1"));
    for (history, kept) in [(5, 5), (20, 5), (7, 5), (4, 4)] {
        let instance = Instance::new(&db, &with(history)).await;
        keeps(&db, kept, history).await;
        instance.stop(Shutdown::Smart).await;
    }
    let role: String = db.value("SELECT current_database() || '_role'").await;
    db.execute(&format!(
        "CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA bgworker TO {role}; \
         GRANT SELECT, INSERT, UPDATE ON bgworker.job, bgworker.job_run TO {role}"
    ))
    .await;
    let as_role = || database(&db.conninfo_with("user", &role));
    let instance = Instance::on(as_role(), &db, &with(2)).await;
    let said = || log.with(Level::WARN, "GRANT DELETE");
    eventually("it names the GRANT", async || !said().is_empty()).await;
    instance.stop(Shutdown::Smart).await;
    assert_eq!(runs(&db, "true").await, 4);
    let told = said().remove(0);
    assert!(told.contains("has 2 old runs"), "{told}");
    let grant = told[told.find("GRANT DELETE").unwrap()..].trim();
    db.execute(grant).await;
    for history in [2, 0] {
        let instance = Instance::on(as_role(), &db, &with(history)).await;
        keeps(&db, history, history).await;
        instance.stop(Shutdown::Smart).await;
    }
    db.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))
        .await;
}

#[actix::test]
async fn a_job_with_windows_that_gets_a_new_name_says_which_statement_lets_them_go_on() {
    let log = Log::capture();
    let db = stage().await;
    let keys = every("1h", EFFECT);
    let old = Instance::new(&db, &keys).await;
    let has_row = "SELECT to_regclass('bgworker.job_run') IS NOT NULL";
    eventually("it is declared", async || {
        db.value::<bool>(has_row).await
            && db.value::<i64>("SELECT count(*) FROM bgworker.job").await == 1
    })
    .await;
    db.execute("UPDATE bgworker.job SET last_tick = last_tick - interval '1 h'")
        .await;
    old.postmaster.sighup();
    eventually("it runs", async || runs(&db, "true").await > 0).await;
    old.stop(Shutdown::Smart).await;
    let postmaster = bgworker::Postmaster::launch(
        bgworker::supervision::Limits::default(),
        Some(db.database.clone()),
    );
    let renamed = settings_of(&db, &[("new".to_owned(), &keys)]);
    let new = Instance::register(&postmaster.unwrap(), renamed).await;
    let said = || log.with(Level::WARN, "The job \"j\" is declared to do the same");
    eventually("it says so", async || !said().is_empty()).await;
    new.stop(Shutdown::Smart).await;
    let told = said().remove(0);
    db.execute(told[told.find("UPDATE bgworker.job").unwrap()..].trim())
        .await;
    let same = "SELECT count(DISTINCT (last_tick, last_done)) FROM bgworker.job";
    assert_eq!(db.value::<i64>(same).await, 1);
    // Once it has run, the statement would have windows counted twice.
    db.execute("UPDATE bgworker.job SET runs = 1, last_done = now() WHERE name = 'new'")
        .await;
    db.execute(told[told.find("UPDATE bgworker.job").unwrap()..].trim())
        .await;
    assert_eq!(db.value::<i64>(same).await, 2);
}

#[actix::test]
async fn a_job_that_comes_back_after_months_says_where_its_window_begins() {
    let log = Log::capture();
    let db = stage().await;
    let keys = every("24h", EFFECT);
    let said = || log.with(Level::WARN, "makes one run of the ticks since then");
    let has_row = "SELECT to_regclass('bgworker.job') IS NOT NULL";
    let instance = Instance::new(&db, &keys).await;
    eventually("it is declared", async || {
        db.value::<bool>(has_row).await
            && db.value::<i64>("SELECT count(*) FROM bgworker.job").await == 1
    })
    .await;
    instance.stop(Shutdown::Smart).await;
    assert!(said().is_empty(), "it is new: {:?}", said());
    db.execute(
        "UPDATE bgworker.job SET last_tick = last_tick - interval '180 days', last_done = '2020-02-02T00:00:00Z'",
    )
    .await;
    let instance = Instance::new(&db, &keys).await;
    eventually("it runs", async || runs(&db, "outcome = 'done'").await == 1).await;
    instance.stop(Shutdown::Smart).await;
    let told = said();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].contains("begins at 2020-02-02T00:00:00Z"),
        "{told:?}"
    );
    db.execute(told[0][told[0].find("UPDATE bgworker.job").unwrap()..].trim())
        .await;
}
