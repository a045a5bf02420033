//! What the program answers over HTTP: `[http] listen`, and `bgworker status`.

use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use bgworker::http::Snapshot;
use nix::sys::signal::Signal;

use crate::configuration::{Config, given};
use crate::program::{bgworker, run, start, wait_for_all};
use crate::support::daemon::Daemon;
use crate::support::database::TestDatabase;
use crate::support::eventually;

/// What a test appends to a configuration to listen on any free port.
pub(crate) const LISTEN: &str = "[http]\nlisten = \"127.0.0.1:0\"\n";

/// The URL where the program logs that it listens.
pub(crate) fn url(daemon: &mut Daemon) -> String {
    let line = daemon.wait_for("listening on http://");
    let url = line.split("listening on ").nth(1).unwrap();
    url.to_owned()
}

/// `bgworker status --url`: exit code, standard output, standard error.
fn status(url: &str, flags: &[&str]) -> (i32, String, String) {
    run(bgworker().args(["status", "--url", url]).args(flags))
}

#[actix::test]
async fn status_shows_each_worker_and_exits_with_0_when_all_are_healthy() {
    let db = TestDatabase::new().await;
    let config = Config::new(&(given(&db, "100ms", &["one", "number two"]) + LISTEN));
    let mut daemon = start(&config.path);
    let url = url(&mut daemon);
    wait_for_all(&mut daemon, &["one initialized", "number two initialized"]);
    let sql = r#"INSERT INTO "number two".t (type, value) VALUES ('total', 40), ('delta', -3), ('delta', 5)"#;
    db.execute(sql).await;
    daemon.wait_for("is now 42");
    let (code, out, err) = status(&url, &[]);
    assert_eq!((code, &*err), (0, ""), "{out}");
    let lines: Vec<_> = out.lines().collect();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(lines[0], format!("bgworker {version}: server is primary"));
    let words = |line: &str| {
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        words(lines[2]),
        [
            "worker",
            "state",
            "since",
            "success",
            "restarts",
            "rows_folded",
            "total"
        ]
    );
    assert!(lines[3].starts_with("one         "), "{out}");
    assert!(lines[4].starts_with("number two  "), "{out}");
    assert_eq!(
        words(lines[4])[words(lines[4]).len() - 3..],
        ["0", "2", "42"],
        "{out}"
    );
    assert_eq!(lines.len(), 5, "{out}");

    // The same as JSON, with a URL that lacks the last slash; then the page.
    let (code, out, _) = status(url.trim_end_matches('/'), &["--json"]);
    assert_eq!(code, 0);
    let snapshot: Snapshot = serde_json::from_str(&out).unwrap();
    assert!(snapshot.healthy);
    assert_eq!(
        (
            snapshot.workers[1].figures["rows_folded"],
            snapshot.workers[1].figures["total"]
        ),
        (2, 42)
    );
    let mut page = ureq::get(&url).call().unwrap();
    assert!(
        page.body_mut()
            .read_to_string()
            .unwrap()
            .contains("<title>bgworker")
    );

    // One worker, with the settings in force, under a name that must be encoded.
    let mut detail = ureq::get(format!("{url}worker?name=number%20two"))
        .call()
        .unwrap();
    let detail: serde_json::Value = detail.body_mut().read_json().unwrap();
    assert_eq!(detail["figures"]["total"], 42);
    assert_eq!(detail["runs"][0]["what"], "folded 2 rows");
    let configuration = detail["configuration"].as_str().unwrap();
    assert!(
        configuration.contains("naptime = \"100ms\"\n"),
        "{configuration}"
    );
    assert!(
        configuration.contains("function = \"worker_spi\"\n"),
        "{configuration}"
    );
    let missing = ureq::get(format!("{url}worker?name=three")).call();
    assert!(matches!(missing, Err(ureq::Error::StatusCode(404))));

    // A client that listens to events does not delay the program's end.
    let mut listener = ureq::get(format!("{url}events")).call().unwrap();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().0, Some(0));
    let heard = listener.body_mut().read_to_string().unwrap();
    assert!(heard.contains("\"kind\":\"unregistered\""), "{heard}");
    assert_eq!(status(&url, &[]).0, 1);
}

