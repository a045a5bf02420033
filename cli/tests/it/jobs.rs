//! Jobs on several instances of the program: killed, frozen, and started again.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::configuration::Config;
use crate::program::{bgworker, run, start};
use crate::support::database::TestDatabase;
use crate::support::ticks::assert_exact;
use crate::support::{eventually, within};

const SECOND: Duration = Duration::from_secs(1);

/// A job that inserts a row into `effect` for each tick.
fn job(db: &TestDatabase, interval: &str, sql: &str) -> Config {
    Config::new(&format!(
        "[database]\nurl = \"{}\"\n[[worker]]\nname = \"j\"\nfunction = \"sql\"\nmissed = \"each\"\n\
         every = \"{interval}\"\nhistory = 1000\nsql = \"INSERT INTO effect SELECT \
         current_setting('bgworker.tick')::timestamptz, pg_backend_pid(); {sql}\"\n",
        db.conninfo().replace('"', "\\\"")
    ))
}

async fn stage() -> TestDatabase {
    let db = TestDatabase::new().await;
    db.execute("CREATE TABLE effect (tick timestamptz, pid int)")
        .await;
    db
}

#[actix::test]
async fn each_tick_runs_once_on_three_instances_that_are_killed_at_random() {
    let db = stage().await;
    let config = job(&db, "1s", "SELECT pg_sleep(0.3)");
    let mut instances: Vec<_> = (0..3).map(|_| start(&config.path)).collect();
    within(20 * SECOND, "the first tick is done", || async {
        db.value::<i64>("SELECT count(*) FROM effect").await > 0
    })
    .await;
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(100..400))).await;
        let one = &mut instances[fastrand::usize(0..3)];
        one.signal(Signal::SIGKILL);
        one.wait();
        *one = start(&config.path);
    }
    let now: i64 = db.value("SELECT extract(epoch FROM now())::bigint").await;
    within(20 * SECOND, "all that was due is done", || async {
        let last = "SELECT extract(epoch FROM max(tick))::bigint FROM effect";
        db.value::<i64>(last).await >= now
    })
    .await;
    for mut instance in instances {
        // An instance that has only just started has not installed its signal handlers.
        instance.wait_for("starting background worker");
        instance.signal(Signal::SIGTERM);
        assert_eq!(instance.wait().0, Some(0), "{:?}", instance.said);
    }
    assert_exact(&db).await;
    let unlike = "SELECT count(*) FROM effect AS e FULL JOIN bgworker.job_run AS r USING (tick) \
                  WHERE e.tick IS NULL OR r.tick IS NULL OR r.outcome <> 'done'";
    assert_eq!(
        db.value::<i64>(unlike).await,
        0,
        "the history says the same"
    );
}

#[actix::test]
async fn a_frozen_instance_loses_its_tick_to_another_and_each_tick_runs_once() {
    let db = stage().await;
    let config = job(&db, "1s", "SELECT pg_sleep(0.5); SELECT 1");
    let mut frozen = start(&config.path);
    eventually("it runs", || async {
        let sleeps = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() \
                      AND application_name = 'j' AND wait_event = 'PgSleep')";
        db.value::<bool>(sleeps).await
    })
    .await;
    frozen.signal(Signal::SIGSTOP);
    let mut other = start(&config.path);
    let done: i64 = db.value("SELECT count(*) FROM effect").await;
    within(20 * SECOND, "the other instance runs the tick", || async {
        db.value::<i64>("SELECT count(*) FROM effect").await > done
    })
    .await;
    frozen.signal(Signal::SIGCONT);
    let before: i64 = db.value("SELECT count(*) FROM effect").await;
    within(20 * SECOND, "they go on", || async {
        db.value::<i64>("SELECT count(*) FROM effect").await > before + 2
    })
    .await;
    for instance in [&mut frozen, &mut other] {
        instance.signal(Signal::SIGTERM);
        assert_eq!(instance.wait().0, Some(0), "{:?}", instance.said);
    }
    assert_exact(&db).await;
}

