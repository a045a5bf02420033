//! Workers of three functions in one configuration, one from an embedding program: all run, reload and are shown alike.

use std::time::Duration;

use bgworker::config::{Function, Functions, Settings};
use bgworker::reload::InForce;
use bgworker::supervision::{Limits, Shutdown};
use bgworker::{Main, Postmaster, WorkerContext};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::Level;

use crate::support::database::TestDatabase;
use crate::support::log::Log;
use crate::support::{configuration, eventually};

/// A function that reports a level again and again.
struct Gauge;

#[derive(Clone, Serialize, Deserialize)]
struct GaugeSettings {
    level: i32,
    #[serde(default)]
    unit: String,
}

impl Function for Gauge {
    const NAME: &'static str = "gauge";
    const IN_PLACE: &'static [&'static str] = &["level"];

    type Settings = GaugeSettings;

    fn main(&self, settings: watch::Receiver<GaugeSettings>) -> impl Main {
        move |mut context: WorkerContext| {
            let settings = settings.clone();
            async move {
                context.ready();
                loop {
                    let level = i64::from(settings.borrow().level);
                    context.progress().level("level", level);
                    if context.nap(Duration::from_millis(10)).await.is_stop() {
                        return Ok(());
                    }
                }
            }
        }
    }
}

fn read(db: &TestDatabase, [spi, job, gauge]: [&str; 3]) -> Settings {
    let workers = format!(
        "[[worker]]\nname = \"w\"\n{spi}\n\
         [[worker]]\nname = \"j\"\nfunction = \"sql\"\nevery = \"1s\"\n{job}\n\
         [[worker]]\nname = \"g\"\nfunction = \"gauge\"\n{gauge}\n"
    );
    let functions = Functions::built_in().with(Gauge);
    configuration::read(db, &functions, &workers).unwrap_or_else(|problems| panic!("{problems}"))
}

#[actix::test]
async fn three_functions_run_and_a_reload_changes_each_as_it_says_with_a_line_each() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    let spi = "schema = \"s\"\ntable = \"t\"\nnaptime = \"10ms\"\ninitial_total = 7";
    let first = [spi, "sql = \"SELECT 1\"", "level = 1"];
    let postmaster = Postmaster::launch(Limits::default(), Some(db.database.clone())).unwrap();
    let in_force = InForce::register(read(&db, first), postmaster.clone());
    let mut in_force = in_force.await.unwrap();
    let figures = async || {
        let workers = postmaster.workers().await.unwrap().registered;
        let reports = workers
            .into_iter()
            .map(|worker| (worker.worker.name.to_string(), worker.report));
        reports.collect::<std::collections::BTreeMap<_, _>>()
    };
    eventually("each has done its work", async || {
        let figures = figures().await;
        figures["g"].level("level") == Some(1)
            && figures["j"].count("runs") > 0
            && figures["w"].cycles > 1
    })
    .await;

    // Changes that each function applies in place.
    let spi = spi.replace("10ms", "20ms");
    let job = "sql = \"SELECT 1\"\nmissed = \"skip\"";
    let changed = read(&db, [&spi, job, "level = 2"]);
    in_force.reload(changed).await.unwrap();
    eventually("the gauge shows the other level", async || {
        figures().await["g"].level("level") == Some(2)
    })
    .await;
    for (worker, key) in [("w", "naptime"), ("j", "missed"), ("g", "level")] {
        let line = format!("parameters of worker \"{worker}\" changed: {key}");
        assert_eq!(log.with(Level::INFO, &line).len(), 1, "{}", log.text());
    }

    // Changes that replace the worker.
    let spi = spi.replace("\"t\"", "\"u\"");
    let job = job.replace("SELECT 1", "SELECT 2");
    let gauge = "level = 2\nunit = \"m\"";
    let changed = read(&db, [&spi, &job, gauge]);
    in_force.reload(changed).await.unwrap();
    for (worker, key) in [("w", "table"), ("j", "sql"), ("g", "unit")] {
        let line = format!("worker \"{worker}\" replaced, since it has another {key}");
        assert_eq!(log.with(Level::INFO, &line).len(), 1, "{}", log.text());
    }
    eventually("the other table is there", async || {
        db.value::<bool>("SELECT to_regclass('s.u') IS NOT NULL")
            .await
    })
    .await;
    postmaster.shut_down(Shutdown::Smart);
    assert!(postmaster.exited().await.unwrap().aborted.is_empty());
}

#[actix::test]
async fn a_reload_begins_a_worker_again_that_was_stopped_for_good() {
    let db = TestDatabase::new().await;
    let worker = "[[worker]]\nname = 'r'\nfunction = 'rollup'\nqueue = 's.q'\ntotals = 's.t'\nkeys = ['k']\nsum = ['v']\n\
                  restart_time = '10ms'\nmax_restarts = { restarts = 1, within = '1h' }";
    let settings = || configuration::read(&db, &Functions::built_in(), worker).unwrap();
    let postmaster = db.postmaster();
    let mut in_force = InForce::register(settings(), postmaster.clone())
        .await
        .unwrap();
    let workers = async || postmaster.workers().await.unwrap();
    eventually("it is stopped for good", async || {
        workers().await.ended.iter().any(|worker| worker.gave_up)
    })
    .await;
    let tables = "CREATE SCHEMA s; CREATE TABLE s.q (k int NOT NULL, v bigint); \
                  CREATE TABLE s.t (k int PRIMARY KEY, v bigint); INSERT INTO s.q VALUES (1, 1)";
    db.execute(tables).await;
    in_force.reload(settings()).await.unwrap();
    eventually("it folds", async || {
        db.value::<i64>("SELECT count(*) FROM s.q").await == 0
    })
    .await;
    // One that runs is left alone.
    in_force.reload(settings()).await.unwrap();
    let workers = workers().await;
    assert_eq!((workers.registered.len(), workers.ended.len()), (1, 1));
}
