//! What a newcomer asks the program for: a configuration to begin with, completions, manual pages.

use tempfile::TempDir;

use crate::program::{bgworker, run};

/// The names of the commands, as the help lists them.
fn commands() -> Vec<String> {
    let (_, help, _) = run(bgworker().arg("--help"));
    let (_, list) = help.split_once("Commands:\n").unwrap();
    let (list, _) = list.split_once("\n\n").unwrap();
    let names = list
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    names.map(str::to_owned).collect()
}

#[test]
fn init_writes_a_configuration_that_is_right_and_never_replaces_one() {
    let directory = TempDir::new().unwrap();
    let here = |arguments: &[&str]| run(bgworker().args(arguments).current_dir(directory.path()));
    let (code, out, err) = here(&["init"]);
    assert_eq!((code, &*err), (0, ""));
    assert!(out.starts_with("wrote bgworker.toml; next:\n"), "{out}");
    let (code, out, err) = here(&["check"]);
    assert_eq!((code, &*err), (0, ""));
    assert!(out.contains("workers  1 (1 sql)"), "{out}");
    let file = directory.path().join("bgworker.toml");
    std::fs::write(&file, "# mine").unwrap();
    let (code, out, err) = here(&["init"]);
    assert_eq!((code, &*out), (1, ""));
    assert_eq!(err, "\"bgworker.toml\" exists already: name another file\n");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "# mine");
    assert_eq!(here(&["init", "no/such/directory.toml"]).0, 1);
}

#[test]
fn each_example_in_the_comments_of_init_is_right() {
    let text = include_str!("../../src/init.toml");
    let (_, examples) = text.split_once("# [[worker]]").unwrap();
    let examples = format!("# [[worker]]{examples}");
    let lines = examples.lines().filter_map(|line| line.strip_prefix("# "));
    // A line of prose ends in a colon or a stop.
    let lines = lines.filter(|line| !line.ends_with([':', '.']));
    let lines: Vec<_> = lines.collect();
    let config = crate::configuration::Config::new(&lines.join("\n"));
    let mut check = bgworker();
    check.args(["check", "--config"]).arg(&config.path);
    check.args(["--database", "postgresql://localhost/app"]);
    let (code, out, err) = run(&mut check);
    assert_eq!((code, &*err), (0, ""), "{lines:?}");
    assert!(out.contains("workers  2 (1 rollup, 1 sql)"), "{out}");
}

#[test]
fn each_shell_completes_each_command() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let (code, out, err) = run(bgworker().args(["completions", shell]));
        assert_eq!((code, &*err), (0, ""));
        for command in commands() {
            assert!(out.contains(&command), "{shell}: {command}");
        }
    }
    assert_eq!(run(bgworker().args(["completions", "cmd"])).0, 2);
}

#[test]
fn each_command_has_a_manual_page_with_its_options() {
    let page = |arguments: &[&str]| {
        let (code, out, err) = run(bgworker().arg("man").args(arguments));
        assert_eq!((code, &*err), (0, ""));
        out.replace('\\', "")
    };
    assert!(page(&[]).contains("bgworker-status"));
    for command in commands() {
        let page = page(&[&command]);
        assert!(page.contains(&format!("bgworker-{command} 1")), "{page}");
    }
    assert!(page(&["status"]).contains("--watch"));
    let (code, out, err) = run(bgworker().args(["man", "stop"]));
    assert_eq!((code, &*out), (1, ""));
    assert!(
        err.starts_with("there is no such command: the commands are run, check"),
        "{err}"
    );
}
