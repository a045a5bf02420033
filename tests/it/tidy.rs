//! Rules about the code that no compiler knows: who may use whom, and what must not be named.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Of each room, the rooms that it uses; of these, the names that it may use, where that is not all of them.
type Arrows = BTreeMap<String, BTreeMap<String, Vec<String>>>;

/// The arrows between rooms, as ARCHITECTURE.md has them.
fn arrows() -> Arrows {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (_, section) = text.split_once("## Which room uses which").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let lines = section.lines().filter_map(|line| line.split_once("─►"));
    let mut arrows = Arrows::new();
    for (users, used) in lines {
        // What comes from elsewhere stands behind two spaces.
        let used = used.trim().split("  ").next().unwrap();
        for user in users.split(',') {
            let used = used
                .split_inclusive(')')
                .flat_map(|part| match part.split_once(" (") {
                    Some((names, only)) => {
                        let only = only.trim_end_matches(')').split(", ").map(str::to_owned);
                        let (others, last) = names.rsplit_once(", ").unwrap_or(("", names));
                        let others = others.split(", ").map(|name| (name, Vec::new()));
                        others.chain([(last, only.collect())]).collect::<Vec<_>>()
                    }
                    None => part.split(", ").map(|name| (name, Vec::new())).collect(),
                });
            let used = used.filter(|(name, _)| !name.is_empty() && *name != "nothing of ours");
            let used = used.map(|(name, only)| (name.trim_start_matches(", ").to_owned(), only));
            arrows.insert(user.trim().to_owned(), used.collect());
        }
    }
    arrows
}

/// How long the tour may be: an afternoon's reading.
const TOUR_LINES_MAX: usize = 4_000;

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
    ("functions", &["actix"]),
    ("database", &["actix"]),
];

/// Words that the prose does without, each with what to write in its place. PostgreSQL's own sentences stand in strings, which
/// are not looked at.
const WORDS: [(&str, &str); 33] = [
    ("somebody", "name the subject"),
    ("someone", "name the subject"),
    ("anybody", "name the subject"),
    ("anyone", "name the subject"),
    ("everybody", "name the subject"),
    ("nobody", "no worker, no client, nothing"),
    ("whoever", "name the subject"),
    ("whom", "name the subject"),
    ("those who", "clients that, callers that"),
    ("so many", "N, this many"),
    ("so much", "how much"),
    ("so often", "N times"),
    ("so long", "this long"),
    ("any more", "no longer"),
    ("for ever", "forever, without limit"),
    ("anew", "again, new"),
    ("will do", "works, fits"),
    ("as ever", "as before"),
    ("be it", "whether"),
    ("of no use", "useless"),
    ("of use to", "useful to"),
    ("borne with", "tolerated"),
    ("come to nothing", "fail"),
    ("comes to nothing", "fails"),
    ("lest", "so that … not"),
    ("the like", "or similar"),
    ("their like", "or similar"),
    ("hears of", "is notified of"),
    ("is told of", "is notified of"),
    ("thereof", "of it"),
    ("whereupon", "then"),
    ("utilize", "use"),
    ("simply", "leave it out"),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The files of Rust below a directory.
fn files_below(directory: &Path, files: &mut Vec<PathBuf>) {
    files_of_kinds(&["rs"], directory, files);
}

fn files_of_kinds(kinds: &[&str], directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let kind = path.extension().and_then(|kind| kind.to_str());
        if path.is_dir() {
            files_of_kinds(kinds, &path, files);
        } else if kind.is_some_and(|kind| kinds.contains(&kind)) {
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

/// The paths of every `use` of a text, one for each name in braces, and what else it names below `crate::` and `super::`.
fn uses(code: &str) -> BTreeSet<String> {
    let mut uses = BTreeSet::new();
    for statement in code.split(';') {
        let statement = statement.trim_start();
        let start = statement.rfind("\nuse ").map(|at| at + 1);
        let start = start.or_else(|| statement.find("pub use "));
        let start = start.or_else(|| statement.find("pub(crate) use "));
        let start = start.or_else(|| statement.find("pub(super) use "));
        let start = start.or_else(|| statement.starts_with("use ").then_some(0));
        match start {
            Some(start) => {
                let (_, tree) = statement[start..].split_once("use ").unwrap();
                expand("", tree, &mut uses);
            }
            None => {
                let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
                let paths = statement.split(|c| !is_path(c)).filter(|path| {
                    ["crate::", "super::"]
                        .iter()
                        .any(|root| path.starts_with(root))
                });
                uses.extend(paths.map(|path| path.trim_end_matches(':').to_owned()));
            }
        }
    }
    uses
}

/// Takes a tree of `use` apart: `a::{b, c::{d, e}}` is `a::b`, `a::c::d` and `a::c::e`.
fn expand(prefix: &str, tree: &str, uses: &mut BTreeSet<String>) {
    let tree = tree.trim();
    let Some((path, inner)) = tree.split_once('{') else {
        let name = tree.split(" as ").next().unwrap().trim();
        uses.insert(format!("{prefix}{name}"));
        return;
    };
    let prefix = format!("{prefix}{path}");
    let inner = inner.trim_end().trim_end_matches('}');
    let (mut depth, mut start) = (0, 0);
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                expand(&prefix, &inner[start..at], uses);
                start = at + 1;
            }
            _ => {}
        }
    }
    if !inner[start..].trim().is_empty() {
        expand(&prefix, &inner[start..], uses);
    }
}

