//! `bgworker bench` measures what it says, loses nothing, and leaves nothing behind.

use crate::program::{bgworker, run};
use crate::support::database::TestDatabase;
use crate::support::machine;

fn small() -> std::process::Command {
    let mut command = bgworker();
    command.arg("bench");
    for (option, value) in [
        ("--seconds", "1"),
        ("--workers", "20"),
        ("--connections", "4"),
        ("--rows", "20000"),
        ("--rate", "1000"),
    ] {
        command.args([option, value]);
    }
    command
}

#[actix::test]
async fn every_scenario_reports_figures_and_baselines_and_leaves_nothing_behind() {
    let _machine = machine();
    let db = TestDatabase::new().await;
    let directory = tempfile::tempdir().unwrap();
    let page = directory.path().join("bench.html");
    let mut command = small();
    command
        .args(["--baseline", "--json", "--database", db.conninfo()])
        .arg("--html")
        .arg(&page);
    let (code, out, err) = run(&mut command);
    assert_eq!(code, 0, "{err}");
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    let figures = report["figures"].as_array().unwrap();
    for scenario in [
        "idle", "fleet", "backlog", "stream", "held", "latency", "counters", "rollup", "jobs",
    ] {
        let of_it = figures
            .iter()
            .filter(|figure| figure["scenario"] == scenario);
        assert!(of_it.count() > 0, "{scenario}");
    }
    let figure = |what: &str| {
        let found = figures.iter().find(|figure| {
            let name = figure["what"].as_str().unwrap();
            name.starts_with(what)
        });
        found.unwrap_or_else(|| panic!("{what}"))
    };
    assert!(
        figure("empty cycles, one worker")["times_better"]
            .as_f64()
            .unwrap()
            > 0.0
    );
    assert!(figure("folding 20000 deltas")["bgworker"].as_f64().unwrap() > 0.0);
    assert!(
        figure("write-ahead log of a delta")["baseline"]
            .as_f64()
            .unwrap()
            > 0.0
    );
    assert_eq!(report["plots"].as_array().unwrap().len(), 4);
    let page = std::fs::read_to_string(&page).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.contains("<svg"));
    assert!(!page.contains("http"), "nothing from elsewhere");
    let schemas =
        "SELECT count(*) FROM pg_namespace WHERE nspname IN ('bgworker', 'bgworker_bench')";
    assert_eq!(db.value::<i64>(schemas).await, 0);
}

#[actix::test]
async fn a_schema_that_no_bench_made_is_left_alone() {
    let db = TestDatabase::new().await;
    db.execute("CREATE SCHEMA bgworker_bench; CREATE TABLE bgworker_bench.precious ()")
        .await;
    let mut command = small();
    let (code, out, err) = run(command.args(["--database", db.conninfo()]));
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("did not make: it is left alone"), "{err}");
    let there = "SELECT to_regclass('bgworker_bench.precious') IS NOT NULL";
    assert!(db.value::<bool>(there).await);
}

#[actix::test]
async fn existing_tables_of_jobs_are_left_alone() {
    let db = TestDatabase::new().await;
    db.execute("CREATE SCHEMA bgworker; CREATE TABLE bgworker.job ()")
        .await;
    let mut command = small();
    let (code, out, err) = run(command.args(["jobs", "--database", db.conninfo()]));
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("which jobs use: it is left alone"), "{err}");
    let there = "SELECT to_regclass('bgworker.job') IS NOT NULL";
    assert!(db.value::<bool>(there).await);
}
