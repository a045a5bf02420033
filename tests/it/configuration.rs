//! Configuration: all mistakes are reported at once, each with its place, and the settings in force are shown.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bgworker::config::{
    self, Change, ConfigFile, Functions, Problems, Server, Settings, Sources, WorkerSettings,
};
use bgworker::worker_spi::{self, ConnectionKind, Fold, Table};
use bgworker::{Access, Backoff, RestartLimit, RestartTime, StartTime};

fn sources(text: &str) -> Sources {
    Sources {
        file: Some(ConfigFile {
            path: PathBuf::from("b.toml"),
            text: text.to_owned(),
        }),
        ..Sources::default()
    }
}

fn with(mut sources: Sources, variable: &str, value: &str) -> Sources {
    sources
        .environment
        .push((variable.to_owned(), value.to_owned()));
    sources
}

fn read(text: &str) -> Result<Settings, Problems> {
    read_all(&sources(text))
}

fn read_all(sources: &Sources) -> Result<Settings, Problems> {
    config::read(sources, &Functions::built_in())
}

/// The `worker_spi` settings of a worker.
fn spi(worker: &WorkerSettings) -> &worker_spi::Settings {
    worker.function.settings().unwrap()
}

/// The mistakes in a configuration text, one per line.
#[track_caller]
fn mistakes(text: &str) -> Vec<String> {
    match read(text) {
        Ok(_) => panic!("it has no mistake:\n{text}"),
        Err(problems) => problems.to_string().lines().map(str::to_owned).collect(),
    }
}

/// A configuration file with one worker that has these lines. The first of them is line 4 of the file.
fn worker(lines: &str) -> String {
    format!("[database]\nembedded = true\n[[worker]]\n{lines}")
}

const WHOLE: &str = "name = 'w'\nschema = 's'\ntable = 't'\n";

#[test]
fn the_seed_configuration_has_exactly_the_seeds_two_workers() {
    let settings = read(include_str!("../../conf/seed.toml")).unwrap();
    let workers: Vec<_> = settings
        .workers
        .iter()
        .map(|w| {
            assert_eq!(w.worker.access, Access::Database);
            assert_eq!(w.worker.start_time, StartTime::RecoveryFinished);
            assert_eq!(spi(w).naptime, Duration::from_secs(1));
            (&*w.worker.name, spi(w).table(), w.worker.restart_time)
        })
        .collect();
    let table = |schema: &str, name: &str| Table::new(schema, name).unwrap();
    assert_eq!(
        workers,
        [
            (
                "SPI worker 1",
                table("schema1", "counted"),
                RestartTime::Never
            ),
            (
                "SPI worker 2",
                table("our schema2", "counted rows"),
                RestartTime::After(Duration::from_secs(2)),
            ),
        ]
    );
}

#[test]
fn every_key_is_in_the_example_with_its_default() {
    let text = include_str!("../../conf/bgworker.toml");
    let example = read(text).unwrap();
    assert_eq!(example.server, Server::Embedded { data_dir: None });
    let bare = read(&worker(WHOLE)).unwrap();
    assert_eq!(example.limits, bare.limits);
    assert_eq!(example.database_settings, bare.database_settings);
    let first = spi(&example.workers[0]);
    let unset = worker_spi::Settings::new(first.table()).connection(ConnectionKind::Home);
    assert_eq!(*first, unset);
    assert_eq!(bare.workers[0].worker.restart_time, RestartTime::DEFAULT);
    // Commented-out keys count as well: uncommented, all of them are known.
    let mut open = text
        .replace("# url =", "url =")
        .replace("embedded = true\n", "embedded = false\n");
    for key in [
        "data_dir",
        "database",
        "initial_total",
        "max_restarts",
        "password_file",
    ] {
        assert!(open.contains(&format!("# {key} = ")), "{key} is missing");
        open = open.replace(&format!("# {key} = "), &format!("{key} = "));
    }
    read(&open).unwrap();
    // The mutually exclusive keys of a job stay commented out.
    let excluded = ["# sql_file", "# every", "# naptime"];
    let is_key = |line: &&str| {
        line.split_once(" = ")
            .is_some_and(|(key, _)| key.starts_with("# ") && !key[2..].contains(' '))
    };
    let examples = text.split("\n# [[worker]]\n").skip(1);
    for (example, function) in std::iter::zip(examples, ["sql", "rollup"]) {
        let keys = example
            .lines()
            .filter(|line| !excluded.iter().any(|key| line.starts_with(key)));
        let keys: Vec<_> = keys.filter(is_key).collect();
        let settings = read(&worker(&keys.join("\n").replace("# ", ""))).unwrap();
        assert_eq!(settings.workers[0].function.name(), function);
    }
    let others = ["sql", "rollup"].map(|name| format!("[[worker]]\nfunction = '{name}'\nx = 1"));
    let unknown = format!(
        "[database]\nx = 1\n[postmaster]\nx = 1\n[[worker]]\nx = 1\n{}",
        others.join("\n")
    );
    let unknown = mistakes(&unknown).join(" ");
    for keys in unknown.split("the keys here are ").skip(1) {
        let keys = keys.split(')').next().unwrap();
        for key in keys.split(", ") {
            let stands = [format!("\n{key} = "), format!("\n# {key} = ")];
            assert!(
                stands.iter().any(|key| open.contains(key)),
                "{key} is not in the example"
            );
        }
    }
}

