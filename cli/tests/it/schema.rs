//! `bgworker schema`: what editors complete and check a configuration by.

use std::path::Path;

use serde_json::Value;

use crate::program::{bgworker, run};

fn schema() -> Value {
    let (code, out, err) = run(bgworker().arg("schema"));
    assert_eq!((code, &*err), (0, ""));
    serde_json::from_str(&out).unwrap()
}

/// The first mistake that the schema finds in a configuration.
fn mistake(text: &str) -> Option<String> {
    let schema = jsonschema::draft7::new(&schema()).unwrap();
    let configuration: Value = toml::from_str(text).unwrap();
    let error = schema.validate(&configuration).err();
    error.map(|error| format!("{}: {error}", error.instance_path()))
}

#[test]
fn the_schema_accepts_the_configurations_that_come_along() {
    let conf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf");
    let files = ["bgworker.toml", "jobs.toml", "rollups.toml", "seed.toml"];
    for file in files.map(|file| conf.join(file)) {
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(mistake(&text), None, "{}", file.display());
        // Keys that are commented out are keys, too.
        let shown = text.lines().filter_map(|line| line.strip_prefix("# "));
        let tables = shown.filter(|line| line.starts_with("restart_time = "));
        for line in tables {
            let text = format!("[[worker]]\nname = \"a\"\nschema = \"s\"\ntable = \"t\"\n{line}");
            assert_eq!(mistake(&text), None, "{line}");
        }
    }
}

#[test]
fn the_schema_knows_each_key_that_the_program_knows() {
    let known = schema();
    let text = include_str!("../../../conf/bgworker.toml");
    let properties = |value: &Value| -> Vec<String> {
        let properties = value["properties"].as_object().unwrap();
        properties.keys().cloned().collect()
    };
    let worker = &known["properties"]["worker"]["items"];
    let mut keys = properties(&worker["then"]);
    keys.extend(properties(&worker["else"]["then"]));
    keys.extend(properties(&worker["else"]["else"]));
    for section in ["database", "postmaster", "http"] {
        keys.extend(properties(&known["properties"][section]));
    }
    for key in keys {
        let line = format!("{key} = ");
        let stands = |text: &str| text.trim_start_matches("# ").starts_with(&line);
        assert!(text.lines().any(stands), "{key}");
    }
}

#[test]
fn the_schema_finds_the_first_mistakes_that_a_newcomer_makes() {
    let worker =
        |keys: &str| format!("[[worker]]\nname = \"a\"\nschema = \"s\"\ntable = \"t\"\n{keys}");
    for (text, place) in [
        (worker("naptime = 1"), "/worker/0/naptime"),
        (worker("naptime = \"1\""), "/worker/0/naptime"),
        (worker("nap = \"1s\""), "/worker/0"),
        (worker("restart_time = \"none\""), "/worker/0/restart_time"),
        (worker("function = \"cron\""), "/worker/0/function"),
        (worker("cron = \"@daily\""), "/worker/0"),
        (
            "[database]\nconnections = 0".to_owned(),
            "/database/connections",
        ),
        ("[[worker]]\nname = \"a\"".to_owned(), "/worker/0"),
        ("[databse]".to_owned(), ""),
    ] {
        let found = mistake(&text).unwrap_or_default();
        assert!(found.starts_with(&format!("{place}: ")), "{text}: {found}");
    }
}
