//! The program: what it does with a configuration, with signals, and when it is killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::configuration::{Config, given};
use crate::files::folds_and_stops;
use crate::program::{bgworker, run, run_command, start, wait_for_all};
use crate::serving::url;
use crate::support::daemon::Daemon;
use crate::support::database::{TestDatabase, table};
use crate::support::files::{processes_with, reachable_directory};
use crate::support::stage::{fold_slowly, is_folding};
use crate::support::{eventually, within};

/// The repository.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

const SECOND: Duration = Duration::from_secs(1);

/// The same configuration, with an own connection for each worker.
fn on_their_own(text: &str) -> String {
    text.replace("naptime =", "connection = \"own\"\nnaptime =")
}

/// The seed's configuration and its text, with a private server in the test's own directory.
pub(crate) fn seed() -> (Config, String) {
    let config = Config::new("");
    let data_dir = format!("embedded = true\ndata_dir = {:?}", config.data_dir());
    let text = include_str!("../../../conf/seed.toml").replace("embedded = true", &data_dir);
    config.write(&text);
    (config, text)
}

/// The connection string for the server that the program's line with a `psql` command names.
fn conninfo(psql: &str) -> String {
    let mut words = psql
        .split_whitespace()
        .skip_while(|word| *word != "-h")
        .skip(1);
    format!(
        "host='{}' user=postgres dbname=postgres",
        words.next().unwrap()
    )
}

#[actix::test]
async fn the_seed_runs_on_a_private_server_and_a_ctrl_c_leaves_nothing_behind() {
    let (config, _) = seed();
    let mut daemon = start(&config.path);
    let psql = daemon.wait_for("join in with: ");
    daemon.wait_for("SPI worker 2 initialized with our schema2.counted rows");
    let starts: Vec<_> = daemon
        .said
        .iter()
        .filter(|l| l.contains("starting background"))
        .collect();
    assert!(starts[0].contains("SPI worker 1") && starts[1].contains("SPI worker 2"));
    let db = TestDatabase::at(&conninfo(&psql)).await;
    let counted = table("schema1", "counted");
    db.execute("INSERT INTO schema1.counted VALUES ('total', 0), ('delta', 1)")
        .await;
    within(SECOND + SECOND / 5, "it is folded", || async {
        db.rows(&counted).await == ["total|1"]
    })
    .await;
    daemon.wait_for("SPI worker 1: count in schema1.counted is now 1");
    drop(db);
    daemon.signal(Signal::SIGINT);
    let (code, took) = daemon.wait();
    assert_eq!(code, Some(0), "{:?}", daemon.said);
    assert!(took < 10 * SECOND, "{took:?}");
    assert_eq!(processes_with(&config.data_dir()), Vec::<String>::new());
    let socket_dir = PathBuf::from(conninfo(&psql).split('\'').nth(1).unwrap());
    assert!(!socket_dir.exists());
    assert!(
        config.data_dir().join("PG_VERSION").exists(),
        "what was folded is kept"
    );
}

#[actix::test]
async fn a_killed_instance_leaves_no_server_behind_and_the_next_one_keeps_its_data() {
    let (config, _) = seed();
    let mut daemon = start(&config.path);
    let psql = daemon.wait_for("join in with: ");
    daemon.wait_for("SPI worker 1 initialized");
    let db = TestDatabase::at(&conninfo(&psql)).await;
    db.execute("INSERT INTO schema1.counted VALUES ('total', 40), ('delta', 1)")
        .await;
    drop(db);
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
    // At once: the instance must wait for the watchdog of the previous one.
    let mut daemon = start(&config.path);
    let psql = daemon.wait_for("join in with: ");
    let db = TestDatabase::at(&conninfo(&psql)).await;
    db.execute("INSERT INTO schema1.counted VALUES ('delta', 1)")
        .await;
    db.wait_for_rows(&table("schema1", "counted"), &["total|42"])
        .await;
    drop(db);
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
    eventually("the server has stopped", || async {
        processes_with(&config.data_dir()).is_empty()
    })
    .await;
}

