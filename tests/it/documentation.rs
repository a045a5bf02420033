//! README and `docs/` as texts: their links, their size, and the messages that they explain.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The pages, as paths from the root.
fn pages() -> Vec<PathBuf> {
    let here = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"].map(PathBuf::from);
    let docs = fs::read_dir(root().join("docs")).unwrap();
    let docs = docs.map(|file| Path::new("docs").join(file.unwrap().file_name()));
    let docs = docs.filter(|file| file.extension().is_some_and(|kind| kind == "md"));
    here.into_iter().chain(docs).collect()
}

fn text(page: &Path) -> String {
    fs::read_to_string(root().join(page)).unwrap()
}

/// A page without its fenced blocks.
fn prose(page: &Path) -> String {
    let text = text(page);
    let parts = text.split("\n```").step_by(2);
    parts.collect::<Vec<_>>().join("\n")
}

/// The anchor that forges give a heading.
fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || [' ', '-', '_'].contains(c);
    let heading = heading.to_lowercase();
    heading
        .chars()
        .filter(kept)
        .collect::<String>()
        .replace(' ', "-")
}

fn anchors(page: &Path) -> BTreeSet<String> {
    let prose = prose(page);
    let headings = prose.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| anchor(line.trim_start_matches('#').trim()))
        .collect()
}

/// What the links and pictures of a page lead to, but for other sites.
fn links(page: &Path) -> Vec<String> {
    let prose = prose(page);
    let targets = prose.split("](").skip(1);
    let targets = targets.map(|rest| rest.split(')').next().unwrap().to_owned());
    targets.filter(|target| !target.contains("://")).collect()
}

#[test]
fn each_link_leads_to_a_file_and_a_heading_that_exist() {
    for page in pages() {
        for link in links(&page) {
            let (file, heading) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() {
                page.clone()
            } else {
                page.parent().unwrap().join(file)
            };
            assert!(root().join(&target).exists(), "{}: {link}", page.display());
            let found = heading.is_empty() || anchors(&target).contains(heading);
            assert!(found, "{}: {link}", page.display());
        }
    }
}

#[test]
fn each_page_of_the_documentation_is_in_its_summary() {
    let summary = Path::new("docs/SUMMARY.md");
    let linked: BTreeSet<_> = links(summary).into_iter().collect();
    for page in pages()
        .iter()
        .filter(|page| page.starts_with("docs") && *page != summary)
    {
        let name = page.file_name().unwrap().to_str().unwrap();
        assert!(linked.contains(name), "{name}");
    }
}

#[test]
fn each_page_with_rust_in_it_is_compiled() {
    let lib = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    for page in pages() {
        if text(&page).contains("\n```rust") {
            let include = format!("include_str!(\"../{}\")", page.display());
            assert!(lib.contains(&include), "{include}");
        }
    }
}

#[test]
fn the_readme_can_be_read_in_five_minutes() {
    assert!(text(Path::new("README.md")).lines().count() <= 150);
}

/// Files whose strings are messages.
fn sources(directory: &Path, found: &mut String) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            *found += &fs::read_to_string(path).unwrap();
        }
    }
}

#[test]
fn each_message_that_is_explained_is_one_that_the_program_has() {
    let mut code = String::new();
    sources(&root().join("src"), &mut code);
    sources(&root().join("cli/src"), &mut code);
    // A string goes on in the next line after a backslash.
    let code = code.replace(['"', '\\'], "");
    let code: Vec<_> = code.split_whitespace().collect();
    let code = code.join(" ");
    let page = text(Path::new("docs/troubleshooting.md"));
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    let mut explained = 0;
    for row in rows {
        let messages = row.split('|').nth(1).unwrap();
        for message in messages.split('`').skip(1).step_by(2) {
            explained += 1;
            let message = message.replace('"', "");
            for part in message
                .split('…')
                .map(str::trim)
                .filter(|part| part.len() > 2)
            {
                assert!(code.contains(part), "no message has \"{part}\"");
            }
        }
    }
    assert!(explained > 40, "{explained}");
}
