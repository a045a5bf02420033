//! Functions of an embedding program: a configuration file treats them like the built-in ones.

use bgworker::config::{
    self, Change, ConfigFile, Function, Functions, Mistake, Settings, Sources, difference,
};
use bgworker::{Access, BackgroundWorker, Main, WorkerContext};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// A function that sends letters. One of its keys is secret, and two must agree.
struct Post;

#[derive(Clone, Serialize, Deserialize)]
struct PostSettings {
    to: String,
    #[serde(default)]
    copies: u8,
    #[serde(default)]
    colour: Colour,
    #[serde(skip_serializing, default)]
    token: String,
}

#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Colour {
    #[default]
    Black,
    Blue,
}

impl Function for Post {
    const NAME: &'static str = "post";
    const ACCESS: Access = Access::None;
    const IN_PLACE: &'static [&'static str] = &["copies"];

    type Settings = PostSettings;

    fn check(&self, settings: &mut PostSettings, worker: &BackgroundWorker) -> Vec<Mistake> {
        if settings.copies > 1 && &*worker.name == "miser" {
            let mistake = Mistake::new("copies", "a miser sends one at most");
            return vec![mistake.hint("leave it out")];
        }
        Vec::new()
    }

    fn main(&self, _: watch::Receiver<PostSettings>) -> impl Main {
        async |_: WorkerContext| Ok(())
    }
}

fn read(worker: &str) -> Result<Settings, String> {
    let sources = Sources {
        file: Some(ConfigFile {
            path: "b.toml".into(),
            text: format!("[database]\nembedded = true\n[[worker]]\n{worker}\n"),
        }),
        ..Sources::default()
    };
    let functions = Functions::built_in().with(Post);
    config::read(&sources, &functions).map_err(|problems| problems.to_string())
}

const LETTER: &str = "name = 'w'\nfunction = 'post'\nto = 'you'";

/// The changes that a reload has to make when these lines are added to the letter.
fn changes(lines: &str) -> Vec<Change> {
    let new = read(&format!("{LETTER}\n{lines}")).unwrap();
    difference(&read(LETTER).unwrap(), &new)
}

#[test]
fn a_mistake_in_a_functions_own_key_has_its_line_and_a_hint() {
    for (lines, expected) in [
        (
            format!("{LETTER}\ncopy = 1"),
            "b.toml:7:1: worker[0].copy: unknown key \"copy\" (did you mean \"copies\"?)",
        ),
        (
            format!("{LETTER}\nx = 1"),
            "b.toml:7:1: worker[0].x: unknown key \"x\" (the keys here are name, start_time, restart_time, \
             max_restarts, function, to, copies, colour, token)",
        ),
        (
            format!("{LETTER}\ncopies = 'two'"),
            "b.toml:7:10: worker[0].copies: expected a whole number that is not negative, but found a value of \
             type string",
        ),
        (
            format!("{LETTER}\ncolour = 'red'"),
            "b.toml:7:10: worker[0].colour: unknown value (the values here are black, blue)",
        ),
        (
            "name = 'w'\nfunction = 'post'".to_owned(),
            "b.toml:3:1: worker[0].to: the worker has no \"to\" (it is required)",
        ),
        (
            "name = 'miser'\nfunction = 'post'\nto = 'you'\ncopies = 2".to_owned(),
            "b.toml:7:1: worker[0].copies: a miser sends one at most (leave it out)",
        ),
        (
            "name = 'w'\nfunction = 'pots'\nto = 'you'".to_owned(),
            "b.toml:5:1: worker[0].function: there is no function \"pots\" (did you mean \"post\"?)",
        ),
        (
            "name = 'w'\nto = 'you'\nschema = 's'\ntable = 't'".to_owned(),
            "b.toml:5:1: worker[0].to: unknown key \"to\" (the keys here are name, ",
        ),
    ] {
        let mistakes = read(&lines).unwrap_err();
        assert!(mistakes.starts_with(expected), "{lines}:\n{mistakes}");
        assert_eq!(mistakes.lines().count(), 1, "{lines}:\n{mistakes}");
    }
}

#[test]
fn all_mistakes_of_a_worker_are_reported_even_if_a_required_key_is_missing() {
    let mistakes = read("function = 'post'\ncopies = -1\nrestart_time = '0s'").unwrap_err();
    let keys: Vec<_> = mistakes
        .lines()
        .map(|line| line.split(": ").nth(1).unwrap())
        .collect();
    let expected = ["name", "to", "copies", "restart_time"];
    assert_eq!(
        keys,
        expected.map(|key| format!("worker[0].{key}")),
        "{mistakes}"
    );
}

#[test]
fn the_function_decides_whether_a_change_replaces_the_worker() {
    assert_eq!(changes("copies = 0"), [], "a default that is written down");
    let change = changes("copies = 2\nrestart_time = 'never'");
    let [Change::InPlace { keys, .. }] = &change[..] else {
        panic!("{change:?}");
    };
    assert_eq!(keys, &["restart_time", "copies"]);
    let change = changes("copies = 2\ncolour = 'blue'");
    let [Change::Replaced { keys, .. }] = &change[..] else {
        panic!("{change:?}");
    };
    assert_eq!(keys, &["colour"]);
    let spi = read("name = 'w'\nschema = 's'\ntable = 't'").unwrap();
    let change = difference(&read(LETTER).unwrap(), &spi);
    let [Change::Replaced { keys, .. }] = &change[..] else {
        panic!("{change:?}");
    };
    assert_eq!(keys, &["function"]);
}

#[test]
fn a_key_that_is_not_serialized_is_never_shown() {
    let settings = read(&format!("{LETTER}\ntoken = 'hunter2'")).unwrap();
    let function = &settings.workers[0].function;
    assert_eq!(function.name(), "post");
    assert_eq!(
        function.settings::<PostSettings>().unwrap().token,
        "hunter2"
    );
    assert!(!format!("{settings:?}").contains("hunter2"));
    let keys = settings.shown.iter().map(|setting| setting.key.as_str());
    let keys: Vec<_> = keys
        .filter_map(|key| key.strip_prefix("worker[0]."))
        .collect();
    assert_eq!(
        keys,
        [
            "name",
            "start_time",
            "restart_time",
            "function",
            "to",
            "copies",
            "colour"
        ]
    );
}

#[test]
fn a_function_without_a_database_may_start_with_the_postmaster() {
    let early = format!("{LETTER}\nstart_time = 'postmaster_start'");
    let settings = read(&early).unwrap();
    assert_eq!(settings.workers[0].worker.access, Access::None);
}