#[test]
fn a_second_instance_on_the_same_directory_reports_that_it_is_in_use() {
    let (config, _) = seed();
    let mut daemon = start(&config.path);
    daemon.wait_for("SPI worker 1 initialized");
    let mut second = start(&config.path);
    second.wait_for("is in use by another server");
    assert_eq!(second.wait().0, Some(1));
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().0, Some(0));
}

#[test]
fn a_private_server_that_dies_ends_the_program_with_its_reason() {
    let (config, _) = seed();
    let mut daemon = start(&config.path);
    wait_for_all(
        &mut daemon,
        &["SPI worker 1 initialized", "SPI worker 2 initialized"],
    );
    let pid_file = fs::read_to_string(config.data_dir().join("postmaster.pid")).unwrap();
    let pid = pid_file.lines().next().unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    daemon.wait_for("has ended by itself");
    assert_eq!(daemon.wait().0, Some(1));
}

#[actix::test]
async fn a_log_without_a_reader_ends_nothing() {
    let db = TestDatabase::new().await;
    let config = Config::given(&db, "20ms", &["s"]);
    let mut child = bgworker()
        .arg("--config")
        .arg(&config.path)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stderr.take());
    folds_and_stops(&db, &mut child).await;
}

#[test]
fn a_signal_while_the_private_server_is_being_made_stops_cleanly() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let (config, _) = seed();
        let mut daemon = start(&config.path);
        daemon.wait_for("starting a private server");
        daemon.signal(signal);
        assert_eq!(daemon.wait().0, Some(0), "{:?}", daemon.said);
        assert_eq!(processes_with(&config.data_dir()), Vec::<String>::new());
    }
}

#[test]
fn the_demo_shows_the_totals_moving_and_leaves_nothing_behind() {
    let mut daemon = Daemon::start(bgworker().arg("demo"));
    let psql = daemon.wait_for("join in with: psql");
    let first = daemon.wait_for("totals:");
    let total = |line: &str| -> Vec<u64> {
        let totals = line.split_once("totals:").unwrap().1;
        totals
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect()
    };
    daemon.wait_for("totals:");
    let third = daemon.wait_for("totals:");
    let (first, third) = (total(&first), total(&third));
    assert_eq!(third.len(), 2, "{third:?}");
    assert!(
        third[0] > first[0] && third[1] > first[1],
        "{first:?} {third:?}"
    );
    daemon.signal(Signal::SIGINT);
    assert_eq!(daemon.wait().0, Some(0), "{:?}", daemon.said);
    let socket_dir = PathBuf::from(conninfo(&psql).split('\'').nth(1).unwrap());
    assert!(!socket_dir.exists());
    assert_eq!(processes_with(&socket_dir), Vec::<String>::new());
}

#[actix::test]
async fn fifty_kills_at_random_moments_lose_nothing_and_count_nothing_twice() {
    let db = TestDatabase::new().await;
    let counted = table("s", "t");
    let config = Config::given(&db, "1ms", &["s"]);
    let mut first = start(&config.path);
    first.wait_for("initialized");
    db.execute("INSERT INTO s.t VALUES ('total', 0)").await;
    drop(first);
    let (stop, stopped) = std::sync::mpsc::channel();
    let conninfo = db.conninfo().to_owned();
    // On its own thread: this one blocks while it waits for the program.
    let inserter = std::thread::spawn(move || {
        actix::System::new().block_on(insert_until(&conninfo, &stopped))
    });
    for round in 0..50 {
        // Each fold is a line.
        let mut command = run_command(&config.path);
        let mut daemon = Daemon::start(command.env("RUST_LOG", "info,bgworker=debug"));
        // In half of the rounds it has begun to fold, in the others it may not have.
        daemon.wait_for(if round % 2 == 0 {
            "is now"
        } else {
            "initialized"
        });
        std::thread::sleep(Duration::from_millis(fastrand::u64(0..40)));
        daemon.signal(Signal::SIGKILL);
        daemon.wait();
        // The inserter's is the only other backend.
        within(SECOND, "its backends are gone", || async {
            let ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'bgworker' \
                        AND datname = current_database()";
            db.value::<i64>(ours).await == 0
        })
        .await;
    }
    stop.send(()).unwrap();
    let inserted = inserter.join().unwrap();
    assert_eq!(db.sum(&counted).await, inserted);
    let mut last = start(&config.path);
    db.wait_for_rows(&counted, &[&format!("total|{inserted}")])
        .await;
    last.signal(Signal::SIGTERM);
    assert_eq!(last.wait().0, Some(0));
}

