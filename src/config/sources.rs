//! The sources of settings, layered: file, environment, command line.

use std::path::{Path, PathBuf};

use ::config::{Config, ConfigError};
use serde::de::DeserializeOwned;

use super::document::Document;
use super::problem::{Found, Origin, Problem};
use super::sections::{self, DATABASE};
use super::worker::{self, WORKER, Worker};
use crate::functions::Functions;
use crate::spelling;

/// The texts that settings are read from.
#[derive(Clone, Default)]
pub struct Sources {
    /// The configuration file, if there is one.
    pub file: Option<ConfigFile>,
    /// The environment variables that settings may come from. Others are ignored.
    pub environment: Vec<(String, String)>,
    /// The value of the flag `--database`, if given.
    pub database: Option<String>,
}

/// A configuration file that has been read.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    /// The path of the file.
    pub path: PathBuf,
    /// Its content: TOML.
    pub text: String,
}

/// The prefix of variables that stand for keys.
const PREFIX: &str = "BGWORKER_";

/// The variables with that prefix that the program itself reads.
const PROGRAMS_OWN: [&str; 1] = ["BGWORKER_CONFIG"];

/// The flag that stands for `database.url`.
pub(super) const DATABASE_FLAG: &str = "--database";

/// The sources, layered.
pub(super) struct Layered {
    sections: Config,
    pub(super) workers: Vec<Worker>,
    file: Option<(PathBuf, Document)>,
    /// The variables that set something, each with its key.
    variables: Vec<(String, String)>,
    has_database_flag: bool,
}

// === impl Sources ===

impl Sources {
    /// The value of an environment variable.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        let variable = self
            .environment
            .iter()
            .find(|(variable, _)| variable == name);
        variable.map(|(_, value)| value.clone())
    }

    /// `true` if settings may come from a variable of this name.
    #[must_use]
    pub fn counts(variable: &str) -> bool {
        variable.starts_with(PREFIX) || variable.starts_with("PG") || variable == "DATABASE_URL"
    }

    /// Reads each source by itself, then layers them. A value with a mistake counts as not set.
    pub(super) fn layer(&self, functions: &Functions) -> (Layered, Found) {
        let mut found = Found::default();
        let mut layers = Vec::new();
        let (mut workers, mut file, mut variables) = (Vec::new(), None, Vec::new());
        if let Some(ConfigFile { path, text }) = &self.file {
            let (mut document, mut root) = Document::parse(text);
            layers.push(sections::take(&mut document, &mut root));
            workers = worker::take(&mut document, &mut root, functions);
            let known: Vec<_> = sections::names().chain([WORKER]).collect();
            document.refuse_unknown(&root, "", &known);
            found.extend(mistakes(path, &document));
            file = Some((path.clone(), document));
        }
        for (variable, value) in &self.environment {
            // As with PG* variables, an empty variable counts as not set.
            let is_set = variable.starts_with(PREFIX) && !value.is_empty();
            if !is_set || PROGRAMS_OWN.contains(&variable.as_str()) {
                continue;
            }
            match key_of(variable).and_then(|key| Ok((one_variable(variable, &key, value)?, key))) {
                Ok((layer, key)) => {
                    layers.push(layer);
                    variables.push((key, variable.clone()));
                }
                Err(problem) => found.push(problem),
            }
        }
        if let Some(url) = &self.database {
            let section = toml::Table::from_iter([("url".to_owned(), url.as_str().into())]);
            layers.push(toml::Table::from_iter([(
                DATABASE.to_owned(),
                section.into(),
            )]));
        }
        let mut builder = Config::builder();
        for layer in layers {
            match Config::try_from(&layer) {
                Ok(layer) => builder = builder.add_source(layer),
                Err(error) => found.push(unlayered(&error)),
            }
        }
        let sections = builder.build().unwrap_or_else(|error| {
            found.push(unlayered(&error));
            Config::default()
        });
        let layered = Layered {
            sections,
            workers,
            file,
            variables,
            has_database_flag: self.database.is_some(),
        };
        (layered, found)
    }
}

impl std::fmt::Debug for Sources {
    /// Names the sources that are present. Values may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources")
            .field("file", &self.file.as_ref().map(|file| &file.path))
            .field("database", &self.database.is_some())
            .finish_non_exhaustive()
    }
}

// === impl Layered ===

impl Layered {
    /// The values that are set in a section, over its defaults.
    pub(super) fn section<T: DeserializeOwned + Default>(
        &self,
        name: &str,
        found: &mut Found,
    ) -> T {
        match self.sections.get(name) {
            Ok(section) => section,
            Err(ConfigError::NotFound(_)) => T::default(),
            Err(error) => {
                found.push(unlayered(&error));
                T::default()
            }
        }
    }