#[actix::test]
async fn status_names_the_trouble_of_a_worker_and_exits_with_1() {
    let db = TestDatabase::new().await;
    let sql = "CREATE SCHEMA s; CREATE TABLE s.t (type text, value bigint)";
    db.execute(sql).await;
    let config = Config::new(&(given(&db, "1s", &["s"]) + LISTEN));
    let mut daemon = start(&config.path);
    let url = url(&mut daemon);
    daemon.wait_for("has no unique index");
    eventually("it is known to be ill", async || status(&url, &[]).0 == 1).await;
    let (code, out, err) = status(&url, &[]);
    assert_eq!((code, &*err), (1, ""), "{out}");
    let lines: Vec<_> = out.lines().collect();
    assert!(
        lines[3].starts_with("s       backing off, starts in 5"),
        "{out}"
    );
    assert!(lines[3].contains("never"), "{out}");
    assert!(
        lines[4].starts_with("    ") && lines[4].contains("has no unique index"),
        "{out}"
    );
}

#[actix::test]
async fn status_watch_shows_the_table_again_with_the_worker_that_needs_attention_first() {
    let db = TestDatabase::new().await;
    let sql = "CREATE SCHEMA ill; CREATE TABLE ill.t (type text, value bigint)";
    db.execute(sql).await;
    let config = Config::new(&(given(&db, "1s", &["well", "ill"]) + LISTEN));
    let mut daemon = start(&config.path);
    let url = url(&mut daemon);
    wait_for_all(&mut daemon, &["has no unique index", "well initialized"]);
    let mut watching = Daemon::start(bgworker().args(["status", "--watch", "--url", &url]));
    for _ in 0..2 {
        let first = watching.wait_for("ill ");
        assert!(first.starts_with("ill  "), "{first}");
        watching.wait_for("well  ");
    }
    // It goes on when the instance is gone, and says so.
    drop(daemon);
    watching.wait_for("could not ask");
}

#[actix::test]
async fn status_has_colours_on_a_terminal_alone_and_not_with_no_color() {
    let db = TestDatabase::new().await;
    let config = Config::new(&(given(&db, "1s", &["one"]) + LISTEN));
    let mut daemon = start(&config.path);
    let url = url(&mut daemon);
    daemon.wait_for("one initialized");
    let command = format!("{} status --url {url}", env!("CARGO_BIN_EXE_bgworker"));
    // util-linux's script gives a command a terminal.
    let on_a_terminal = |variables: &[(&str, &str)]| {
        let mut script = Command::new("script");
        script
            .args(["-qec", &command, "/dev/null"])
            .env("TERM", "xterm");
        script
            .env_remove("NO_COLOR")
            .envs(variables.iter().copied());
        run(&mut script).1
    };
    assert!(on_a_terminal(&[]).contains("\x1b[3"));
    assert!(!on_a_terminal(&[("NO_COLOR", "1")]).contains('\x1b'));
    assert!(!status(&url, &[]).1.contains('\x1b'));

    // `--watch` begins at the top of the terminal again, and clears what the table before left below.
    let command = command.replace("status", "status --watch");
    let mut script = Command::new("script");
    script
        .args(["-qec", &command, "/dev/null"])
        .env("TERM", "xterm");
    let mut watching = Daemon::start(&mut script);
    for _ in 0..2 {
        watching.wait_for("\x1b[Hbgworker");
    }
}

#[actix::test]
async fn status_finds_the_instance_of_a_configuration() {
    let db = TestDatabase::new().await;
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let listen = format!("[http]\nlisten = \"{port}\"\n");
    let config = Config::new(&(given(&db, "1s", &["s"]) + &listen));
    let ask = || run(bgworker().args(["status", "--config"]).arg(&config.path));
    let (code, out, err) = ask();
    assert_eq!((code, &*out), (1, ""));
    assert!(
        err.starts_with(&format!("could not ask http://127.0.0.1:{port}/status: "))
            && err.ends_with(": is bgworker running, with [http] listen?\n"),
        "{err}"
    );
    let mut daemon = start(&config.path);
    daemon.wait_for("s initialized");
    eventually("it is well", async || ask().0 == 0).await;

    // A change of `listen` needs a restart, and each reload logs that.
    config.write(&given(&db, "1s", &["s"]));
    for _ in 0..2 {
        daemon.signal(Signal::SIGHUP);
        daemon.wait_for("parameter \"http.listen\" cannot be changed without restarting");
    }
    let (code, out, err) = ask();
    assert_eq!((code, &*out), (1, ""));
    assert!(err.contains("set \"listen\" in [http]"), "{err}");

    // A second instance on that port reports it, and has not touched anything.
    let second = Config::new(&(given(&db, "1s", &["never made"]) + &listen));
    let (code, _, err) = run(bgworker()
        .args(["--log-format", "text", "--config"])
        .arg(&second.path));
    assert_eq!(code, 1);
    let expected = format!("could not listen on 127.0.0.1:{port}: ");
    assert!(
        err.contains(&expected) && err.contains("another address in \"listen\""),
        "{err}"
    );
    let sql = "SELECT count(*) FROM pg_namespace WHERE nspname = 'never made'";
    assert_eq!(db.value::<i64>(sql).await, 0);
}

