//! The examples do what they claim, and exit.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use nix::sys::signal::Signal;

use crate::support::daemon::Daemon;
use crate::support::database::TestDatabase;
use crate::support::eventually;
use crate::support::example::example;

/// Runs an example to its end, and returns its output.
fn run(name: &str) -> String {
    let mut program = Daemon::start(&mut example(name));
    let (code, _) = program.wait();
    assert_eq!(code, Some(0), "{:?}", program.said);
    program.said.join("\n")
}

#[test]
fn hello_worker_says_hello_until_it_is_interrupted() {
    let mut hello = Daemon::start(&mut example("hello_worker"));
    hello.wait_for("hello from hello");
    hello.wait_for("hello from hello");
    hello.signal(Signal::SIGINT);
    assert_eq!(hello.wait().0, Some(0), "{:?}", hello.said);
}

#[test]
fn dynamic_workers_come_and_go() {
    let out = run("dynamic_workers");
    for line in [
        "naps is ready",
        "naps was started 1 time(s)",
        "naps is unregistered",
        "fails is unregistered",
        "all have ended",
    ] {
        assert!(out.lines().any(|said| said == line), "{line}: {out}");
    }
    let failures = out
        .lines()
        .filter(|line| line.starts_with("fails has failed: start "));
    assert!(failures.count() >= 2, "{out}");
}

#[test]
fn own_actor_gets_sighup_and_sigterm_as_messages() {
    let out = run("own_actor");
    let said: Vec<_> = out
        .lines()
        .map(|line| line.split(" at ").next().unwrap())
        .collect();
    assert_eq!(said, ["got sighup!", "got sigterm!", "all have ended"]);
}

