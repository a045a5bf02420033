//! One `[[worker]]` table: the keys that every worker has, and those of its function.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;
use toml::de::DeTable;

use super::document::{Document, Misread, part, unknown};
use crate::background_worker::BackgroundWorker;
use crate::functions::{FunctionSettings, Functions};
use crate::keys;
use crate::spelling;

/// The section that may occur many times.
pub(super) const WORKER: &str = "worker";

/// A worker as a file has it. A missing part means that there is a mistake.
pub(super) struct Worker {
    /// The path of its table.
    pub(super) path: String,
    pub(super) worker: Option<BackgroundWorker>,
    pub(super) function: Option<FunctionSettings>,
}

/// The key that names a worker's function.
#[derive(Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct Which {
    /// What the worker runs (`bgw_function_name`).
    function: String,
}

impl Default for Which {
    fn default() -> Self {
        Self {
            function: Functions::DEFAULT.to_owned(),
        }
    }
}

/// Takes the workers out of a document.
pub(super) fn take(
    document: &mut Document,
    root: &mut DeTable<'_>,
    functions: &Functions,
) -> Vec<Worker> {
    let mut workers = Vec::new();
    for name in std::iter::once(WORKER.to_owned()).chain(misspelt(root)) {
        if name != WORKER {
            // Its workers are read all the same: a mistake hides no other.
            let key = root.keys().find(|key| *key.get_ref() == *name);
            let misspelt = key.map(|key| unknown(key, "", &[WORKER]));
            document.mistakes.extend(misspelt);
        }
        for (index, table) in document.take_tables(root, &name).into_iter().enumerate() {
            workers.push(read(
                document,
                &format!("{name}[{index}]"),
                table,
                functions,
            ));
        }
    }
    workers
}

/// The names of lists of tables that are likely meant to be workers.
fn misspelt(root: &DeTable<'_>) -> Vec<String> {
    let lists = root.iter().filter(|(key, value)| {
        let name = key.get_ref().as_ref();
        name != WORKER && value.get_ref().is_array() && spelling::nearest(name, [WORKER]).is_some()
    });
    lists.map(|(key, _)| key.get_ref().to_string()).collect()
}

/// Reads the keys that every worker has, then gives the rest to its function.
fn read(
    document: &mut Document,
    path: &str,
    mut table: DeTable<'_>,
    functions: &Functions,
) -> Worker {
    let common = keys::of::<BackgroundWorker>();
    let mut registration = part(&mut table, common);
    let which = keys::of::<Which>();
    let mut lookup = part(&mut table, which);
    let found = document.mistakes.len();
    let meant = if lookup.is_empty() {
        meant(&table, functions)
    } else {
        None
    };
    let name = document.read(&mut lookup, path, |table| Which::deserialize(table));
    let name = name.filter(|_| document.mistakes.len() == found);
    let entry = name.and_then(|Which { function }| {
        let entry = functions.lookup(&function);
        if entry.is_none() {
            document
                .mistakes
                .push(no_function(document, path, &function, functions));
        }
        entry
    });
    let entry = match meant {
        Some(function) => {
            // The function that is likely meant reports what else is wrong.
            document
                .mistakes
                .push(unset_function(document, path, function));
            functions.lookup(function)
        }
        None => entry,
    };
    let own = entry.as_ref().map_or(&[][..], |entry| entry.keys());
    let mut settings = part(&mut table, own);
    if own.is_empty() {
        // The function takes any key, or no function is there that could know them.
        settings.extend(std::mem::take(&mut table));
    }
    let known: Vec<_> = common.iter().chain(which).chain(own).copied().collect();
    document.refuse_unknown(&table, path, &known);
    let read = |table: toml::Deserializer<'_>| BackgroundWorker::deserialize(table);
    let mut worker = document.read(&mut registration, path, read);
    if let (Some(worker), Some(entry)) = (&mut worker, &entry) {
        worker.access = entry.access();
    }
    let function = entry.and_then(|entry| {
        document.read(&mut settings, path, |table| Arc::clone(&entry).read(table))
    });
    Worker {
        path: path.to_owned(),
        worker,
        function,
    }
}

/// The function that is likely meant by a worker that names none: the first that knows most of its keys, unless the
/// default knows as many.
fn meant(table: &DeTable<'_>, functions: &Functions) -> Option<&'static str> {
    let known = |name: &str| {
        let keys = functions.lookup(name).map_or(&[][..], |entry| entry.keys());
        let written = table.keys();
        written
            .filter(|key| keys.contains(&&**key.get_ref()))
            .count()
    };
    let most = functions.names().map(known).max()?;
    if known(Functions::DEFAULT) == most {
        return None;
    }
    functions.names().find(|name| known(name) == most)
}

fn unset_function(document: &Document, path: &str, function: &str) -> Misread {
    Misread {
        offset: document.place(path).unwrap_or(0),
        key: format!("{path}.function"),
        message: format!(
            "the worker has no \"function\", and so runs \"{}\", which does not know its keys",
            Functions::DEFAULT
        ),
        hint: Some(format!("did you mean function = \"{function}\"?")),
    }
}

fn no_function(document: &Document, path: &str, function: &str, functions: &Functions) -> Misread {
    let names: Vec<_> = functions.names().collect();
    let key = format!("{path}.function");
    Misread {
        offset: document.place(&key).unwrap_or(0),
        key,
        message: format!("there is no function{}", spelling::quoted_word(function)),
        hint: Some(spelling::suggestion(function, "the functions are", &names)),
    }
}