fn once(config: &Config, arguments: &[&str]) -> (i32, String, String) {
    let mut command = bgworker();
    command.args(["once", "j", "--config"]).arg(&config.path);
    run(command.args(arguments))
}

#[actix::test]
async fn once_runs_a_job_beside_its_schedule_and_a_dry_run_changes_nothing() {
    let db = stage().await;
    let config = job(&db, "1000d", "SELECT 1");
    let (code, out, err) = once(&config, &["--dry-run"]);
    assert_eq!((code, &*err), (0, ""));
    assert!(out.starts_with("j: would write 1 rows in "), "{out}");
    assert!(
        out.ends_with("\n  public.effect: 1 inserted, 0 updated, 0 deleted\n"),
        "{out}"
    );
    let untouched =
        "SELECT to_regnamespace('bgworker') IS NULL AND NOT EXISTS (SELECT FROM effect)";
    assert!(db.value::<bool>(untouched).await);

    let (code, out, err) = once(&config, &["--tick", "2026-11-26T02:15:00Z"]);
    assert_eq!((code, &*err), (0, ""));
    assert!(out.starts_with("j: done, 1 rows in "), "{out}");
    let tick = "SELECT (SELECT tick FROM effect) = '2026-11-26T02:15:00Z' AND \
                EXISTS (SELECT FROM bgworker.job_run WHERE outcome = 'once' AND tick = '2026-11-26T02:15:00Z' AND rows = 1)";
    assert!(db.value::<bool>(tick).await);
    let last = "SELECT concat_ws(' ', last_tick, last_done, attempt, retry_at) FROM bgworker.job";
    let before: String = db.value(last).await;
    assert_eq!(once(&config, &[]).0, 0);
    assert_eq!(db.value::<i64>("SELECT count(*) FROM effect").await, 2);
    assert_eq!(db.value::<String>(last).await, before);
}

#[actix::test]
async fn once_reports_and_undoes_a_failure_and_refuses_a_running_or_unknown_job() {
    let db = stage().await;
    let fails = job(&db, "1000d", "SELECT 1 / 0");
    let (code, out, err) = once(&fails, &[]);
    assert_eq!((code, &*out), (1, ""));
    assert!(
        err.contains("j: statement 2 (line 1)") && err.contains("division by zero"),
        "{err}"
    );
    let recorded =
        "SELECT count(*) FROM bgworker.job_run WHERE outcome = 'once' AND sqlstate = '22012'";
    assert_eq!(db.value::<i64>(recorded).await, 1);
    assert_eq!(db.value::<i64>("SELECT count(*) FROM effect").await, 0);

    let blocked = db.connect().await;
    let lock = "BEGIN; SELECT FROM bgworker.job FOR UPDATE";
    blocked.batch_execute("lock", lock).await.unwrap();
    let (code, _, err) = once(&fails, &[]);
    assert_eq!(
        (code, &*err),
        (1, "j: the job runs now: another session has its row\n")
    );
    let mut command = bgworker();
    let (code, _, err) = run(command
        .args(["once", "unknown", "--config"])
        .arg(&fails.path));
    assert_eq!(
        (code, &*err),
        (
            1,
            "unknown: there is no worker \"unknown\" in the configuration\n"
        )
    );
}