/// Inserts deltas until `stopped` receives a message, and returns their sum.
async fn insert_until(conninfo: &str, stopped: &std::sync::mpsc::Receiver<()>) -> i64 {
    let db = TestDatabase::at(conninfo).await;
    let mut inserted = 0;
    while stopped.try_recv().is_err() {
        db.execute("INSERT INTO s.t SELECT 'delta', n FROM generate_series(1, 3) AS n")
            .await;
        inserted += 1 + 2 + 3;
    }
    inserted
}

#[actix::test]
async fn a_sighup_rereads_naptimes_and_a_broken_file_changes_nothing() {
    let db = TestDatabase::new().await;
    let config = Config::given(&db, "600s", &["s"]);
    let mut daemon = start(&config.path);
    daemon.wait_for("initialized");
    db.execute("INSERT INTO s.t VALUES ('total', 0)").await;
    let counted = table("s", "t");

    config.write("[database]\nurl = 1\n[postmaster]\nstarts_per_tick = 0\n");
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for("received SIGHUP, reloading configuration files");
    daemon.wait_for("bgworker.toml:2:7: database.url: expected a string");
    daemon.wait_for("bgworker.toml:4:19: postmaster.starts_per_tick");
    daemon.wait_for("nothing was changed");

    config.write(&given(&db, "20ms", &["s"]));
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for("parameters of worker \"s\" changed: naptime");
    db.execute("INSERT INTO s.t VALUES ('delta', 1)").await;
    within(SECOND, "it folds at its new naptime", || async {
        db.rows(&counted).await == ["total|1"]
    })
    .await;
}

/// Reloads a configuration that cannot be what was meant, and checks that the worker goes on folding.
async fn changes_nothing(daemon: &mut Daemon, db: &TestDatabase, why: &str) {
    daemon.signal(Signal::SIGHUP);
    let line = daemon.wait_for("nothing was changed");
    assert!(line.contains(why) && line.contains(" WARN "), "{line}");
    let deltas = "SELECT count(*) FROM s.t WHERE type = 'delta'";
    db.execute("INSERT INTO s.t VALUES ('delta', 1)").await;
    within(SECOND, "it folds", || async {
        db.value::<i64>(deltas).await == 0
    })
    .await;
    assert!(!daemon.said.iter().any(|line| line.contains("removed")));
}

#[actix::test]
async fn a_reload_of_an_empty_missing_or_unreadable_file_changes_nothing_and_warns() {
    let db = TestDatabase::new().await;
    let text = given(&db, "20ms", &["s"]);
    let config = Config::new(&text);
    let mut daemon = start(&config.path);
    daemon.wait_for("initialized");
    db.execute("INSERT INTO s.t VALUES ('total', 0)").await;
    config.write("");
    changes_nothing(&mut daemon, &db, "is empty").await;
    config.write(" \n\n");
    changes_nothing(&mut daemon, &db, "is empty").await;
    fs::remove_file(&config.path).unwrap();
    changes_nothing(&mut daemon, &db, "No such file").await;
    // A pipe without a writer: opening it would block forever.
    nix::unistd::mkfifo(&config.path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    changes_nothing(&mut daemon, &db, "can be read only once").await;
    fs::remove_file(&config.path).unwrap();
    // A file that has no workers, but is not empty, removes them all.
    let (database, _) = text.split_once("[[worker]]").unwrap();
    config.write(database);
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for("worker \"s\" removed");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().0, Some(0));
}