#[test]
fn the_arrows_between_rooms_are_those_of_architecture_md() {
    let rooms = rooms();
    let arrows = arrows();
    let known: BTreeSet<_> = arrows.keys().cloned().collect();
    assert_eq!(rooms.keys().cloned().collect::<BTreeSet<_>>(), known);
    for (room, drawn) in &arrows {
        let mut found = BTreeSet::new();
        for path in uses(&rooms[room]) {
            let Some(path) = path.strip_prefix("crate::") else {
                continue;
            };
            let (used, item) = path.split_once("::").unwrap_or((path, ""));
            let item = item.split("::").next().unwrap().to_owned();
            if used == room {
                continue;
            }
            found.insert(used.to_owned());
            let only = drawn.get(used);
            let only = only.unwrap_or_else(|| panic!("{room} may not use {used}: {path}"));
            assert!(
                only.is_empty() || only.contains(&item),
                "{room} may not use {path}"
            );
        }
        assert_eq!(
            drawn.keys().cloned().collect::<BTreeSet<_>>(),
            found,
            "{room}"
        );
    }
}

/// A path from the root of the crate, as a module names it.
fn absolute(path: &str, module: &str) -> String {
    let parent = |module: &str| {
        let parent = module.rsplit_once("::");
        parent.map_or("crate", |(parent, _)| parent).to_owned()
    };
    match path.split_once("::") {
        Some(("self", rest)) => format!("{module}::{rest}"),
        Some(("super", rest)) => {
            let (mut module, mut rest) = (parent(module), rest);
            while let Some(further) = rest.strip_prefix("super::") {
                (module, rest) = (parent(&module), further);
            }
            format!("{module}::{rest}")
        }
        _ => path.to_owned(),
    }
}

/// The files below a directory that are the modules of one crate, by their paths: `crate::a::b`.
fn modules(src: &Path, crate_root: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut files = Vec::new();
    files_below(src, &mut files);
    let mut modules = BTreeMap::new();
    for file in files {
        let path = file.strip_prefix(src).unwrap().with_extension("");
        let parts: Vec<_> = path.iter().map(|part| part.to_str().unwrap()).collect();
        if parts.last() == Some(&"tests") || (parts[0] == "bin" && parts.len() > 1) {
            continue;
        }
        let module = match &parts[..] {
            [root] if *root == crate_root => "crate".to_owned(),
            parts => format!("crate::{}", parts.join("::")),
        };
        let text = fs::read_to_string(&file).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap();
        let code = text.lines().map(|line| line.split("//").next().unwrap());
        let code = code.collect::<Vec<_>>().join("\n");
        let absolute = uses(&code).into_iter().map(|path| absolute(&path, &module));
        let absolute = absolute
            .filter(|path| path.starts_with("crate::"))
            .collect();
        modules.insert(module, (code.clone(), absolute));
    }
    modules
}

/// The module in which what a path names is written: through what is exported again.
fn home_of(path: &str, modules: &BTreeMap<String, (String, BTreeSet<String>)>) -> Option<String> {
    if modules.contains_key(path) {
        return Some(path.to_owned());
    }
    let (module, item) = path.rsplit_once("::")?;
    match modules.get(module) {
        Some((_, uses)) => {
            let again = uses
                .iter()
                .find(|path| path.rsplit("::").next() == Some(item));
            match again.filter(|again| *again != path) {
                Some(again) => home_of(again, modules),
                None => Some(module.to_owned()),
            }
        }
        None => home_of(module, modules),
    }
}