#[actix::test]
async fn an_interrupted_once_is_cancelled_on_the_server() {
    let db = stage().await;
    let config = job(&db, "1000d", "SELECT pg_sleep(60)");
    let mut command = bgworker();
    command.args(["once", "j", "--config"]).arg(&config.path);
    let mut child = command
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                  AND application_name = 'j' AND wait_event = 'PgSleep'";
    eventually("it runs", || async { db.value::<i64>(sleeps).await == 1 }).await;
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(pid, Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    eventually("it is cancelled", || async {
        db.value::<i64>(sleeps).await == 0
    })
    .await;
    assert_eq!(db.value::<i64>("SELECT count(*) FROM effect").await, 0);
}

#[actix::test]
async fn ddl_output_lets_a_role_without_create_rights_run_everything() {
    let db = stage().await;
    let role = db
        .value::<String>("SELECT 'plain_' || current_database()")
        .await;
    db.execute(&format!(
        "CREATE ROLE {role} LOGIN; GRANT INSERT, SELECT ON effect TO {role}; \
         REVOKE CREATE ON SCHEMA public FROM PUBLIC; DO $$ BEGIN EXECUTE format(\
         'REVOKE CREATE, TEMPORARY ON DATABASE %I FROM PUBLIC', current_database()); END $$"
    ))
    .await;
    let config = Config::new(&format!(
        "[database]\nurl = \"{}\"\n[[worker]]\nname = \"j\"\nfunction = \"sql\"\nevery = \"1s\"\n\
         sql = \"INSERT INTO effect SELECT current_setting('bgworker.tick')::timestamptz\"\n\
         [[worker]]\nname = \"w\"\nschema = \"s\"\ntable = \"t\"\nnaptime = \"10ms\"\n",
        db.conninfo_with("user", &role).replace('"', "\\\"")
    ));
    let (code, ddl, err) = run(bgworker().args(["ddl", "--config"]).arg(&config.path));
    assert_eq!((code, &*err), (0, ""));
    db.execute(&ddl).await;
    db.execute("INSERT INTO s.t VALUES ('total', 0), ('delta', 42)")
        .await;
    let mut instance = start(&config.path);
    eventually("the job runs, and the delta is folded", || async {
        let both = "SELECT EXISTS (SELECT FROM bgworker.job_run WHERE outcome = 'done') \
                    AND EXISTS (SELECT FROM s.t WHERE type = 'total' AND value = 42)";
        db.value::<bool>(both).await
    })
    .await;
    instance.signal(Signal::SIGTERM);
    assert_eq!(instance.wait().0, Some(0), "{:?}", instance.said);
    assert_eq!(once(&config, &[]).0, 0);
    db.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))
        .await;
}

fn status(config: &Config) -> (i32, String, String) {
    run(bgworker().args(["status", "--config"]).arg(&config.path))
}

#[actix::test]
async fn status_shows_the_next_tick_of_a_job_as_a_time_and_the_ticks_given_up() {
    let db = stage().await;
    let port = crate::support::proxy::free_port();
    let mut text = std::fs::read_to_string(&job(&db, "1s", "SELECT 1 / 0").path).unwrap();
    text += &format!("attempts = 1\n[http]\nlisten = \"127.0.0.1:{port}\"\n");
    let config = Config::new(&text);
    let mut instance = start(&config.path);
    eventually("a tick is given up", async || {
        status(&config).1.contains("given_up")
    })
    .await;
    let (code, status, _) = status(&config);
    assert_eq!(code, 0, "the instance can do its work: {status}");
    assert!(status.contains("division by zero"), "{status}");
    let heading = status
        .lines()
        .find(|line| line.starts_with("worker"))
        .unwrap();
    assert!(
        heading.contains("  next_tick") && !heading.contains("timestamp"),
        "{status}"
    );
    // The instance runs with what the file held before.
    std::fs::write(&config.path, format!("{text}[[worker]]\nnam = \"x\"\n")).unwrap();
    let (code, beside, err) = self::status(&config);
    assert_eq!((code, &*err), (0, ""), "{beside}");
    assert!(beside.contains("given_up"), "{beside}");
    let line = status.lines().find(|line| line.starts_with("j ")).unwrap();
    let is_time = |word: &str| word.parse::<bgworker::schedule::Timestamp>().is_ok();
    assert!(line.split_whitespace().any(is_time), "{status}");
    instance.signal(Signal::SIGTERM);
    assert_eq!(instance.wait().0, Some(0), "{:?}", instance.said);
}