#[actix::test]
async fn a_configuration_from_a_pipe_survives_a_reload() {
    let db = TestDatabase::new().await;
    let config = Config::new(&given(&db, "20ms", &["s"]));
    let mut command = Command::new("bash");
    let script = r#"exec "$0" run --log-format text --config <(cat "$1")"#;
    command.args(["-c", script]);
    command.arg(bgworker().get_program()).arg(&config.path);
    let mut daemon = Daemon::start(&mut command);
    daemon.wait_for("initialized");
    db.execute("INSERT INTO s.t VALUES ('total', 0)").await;
    changes_nothing(&mut daemon, &db, "can be read only once").await;
}

/// Runs the program, whose workers all connect at once, with fewer descriptors than these have connections.
fn with_few_descriptors(config: &Config) -> (Daemon, String) {
    let mut command = Command::new("bash");
    let script = r#"ulimit -n 48; exec "$0" run --log-format text --config "$1""#;
    command.args(["-c", script]);
    command.env("BGWORKER_HTTP__LISTEN", "127.0.0.1:0");
    command.env("BGWORKER_POSTMASTER__STARTS_PER_TICK", "40");
    command.arg(bgworker().get_program()).arg(&config.path);
    let mut daemon = Daemon::start(&mut command);
    let url = url(&mut daemon);
    (daemon, url)
}

/// Waits until this is said by `status`.
async fn status_says(url: &str, what: &str) {
    eventually(what, async || {
        let (_, out, _) = run(bgworker().args(["status", "--url", url]));
        out.contains(what)
    })
    .await;
}

#[actix::test]
async fn a_process_that_runs_out_of_descriptors_does_not_take_its_server_for_away() {
    let db = TestDatabase::new().await;
    let schemas: Vec<_> = (0..40).map(|n| format!("s{n}")).collect();
    let schemas: Vec<_> = schemas.iter().map(String::as_str).collect();
    let config = Config::new(&on_their_own(&given(&db, "20ms", &schemas)));
    let (mut daemon, url) = with_few_descriptors(&config);
    wait_for_all(
        &mut daemon,
        &["initialized", "waits for room for its connection"],
    );
    tokio::time::sleep(2 * SECOND).await; // several attempts
    status_says(&url, "server is primary").await;
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().0, Some(0), "{:#?}", daemon.said);
    let said = daemon.said.join("\n");
    assert!(said.contains("Too many open files"), "{said}");
    assert!(
        !said.contains("server is away") && !said.contains("parks"),
        "{said}"
    );
    let made = |line: &&String| line.contains("INFO made the ");
    let others = daemon.said.len() - daemon.said.iter().filter(made).count();
    assert!(others < 110, "{said}");
}

#[actix::test]
async fn jobs_with_connections_of_their_own_leave_descriptors_for_probes() {
    let db = TestDatabase::new().await;
    let given = given(&db, "1s", &["s"]);
    let (database, _) = given.split_once("[[worker]]").unwrap();
    let jobs = (0..40).map(|n| {
        format!(
            "[[worker]]\nname = \"j{n}\"\nfunction = \"sql\"\nevery = \"1s\"\nconnection = \"own\"\n\
             sql = \"SELECT pg_sleep(3600)\"\n"
        )
    });
    let config = Config::new(&(database.to_owned() + &jobs.collect::<String>()));
    let (mut daemon, url) = with_few_descriptors(&config);
    status_says(&url, "Too many open files").await;
    status_says(&url, "server is primary").await;
    daemon.signal(Signal::SIGINT);
    assert_eq!(daemon.wait().0, Some(0), "{:#?}", daemon.said);
}

