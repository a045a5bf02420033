//! Where settings come from, layered: file, environment, command line.

use std::path::PathBuf;

use ::config::{Config, File, FileFormat};

use super::document::Document;
use super::problem::{Found, Origin, Problem};
use super::schema;
use crate::spelling;

/// The texts that settings are read from.
#[derive(Clone, Default)]
pub struct Sources {
    /// The configuration file, if there is one.
    pub file: Option<ConfigFile>,
    /// The variables of the environment that may be looked at. Others are ignored.
    pub environment: Vec<(String, String)>,
    /// The value of the flag `--database`, if it is given.
    pub database: Option<String>,
}

/// A configuration file that has been read.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    /// Where it lies.
    pub path: PathBuf,
    /// What stands in it: TOML.
    pub text: String,
}

/// The variables that stand for keys begin with this.
const PREFIX: &str = "BGWORKER_";

/// The variables with that beginning that the program itself reads.
const PROGRAMS_OWN: [&str; 1] = ["BGWORKER_CONFIG"];

/// The flag that stands for `database.url`.
pub(super) const DATABASE_FLAG: &str = "--database";

/// The sources on top of each other.
#[derive(Debug, Default)]
pub(super) struct Layered {
    pub(super) document: schema::Document,
    file: Option<(PathBuf, Document)>,
    /// The variables that set something, by its key.
    variables: Vec<(String, String)>,
    has_database_flag: bool,
}

// === impl Sources ===

impl Sources {
    /// A variable of the environment.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        let variable = self
            .environment
            .iter()
            .find(|(variable, _)| variable == name);
        variable.map(|(_, value)| value.clone())
    }

    /// Whether settings may come from a variable of this name.
    #[must_use]
    pub fn counts(variable: &str) -> bool {
        variable.starts_with(PREFIX) || variable.starts_with("PG") || variable == "DATABASE_URL"
    }

    /// Reads each source by itself, then puts one on the other.
    pub(super) fn layer(&self) -> (Layered, Found) {
        let mut found = Found::default();
        let mut layered = Layered::default();
        let mut layers = Config::builder();
        if let Some(file) = &self.file {
            let (document, read) = Document::read(&file.text);
            if document.mistakes.is_empty() {
                layers = layers.add_source(File::from_str(&file.text, FileFormat::Toml));
            } else {
                // Only what is well-formed in it can be checked further.
                layered.document = read;
            }
            layered.file = Some((file.path.clone(), document));
            found.extend(layered.mistakes());
        }
        for (variable, value) in &self.environment {
            // As for PG* variables, an empty one is one that is not set.
            let is_set = variable.starts_with(PREFIX) && !value.is_empty();
            if !is_set || PROGRAMS_OWN.contains(&variable.as_str()) {
                continue;
            }
            let key = match key_of(variable) {
                Ok(key) => key,
                Err(problem) => {
                    found.push(problem);
                    continue;
                }
            };
            match one_line_document(&key, value) {
                Ok(text) => {
                    layers = layers.add_source(File::from_str(&text, FileFormat::Toml));
                    layered.variables.push((key, variable.clone()));
                }
                Err(problem) => found.push(Problem {
                    origin: Origin::Environment(variable.clone()),
                    ..problem
                }),
            }
        }
        if let Some(url) = &self.database {
            let text = format!("database.url = {}", toml::Value::from(url.as_str()));
            layers = layers.add_source(File::from_str(&text, FileFormat::Toml));
            layered.has_database_flag = true;
        }
        match layers.build().and_then(Config::try_deserialize) {
            Ok(document) => {
                let document: schema::Document = document;
                layered.document = document.over(std::mem::take(&mut layered.document));
            }
            Err(error) => found.push(Problem {
                origin: Origin::Default,
                key: String::new(),
                message: error.to_string(),
                hint: None,
            }),
        }
        (layered, found)
    }
}

impl std::fmt::Debug for Sources {
    /// Names what there is. Values may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources")
            .field("file", &self.file.as_ref().map(|file| &file.path))
            .field("database", &self.database.is_some())
            .finish_non_exhaustive()
    }
}

// === impl Layered ===

impl Layered {
    /// Where a setting comes from.
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

    /// Where to look for what is wrong with a setting: its place, or the table that lacks it.
    pub(super) fn place(&self, key: &str) -> Origin {
        let offset = |document: &Document| document.place(key).unwrap_or(0);
        match &self.file {
            Some((path, document)) => file_origin(path.clone(), document, offset(document)),
            None => Origin::Default,
        }
    }

    fn mistakes(&self) -> Vec<Problem> {
        let Some((path, document)) = &self.file else {
            return Vec::new();
        };
        let problems = document.mistakes.iter().map(|mistake| Problem {
            origin: file_origin(path.clone(), document, mistake.offset),
            key: mistake.key.clone(),
            message: mistake.message.clone(),
            hint: mistake.hint.clone(),
        });
        problems.collect()
    }
}

fn file_origin(path: PathBuf, document: &Document, offset: usize) -> Origin {
    let (line, column) = document.line_and_column(offset);
    Origin::File { path, line, column }
}

/// The key that a variable stands for: `BGWORKER_DATABASE__URL` for `database.url`.
fn key_of(variable: &str) -> Result<String, Problem> {
    let keys: Vec<_> = schema::keys().collect();
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
        "workers are set in the file alone".to_owned()
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
        message: "this variable stands for no key".to_owned(),
        hint: Some(hint),
    })
}

/// Whether a variable is one of those that Kubernetes sets for a service called `bgworker`.
fn is_service_link(variable: &str) -> bool {
    ["BGWORKER_SERVICE_", "BGWORKER_PORT"]
        .iter()
        .any(|start| variable.starts_with(start))
}

/// The variable as a document of its own: its value taken as a text, or else as it stands.
fn one_line_document(key: &str, value: &str) -> Result<String, Problem> {
    let as_text = format!("{key} = {}", toml::Value::from(value));
    let (document, _) = Document::read(&as_text);
    let Some(mistake) = document.mistakes.into_iter().next() else {
        return Ok(as_text);
    };
    let as_it_stands = format!("{key} = {value}");
    if !value.contains(['\n', '#']) && Document::read(&as_it_stands).0.mistakes.is_empty() {
        return Ok(as_it_stands);
    }
    Err(Problem {
        origin: Origin::Default,
        key: mistake.key,
        message: mistake.message,
        hint: mistake.hint,
    })
}
