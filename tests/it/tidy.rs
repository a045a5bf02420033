//! Rules about the code that no compiler knows: who may use whom, and what must not be named.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each room of the house, and the rooms that it may use. No other edges, no cycles.
const MAY_USE: [(&str, &[&str]); 14] = [
    (
        "postmaster",
        &[
            "supervision",
            "worker",
            "context",
            "latch",
            "background_worker",
            "database",
        ],
    ),
    ("worker", &["context", "latch", "background_worker"]),
    (
        "worker_spi",
        &[
            "context",
            "latch",
            "database",
            "background_worker",
            "backoff",
        ],
    ),
    ("context", &["latch", "database", "background_worker"]),
    // Of supervision its limits alone, of database where and how long: see the next list.
    (
        "config",
        &[
            "background_worker",
            "worker_spi",
            "database",
            "supervision",
            "spelling",
        ],
    ),
    ("database", &["background_worker", "backoff", "spelling"]),
    ("supervision", &["background_worker", "backoff"]),
    (
        "http",
        &["postmaster", "context", "background_worker", "supervision"],
    ),
    (
        "testing",
        &["postmaster", "context", "latch", "database", "supervision"],
    ),
    ("background_worker", &[]),
    ("latch", &[]),
    ("embedded", &[]),
    ("backoff", &[]),
    ("spelling", &[]),
];

/// What a room may use of another, where that is not all of it.
const ONLY: [(&str, &str, &[&str]); 2] = [
    ("config", "supervision", &["Limits"]),
    (
        "config",
        "database",
        &[
            "ConnInfo",
            "ConnInfoError",
            "Settings",
            "Settings as DatabaseSettings",
        ],
    ),
];

/// Words that must not stand in the code of a room.
const NEVER: [(&str, &[&str]); 6] = [
    (
        "supervision",
        &[
            "actix",
            "tokio",
            "async ",
            ".await",
            "Instant::now",
            "SystemTime",
            "spawn(",
        ],
    ),
    (
        "background_worker",
        &[
            "actix",
            "tokio",
            "async ",
            ".await",
            "Instant::now",
            "SystemTime",
            "spawn(",
        ],
    ),
    ("context", &["actix"]),
    ("latch", &["actix"]),
    ("worker_spi", &["actix"]),
    ("database", &["actix"]),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The code of each room, without its comments and its unit tests.
fn rooms() -> BTreeMap<String, String> {
    let src = root().join("src");
    let mut files = Vec::new();
    files_below(&src, &mut files);
    let mut rooms = BTreeMap::<_, String>::new();
    for file in files {
        let path = file.strip_prefix(&src).unwrap();
        let first = path
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_str()
            .unwrap();
        let room = first.trim_end_matches(".rs").to_owned();
        let text = fs::read_to_string(&file).unwrap();
        // Unit tests come last in a file, and may ask for the time.
        let text = text.split("#[cfg(test)]").next().unwrap();
        let code = text.lines().map(|line| line.split("//").next().unwrap());
        let room = rooms.entry(room).or_default();
        for line in code {
            room.push_str(line);
            room.push('\n');
        }
    }
    rooms.remove("bin");
    rooms.remove("lib");
    rooms
}

/// The paths below `crate::` that a text names, one for each name in braces.
fn uses(code: &str) -> BTreeSet<String> {
    let mut uses = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let end = rest
            .find([';', '(', ' ', '>', ',', ')'])
            .unwrap_or(rest.len());
        let path = &rest[..end];
        match rest.split_once('{') {
            Some((start, rest)) if start.ends_with("::") && !start.contains([';', '\n']) => {
                let names = rest.split('}').next().unwrap();
                for name in names
                    .split(',')
                    .map(str::trim)
                    .filter(|name| !name.is_empty())
                {
                    uses.insert(format!("{start}{name}"));
                }
            }
            _ => {
                uses.insert(path.to_owned());
            }
        }
    }
    uses
}

#[test]
fn every_room_uses_only_those_it_may_use() {
    let rooms = rooms();
    let known: BTreeSet<_> = MAY_USE.iter().map(|(room, _)| (*room).to_owned()).collect();
    assert_eq!(rooms.keys().cloned().collect::<BTreeSet<_>>(), known);
    for (room, may_use) in MAY_USE {
        for path in uses(&rooms[room]) {
            let mut parts = path.split("::");
            let used = parts.next().unwrap();
            assert!(
                used == room || may_use.contains(&used),
                "{room} may not use {used}: crate::{path}"
            );
            let item = parts.next().unwrap_or_default();
            let only = ONLY
                .iter()
                .find(|(user, of, _)| *user == room && *of == used);
            if let Some((_, _, items)) = only {
                assert!(
                    items.contains(&item),
                    "{room} may use only {items:?}: crate::{path}"
                );
            }
        }
    }
}