#[actix::test]
async fn signals_that_mean_nothing_are_logged_and_end_nothing() {
    let db = TestDatabase::new().await;
    let config = Config::given(&db, "1s", &["s"]);
    let mut daemon = start(&config.path);
    daemon.wait_for("initialized");
    for signal in [
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGALRM,
        Signal::SIGVTALRM,
        Signal::SIGPROF,
        Signal::SIGIO,
        Signal::SIGPWR,
        Signal::SIGPIPE,
    ] {
        daemon.signal(signal);
        if signal != Signal::SIGPIPE {
            daemon.wait_for(&format!("received {signal}, which has no effect"));
        }
    }
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().0, Some(0));
}

#[actix::test]
async fn a_server_message_can_neither_forge_a_log_line_nor_steer_a_terminal() {
    let db = TestDatabase::new().await;
    let config = Config::given(&db, "20ms", &["s"]);
    let mut daemon = start(&config.path);
    daemon.wait_for("initialized");
    db.execute(
        r"CREATE FUNCTION s.f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION
          USING MESSAGE = E'no\n2026-01-01T00:00:00Z  INFO all is well\x1b[2J\r\u009b31m é',
          DETAIL = E'a\nb', HINT = E'c\td'; END $$;
          CREATE TRIGGER f BEFORE UPDATE ON s.t FOR EACH ROW EXECUTE FUNCTION s.f();
          INSERT INTO s.t VALUES ('total', 0), ('delta', 1)",
    )
    .await;
    let line = daemon.wait_for("P0001");
    assert!(
        line.contains(r"no\n2026-01-01T00:00:00Z  INFO all is well\u{1b}[2J\r\u{9b}31m é"),
        "{line}"
    );
    assert!(line.contains(r"DETAIL: a\nb; HINT: c\td"), "{line}");
    daemon.signal(Signal::SIGTERM);
    daemon.wait();
    let forged = |line: &String| line.starts_with("2026-01-01") || line.contains(['\x1b', '\r']);
    assert!(!daemon.said.iter().any(forged), "{:#?}", daemon.said);
}

#[actix::test]
async fn each_change_of_the_file_takes_effect_and_logs_one_line() {
    let db = TestDatabase::new().await;
    let config = Config::new(&on_their_own(&given(
        &db,
        "20ms",
        &["stays", "goes", "moves"],
    )));
    let mut daemon = start(&config.path);
    wait_for_all(
        &mut daemon,
        &["stays initialized", "goes initialized", "moves initialized"],
    );
    let moved = on_their_own(&given(&db, "20ms", &["stays", "moves", "comes"]))
        .replace("schema = \"moves\"", "schema = \"elsewhere\"")
        .replace(
            "name = \"stays\"",
            "name = \"stays\"\nrestart_time = \"7s\"",
        );
    let limits = "connect_timeout = \"9s\"\n[postmaster]\nmax_workers = 9\n[[worker]]\n";
    config.write(&moved.replacen("[[worker]]\n", limits, 1));
    daemon.signal(Signal::SIGHUP);
    wait_for_all(
        &mut daemon,
        &[
            "parameter \"database.connect_timeout\" cannot be changed without restarting",
            "parameters of the postmaster changed: max_workers",
            "worker \"goes\" removed: it ends, since the configuration no longer has it",
            "parameters of worker \"stays\" changed: restart_time",
            "worker \"moves\" replaced, since it has another schema",
            "worker \"comes\" added",
            "moves initialized with elsewhere.t",
            "comes initialized with comes.t",
        ],
    );
    let workers = "SELECT string_agg(DISTINCT application_name, ',' ORDER BY application_name) \
                   FROM pg_stat_activity WHERE datname = current_database() \
                   AND pid <> pg_backend_pid()";
    eventually("the old ones are gone", || async {
        db.value::<String>(workers).await == "comes,moves,stays"
    })
    .await;
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().0, Some(0));
}