    /// The source of a setting.
    pub(super) fn origin(&self, key: &str) -> Origin {
        if key == "database.url" && self.has_database_flag {
            return Origin::Flag(DATABASE_FLAG);
        }
        let variable = self.variables.iter().rev().find(|(set, _)| set == key);
        if let Some((_, variable)) = variable {
            return Origin::Environment(variable.clone());
        }
        match &self.file {
            Some((_, document)) if document.has(key) => self.place(key),
            Some(_) | None => Origin::Default,
        }
    }

    /// The directory of the file.
    pub(super) fn directory(&self) -> &Path {
        let path = self.file.as_ref().map(|(path, _)| path.as_path());
        path.and_then(Path::parent).unwrap_or_else(|| Path::new(""))
    }

    /// Where to look for what is wrong with a setting: its place, or that of the table that lacks it.
    pub(super) fn place(&self, key: &str) -> Origin {
        let offset = |document: &Document| document.place(key).unwrap_or(0);
        match &self.file {
            Some((path, document)) => file_origin(path.clone(), document, offset(document)),
            None => Origin::Default,
        }
    }
}

/// The mistakes of form in a file.
fn mistakes<'d>(path: &'d Path, document: &'d Document) -> impl Iterator<Item = Problem> + 'd {
    document.told().map(|mistake| Problem {
        origin: file_origin(path.to_owned(), document, mistake.offset),
        key: mistake.key.clone(),
        message: mistake.message.clone(),
        hint: mistake.hint.clone(),
    })
}

/// The problem of sources that are well-formed one by one but do not fit together.
fn unlayered(error: &ConfigError) -> Problem {
    Problem {
        origin: Origin::Default,
        key: String::new(),
        message: error.to_string(),
        hint: None,
    }
}

fn file_origin(path: PathBuf, document: &Document, offset: usize) -> Origin {
    let (line, column) = document.line_and_column(offset);
    Origin::File { path, line, column }
}

/// The key that a variable stands for: `BGWORKER_DATABASE__URL` for `database.url`.
fn key_of(variable: &str) -> Result<String, Problem> {
    let keys: Vec<_> = sections::keys().collect();
    let set = variable.strip_prefix(PREFIX).unwrap_or(variable);
    let set = set.replacen("__", ".", 1).to_ascii_lowercase();
    if keys.contains(&set) {
        return Ok(set);
    }
    let named = |key: &str| {
        format!(
            "{PREFIX}{}",
            key.replacen('.', "__", 1).to_ascii_uppercase()
        )
    };
    let hint = if set.starts_with("worker") {
        "workers can only be set in the file".to_owned()
    } else if is_service_link(variable) {
        "Kubernetes sets it for a service of this name: give the service another one, or the pod \
         enableServiceLinks: false"
            .to_owned()
    } else {
        match spelling::nearest(&set, keys.iter().map(String::as_str)) {
            Some(nearest) => format!("did you mean {}?", named(nearest)),
            None => {
                let variables: Vec<_> = keys.iter().map(|key| named(key)).collect();
                format!("the variables are {}", variables.join(", "))
            }
        }
    };
    Err(Problem {
        origin: Origin::Environment(variable.to_owned()),
        key: String::new(),
        message: "this variable does not correspond to any key".to_owned(),
        hint: Some(hint),
    })
}

/// `true` if Kubernetes sets this variable for a service called `bgworker`.
fn is_service_link(variable: &str) -> bool {
    ["BGWORKER_SERVICE_", "BGWORKER_PORT"]
        .iter()
        .any(|start| variable.starts_with(start))
}

/// Reads a variable as a document of its own: its value as a text first, and as TOML if that does not fit.
fn one_variable(variable: &str, key: &str, value: &str) -> Result<toml::Table, Problem> {
    let read = |text: &str| {
        let (mut document, mut root) = Document::parse(text);
        let sections = sections::take(&mut document, &mut root);
        match document.mistakes.into_iter().next() {
            None => Ok(sections),
            Some(mistake) => Err(Problem {
                origin: Origin::Environment(variable.to_owned()),
                key: mistake.key,
                message: mistake.message,
                hint: mistake.hint,
            }),
        }
    };
    read(&format!("{key} = {}", toml::Value::from(value))).or_else(|problem| {
        let is_one_line = !value.contains(['\n', '#']);
        let as_it_stands = is_one_line.then(|| read(&format!("{key} = {value}")));
        match as_it_stands {
            Some(Ok(table)) => Ok(table),
            // It is TOML, so what is wrong with it is what would be wrong in the file.
            Some(Err(same)) if !same.key.is_empty() => Err(same),
            _ => Err(problem),
        }
    })
}