#[actix::test]
async fn status_uses_no_proxy() {
    let db = TestDatabase::new().await;
    let config = Config::new(&(given(&db, "100ms", &["s"]) + LISTEN));
    let mut daemon = start(&config.path);
    let url = url(&mut daemon);
    daemon.wait_for("s initialized");
    let ask = || {
        let mut command = bgworker();
        for variable in ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
            command.env(variable, "http://127.0.0.1:9");
        }
        run(command.args(["status", "--url", &url]))
    };
    eventually("it is well", async || ask().0 == 0).await;
}

#[test]
fn a_server_that_was_never_reached_is_never_healthy_and_every_answer_says_why() {
    let text = "[database]\nurl = \"postgresql://app:hunter2@127.0.0.1:1/x\"\n\
                [[worker]]\nname = \"w\"\nschema = \"s\"\ntable = \"t\"\n";
    let config = Config::new(&(text.to_owned() + LISTEN));
    let mut daemon = start(&config.path);
    let url = url(&mut daemon);
    daemon.wait_for("server is away");
    let why = "could not connect to database \"x\" at 127.0.0.1:1: ";
    let (code, out, _) = status(&url, &[]);
    assert_eq!(code, 1);
    assert!(
        out.contains("server is away; for ") && out.contains(why),
        "{out}"
    );
    let get = |path: &str| {
        let request = ureq::get(format!("{url}{path}"));
        let answer = request.config().http_status_as_error(false).build().call();
        let mut answer = answer.unwrap();
        let text = answer.body_mut().read_to_string().unwrap();
        (answer.status().as_u16(), text)
    };
    let (code, text) = get("readyz");
    assert_eq!(code, 503, "{text}");
    assert!(
        text.starts_with("server is away; for ") && text.contains(why),
        "{text}"
    );
    assert!(
        text.ends_with("background worker \"w\" is registered, and was never ready\n"),
        "{text}"
    );
    let (_, text) = get("status");
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status["healthy"], false);
    assert_eq!(status["server"]["state"], "away");
    assert!(
        status["server"]["reason"]
            .as_str()
            .unwrap()
            .starts_with(why)
    );
    let (_, text) = get("metrics");
    assert!(
        text.contains("bgworker_server_state{state=\"away\"} 1.0"),
        "{text}"
    );
    assert!(
        text.contains("bgworker_server_trouble{reason=\"could not connect"),
        "{text}"
    );
    assert!(text.contains("bgworker_healthy{} 0.0"), "{text}");
    daemon.signal(Signal::SIGTERM);
    daemon.wait();
    assert!(!daemon.said.join("\n").contains("hunter2"));
}

#[test]
fn a_local_mistake_does_not_count_as_the_server_being_away() {
    for (key, why) in [
        (
            "password_file = \"/no/such/file\"",
            "could not read password file",
        ),
        ("", "root certificate file"),
    ] {
        let text = format!(
            "[database]\nurl = \"postgresql://app@127.0.0.1:1/x?sslmode={mode}&sslrootcert=/no/such/file\"\n{key}\n\
             [[worker]]\nname = \"w\"\nschema = \"s\"\ntable = \"t\"\n{LISTEN}",
            mode = if key.is_empty() {
                "verify-full"
            } else {
                "disable"
            },
        );
        let config = Config::new(&text);
        if key.is_empty() {
            // No connection could ever work, so the program does not start.
            let (code, _, err) = run(bgworker()
                .args(["--log-format", "text", "--config"])
                .arg(&config.path));
            assert!(code == 1 && err.contains(why), "{err}");
            continue;
        }
        let mut daemon = start(&config.path);
        daemon.wait_for("server cannot be asked");
        let line = daemon.wait_for("background worker \"w\" exited");
        assert!(line.contains(why), "{line}");
        assert!(
            !daemon
                .said
                .iter()
                .any(|line| line.contains("server is away"))
        );
    }
}

#[test]
fn status_without_an_instance_that_answers_fails_and_says_why() {
    let (code, _, err) = run(bgworker().args(["status", "--config", "/no/such/file"]));
    assert_eq!(code, 78, "{err}");
    let (code, _, err) = status("not a url", &[]);
    assert_eq!(code, 1, "{err}");
    // `status` gives up on a server that accepts and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let begin = std::time::Instant::now();
    let (code, _, err) = status(&url, &[]);
    assert_eq!(code, 1);
    assert!(
        err.contains("could not ask") && err.contains("timeout"),
        "{err}"
    );
    assert!(begin.elapsed() < Duration::from_secs(20));
}