#[test]
fn next_shows_the_ticks_of_each_job_in_its_zone_and_asks_no_server() {
    let config = Config::new(
        "[database]\nurl = \"host=/nowhere\"\n[[worker]]\nname = \"nightly\"\nfunction = \"sql\"\nsql = \"SELECT 1\"\n\
         cron = \"15 2 * * *\"\ntimezone = \"Asia/Kolkata\"\n[[worker]]\nname = \"often\"\nfunction = \"sql\"\n\
         sql = \"SELECT 1\"\nevery = \"5m\"\n[[worker]]\nname = \"spi\"\nschema = \"s\"\ntable = \"t\"\n",
    );
    let next = |arguments: &[&str]| {
        let mut command = bgworker();
        run(command
            .args(["next", "--config"])
            .arg(&config.path)
            .args(arguments))
    };
    let (code, out, err) = next(&["--count", "2"]);
    assert_eq!((code, &*err), (0, ""));
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(
        (lines.len(), lines[0], lines[3]),
        (6, "nightly", "often"),
        "{out}"
    );
    for line in &lines[1..3] {
        assert!(line.ends_with("T02:15:00+05:30[Asia/Kolkata]"), "{out}");
    }
    assert!(
        lines[4].ends_with("0:00Z") || lines[4].ends_with("5:00Z"),
        "{out}"
    );
    assert_eq!(next(&["often"]).1.lines().count(), 11);
    assert_eq!(next(&["often", "nightly", "-n", "1"]).1.lines().count(), 4);
    let (code, _, err) = next(&["spi"]);
    assert_eq!(
        (code, &*err),
        (
            1,
            "the worker \"spi\" is no job: it runs worker_spi, which naps between two cycles and has no ticks\n"
        )
    );
}

#[test]
fn next_agrees_with_debians_cron_at_each_clock_change_in_four_zones() {
    let windows = include_str!("../../../tests/it/ticks.json");
    let windows: Vec<serde_json::Value> = serde_json::from_str(windows).unwrap();
    let mut skipped = 0;
    for window in windows {
        let text = |key: &str| window[key].as_str().unwrap();
        let (zone, cron) = (text("zone"), text("expr"));
        let config = Config::new(&format!(
            "[database]\nurl = \"host=/nowhere\"\n[[worker]]\nname = \"j\"\nfunction = \"sql\"\n\
             sql = \"SELECT 1\"\ncron = \"{cron}\"\ntimezone = \"{zone}\"\n"
        ));
        let ticks = window["ticks"].as_array().unwrap();
        let count = ticks.len().to_string();
        let mut command = bgworker();
        command.args(["next", "--after", text("after"), "-n", &count, "--config"]);
        let (code, out, err) = run(command.arg(&config.path));
        assert_eq!((code, &*err), (0, ""));
        // Each line is the tick in the zone's local time, with its offset.
        let shown = out.lines().skip(1).map(|line| {
            let (civil, offset) = line.trim().split_at(19);
            skipped += usize::from(line.ends_with("(the clocks skip its time)"));
            format!("{civil}{}", &offset[..offset.find('[').unwrap()])
        });
        let shown = shown.map(|time| time.parse::<bgworker::schedule::Timestamp>().unwrap());
        let expected = ticks
            .iter()
            .map(|tick| tick.as_str().unwrap().parse().unwrap());
        assert!(shown.eq(expected), "{window}\n{out}");
    }
    assert!(skipped > 10, "{skipped}");
}

/// A library that shifts the clock of a program by the number of seconds in a file.
const CLOCK: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *time) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int done = real(clock, time);
    if (done == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        FILE *file = fopen(getenv("CLOCK_SHIFT"), "r");
        long shift = 0;
        if (file) { if (fscanf(file, "%ld", &shift) != 1) shift = 0; fclose(file); }
        time->tv_sec += shift;
    }
    return done;
}
"#;