#[actix::test]
async fn a_signal_is_handled_while_a_reload_waits_for_a_worker_to_end() {
    let db = TestDatabase::new().await;
    let config = Config::given(&db, "20ms", &["s"]);
    let mut daemon = start(&config.path);
    daemon.wait_for("initialized");
    fold_slowly(&db, 50.0).await;
    is_folding(&db, "s").await;
    config.write(&given(&db, "20ms", &["s"]).replace("\"t\"", "\"other\""));
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for("worker \"s\" replaced");
    daemon.signal(Signal::SIGINT);
    let (code, took) = daemon.wait();
    assert_eq!(code, Some(0), "{:?}", daemon.said);
    assert!(took < 4 * SECOND, "{took:?}");
}

#[actix::test]
async fn a_sigterm_before_the_worker_is_ready_is_a_clean_stop() {
    // A server that accepts connections and sends nothing.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let config = Config::new(&format!(
        "[database]\nurl = \"host=127.0.0.1 port={port}\"\n[[worker]]\nname = 'w'\nschema = 's'\ntable = 't'\n"
    ));
    let mut daemon = start(&config.path);
    daemon.wait_for("using the server at");
    daemon.signal(Signal::SIGTERM);
    let (code, took) = daemon.wait();
    assert_eq!(code, Some(0));
    assert!(took < 10 * SECOND, "{took:?}");
}

#[actix::test]
async fn each_signal_logs_the_shutdown_that_it_requests() {
    let db = TestDatabase::new().await;
    for (signal, said, code) in [
        (Signal::SIGTERM, "received smart shutdown request", 0),
        (Signal::SIGINT, "received fast shutdown request", 0),
        (Signal::SIGQUIT, "received immediate shutdown request", 3),
    ] {
        let config = Config::given(&db, "1s", &["s"]);
        let mut daemon = start(&config.path);
        daemon.wait_for("initialized");
        daemon.signal(signal);
        daemon.wait_for(said);
        assert_eq!(daemon.wait().0, Some(code));
    }
}

#[test]
fn check_reports_every_mistake_and_exits_with_78_and_nothing_on_standard_output() {
    let config = Config::new("[database]\nurll = 'hunter2'\nembedded = 1\n[[worker]]\nname = 5\n");
    let (code, out, err) = run(bgworker().args(["check", "--config"]).arg(&config.path));
    assert_eq!((code, &*out), (78, ""));
    let lines: Vec<_> = err
        .lines()
        .map(|line| line.rsplit_once(".toml:").unwrap().1)
        .collect();
    insta::assert_snapshot!(lines.join("\n"));
    assert!(!err.contains("hunter2"));
}

#[test]
fn check_of_the_examples_says_what_is_right_and_print_shows_what_is_in_force() {
    for file in [
        "conf/bgworker.toml",
        "conf/jobs.toml",
        "conf/rollups.toml",
        "conf/seed.toml",
    ] {
        let file = Path::new(ROOT).join(file);
        let (code, out, err) = run(bgworker().args(["check", "--config"]).arg(file));
        assert_eq!((code, &*err), (0, ""));
        assert!(out.contains(": no mistakes\n  workers  "), "{out}");
        assert!(out.contains("\nNot checked: the server"), "{out}");
    }
    let mut print = bgworker();
    print.current_dir(ROOT);
    let (code, out, _) = run(print.args(["check", "--print", "--config", "conf/seed.toml"]));
    assert_eq!(code, 0);
    insta::assert_snapshot!(out);
}

#[test]
fn run_on_a_broken_configuration_starts_nothing_and_exits_with_78() {
    let config = Config::new("[database]\nembedded = true\nx = 1\n");
    let (code, out, err) = run(bgworker().args(["--config"]).arg(&config.path));
    assert_eq!((code, &*out), (78, ""));
    assert!(err.contains(":3:1: database.x: unknown key"), "{err}");
    assert!(!err.contains("private server"), "{err}");
}