#[test]
fn five_different_mistakes_are_all_reported_with_their_lines_and_no_secret() {
    let text = "\
[database]
url = \"postgresql://app:hunter2@db.example/app?sslmod=require\"
connect_timeout = 10

[postmaster]
starts_per_tick = 0

[[worker]]
name = \"one\"
schema = \"s\"
table = \"t\"
naptme = \"1s\"

[[worker]]
name = \"one\"
schema = \"s\"
table = \"t\"
restart_time = \"0s\"
";
    let mistakes = mistakes(text);
    let expected = [
        "b.toml:2:1: database.url: invalid connection option \"sslmod\": did you mean \"sslmode\"?",
        "b.toml:3:19: database.connect_timeout: expected a duration with its unit, such as \"1s\", \
         \"250ms\" or \"2m\", but found a value of type integer",
        "b.toml:6:19: postmaster.starts_per_tick: it must be at least 1 and at most 100",
        "b.toml:12:1: worker[0].naptme: unknown key \"naptme\" (did you mean \"naptime\"?)",
        "b.toml:15:1: worker[1].name: background worker \"one\" is already registered as worker[0]",
        "b.toml:18:1: worker[1].restart_time: background worker \"one\": invalid restart interval: \
         it must be more than 0 and at most 86400000s",
    ];
    assert_eq!(mistakes, expected);
    assert!(!mistakes.concat().contains("hunter2"));
}

#[test]
fn mistakes_of_the_toml_itself_are_reported_with_the_others() {
    let mistakes =
        mistakes("[database]\nembedded = true\nurl == 'x'\n\n[postmaster]\nmax_workers = 'many'\n");
    assert_eq!(
        mistakes,
        [
            "b.toml:3:6: this is not TOML: extra `=`, expected nothing",
            "b.toml:6:15: postmaster.max_workers: expected a whole number that is not negative, \
             but found a value of type string",
        ]
    );
}