#[actix::test]
async fn an_instance_whose_clock_jumps_by_an_hour_runs_each_tick_once() {
    let directory = tempfile::tempdir().unwrap();
    let [source, library, shift] =
        ["clock.c", "clock.so", "shift"].map(|name| directory.path().join(name));
    std::fs::write(&source, CLOCK).unwrap();
    let mut compiler = std::process::Command::new("gcc");
    compiler
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&source)
        .arg("-ldl");
    assert!(compiler.status().unwrap().success());
    let db = stage().await;
    let config = job(&db, "1s", "SELECT 1");
    let mut command = bgworker();
    command
        .env("LD_PRELOAD", &library)
        .env("CLOCK_SHIFT", &shift)
        // Each run is a line.
        .env("RUST_LOG", "bgworker=debug");
    command
        .args(["run", "--log-format", "text", "--config"])
        .arg(&config.path);
    let mut instance = crate::support::daemon::Daemon::start(&mut command);
    for hours in [0, 1, -1, 0] {
        std::fs::write(&shift, (hours * 3_600).to_string()).unwrap();
        // The instance's log shows that its clock has jumped.
        instance.wait_for("j: done");
        let line = instance.wait_for("j: done");
        let (time, _) = line.trim().split_once(' ').unwrap();
        let time: bgworker::schedule::Timestamp = time.parse().unwrap();
        let now: i64 = db
            .value("SELECT extract(epoch FROM clock_timestamp())::bigint")
            .await;
        let ahead = time.as_second() - now;
        assert!((ahead - hours * 3_600).abs() < 60, "{hours} h: {ahead} s");
    }
    instance.signal(Signal::SIGTERM);
    assert_eq!(instance.wait().0, Some(0), "{:?}", instance.said);
    assert_exact(&db).await;
    assert!(db.value::<i64>("SELECT count(*) FROM effect").await >= 8);
}

#[actix::test]
async fn what_asks_no_server_needs_none() {
    let config = Config::new(
        "[[worker]]\nname = \"j\"\nfunction = \"sql\"\nevery = \"1h\"\nsql = \"SELECT 1\"\n\
         [[worker]]\nname = \"r\"\nfunction = \"rollup\"\nqueue = \"s.q\"\ntotals = \"s.t\"\nkeys = [\"k\"]\ncount = \"n\"\n",
    );
    let with = |arguments: &[&str]| {
        let mut command = bgworker();
        run(command.args(arguments).arg("--config").arg(&config.path))
    };
    let (code, out, err) = with(&["next", "-n", "1", "--after", "2026-11-26T00:30:00Z"]);
    assert_eq!((code, &*out, &*err), (0, "j\n  2026-11-26T01:00:00Z\n", ""));
    let (code, out, err) = with(&["ddl", "--role", "periodic"]);
    assert_eq!((code, &*err), (0, ""));
    assert!(out.lines().all(|line| line.len() <= 120), "{out}");
    assert!(
        out.contains("ON bgworker.job, bgworker.job_run TO periodic;"),
        "{out}"
    );
    let expected = "the worker \"r\" is no job: it runs rollup";
    for arguments in [
        &["next", "r"][..],
        &["once", "r", "--database", "host=nowhere"],
    ] {
        let (code, _, err) = with(arguments);
        assert_eq!(code, 1);
        assert!(err.contains(expected), "{err}");
    }
    let (code, _, err) = with(&["next", "--after", "2026-12-01 00:00"]);
    assert_eq!(code, 2);
    assert!(err.contains("such as 2026-12-01T00:00:00Z"), "{err}");
}

#[actix::test]
async fn what_ddl_prints_may_run_twice() {
    let db = TestDatabase::new().await;
    db.execute(
        "CREATE SCHEMA s; CREATE TABLE s.q (k int NOT NULL); CREATE TABLE s.t (k int PRIMARY KEY, n bigint NOT NULL)",
    )
    .await;
    let role: String = db.value("SELECT current_user::text").await;
    let config = Config::new(
        "[[worker]]\nname = \"j\"\nfunction = \"sql\"\nevery = \"1h\"\nsql = \"SELECT 1\"\n\
         [[worker]]\nname = \"w\"\nschema = \"s\"\ntable = \"counted\"\n\
         [[worker]]\nname = \"r\"\nfunction = \"rollup\"\nqueue = \"s.q\"\ntotals = \"s.t\"\nkeys = [\"k\"]\n\
         count = \"n\"\nview = \"s.now\"\non_poison = \"set_aside\"\n",
    );
    let mut command = bgworker();
    let ddl = command.args(["ddl", "--role", &role, "--config"]);
    let (code, out, err) = run(ddl.arg(&config.path));
    assert_eq!((code, &*err), (0, ""));
    for _ in 0..2 {
        db.execute(&out).await;
    }
}
