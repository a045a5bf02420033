//! Mistakes that newcomers make, and habits from other tools: each message says what to write instead, and none hides
//! another.

use bgworker::config::{self, ConfigFile, Functions, Sources};

/// The mistakes of a file, one per line, without its name.
fn mistakes(text: &str, environment: &[(&str, &str)]) -> String {
    let environment = environment.iter();
    let sources = Sources {
        file: Some(ConfigFile {
            path: "b.toml".into(),
            text: text.to_owned(),
        }),
        environment: environment
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        ..Sources::default()
    };
    match config::read(&sources, &Functions::built_in()) {
        Ok(_) => String::new(),
        Err(problems) => problems.to_string().replace("b.toml:", ""),
    }
}

/// The mistakes of a job with these keys.
fn of_job(keys: &str) -> String {
    let head = "[database]\nembedded = true\n[[worker]]\nname = 'j'\nfunction = 'sql'\n";
    mistakes(&format!("{head}{keys}\n"), &[])
}

#[test]
fn a_schedule_as_other_tools_write_it_is_told_as_it_is_written_here() {
    for (schedule, expected) in [
        ("cron = '30 seconds'", "set every = \"30s\" instead"),
        ("cron = '@every 5m'", "set every = \"5m\" instead"),
        ("cron = '0 0 3 * * ?'", "write \"0 3 * * *\""),
        ("cron = '0 3 L * *'", "write \"0 3 28-31 * *\""),
        ("cron = '0 3 $ * *'", "write \"0 3 28-31 * *\""),
        (
            "cron = '*/90 * * * *'",
            "(write \"0 * * * *\", or set every = \"90m\")",
        ),
        ("every = '1 month'", "months and years differ in length"),
        (
            "cron = '@daily'\ntimezone = 'Berlin'",
            "(did you mean \"Europe/Berlin\"?)",
        ),
        (
            "cron = '@daily'\ntimezone = 'America/New_Yrok'",
            "(did you mean \"America/New_York\"?)",
        ),
    ] {
        let said = of_job(&format!("sql = 'SELECT 1'\n{schedule}"));
        assert!(said.contains(expected), "{schedule}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn what_only_psql_or_no_transaction_can_run_is_refused() {
    for (sql, expected) in [
        (
            "COPY t FROM STDIN;\n1\n\\.\n",
            "sql: line 1: COPY FROM STDIN exchanges rows",
        ),
        (
            "\\set x 1\nSELECT 1",
            "sql: line 1: \\set is a command of psql",
        ),
        (
            "SELECT 1; VACUUM t",
            "VACUUM cannot run in a transaction: set \"transaction = false\"",
        ),
    ] {
        let said = of_job(&format!("every = '1s'\nsql = '''{sql}'''"));
        assert!(said.contains(expected), "{said}");
    }
    let vacuum = "every = '1s'\ntransaction = false\nsql = 'VACUUM t'";
    assert_eq!(of_job(vacuum), "");
    let pooler =
        "[database]\nembedded = true\nprepare = false\n[[worker]]\nname = 'j'\nfunction = 'sql'\n";
    let said = mistakes(&format!("{pooler}{vacuum}\n"), &[]);
    assert!(
        said.starts_with("8:") && said.contains(".transaction: "),
        "{said}"
    );
    assert!(
        said.contains("the worker would never run (leave this out, or connect"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn no_mistake_hides_another() {
    for (text, expected) in [
        (
            "[[worker]]\nname = 'j'\nfunction = 'sql'\nsql = 'SELECT 1'\ncron = '0 25 * * *'\ntimezone = 'x'",
            &["5:1: worker[0].cron", "6:1: worker[0].timezone"][..],
        ),
        (
            "[[workers]]\nname = 'j'\nfunction = 'sql'\nsql = 'SELECT 1'\nevry = '1s'",
            &[
                "1:3: workers: unknown key \"workers\" (did you mean \"worker\"?)",
                "evry",
            ],
        ),
        (
            "[[worker]]\nname = 'j'\nfunction = 'sql'\nsql = 'SELECT 1'\nevry = '1s'\n[[worker]\nname = 'k'\n[postmaster]\nmax_workers = 9",
            &["5:1: worker[0].evry", "6:"],
        ),
    ] {
        let said = mistakes(
            &format!("{text}\n"),
            &[("BGWORKER_DATABASE__EMBEDDED", "true")],
        );
        assert_eq!(said.lines().count(), expected.len(), "{said}");
        for (line, expected) in said.lines().zip(expected) {
            assert!(line.contains(expected), "{line}");
        }
    }
}

#[test]
fn a_message_says_what_is_expected_in_the_words_of_the_file() {
    let worker =
        |keys: &str| format!("[database]\nembedded = true\n[[worker]]\nname = 'j'\n{keys}\n");
    for (text, expected) in [
        (
            worker("function = 'rollup'\nqueue = 'a.b'\ntotals = 'a.c'\nkeys = 'page'\ncount = 'n'"),
            "worker[0].keys: expected a list, such as [\"a\", \"b\"]",
        ),
        (worker("function = 'SQL'"), "did you mean \"sql\"?"),
        (
            worker("sql = 'SELECT 1'\nevry = '1s'"),
            "(did you mean function = \"sql\"?)",
        ),
        (
            "[database]\nurl = 'postgresql://h/d?pool=5'\n".to_owned(),
            "\"pool\": it is one of Rails, not of libpq: leave it out",
        ),
        (
            "[database]\nurl = 'host=a,b target_session_attrs=read-write'\n[[worker]]\nname = 'j'\nfunction = 'sql'\n\
             start_time = 'consistent_state'\nnaptime = '1s'\nsql = 'SELECT 1'\n"
                .to_owned(),
            "6:1: worker[0].start_time: at \"consistent_state\" a worker runs on standbys too",
        ),
        (
            "[database]\nurl = 'host=a,b target_session_attrs=standby'\n[[worker]]\nname = 'j'\nfunction = 'sql'\n\
             every = '1s'\nsql = 'SELECT 1'\n"
                .to_owned(),
            "the worker would never start",
        ),
    ] {
        let said = mistakes(&text, &[]);
        assert!(said.contains(expected), "{text}: {said}");
    }
}

#[test]
fn a_variable_is_refused_in_the_words_of_the_file() {
    let in_file = mistakes("[database]\nembedded = true\njobs = 0\n", &[]);
    let in_variable = mistakes(
        "[database]\nembedded = true\n",
        &[("BGWORKER_DATABASE__JOBS", "0")],
    );
    let message = |said: &str| {
        said.split_once("database.jobs: ")
            .map(|(_, said)| said.to_owned())
    };
    assert!(message(&in_file).is_some(), "{in_file}");
    assert_eq!(message(&in_file), message(&in_variable), "{in_variable}");
}

#[test]
fn the_file_of_a_jobs_statements_lies_beside_the_configuration_and_may_begin_with_a_byte_order_mark()
 {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("purge.sql"), "\u{feff}SELECT 1;\n").unwrap();
    let sources = Sources {
        file: Some(ConfigFile {
            path: directory.path().join("b.toml"),
            text: "[database]\nembedded = true\n[[worker]]\nname = 'j'\nfunction = 'sql'\nevery = '1s'\n\
                   sql_file = 'purge.sql'\n"
                .to_owned(),
        }),
        ..Sources::default()
    };
    let settings = config::read(&sources, &Functions::built_in());
    settings.unwrap_or_else(|problems| panic!("{problems}"));
}
