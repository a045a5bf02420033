//! One `[[worker]]` table: the keys that every worker has, and those of its function.

use std::sync::Arc;

use serde::Deserialize;
use toml::de::DeTable;

use super::document::{Document, Misread, part};
use crate::background_worker::BackgroundWorker;
use crate::functions::{FunctionSettings, Functions};
use crate::keys;
use crate::spelling;

/// The section that may occur many times.
pub(super) const WORKER: &str = "worker";

/// A worker as a file has it. A missing part means that there is a mistake.
pub(super) struct Worker {
    pub(super) worker: Option<BackgroundWorker>,
    pub(super) function: Option<FunctionSettings>,
}

/// The key that names a worker's function.
#[derive(Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
    let tables = document.take_tables(root, WORKER).into_iter().enumerate();
    let worker = |(index, table)| read(document, &format!("{WORKER}[{index}]"), table, functions);
    tables.map(worker).collect()
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
    Worker { worker, function }
}

/// The function that is likely meant by a worker that names none: the first that knows all of its keys, unless the
/// default does.
fn meant(table: &DeTable<'_>, functions: &Functions) -> Option<&'static str> {
    let knows_all = |name: &str| {
        let keys = functions.lookup(name).map_or(&[][..], |entry| entry.keys());
        let mut written = table.keys();
        written.all(|key| keys.contains(&&**key.get_ref()))
    };
    if knows_all(Functions::DEFAULT) {
        return None;
    }
    functions.names().find(|name| knows_all(name))
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
