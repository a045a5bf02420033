//! `/metrics`, and what watches it: the table in `docs/monitoring.md`, the dashboard and the alert rules.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use serde_json::Value;
use tempfile::TempDir;

use crate::configuration::Config;
use crate::program::{start, wait_for_all};
use crate::serving::url;
use crate::support::daemon::Daemon;
use crate::support::database::TestDatabase;
use crate::support::eventually;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// An instance with a worker of each function, all of which have done something.
async fn instance() -> (TestDatabase, Daemon, String) {
    let db = TestDatabase::new().await;
    db.execute(
        "CREATE TABLE delta (k int NOT NULL); CREATE TABLE total (k int PRIMARY KEY, n bigint NOT NULL DEFAULT 0); \
         INSERT INTO delta VALUES (1), (2), (2)",
    )
    .await;
    let config = Config::new(&format!(
        r#"
[database]
url = "{}"
[http]
listen = "127.0.0.1:0"
[[worker]]
name = "sample"
schema = "s"
table = "t"
naptime = "50ms"
initial_total = 0
[[worker]]
name = "counter"
function = "rollup"
queue = "public.delta"
totals = "public.total"
keys = ["k"]
count = "n"
on_poison = "set_aside"
naptime = "50ms"
[[worker]]
name = "job"
function = "sql"
sql = "INSERT INTO s.t VALUES ('delta', 1)"
every = "200ms"
[[worker]]
name = "bad job"
function = "sql"
sql = "SELECT 1/0"
every = "200ms"
attempts = 1
"#,
        db.conninfo().replace('"', "\\\"")
    ));
    let mut daemon = start(&config.path);
    let url = url(&mut daemon);
    wait_for_all(
        &mut daemon,
        &[
            "count in s.t is now",
            "folded 3 rows",
            "job: done",
            "the tick is given up",
        ],
    );
    (db, daemon, url)
}

/// The names of the metrics that a text mentions.
fn mentioned(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let names = words.filter(|word| word.starts_with("bgworker_"));
    names.map(str::to_owned).collect()
}

/// The names of the series that an instance serves.
fn served(url: &str) -> BTreeSet<String> {
    let text = ureq::get(format!("{url}metrics")).call().unwrap();
    let text = text.into_body().read_to_string().unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let names = lines.filter_map(|line| line.split(['{', ' ']).next());
    names.map(str::to_owned).collect()
}

#[actix::test]
async fn each_metric_that_is_documented_or_watched_is_served_and_each_that_is_served_is_documented()
{
    let (_db, _daemon, url) = instance().await;
    let served = served(&url);
    let documented = mentioned(&read("docs/monitoring.md"));
    for file in [
        "docs/monitoring.md",
        "conf/monitoring/dashboard.json",
        "conf/monitoring/bgworker.rules.yml",
    ] {
        for name in mentioned(&read(file)) {
            // A histogram is several series; trouble shows only while there is some.
            let is_served = served.contains(&name) || served.contains(&format!("{name}_bucket"));
            assert!(
                is_served || name == "bgworker_server_trouble",
                "{file}: {name}"
            );
        }
    }
    for name in &served {
        let histogram = ["_bucket", "_count", "_sum"].map(|ending| name.trim_end_matches(ending));
        let is_documented = histogram.iter().any(|name| documented.contains(*name));
        assert!(is_documented, "{name}");
    }
}

#[actix::test]
async fn histograms_count_what_was_done() {
    let (_db, _daemon, url) = instance().await;
    let text = ureq::get(format!("{url}metrics")).call().unwrap();
    let text = text.into_body().read_to_string().unwrap();
    let value = |series: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(series));
        line.unwrap_or_else(|| panic!("{series}: {text}"))
            .trim()
            .parse()
            .unwrap()
    };
    for name in ["probe", "fold", "job_run", "job_lateness"] {
        let count = value(&format!("bgworker_{name}_seconds_count"));
        assert!(count >= 1.0, "{name}");
        assert_eq!(
            value(&format!("bgworker_{name}_seconds_bucket{{le=\"+Inf\"}}")),
            count
        );
        assert!(value(&format!("bgworker_{name}_seconds_bucket{{le=\"600.0\"}}")) <= count);
        assert!(value(&format!("bgworker_{name}_seconds_sum")) > 0.0);
    }
}

/// What Prometheus answers to a request of its API.
fn ask(prometheus: &str, path: &str, query: &[(&str, &str)]) -> Option<Value> {
    let request = ureq::get(format!("{prometheus}/api/v1/{path}"));
    let answer = request.query_pairs(query.iter().copied()).call().ok()?;
    let answer: Value = answer.into_body().read_json().ok()?;
    Some(answer["data"].clone())
}

#[actix::test]
#[ignore = "needs PROMETHEUS, the path of a Prometheus program: .ci/run has one"]
async fn prometheus_evaluates_each_rule_and_each_query_of_the_dashboard() {
    let (_db, _daemon, url) = instance().await;
    let directory = TempDir::new().unwrap();
    let target = url.trim_start_matches("http://").trim_end_matches('/');
    let config = format!(
        "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\n\
         rule_files: [\"{}\"]\n\
         scrape_configs: [{{ job_name: bgworker, static_configs: [{{ targets: [\"{target}\"] }}] }}]\n",
        root().join("conf/monitoring/bgworker.rules.yml").display()
    );
    let file = directory.path().join("prometheus.yml");
    fs::write(&file, config).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = port.local_addr().unwrap();
    drop(port);
    let mut command = Command::new(env::var("PROMETHEUS").unwrap());
    command.arg(format!("--config.file={}", file.display()));
    command.arg(format!(
        "--storage.tsdb.path={}",
        directory.path().join("data").display()
    ));
    command.arg(format!("--web.listen-address={address}"));
    let _prometheus = Daemon::start(command.stdin(Stdio::null()));
    let prometheus = format!("http://{address}");

    let rules = || {
        let groups = ask(&prometheus, "rules", &[])?;
        let rules = groups["groups"][0]["rules"].as_array()?.clone();
        Some(rules)
    };
    let alerts = read("conf/monitoring/bgworker.rules.yml");
    let alerts = alerts.matches("- alert:").count();
    eventually("each rule was evaluated", async || {
        rules().is_some_and(|rules| {
            rules.len() == alerts && rules.iter().all(|rule| rule["health"] == "ok")
        })
    })
    .await;
    let dashboard: Value = serde_json::from_str(&read("conf/monitoring/dashboard.json")).unwrap();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let query = target["expr"].as_str().unwrap();
            let query = query
                .replace("$instance", ".*")
                .replace("$__rate_interval", "30s");
            // What needs attention shows only what does.
            let is_empty = query.contains("> 0") || query.contains("== 0");
            eventually(&query, async || {
                let answer = ask(&prometheus, "query", &[("query", &query)]);
                let found = answer.and_then(|answer| answer["result"].as_array().map(Vec::len));
                found.is_some_and(|found| is_empty || found > 0)
            })
            .await;
        }
    }
    // The job that always fails is found.
    eventually("the alert fires", async || {
        let rules = rules().unwrap_or_default();
        let fires =
            |rule: &Value| rule["name"] == "BgworkerTickGivenUp" && rule["state"] == "firing";
        rules.iter().any(fires)
    })
    .await;
}