#[test]
fn each_mistake_says_what_is_wrong_where_and_what_to_do() {
    let long = "x".repeat(51);
    for (lines, expected) in [
        (
            "naptime = '0s'",
            "4:11: worker[0].naptime: it must be more than 0 and at most 1000 days",
        ),
        (
            "naptime = '5 parsecs'",
            "4:11: worker[0].naptime: expected a duration with its unit",
        ),
        (
            "start_time = 'postmaster_start'",
            "4:1: worker[0].start_time: background worker \"w\": cannot request database access if \
             starting at postmaster start",
        ),
        (
            "start_time = 'consistent_state'",
            "4:1: worker[0].start_time: worker_spi writes",
        ),
        (
            "start_time = 'recovery_finish'",
            "4:14: worker[0].start_time: unknown value \
             (did you mean \"recovery_finished\"?)",
        ),
        (
            "restart_time = { initial = '9s', max = '2s', healthy_after = '1s' }",
            "4:1: worker[0].restart_time: background worker \"w\": invalid restart interval: its first \
             wait is longer than its longest",
        ),
        (
            "restart_time = { initial = '1s', max = '2s' }",
            "4:16: worker[0].restart_time: missing field `healthy_after`",
        ),
        (
            "restart_time = { initial = '1s', max = '2s', healthy_after = 3 }",
            "4:62: worker[0].restart_time.healthy_after: expected a duration with its unit",
        ),
        (
            "max_restarts = { restarts = 0, within = '1s' }",
            "4:1: worker[0].max_restarts: background worker \"w\": invalid restart limit",
        ),
        (
            "function = 'worker_spy'",
            "4:1: worker[0].function: there is no function \"worker_spy\" (did you mean \"worker_spi\"?)",
        ),
        (
            "restart_time = 'sometimes'",
            "4:16: worker[0].restart_time: expected a duration with its unit, such as \"60s\", or \"never\"",
        ),
        (
            "restart_time = '1001 days'",
            "4:1: worker[0].restart_time: background worker \"w\": invalid",
        ),
        (
            "fold = 'truncate'\nconnection = 'home'",
            "4:1: worker[0].fold: truncation needs a connection of the worker's own (leave \"connection\" \
             out, or set it to \"own\")",
        ),
        (
            "fold = 'drop'",
            "4:8: worker[0].fold: unknown value (the values here are delete, truncate)",
        ),
        (
            "initial_total = 'x'",
            "4:17: worker[0].initial_total: expected a whole number, but found a value of type string",
        ),
    ] {
        let found = mistakes(&worker(&format!("{lines}\n{WHOLE}")));
        assert_eq!(found.len(), 1, "{lines}: {found:#?}");
        assert!(
            found[0].starts_with(&format!("b.toml:{expected}")),
            "{lines}: {}",
            found[0]
        );
    }
    for (lines, expected) in [
        (
            "schema = 's'\ntable = 't'",
            "b.toml:3:1: worker[0].name: the worker has no \"name\" (it is required)",
        ),
        (
            &*format!("name = 'w'\nschema = 's'\ntable = '{long}'"),
            "b.toml:6:9: worker[0].table: table name",
        ),
        (
            "name = ''\nschema = 's'\ntable = 't'",
            "b.toml:4:1: worker[0].name: background worker \"\": invalid name",
        ),
        (
            "name = 'w'\nschema = \"a\\u0000b\"\ntable = 't'",
            "b.toml:5:10: worker[0].schema: schema name \"a\\0b\" must not contain NUL",
        ),
    ] {
        let found = mistakes(&worker(lines));
        assert_eq!(found.len(), 1, "{lines}: {found:#?}");
        assert!(found[0].starts_with(expected), "{lines}: {}", found[0]);
    }
}

#[test]
fn the_page_is_served_at_an_address_with_a_port_or_at_a_local_port() {
    let listen = |value: &str| worker(&format!("{WHOLE}\n[http]\nlisten = {value}"));
    for (value, address) in [
        ("'9187'", "127.0.0.1:9187"),
        ("'0.0.0.0:80'", "0.0.0.0:80"),
        ("'[::1]:9187'", "[::1]:9187"),
        ("'localhost:9187'", "127.0.0.1:9187"),
    ] {
        let listen = read(&listen(value)).unwrap().http.listen;
        assert_eq!(listen, Some(address.parse().unwrap()));
    }
    assert_eq!(read(&worker(WHOLE)).unwrap().http.listen, None);
    for value in ["'host:9187'", "'127.0.0.1'", "'0'", "'65536'", "''"] {
        let found = mistakes(&listen(value));
        let plain = value.trim_matches('\'');
        let expected = format!(
            "http.listen: \"{plain}\" is not an address with a port (such as \"127.0.0.1:9187\" or"
        );
        assert!(
            found.len() == 1 && found[0].contains(&expected),
            "{found:#?}"
        );
    }
    let found = mistakes(&listen("9187"));
    let expected = "http.listen: expected a string, but found a value of type integer";
    assert!(
        found.len() == 1 && found[0].contains(expected),
        "{found:#?}"
    );
}

#[test]
fn a_worker_that_truncates_has_a_connection_of_its_own() {
    let settings = read(&worker(&format!("fold = 'truncate'\n{WHOLE}"))).unwrap();
    let spi = spi(&settings.workers[0]);
    assert_eq!(
        (spi.fold, spi.connection),
        (Fold::Truncate, Some(ConnectionKind::Own))
    );
}

#[test]
fn a_restart_time_may_be_a_backoff_and_restarts_may_be_limited() {
    let lines = "restart_time = { initial = '1s', max = '1m', healthy_after = '2m' }\n\
                 max_restarts = { restarts = 5, within = '10m' }\n";
    let settings = read(&worker(&format!("{lines}{WHOLE}"))).unwrap();
    let worker = &settings.workers[0].worker;
    assert_eq!(
        worker.restart_time,
        RestartTime::Backoff(Backoff {
            initial: Duration::from_secs(1),
            max: Duration::from_secs(60),
            healthy_after: Duration::from_secs(120),
        })
    );
    assert_eq!(
        worker.restart_limit,
        Some(RestartLimit {
            restarts: 5,
            within: Duration::from_secs(600),
        })
    );
}