#[test]
fn without_a_configuration_file_the_error_names_every_place() {
    let directory = reachable_directory();
    let mut command = bgworker();
    command
        .current_dir(directory.path())
        .env("XDG_CONFIG_HOME", "/nowhere");
    let (code, _, err) = run(command.arg("check"));
    assert_eq!(code, 78);
    for place in [
        "./bgworker.toml",
        "./conf/bgworker.toml",
        "/nowhere/bgworker/bgworker.toml",
        "/etc/bgworker/bgworker.toml",
    ] {
        assert!(err.contains(place), "{err}");
    }
}

#[test]
fn the_first_configuration_file_that_exists_is_used_unless_one_is_named() {
    let directory = reachable_directory();
    let good = "[database]\nembedded = true\n";
    fs::create_dir_all(directory.path().join("conf")).unwrap();
    fs::write(directory.path().join("conf/bgworker.toml"), good).unwrap();
    fs::write(directory.path().join("other.toml"), "x = 1").unwrap();
    let check = |variable: Option<&str>| {
        let mut command = bgworker();
        command.current_dir(directory.path()).arg("check");
        if let Some(file) = variable {
            command.env("BGWORKER_CONFIG", file);
        }
        run(&mut command).0
    };
    assert_eq!(check(None), 0);
    assert_eq!(check(Some("other.toml")), 78);
    fs::write(directory.path().join("bgworker.toml"), "x = 1").unwrap();
    assert_eq!(check(None), 78, "the first that exists is taken");
}

#[test]
fn wrong_usage_exits_with_2_and_help_and_version_with_0() {
    assert_eq!(run(bgworker().arg("--frobnicate")).0, 2);
    assert_eq!(run(bgworker().arg("frobnicate")).0, 2);
    let (code, out, _) = run(bgworker().arg("--version"));
    assert_eq!(
        (code, &*out),
        (0, concat!("bgworker ", env!("CARGO_PKG_VERSION"), "\n"))
    );
    let (code, out, _) = run(bgworker().arg("--help"));
    assert_eq!(code, 0);
    insta::assert_snapshot!(out);
}

#[actix::test]
async fn the_log_is_json_unless_standard_error_is_a_terminal() {
    let db = TestDatabase::new().await;
    let config = Config::given(&db, "1s", &["s"]);
    let mut daemon = Daemon::start(bgworker().arg("--config").arg(&config.path));
    let line = daemon.wait_for("initialized with");
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["message"], "s initialized with s.t");
    assert_eq!(line["worker"], "s");
    assert_eq!(line["level"], "INFO");
}

#[test]
fn a_name_lookup_that_hangs_does_not_delay_the_exit() {
    let directory = tempfile::TempDir::new().unwrap();
    let library = directory.path().join("hang.so");
    let code = "#include <unistd.h>\nint getaddrinfo() { sleep(600); return -1; }\n";
    let source = directory.path().join("hang.c");
    fs::write(&source, code).unwrap();
    let mut compiler = Command::new("gcc");
    compiler
        .args(["-w", "-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&source);
    assert!(compiler.status().unwrap().success());
    let config = Config::new("[[worker]]\nname = \"w\"\nschema = \"s\"\ntable = \"t\"\n");
    let mut program = bgworker();
    program
        .args(["run", "--log-format", "text", "--config"])
        .arg(&config.path);
    program.args(["--database", "postgresql://db.example/app"]);
    let mut daemon = Daemon::start(program.env("LD_PRELOAD", &library));
    daemon.wait_for("using database");
    daemon.signal(Signal::SIGTERM);
    let begin = Instant::now();
    assert_eq!(daemon.wait().0, Some(0));
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "{:?}",
        begin.elapsed()
    );
}
