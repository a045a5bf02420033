//! The blocks of README and `docs/`, run as a reader would run them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};

use tempfile::TempDir;

use crate::program::{bgworker, run};
use crate::support::daemon::Daemon;
use crate::support::database::TestDatabase;
use crate::support::eventually;

/// A fenced block of a page.
#[derive(Debug)]
struct Block {
    /// `README.md:12`
    place: String,
    language: String,
    text: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The blocks of a page, in order.
fn blocks(page: &str) -> Vec<Block> {
    let text = fs::read_to_string(root().join(page)).unwrap();
    let mut blocks: Vec<Block> = Vec::new();
    let mut open = false;
    for (index, line) in text.lines().enumerate() {
        match line.strip_prefix("```") {
            Some(language) if !open => {
                open = true;
                blocks.push(Block {
                    place: format!("{page}:{}", index + 1),
                    language: language.to_owned(),
                    text: String::new(),
                });
            }
            Some(_) => open = false,
            None if open => {
                let block = blocks.last_mut().unwrap();
                block.text += line;
                block.text += "\n";
            }
            None => {}
        }
    }
    assert!(!open, "{page}: a block has no end");
    blocks
}

/// A reader of one page: a database, an empty directory, and the programs that the page starts.
struct Reader {
    db: TestDatabase,
    directory: TempDir,
    running: Vec<Daemon>,
}

// === impl Reader ===

impl Reader {
    async fn new() -> Self {
        Self {
            db: TestDatabase::new().await,
            directory: TempDir::new().unwrap(),
            running: Vec::new(),
        }
    }

    /// Writes a configuration to the file that its first line names, and checks it. The program runs those that are named.
    fn toml(&mut self, block: &Block) {
        let named = block.text.lines().next().unwrap().strip_prefix("# ");
        let named = named.filter(|name| name.ends_with(".toml"));
        let path = self.directory.path().join(named.unwrap_or("unnamed.toml"));
        fs::write(&path, &block.text).unwrap();
        let mut check = bgworker();
        check.args(["check", "--config"]).arg(&path);
        check.env("DATABASE_URL", self.db.conninfo());
        let (code, _, err) = run(check.current_dir(self.directory.path()));
        assert_eq!((code, &*err), (0, ""), "{}", block.place);
        if named.is_some() {
            let mut program = bgworker();
            program.args(["run", "--config"]).arg(&path);
            program.env("BGWORKER_HTTP__LISTEN", "127.0.0.1:0");
            program.arg("--database").arg(self.db.conninfo());
            program.current_dir(self.directory.path());
            self.running.push(Daemon::start(&mut program));
        }
    }

    /// Runs statements as one transaction, again until they succeed and print what is expected.
    async fn sql(&self, block: &Block, expected: Option<&Block>) {
        eventually(&block.place, || async {
            let mut psql = Command::new("psql");
            psql.args(["-XAtq1", "-v", "ON_ERROR_STOP=1", "-d"]);
            let output = psql.arg(self.db.conninfo()).args(["-c", &block.text]);
            let Output { status, stdout, .. } = output.output().unwrap();
            let found = String::from_utf8(stdout).unwrap();
            status.success() && expected.is_none_or(|expected| found == expected.text)
        })
        .await;
    }

    /// Runs commands, with the program on the path. Their output is as expected, but for its numbers.
    fn shell(&self, block: &Block, expected: Option<&Block>) {
        let program = Path::new(env!("CARGO_BIN_EXE_bgworker"));
        let path = env::var("PATH").unwrap();
        let path = format!("{}:{path}", program.parent().unwrap().display());
        let mut shell = Command::new("timeout");
        shell.args(["60", "bash", "-euo", "pipefail", "-c", &block.text]);
        shell
            .env("PATH", path)
            .env("BGWORKER_DATABASE__URL", self.db.conninfo());
        let (code, out, err) = run(shell.current_dir(self.directory.path()));
        assert_eq!(code, 0, "{}: {out}{err}", block.place);
        if let Some(expected) = expected {
            let numberless = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "");
            let (found, expected) = (numberless(&out), numberless(&expected.text));
            assert_eq!(found, expected, "{}: {out}", block.place);
        }
    }
}

/// Whether the program would take these arguments.
fn is_understood(arguments: &[&str], place: &str) {
    let (code, _, err) = run(bgworker().args(arguments).arg("--help"));
    assert_eq!((code, &*err), (0, ""), "{place}: bgworker {arguments:?}");
}

/// The arguments of a command line, as far as its quotes are simple.
fn arguments(line: &str) -> Vec<&str> {
    let line = line.split(" || ").next().unwrap();
    let parts = line.split('"').enumerate();
    let words = parts.flat_map(|(index, part)| match index % 2 {
        0 => part.split_whitespace().collect(),
        _ => vec![part],
    });
    words.collect()
}

/// Reads a page from top to bottom, and does what it says.
async fn read(page: &str) {
    let mut reader = Reader::new().await;
    let blocks = blocks(page);
    for (index, block) in blocks.iter().enumerate() {
        let next = blocks.get(index + 1);
        let expected = next.filter(|next| next.language == "text");
        match &*block.language {
            "toml" => reader.toml(block),
            "sql" => reader.sql(block, expected).await,
            "sh" => reader.shell(block, expected),
            "text" => {
                let before = &*blocks[index - 1].language;
                assert!(["sql", "sh"].contains(&before), "{}", block.place);
            }
            // What needs another machine, or would change this one.
            "console" => {
                for line in block.text.lines() {
                    let command = line.strip_prefix("$ ").expect("a command");
                    if let Some(rest) = command.strip_prefix("bgworker ") {
                        is_understood(&arguments(rest), &block.place);
                    }
                }
            }
            "yaml" => {
                for line in block.text.lines() {
                    if let Some(list) = line.trim().strip_prefix("args: ") {
                        let list: Vec<&str> = serde_json::from_str(list).unwrap();
                        is_understood(&list, &block.place);
                    }
                }
            }
            // The documentation tests of the library run these: its tests hold the pages together.
            "rust" | "rust,no_run" => {}
            other => panic!("{}: nothing runs a block of \"{other}\"", block.place),
        }
    }
}

#[actix::test]
async fn the_blocks_of_getting_started_run() {
    read("docs/getting-started.md").await;
}

#[actix::test]
async fn the_blocks_of_jobs_run() {
    read("docs/jobs.md").await;
}

#[actix::test]
async fn the_blocks_of_roll_ups_run() {
    read("docs/roll-ups.md").await;
}

#[actix::test]
async fn the_blocks_of_worker_spi_run() {
    read("docs/worker_spi.md").await;
}

#[actix::test]
async fn the_blocks_of_all_other_pages_run() {
    let pages = fs::read_dir(root().join("docs")).unwrap();
    let pages = pages.map(|page| page.unwrap().file_name().into_string().unwrap());
    let apart = [
        "getting-started.md",
        "jobs.md",
        "roll-ups.md",
        "worker_spi.md",
    ];
    for page in pages.filter(|page| page.ends_with(".md") && !apart.contains(&&**page)) {
        read(&format!("docs/{page}")).await;
    }
}

#[actix::test]
async fn the_configurations_of_the_readme_are_right() {
    let mut reader = Reader::new().await;
    for block in blocks("README.md") {
        if block.language == "toml" {
            reader.toml(&block);
        }
    }
}