#[test]
fn a_string_where_a_number_belongs_is_not_echoed() {
    let found = mistakes(
        "[database]\nconnect_timeout = \"postgres://u:hunter2@h/d\"\nembedded = 'hunter2'",
    );
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(!found.concat().contains("hunter2"), "{found:#?}");
}

#[test]
fn a_mistake_in_the_file_hides_neither_a_flag_nor_a_variable() {
    let mut both = with(
        sources("[database]\nx = 1\n"),
        "BGWORKER_POSTMASTER__STARTS_PER_TICK",
        "0",
    );
    both.database = Some("host=h".to_owned());
    let problems = read_all(&both).unwrap_err().to_string();
    let lines: Vec<_> = problems.lines().collect();
    assert_eq!(lines.len(), 2, "{problems}");
    assert!(lines[0].contains("unknown key \"x\""), "{problems}");
    assert!(
        lines[1].starts_with("BGWORKER_POSTMASTER__STARTS_PER_TICK: "),
        "{problems}"
    );
}

#[test]
fn a_mistake_in_one_key_of_a_worker_hides_none_in_another() {
    let long = "x".repeat(64);
    let found = mistakes(&format!(
        "[database]\nurl = \"postgresql://h/d\"\n[[worker]]\nschema = \"\"\ntable = \"{long}\"\n\
         batch = 0\nstart_time = \"postmaster_start\"\nrestart_time = \"0s\"\n\
         max_restarts = {{ restarts = 0, within = \"1s\" }}\nfold = \"truncate\"\nconnection = \"home\"\n\
         database = \"\"\n",
    ));
    let keys: Vec<_> = found
        .iter()
        .map(|line| line.split(": ").nth(1).unwrap())
        .collect();
    let expected = [
        "name",
        "schema",
        "table",
        "batch",
        "start_time",
        "restart_time",
        "max_restarts",
        "fold",
        "database",
    ];
    assert_eq!(
        keys,
        expected.map(|key| format!("worker[0].{key}")),
        "{found:#?}"
    );
}

#[test]
fn more_workers_than_max_workers_are_refused() {
    let text = format!(
        "[database]\nembedded = true\n[postmaster]\nmax_workers = 1\n[[worker]]\n{WHOLE}[[worker]]\n{WHOLE}"
    );
    let text = text.replacen("'w'", "'v'", 1);
    let found = mistakes(&text);
    assert_eq!(
        found,
        [
            "b.toml:9:1: worker[1]: too many background workers: up to 1 can be registered with the \
          current settings, and here are 2 (consider increasing \"max_workers\" in [postmaster])"
        ]
    );
}

#[test]
fn a_missing_database_names_both_remedies_and_both_at_once_are_refused() {
    let found = mistakes("[postmaster]\nmax_workers = 1\n").concat();
    assert!(found.contains("no database is given"), "{found}");
    assert!(
        found.contains("--database URL") && found.contains("embedded = true"),
        "{found}"
    );
    let found = mistakes("[database]\nembedded = true\nurl = 'host=h'\n").concat();
    assert!(
        found.starts_with("b.toml:3:1: database.url: both"),
        "{found}"
    );
}

fn target(sources: &Sources) -> String {
    match read_all(sources).unwrap().server {
        Server::Given { conninfo, .. } => conninfo.target(None),
        Server::Embedded { .. } => "embedded".to_owned(),
        Server::NotGiven => "none".to_owned(),
    }
}

#[test]
fn flag_beats_environment_beats_file_beats_database_url_beats_pg_variables() {
    let mut all = sources("[database]\nurl = 'host=file'\n");
    all = with(all, "PGHOST", "pg");
    all = with(all, "DATABASE_URL", "postgresql://database-url/");
    all = with(all, "BGWORKER_DATABASE__URL", "postgresql://environment/");
    all.database = Some("host=flag".to_owned());
    assert_eq!(target(&all), "the server at flag:5432");
    all.database = None;
    assert_eq!(target(&all), "the server at environment:5432");
    all.environment.pop();
    assert_eq!(target(&all), "the server at file:5432");
    all.file = None;
    assert_eq!(target(&all), "the server at database-url:5432");
    all.environment.pop();
    assert_eq!(target(&all), "the server at pg:5432");
}

