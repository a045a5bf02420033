//! What clients over HTTP can do, and cannot: however many there are, jobs go on and probes are answered.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use crate::configuration::{Config, given};
use crate::program::{bgworker, run, start};
use crate::serving::{LISTEN, url};
use crate::support::daemon::Daemon;
use crate::support::database::{TestDatabase, table};
use crate::support::eventually;

/// Where an instance listens: host and port.
fn address(url: &str) -> String {
    let address = url.trim_start_matches("http://");
    address.trim_end_matches('/').to_owned()
}

/// Sends a request as it stands, and returns the answer.
fn raw(url: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address(url)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[actix::test]
async fn more_clients_than_descriptors_neither_stop_a_worker_nor_hide_a_probe() {
    let db = TestDatabase::new().await;
    let config = Config::new(&(given(&db, "50ms", &["s"]) + LISTEN));
    let mut command = Command::new("bash");
    let script = r#"ulimit -n 128; exec "$0" run --log-format text --config "$1""#;
    command.args(["-c", script]);
    command.arg(bgworker().get_program()).arg(&config.path);
    let mut daemon = Daemon::start(&mut command);
    let url = url(&mut daemon);
    daemon.wait_for("s initialized");
    let mut clients = Vec::new();
    for client in 0..200 {
        let mut stream = TcpStream::connect(address(&url)).unwrap();
        if client % 2 == 0 {
            let request = b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n";
            // It may have given way already.
            let _ = stream.write_all(request);
        }
        clients.push(stream);
    }
    let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
               WHERE datname = current_database() AND pid <> pg_backend_pid()";
    assert!(db.value::<i64>(sql).await > 0);
    db.execute("INSERT INTO s.t VALUES ('total', 0), ('delta', 1)")
        .await;
    db.wait_for_rows(&table("s", "t"), &["total|1"]).await;
    let request = "GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    eventually("a probe is answered", async || {
        raw(&url, request).ends_with("the Postmaster answers\n")
    })
    .await;
    assert!(!daemon.said.join("\n").contains("Too many open files"));
}

#[actix::test]
async fn a_name_that_is_not_the_instances_is_not_answered() {
    let db = TestDatabase::new().await;
    let hosts = "hosts = [\"bgworker.example\"]\n";
    let config = Config::new(&(given(&db, "1s", &["s"]) + LISTEN + hosts));
    let mut daemon = start(&config.path);
    let url = url(&mut daemon);
    let ask = |path: &str, headers: &str| raw(&url, &format!("GET {path} {headers}\r\n\r\n"));
    for headers in [
        "HTTP/1.0",
        "HTTP/1.0\r\nHost: 127.0.0.1:9187",
        "HTTP/1.0\r\nHost: LocalHost",
        "HTTP/1.0\r\nHost: bgworker.example:80",
    ] {
        assert!(
            ask("/livez", headers).starts_with("HTTP/1.0 200 OK"),
            "{headers}"
        );
    }
    for path in ["/", "/status", "/events", "/worker?name=s", "/nowhere"] {
        let answer = ask(path, "HTTP/1.0\r\nHost: evil.example");
        assert!(
            answer.starts_with("HTTP/1.0 421 Misdirected Request"),
            "{answer}"
        );
        assert!(
            answer.contains("add the name to \"hosts\" in [http]"),
            "{answer}"
        );
    }
    // `status` shows what such an instance answers.
    let wrong = url.replace("127.0.0.1", "localhost.localdomain");
    if TcpStream::connect(address(&wrong)).is_ok() {
        let (code, _, err) = run(bgworker().args(["status", "--url", &wrong]));
        assert!(code == 1 && err.contains("\"hosts\" in [http]"), "{err}");
    }
}

#[test]
fn a_host_with_a_port_is_refused_with_what_to_write() {
    let text = "[database]\nurl = \"\"\n[http]\nhosts = [\"http://bgworker.example:80\"]\n";
    let config = Config::new(text);
    let (code, _, err) = run(bgworker().args(["check", "--config"]).arg(&config.path));
    assert_eq!(code, 78);
    assert!(
        err.contains("a host is a name without scheme and port"),
        "{err}"
    );
}

#[test]
fn check_warns_of_a_page_for_everyone_and_of_passwords_that_everyone_can_read() {
    let password = "[database]\nurl = \"postgresql://app:hunter2@db.example/x\"\n";
    let config = Config::new(&format!("{password}[http]\nlisten = \"0.0.0.0:9187\"\n"));
    let check = |mode: u32| {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&config.path, mode).unwrap();
        let (code, out, err) = run(bgworker().args(["check", "--config"]).arg(&config.path));
        assert_eq!((code, &*err), (0, ""));
        out
    };
    let out = check(0o644);
    assert!(
        out.contains("Warning: [http] listen = \"0.0.0.0:9187\" is every address"),
        "{out}"
    );
    assert!(
        out.contains("Warning: every user of this machine can read"),
        "{out}"
    );
    assert!(!out.contains("hunter2"), "{out}");
    assert!(!check(0o640).contains("can read"));
    config.write("[database]\nurl = \"postgresql://app@db.example/x\"\n");
    assert!(!check(0o644).contains("Warning"));
}

#[test]
fn an_instance_whose_workers_fail_is_alive() {
    let text = "[database]\nurl = \"postgresql://app@127.0.0.1:1/x\"\n\
                [[worker]]\nname = \"w\"\nschema = \"s\"\ntable = \"t\"\n";
    let config = Config::new(&(text.to_owned() + LISTEN));
    let mut daemon = start(&config.path);
    let url = url(&mut daemon);
    let status = |flag: &str| run(bgworker().args(["status", flag, "--url", &url]));
    assert_eq!(status("--json").0, 1);
    assert_eq!(
        status("--live"),
        (0, "the Postmaster answers\n".to_owned(), String::new())
    );
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    daemon.wait();
    assert_eq!(status("--live").0, 1);
}