#[test]
fn no_file_uses_one_that_uses_it() {
    for (src, crate_root) in [("src", "lib"), ("cli/src", "main")] {
        let modules = modules(&root().join(src), crate_root);
        let is_inside = |inner: &str, outer: &str| inner.starts_with(&format!("{outer}::"));
        let mut arrows = BTreeMap::<&str, BTreeSet<String>>::new();
        for (module, (_, uses)) in &modules {
            let used = uses.iter().filter_map(|path| home_of(path, &modules));
            let used = used.filter(|used| used != module && used != "crate" && module != "crate");
            let used = used.filter(|used| !is_inside(used, module) && !is_inside(module, used));
            arrows.insert(module, used.collect());
        }
        assert!(
            arrows.values().map(BTreeSet::len).sum::<usize>() > 20,
            "{arrows:#?}"
        );
        for (start, uses) in &arrows {
            let mut reached = BTreeSet::new();
            let mut open: Vec<(String, String)> = uses
                .iter()
                .map(|used| (used.clone(), format!("{start} -> {used}")))
                .collect();
            while let Some((next, way)) = open.pop() {
                assert_ne!(next, **start, "a circle: {way}");
                if reached.insert(next.clone()) {
                    let further = &arrows[&*next];
                    open.extend(
                        further
                            .iter()
                            .map(|used| (used.clone(), format!("{way} -> {used}"))),
                    );
                }
            }
        }
    }
}

