//! The sections that occur once, and the structs that their keys are read into.
//!
//! A section is read into several structs if the program keeps its fields apart. Each key is a field of one of
//! them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use toml::Spanned;
use toml::de::{DeTable, Error};

use super::document::{Document, part};
use crate::database::Settings as DatabaseSettings;
use crate::keys;
use crate::spelling;
use crate::supervision::Limits;

/// The keys of `[database]` that say which server to use.
#[derive(Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct Target {
    /// The server: a URL or a `key=value` string, as libpq takes it.
    pub(super) url: Option<String>,
    /// `true` starts a private server from the PostgreSQL binaries of this machine.
    pub(super) embedded: Option<bool>,
    /// Where the private server keeps its files.
    pub(super) data_dir: Option<PathBuf>,
}

/// Where the Postmaster is served over HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[non_exhaustive]
pub struct Http {
    /// The address to listen on; nowhere unless set.
    #[serde(deserialize_with = "listen")]
    #[schemars(with = "Option<String>")]
    pub listen: Option<SocketAddr>,
    /// The names under which clients may ask, besides `localhost` and addresses.
    #[serde(deserialize_with = "hosts")]
    pub hosts: Vec<String>,
}

/// A section: its name, and what its keys are read into.
struct Section {
    name: &'static str,
    parts: &'static [Part],
}

/// The struct that some keys of a section are read into.
struct Part {
    keys: fn() -> &'static [&'static str],
    read: fn(toml::Deserializer<'_>) -> Result<(), Error>,
    schema: fn() -> serde_json::Value,
}

/// What the keys of a section are read into.
trait Keys: DeserializeOwned + JsonSchema {}
impl<T: DeserializeOwned + JsonSchema> Keys for T {}

pub(super) const DATABASE: &str = "database";
pub(super) const POSTMASTER: &str = "postmaster";
pub(super) const HTTP: &str = "http";

const SECTIONS: [Section; 3] = [
    Section {
        name: DATABASE,
        parts: &[Part::of::<Target>(), Part::of::<DatabaseSettings>()],
    },
    Section {
        name: POSTMASTER,
        parts: &[Part::of::<Limits>()],
    },
    Section {
        name: HTTP,
        parts: &[Part::of::<Http>()],
    },
];

// === impl Part ===

impl Part {
    const fn of<T: Keys>() -> Self {
        Self {
            keys: keys::of::<T>,
            read: |table| T::deserialize(table).map(drop),
            schema: keys::schema::of::<T>,
        }
    }
}

/// The schema of each section, by its name.
pub(super) fn schemas() -> serde_json::Map<String, serde_json::Value> {
    let sections = SECTIONS.iter().map(|section| {
        let parts = section.parts.iter().map(|part| (part.schema)());
        (section.name.to_owned(), keys::schema::together(parts))
    });
    sections.collect()
}

/// The names of the sections.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    SECTIONS.iter().map(|section| section.name)
}

/// The keys of the sections, as `section.key`.
pub(super) fn keys() -> impl Iterator<Item = String> {
    SECTIONS.iter().flat_map(|section| {
        let keys = section.parts.iter().flat_map(|part| (part.keys)());
        keys.map(|key| format!("{}.{key}", section.name))
    })
}

/// Takes the sections out of a document. Returns their well-formed part, which other sources are layered over.
pub(super) fn take(document: &mut Document, root: &mut DeTable<'_>) -> toml::Table {
    let mut sections = toml::Table::new();
    for Section { name, parts } in &SECTIONS {
        let mut table = document.take_table(root, name);
        let mut section = toml::Table::new();
        let mut known = Vec::new();
        for Part { keys, read, .. } in *parts {
            known.extend(keys());
            let mut part = part(&mut table, keys());
            document.read(&mut part, name, read);
            let part = toml::Deserializer::from(Spanned::new(0..0, part));
            section.extend(toml::Table::deserialize(part).unwrap_or_default());
        }
        document.refuse_unknown(&table, name, &known);
        sections.insert((*name).to_owned(), section.into());
    }
    sections
}

/// Reads an address with a port; a port alone is a port of 127.0.0.1, which other machines cannot reach.
fn listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    let listen = String::deserialize(deserializer)?;
    if let Some(port) = listen.parse().ok().filter(|port| *port > 0) {
        return Ok(Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
    }
    // A name would have to be looked up, but this one is always the same machine.
    let address = match listen.strip_prefix("localhost:") {
        Some(port) => format!("{}:{port}", Ipv4Addr::LOCALHOST),
        None => listen.clone(),
    };
    address.parse().map(Some).map_err(|_| {
        // Colons and brackets belong to addresses; anything else may be a secret.
        let shown = match spelling::quoted_word(&listen.replace([':', '[', ']'], "")) {
            word if word.is_empty() => "it".to_owned(),
            _ => format!("\"{listen}\""),
        };
        D::Error::custom(format_args!(
            "{shown} is not an address with a port (such as \"127.0.0.1:9187\" or \"[::1]:9187\"; a port alone, \
             \"9187\", is one of 127.0.0.1)"
        ))
    })
}

/// Reads names without ports.
fn hosts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let hosts = Vec::<String>::deserialize(deserializer)?;
    let is_name = |host: &String| {
        let mut parts = host.split('.');
        parts.all(|part| {
            !part.is_empty()
                && part
                    .chars()
                    .all(|c| c.is_alphanumeric() || "-_".contains(c))
        })
    };
    if hosts.iter().all(is_name) {
        return Ok(hosts);
    }
    Err(D::Error::custom(
        "a host is a name without scheme and port, such as \"bgworker.example\"",
    ))
}