#[test]
fn a_url_from_outside_the_file_turns_the_private_server_off_and_pg_variables_do_not() {
    let embedded = || sources("[database]\nembedded = true\n");
    assert_eq!(target(&with(embedded(), "PGHOST", "pg")), "embedded");
    let given = with(embedded(), "DATABASE_URL", "host=h dbname=d");
    assert_eq!(target(&given), "database \"d\" at h:5432");
    let Server::Given {
        instead_of_embedded,
        ..
    } = read_all(&given).unwrap().server
    else {
        panic!("a server is given");
    };
    assert!(instead_of_embedded);
}

#[test]
fn a_variable_is_checked_under_its_own_name_and_an_unknown_one_is_refused() {
    let file = || sources("[database]\nembedded = true\n");
    let settings = read_all(&with(file(), "BGWORKER_POSTMASTER__MAX_WORKERS", "7")).unwrap();
    assert_eq!(settings.limits.max_workers, 7);
    let settings = read_all(&with(file(), "BGWORKER_DATABASE__CONNECT_TIMEOUT", "3s")).unwrap();
    assert_eq!(
        settings.database_settings.connect_timeout,
        Duration::from_secs(3)
    );
    for (variable, value) in [
        ("BGWORKER_CONFIG", "x"),
        ("BGWORKER_DATABASE__URL", ""),
        ("BGWORKERS", "x"),
        ("BGWORKER_HTTP__LISTEN", "9187"),
        ("BGWORKER_HTTP__LISTEN", "[::1]:9187"),
    ] {
        read_all(&with(file(), variable, value)).unwrap();
    }
    for (variable, value, expected) in [
        (
            "BGWORKER_POSTMASTER__MAX_WORKERS",
            "hunter2",
            "BGWORKER_POSTMASTER__MAX_WORKERS: postmaster.max_workers: expected a whole number that is not \
             negative, but found a value of type string",
        ),
        (
            "BGWORKER_DATABASE__URLL",
            "hunter2",
            "BGWORKER_DATABASE__URLL: this variable does not correspond to any key (did you mean BGWORKER_DATABASE__URL?)",
        ),
        (
            "BGWORKER_DATABASE_URL",
            "hunter2",
            "BGWORKER_DATABASE_URL: this variable does not correspond to any key (did you mean BGWORKER_DATABASE__URL?)",
        ),
        (
            "BGWORKER_HTTP__LISTEN",
            "hunter2@nonsense",
            "BGWORKER_HTTP__LISTEN: http.listen: it is not an address with a port",
        ),
        (
            "BGWORKER_WORKER__NAME",
            "hunter2",
            "BGWORKER_WORKER__NAME: this variable does not correspond to any key (workers can only be set in the file)",
        ),
        (
            "BGWORKER_SERVICE_HOST",
            "10.0.0.1",
            "BGWORKER_SERVICE_HOST: this variable does not correspond to any key (Kubernetes sets it",
        ),
        (
            "BGWORKER_X",
            "hunter2",
            "BGWORKER_X: this variable does not correspond to any key (the variables are BGWORKER_DATABASE__URL, BGWORKER_",
        ),
        (
            "BGWORKER_DATABASE__STATEMENT_TIMEOUT",
            "0s",
            "BGWORKER_DATABASE__STATEMENT_TIMEOUT: database.statement_timeout: it must be more than",
        ),
    ] {
        let problems = read_all(&with(file(), variable, value))
            .unwrap_err()
            .to_string();
        assert!(problems.starts_with(expected), "{problems}");
        assert!(!problems.contains("hunter2"), "{problems}");
    }
}

#[test]
fn what_is_in_force_is_shown_with_its_origin_and_without_the_password() {
    let file = sources(
        "[database]\nurl = 'postgresql://u:hunter2@h/d'\n[[worker]]\nname = 'w'\nschema = 's'\ntable = 't'\n",
    );
    let sources = with(file, "BGWORKER_POSTMASTER__MAX_WORKERS", "7");
    let settings = read_all(&sources).unwrap();
    let shown: Vec<_> = settings
        .shown
        .iter()
        .map(|s| format!("{} = {}  # {}", s.key, s.value, s.origin))
        .collect();
    for line in [
        "postmaster.max_workers = 7  # BGWORKER_POSTMASTER__MAX_WORKERS",
        "postmaster.starts_per_tick = 1  # default",
        "worker[0].name = \"w\"  # b.toml:4:1",
        "worker[0].restart_time = \"1m\"  # default",
    ] {
        assert!(shown.contains(&line.to_owned()), "{line}: {shown:#?}");
    }
    let everything = format!("{shown:?}{settings:?}{sources:?}");
    assert!(!everything.contains("hunter2"), "{everything}");
    let url = &settings.shown[0];
    assert_eq!(
        (&*url.key, &*url.value),
        ("database.url", "'database \"d\" at h:5432'")
    );
}