#[test]
fn what_decides_needs_nothing_but_std_thiserror_and_serde() {
    let rooms = rooms();
    for room in ["supervision", "background_worker"] {
        let uses = rooms[room]
            .lines()
            .filter_map(|line| line.trim().strip_prefix("use "));
        let uses = uses.map(|path| path.trim_start_matches("pub ").split("::").next().unwrap());
        for root in uses {
            let allowed = [
                "std",
                "thiserror",
                "serde",
                "schemars",
                "crate",
                "super",
                "self",
            ];
            assert!(allowed.contains(&root), "{room} uses {root}");
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
    let list = |line| str::strip_prefix(line, "versions=(");
    let versions = ci.lines().find_map(list).expect("CI lists versions");
    let mut tested: Vec<_> = versions
        .trim_end_matches(')')
        .split_whitespace()
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

/// How long a function may be.
const FUNCTION_LINES_MAX: usize = 60;

/// Functions that read a text, step by step, and may be longer.
const PARSERS: [&str; 1] = ["src/database/conninfo/values.rs: hosts"];

/// The functions of a file, each with its number of lines: formatted code closes one where its indentation ends.
fn functions(text: &str) -> Vec<(String, usize)> {
    let (code, _) = text
        .split_once("#[cfg(test)]\nmod tests")
        .unwrap_or((text, ""));
    let lines: Vec<_> = code.lines().collect();
    let mut found = Vec::new();
    for (begin, line) in lines.iter().enumerate() {
        let indentation = &line[..line.len() - line.trim_start().len()];
        let words: Vec<_> = line.split_whitespace().collect();
        let is_comment = line.trim_start().starts_with("//");
        let Some(place) = words
            .iter()
            .position(|word| *word == "fn")
            .filter(|_| !is_comment)
        else {
            continue;
        };
        let name = words[place + 1].split(['(', '<']).next().unwrap();
        let close = format!("{indentation}}}");
        let rest = &lines[begin..];
        // The declaration of a trait's function has no body.
        let head = rest
            .iter()
            .position(|line| line.ends_with('{') || line.ends_with(';') || line.ends_with('}'));
        if head.is_some_and(|head| rest[head].ends_with('{')) {
            let end = rest.iter().position(|line| *line == close).unwrap_or(0);
            found.push((name.to_owned(), end + 1));
        }
    }
    found
}

#[test]
fn no_function_has_more_than_sixty_lines_but_parsers() {
    let mut files = Vec::new();
    for directory in ["src", "cli/src"] {
        files_of_kinds(&["rs"], &root().join(directory), &mut files);
    }
    let (mut long, mut seen) = (Vec::new(), 0);
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let file = file.strip_prefix(root()).unwrap().display().to_string();
        for (name, lines) in functions(&text) {
            seen += 1;
            let place = format!("{file}: {name}");
            if lines > FUNCTION_LINES_MAX && !PARSERS.contains(&&*place) {
                long.push(format!("{place} has {lines} lines"));
            }
        }
    }
    assert!(seen > 1_500, "{seen}");
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn the_newcomers_tour_leads_to_files_that_can_be_read_in_an_afternoon() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (_, tour) = text.split_once("## A newcomer's tour").unwrap();
    let (tour, _) = tour.split_once("\n## ").unwrap();
    let files = tour.split('`').filter(|word| word.ends_with(".rs"));
    let lines = files.map(|file| {
        fs::read_to_string(root().join(file))
            .unwrap()
            .lines()
            .count()
    });
    let lines: Vec<_> = lines.collect();
    assert!(lines.len() >= 10, "{lines:?}");
    assert!(lines.iter().sum::<usize>() <= TOUR_LINES_MAX, "{lines:?}");
}

#[test]
fn each_room_has_a_heading_in_architecture_md() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (_, rooms) = text.split_once("\n## Rooms").unwrap();
    let (rooms, _) = rooms.split_once("\n## ").unwrap();
    let headings: Vec<_> = rooms
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .collect();
    let named: BTreeSet<_> = headings
        .iter()
        .flat_map(|heading| heading.split(" and "))
        .collect();
    for room in arrows().keys() {
        assert!(named.contains(room.as_str()), "{room} has no heading");
    }
}

/// The prose of a file: all of a text, and of code its comments and the names of its functions.
fn prose(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    if file.extension().is_none_or(|kind| kind != "rs") {
        return text;
    }
    let lines = text.lines().map(|line| {
        let comment = line.trim_start().strip_prefix("//").map(str::to_owned);
        let name = line
            .split_once("fn ")
            .and_then(|(_, rest)| rest.split('(').next());
        comment.or_else(|| name.map(|name| name.replace('_', " ")))
    });
    lines.map(|line| line.unwrap_or_default() + "\n").collect()
}

#[test]
fn words_that_leave_their_subject_open_do_not_come_back() {
    let mut files = Vec::new();
    let kinds = ["rs", "md", "toml", "html", "yml", "json", "service"];
    for directory in ["src", "cli", "tests", "benches", "examples", "docs", "conf"] {
        files_of_kinds(&kinds, &root().join(directory), &mut files);
    }
    files.extend(["README.md", "ARCHITECTURE.md", "CHANGELOG.md"].map(|file| root().join(file)));
    files.retain(|file| !file.ends_with("it/tidy.rs"));
    assert!(files.len() > 200, "{}", files.len());
    let mut found = Vec::new();
    for file in files {
        for (index, line) in prose(&file).lines().enumerate() {
            let letters = |c: char| {
                if c.is_alphanumeric() {
                    c.to_ascii_lowercase()
                } else {
                    ' '
                }
            };
            let words: String = format!(" {line} ").chars().map(letters).collect();
            for (word, better) in WORDS {
                if words.contains(&format!(" {word} ")) {
                    let place = format!("{}:{}", file.display(), index + 1);
                    found.push(format!("{place}: \"{word}\": {better}"));
                }
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Licences that ask for nothing but their text and the names of the authors.
const PERMISSIVE: [&str; 9] = [
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Zlib",
];

#[test]
fn each_crate_of_the_program_may_be_used_by_anyone_for_anything() {
    let mut tree = std::process::Command::new(env!("CARGO"));
    tree.args([
        "tree",
        "--locked",
        "--offline",
        "--package",
        "bgworker-cli",
        "--edges",
        "normal",
    ]);
    tree.args(["--prefix", "none", "--no-dedupe", "--format", "{p}: {l}"]);
    let output = tree.current_dir(root()).output().unwrap();
    let crates = String::from_utf8(output.stdout).unwrap();
    assert!(crates.lines().count() > 100, "{crates}");
    for line in crates.lines() {
        let (_, licence) = line.rsplit_once(": ").unwrap();
        // Of alternatives, one is enough; of several that hold together, all are needed.
        let holds = |part: &str| {
            let alternatives = part.split(['/', '|']).flat_map(|part| part.split(" OR "));
            let mut names = alternatives.map(|name| name.trim_matches([' ', '(', ')']));
            names.any(|name| PERMISSIVE.contains(&name))
        };
        assert!(licence.split(" AND ").all(holds), "{line}");
    }
}
