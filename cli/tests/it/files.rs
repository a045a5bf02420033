//! A pipe in the place of a file, and a log whose reader stalls: neither holds anything up.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command};

use nix::fcntl::{
    FcntlArg::{F_GETFL, F_SETFL},
    OFlag, fcntl,
};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

use crate::configuration::{Config, given};
use crate::program::{bgworker, run, start};
use crate::serving::{LISTEN, url};
use crate::support::database::{TestDatabase, table};
use crate::support::eventually;

/// Puts a pipe without a writer in the place of a file.
fn replace_by_pipe(path: &Path) {
    let _ = fs::remove_file(path);
    mkfifo(path, Mode::S_IRWXU).unwrap();
}

#[actix::test]
async fn a_pipe_in_the_place_of_statements_changes_nothing_and_stops_nothing() {
    let db = TestDatabase::new().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("job.sql");
    fs::write(&file, "SELECT 1").unwrap();
    let job = format!(
        "[[worker]]\nname = \"j\"\nfunction = \"sql\"\nevery = \"1h\"\nsql_file = \"{}\"\n",
        file.display()
    );
    let config = Config::new(&(given(&db, "20ms", &["s"]) + &job));
    let mut daemon = start(&config.path);
    daemon.wait_for("s initialized");
    replace_by_pipe(&file);
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for("it is not a regular file");
    daemon.wait_for("nothing was changed");
    db.execute("INSERT INTO s.t VALUES ('total', 0), ('delta', 1)")
        .await;
    db.wait_for_rows(&table("s", "t"), &["total|1"]).await;
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().0, Some(0));
}

#[test]
fn a_pipe_in_the_place_of_a_password_or_a_certificate_is_refused_and_probes_are_answered() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    replace_by_pipe(&file);
    let file = file.display();
    let worker = "[[worker]]\nname = \"w\"\nschema = \"s\"\ntable = \"t\"\n";
    for (url_end, key) in [
        ("?sslmode=disable", format!("password_file = \"{file}\"\n")),
        (&*format!("?sslmode=prefer&sslcert={file}"), String::new()),
    ] {
        let url_line = format!("url = \"postgresql://app@127.0.0.1:1/x{url_end}\"\n");
        let config = Config::new(&format!("[database]\n{url_line}{key}{worker}{LISTEN}"));
        let mut daemon = start(&config.path);
        let url = url(&mut daemon);
        daemon.wait_for("it is not a regular file");
        let answer = ureq::get(format!("{url}livez")).call().unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        daemon.signal(Signal::SIGTERM);
        assert_eq!(daemon.wait().0, Some(0));
    }
}

#[test]
fn a_configuration_without_an_end_is_refused() {
    let (code, _, err) = run(bgworker().args(["check", "--config", "/dev/zero"]));
    assert_eq!(code, 78);
    assert!(err.contains("it has no end within 64 MB"), "{err}");
}

#[actix::test]
async fn a_log_that_is_not_read_from_the_start_on_stops_nothing() {
    let db = TestDatabase::new().await;
    let config = Config::new(&given(&db, "20ms", &["s"]));
    // A full pipe, which nothing reads.
    let (_reader, mut log) = std::io::pipe().unwrap();
    let flags = fcntl(&log, F_GETFL).unwrap();
    let flags = OFlag::from_bits_truncate(flags);
    fcntl(&log, F_SETFL(flags | OFlag::O_NONBLOCK)).unwrap();
    while log.write(&[b'\n'; 4096]).is_ok() {}
    fcntl(&log, F_SETFL(flags)).unwrap();
    let mut child = bgworker()
        .arg("--config")
        .arg(&config.path)
        .stderr(log)
        .spawn()
        .unwrap();
    folds_and_stops(&db, &mut child).await;
}

/// A delta is folded, and SIGTERM ends the program.
pub(crate) async fn folds_and_stops(db: &TestDatabase, child: &mut Child) {
    eventually("the table is there", || async {
        db.value::<bool>("SELECT to_regclass('s.t') IS NOT NULL")
            .await
    })
    .await;
    db.execute("INSERT INTO s.t VALUES ('total', 0), ('delta', 1)")
        .await;
    db.wait_for_rows(&table("s", "t"), &["total|1"]).await;
    let pid = Pid::from_raw(child.id().cast_signed());
    kill(pid, Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[actix::test]
async fn a_log_at_the_limit_of_its_files_size_ends_nothing() {
    let db = TestDatabase::new().await;
    let config = Config::new(&given(&db, "20ms", &["s"]));
    let mut command = Command::new("bash");
    let script = r#"ulimit -f 1; exec "$0" run --config "$1" 2> "$1.log""#;
    command.args(["-c", script]);
    command.arg(bgworker().get_program()).arg(&config.path);
    let mut child = command.env("RUST_LOG", "trace").spawn().unwrap();
    let log = config.path.with_extension("toml.log");
    eventually("the log is at its limit", async || {
        fs::metadata(&log).is_ok_and(|log| log.len() >= 1024)
    })
    .await;
    folds_and_stops(&db, &mut child).await;
}

#[test]
fn a_user_without_a_name_is_told_to_name_a_role() {
    if !nix::unistd::Uid::effective().is_root() {
        return;
    }
    let text = "[database]\nurl = \"postgresql://127.0.0.1:1/x\"\n";
    let config = Config::new(text);
    fs::set_permissions(&config.path, fs::Permissions::from_mode(0o644)).unwrap();
    // That user cannot reach the program where it was built.
    let program = config.path.with_file_name("bgworker");
    fs::copy(bgworker().get_program(), &program).unwrap();
    let check = |role: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "59999", "--regid", "59999", "--clear-groups"]);
        command.arg(&program).args(["check", "--config"]);
        run(command.arg(&config.path).env("PGUSER", role))
    };
    let (code, _, err) = check("");
    assert_eq!(code, 78, "{err}");
    assert!(
        err.contains("local user with ID 59999 does not exist: name the role"),
        "{err}"
    );
    assert_eq!(check("app").0, 0);
}