#[test]
fn any_text_at_all_is_read_without_a_panic() {
    use proptest::prelude::*;
    proptest!(|(text in "[\\[\\]a-z.=\"'# \n{},0-9-]{0,80}")| {
        let _ = read(&text);
        let _ = read(&worker(&text));
    });
}

/// The difference between two files with one worker each, to which these lines are added.
fn differences(old: &str, new: &str) -> Vec<Change> {
    let read = |lines| read(&worker(&format!("{lines}\n{WHOLE}"))).unwrap();
    config::difference(&read(old), &read(new))
}

#[test]
fn the_difference_of_settings_says_what_a_reload_has_to_do() {
    assert_eq!(
        differences("", "naptime = '1s'"),
        [],
        "a default that is written down"
    );
    for (key, value) in [
        ("naptime", "'2s'"),
        ("restart_time", "'never'"),
        ("max_restarts", "{ restarts = 1, within = '1s' }"),
    ] {
        let changes = differences("", &format!("{key} = {value}"));
        let [Change::InPlace { keys, .. }] = &changes[..] else {
            panic!("{changes:?}");
        };
        assert_eq!(keys, &[key]);
    }
    for (key, value) in [("database", "'other'"), ("initial_total", "0")] {
        let changes = differences("", &format!("{key} = {value}\nnaptime = '2s'"));
        let [Change::Replaced { keys, .. }] = &changes[..] else {
            panic!("{changes:?}");
        };
        assert_eq!(keys, &[key]);
    }
    let file = |text: &str| read(text).unwrap();
    let old = file(&worker(WHOLE));
    let renamed = file(&worker(&WHOLE.replace("'w'", "'v'")));
    let changes = config::difference(&old, &renamed);
    let [Change::Removed(gone), Change::Added(new)] = &changes[..] else {
        panic!("{changes:?}");
    };
    assert_eq!((&**gone, &*new.worker.name), ("w", "v"));
    let moved = WHOLE.replace("'s'", "'s2'").replace("'t'", "'t2'");
    let changes = config::difference(&old, &file(&worker(&moved)));
    let [Change::Replaced { keys, .. }] = &changes[..] else {
        panic!("{changes:?}");
    };
    assert_eq!(keys, &["schema", "table"]);
    let needs_restart = |old: &str, new: &str| {
        let changes = |text: &str| file(&worker(WHOLE).replace("embedded = true", text));
        let changes = config::difference(&changes(old), &changes(new));
        changes
            .into_iter()
            .map(|change| match change {
                Change::NeedsRestart { parameter } => parameter,
                other => panic!("{other:?}"),
            })
            .collect::<Vec<_>>()
    };
    let private = "embedded = true";
    assert_eq!(
        needs_restart(private, "url = 'host=h'"),
        ["database.embedded", "database.url"]
    );
    assert_eq!(
        needs_restart("url = 'host=h'", "url = 'host=i'"),
        ["database.url"]
    );
    assert_eq!(
        needs_restart(private, "embedded = true\ndata_dir = '/d'"),
        ["database.data_dir"]
    );
    let served = file(&format!("[http]\nlisten = '9187'\n{}", worker(WHOLE)));
    let parameter = "http.listen".to_owned();
    assert_eq!(
        config::difference(&old, &served),
        [Change::NeedsRestart { parameter }]
    );
    let bounded = format!("[postmaster]\nmax_workers = 3\n{}", worker(WHOLE));
    let changes = config::difference(&old, &file(&bounded));
    let [Change::Limits { limits, keys }] = &changes[..] else {
        panic!("{changes:?}");
    };
    assert_eq!(
        (limits.max_workers, &keys[..]),
        (3, &["max_workers".to_owned()][..])
    );
}

#[test]
fn the_example_of_the_repository_is_where_the_program_looks() {
    assert!(Path::new("./conf/bgworker.toml").exists());
}