#[test]
fn what_decides_needs_nothing_but_std_and_thiserror() {
    let rooms = rooms();
    for room in ["supervision", "background_worker"] {
        let uses = rooms[room]
            .lines()
            .filter_map(|line| line.trim().strip_prefix("use "));
        let uses = uses.map(|path| path.trim_start_matches("pub ").split("::").next().unwrap());
        for root in uses {
            let allowed = ["std", "thiserror", "crate", "super", "self"];
            assert!(allowed.contains(&root), "{room} uses {root}");
        }
    }
}

#[test]
fn no_room_uses_one_that_uses_it() {
    let edges: BTreeMap<_, _> = MAY_USE.into_iter().collect();
    for (room, _) in MAY_USE {
        let mut reached = BTreeSet::new();
        let mut open = edges[room].to_vec();
        while let Some(next) = open.pop() {
            assert_ne!(next, room, "a cycle through {room}");
            if reached.insert(next) {
                open.extend(edges[next]);
            }
        }
    }
}

#[test]
fn what_decides_names_no_runtime_and_no_clock() {
    let rooms = rooms();
    for (room, words) in NEVER {
        for word in words {
            assert!(!rooms[room].contains(word), "{room} must not name {word:?}");
        }
    }
    for (room, code) in &rooms {
        for word in ["System::current()", "prelude::*", "Running::Continue"] {
            assert!(!code.contains(word), "{room} must not name {word:?}");
        }
    }
}

#[test]
fn every_file_says_in_its_first_line_what_it_is_for() {
    let mut files = Vec::new();
    files_below(&root().join("src"), &mut files);
    files_below(&root().join("tests"), &mut files);
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let first = text.lines().next().unwrap_or_default();
        assert!(first.starts_with("//! "), "{}", file.display());
    }
}

#[test]
fn ci_runs_the_very_test_command_of_the_readme() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let ci = fs::read_to_string(root().join(".ci/run")).unwrap();
    let is_test = |line: &&str| line.contains("apt-get") && line.ends_with("cargo test");
    let command = readme
        .lines()
        .find(is_test)
        .expect("README has a test command");
    assert!(ci.lines().any(|line| line == command), "{command}");
}

#[test]
fn ci_tests_the_very_versions_of_the_readme() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let ci = fs::read_to_string(root().join(".ci/run")).unwrap();
    let claim = |line: &&str| line.starts_with("Tested with PostgreSQL ");
    let claim = readme.lines().find(claim).expect("README names versions");
    let loops = |line: &&str| line.starts_with("for version in ");
    let versions = ci.lines().find(loops).expect("CI loops over versions");
    let mut tested: Vec<_> = versions
        .trim_end_matches("; do")
        .split_whitespace()
        .skip(3)
        .map(|version| version.split(".0-").next().unwrap())
        .collect();
    tested.insert(1, "15");
    let (last, others) = tested.split_last().unwrap();
    let expected = format!("Tested with PostgreSQL {} and {last},", others.join(", "));
    assert!(claim.starts_with(&expected), "{claim}: {expected}");
}

#[test]
fn no_sqlstate_stands_outside_of_its_table() {
    let mut files = Vec::new();
    files_below(&root().join("src"), &mut files);
    let is_code = |word: &str| {
        let digits = word.chars().filter(char::is_ascii_digit).count();
        let is_upper = |c: char| c.is_ascii_digit() || c.is_ascii_uppercase();
        word.len() == 5 && digits >= 2 && word.chars().all(is_upper)
    };
    for file in files {
        if file.ends_with("database/sqlstate.rs") {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap();
        for line in text.lines().filter(|line| !line.trim().starts_with("//")) {
            let quoted = line.split('"').skip(1).step_by(2);
            let code = quoted.into_iter().find(|word| is_code(word));
            assert_eq!(code, None, "{}: {line}", file.display());
            assert!(
                !line.contains("SqlState::") || line.contains("SqlState::code"),
                "{}: {line}",
                file.display()
            );
        }
    }
}