#[test]
fn own_arbiter_computes_without_holding_up_the_systems_thread() {
    let out = run("own_arbiter");
    let ticks = out
        .split("ticked ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap();
    // Half a second of 10 ms ticks, on a machine that may be busy; if the thread were blocked, there would be none.
    assert!(ticks.parse::<u32>().unwrap() > 5, "{out}");
}

#[actix::test]
async fn job_in_rust_does_each_tick_once_in_two_processes() {
    let db = TestDatabase::new().await;
    let start = || Daemon::start(example("job_in_rust").arg(db.conninfo()));
    let mut first = start();
    first.wait_for(" kB");
    let mut second = start();
    eventually("several ticks are done", async || {
        db.value::<i64>("SELECT count(*) FROM free_memory").await >= 4
    })
    .await;
    for program in [&mut first, &mut second] {
        program.signal(Signal::SIGINT);
        assert_eq!(program.wait().0, Some(0), "{:?}", program.said);
    }
    let kept = "SELECT count(*) FROM free_memory JOIN bgworker.job_run USING (tick) WHERE outcome = 'done'";
    let runs = "SELECT count(*) FROM bgworker.job_run";
    assert_eq!(db.value::<i64>(kept).await, db.value::<i64>(runs).await);
}

fn ask(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let request =
        format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn actix_web_service_inserts_folds_and_ends_in_the_right_order() {
    let mut service = Daemon::start(example("actix_web_service").arg("127.0.0.1:0"));
    let line = service.wait_for("listening on http://");
    let address = line
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap()
        .to_owned();
    for value in [5, -2, 39] {
        let answer = ask(&address, &format!("POST /deltas/{value}"));
        assert!(answer.ends_with(&format!("inserted {value}\n")), "{answer}");
    }
    let deadline = std::time::Instant::now() + crate::support::LONG;
    while !ask(&address, "GET /total").ends_with("\r\n42\n") {
        assert!(
            std::time::Instant::now() < deadline,
            "the deltas are not folded"
        );
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(ask(&address, "POST /deltas/x").starts_with("HTTP/1.1 404"));
    assert!(ask(&address, "GET /workers/readyz").starts_with("HTTP/1.1 200"));
    for page in ["/workers", "/workers/"] {
        assert!(
            ask(&address, &format!("GET {page}")).contains("<title>bgworker"),
            "{page}"
        );
    }
    // A client that listens for events does not delay the exit.
    let mut listener = TcpStream::connect(&address).unwrap();
    listener
        .write_all(b"GET /workers/events HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let mut begin = [0; 12];
    listener.read_exact(&mut begin).unwrap();
    assert_eq!(&begin, b"HTTP/1.1 200");
    service.signal(Signal::SIGTERM);
    let (code, took) = service.wait();
    assert_eq!(code, Some(0), "{:?}", service.said);
    assert!(took < std::time::Duration::from_secs(10), "{took:?}");
    let order: Vec<_> = service
        .said
        .iter()
        .filter(|line| line.ends_with(" ended"))
        .collect();
    assert_eq!(
        order,
        [
            "the workers have ended",
            "the web server has ended",
            "all have ended"
        ]
    );
}

/// Three workers, one of which runs the example's own function.
const THREE_WORKERS: &str = r#"
[database]
embedded = true

[http]
listen = "127.0.0.1:0"

[[worker]]
name = "sales"
schema = "shop"
table = "sales"
initial_total = 0

[[worker]]
name = "visits"
function = "worker_spi"
schema = "shop"
table = "visits"

[[worker]]
name = "answer"
function = "gauge"
query = "SELECT 42::bigint"
naptime = "1m"
"#;

#[test]
fn own_function_is_checked_run_reloaded_and_shown_like_the_built_in_ones() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("own.toml");
    std::fs::write(&file, THREE_WORKERS).unwrap();
    let mut program = Daemon::start(example("own_function").arg(&file));
    let line = program.wait_for("listening on http://");
    let address = line
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap()
        .to_owned();
    let metric = "bgworker_worker_measured{worker=\"answer\"} ";
    let deadline = std::time::Instant::now() + crate::support::LONG;
    let wait_for = |value: &str| {
        while !ask(&address, "GET /metrics").contains(&format!("{metric}{value}")) {
            assert!(
                std::time::Instant::now() < deadline,
                "{}",
                ask(&address, "GET /status")
            );
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    };
    wait_for("42");
    let status = ask(&address, "GET /status");
    assert!(status.contains("\"figures\":{\"measured\":42}"), "{status}");

    let in_place = THREE_WORKERS.replace("1m", "20s");
    std::fs::write(&file, &in_place).unwrap();
    program.signal(Signal::SIGHUP);
    program.wait_for("parameters of worker \"answer\" changed: naptime");
    std::fs::write(&file, in_place.replace("42", "43")).unwrap();
    program.signal(Signal::SIGHUP);
    program.wait_for("worker \"answer\" replaced, since it has another query");
    wait_for("43");

    program.signal(Signal::SIGTERM);
    assert_eq!(program.wait().0, Some(0), "{:?}", program.said);
}

#[test]
fn own_functions_three_mistakes_are_three_lines() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("own.toml");
    let text = THREE_WORKERS
        .replace("query = ", "qeury = ")
        .replace("\"1m\"", "60")
        .replace(
            "\"visits\"\nfunction = \"worker_spi\"",
            "\"visits\"\nfunction = \"guage\"",
        );
    std::fs::write(&file, text).unwrap();
    let mut program = Daemon::start(example("own_function").arg(&file));
    assert_eq!(program.wait().0, Some(78), "{:?}", program.said);
    let shown = file.display();
    assert_eq!(
        program.said,
        [
            format!(
                "{shown}:16:1: worker[1].function: there is no function \"guage\" (did you mean \"gauge\"?)"
            ),
            format!(
                "{shown}:23:1: worker[2].qeury: unknown key \"qeury\" (did you mean \"query\"?)"
            ),
            format!(
                "{shown}:24:11: worker[2].naptime: expected a duration with its unit, such as \"1s\", \"250ms\" \
                 or \"2m\", but found a value of type integer"
            ),
        ]
    );
}
