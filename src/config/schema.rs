//! The shape of a configuration document: its sections, its keys, the types of their values.
//!
//! Everything is optional here, and nothing has a default: documents are layered first and
//! completed afterwards.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Document {
    pub(super) database: Database,
    pub(super) postmaster: Postmaster,
    pub(super) http: Http,
    pub(super) worker: Vec<Worker>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Database {
    pub(super) url: Option<String>,
    pub(super) password_file: Option<PathBuf>,
    pub(super) embedded: Option<bool>,
    pub(super) data_dir: Option<PathBuf>,
    pub(super) connect_timeout: Option<Span>,
    pub(super) statement_timeout: Option<Span>,
    pub(super) connections: Option<usize>,
    pub(super) prepare: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Postmaster {
    pub(super) max_workers: Option<usize>,
    pub(super) starts_per_tick: Option<usize>,
    pub(super) shutdown_timeout: Option<Span>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Http {
    pub(super) listen: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Worker {
    pub(super) name: Option<String>,
    pub(super) function: Option<String>,
    pub(super) schema: Option<String>,
    pub(super) table: Option<String>,
    pub(super) naptime: Option<Span>,
    pub(super) batch: Option<usize>,
    pub(super) fold: Option<Fold>,
    pub(super) vacuum_after: Option<u64>,
    pub(super) start_time: Option<StartTime>,
    pub(super) restart_time: Option<RestartTime>,
    pub(super) max_restarts: Option<MaxRestarts>,
    pub(super) database: Option<String>,
    pub(super) connection: Option<ConnectionKind>,
    pub(super) initial_total: Option<i64>,
}

/// The keys of the sections of which there is one, as `section.key`.
pub(super) fn keys() -> impl Iterator<Item = String> {
    let sections = [
        ("database", Database::deserialize(Keys).err()),
        ("postmaster", Postmaster::deserialize(Keys).err()),
        ("http", Http::deserialize(Keys).err()),
    ];
    sections.into_iter().flat_map(|(section, fields)| {
        let NoValue(keys) = fields.unwrap_or(NoValue(&[]));
        keys.iter().map(move |key| format!("{section}.{key}"))
    })
}

/// Has no value to deserialize: a struct that asks for one says which fields it has.
struct Keys;

/// The fields of a struct that asked.
#[derive(Debug)]
struct NoValue(&'static [&'static str]);

impl<'de> Deserializer<'de> for Keys {
    type Error = NoValue;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, NoValue> {
        Err(NoValue(&[]))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, NoValue> {
        Err(NoValue(fields))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

impl Error for NoValue {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self(&[])
    }
}

impl fmt::Display for NoValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("there is no value")
    }
}

impl std::error::Error for NoValue {}

impl Document {
    /// What is set here, and elsewhere what is set below. Workers are those below, unless there are
    /// any here.
    pub(super) fn over(self, below: Self) -> Self {
        let worker = if self.worker.is_empty() {
            below.worker
        } else {
            self.worker
        };
        Self {
            database: Database {
                url: self.database.url.or(below.database.url),
                password_file: self.database.password_file.or(below.database.password_file),
                embedded: self.database.embedded.or(below.database.embedded),
                data_dir: self.database.data_dir.or(below.database.data_dir),
                connect_timeout: (self.database.connect_timeout).or(below.database.connect_timeout),
                statement_timeout: (self.database.statement_timeout)
                    .or(below.database.statement_timeout),
                connections: self.database.connections.or(below.database.connections),
                prepare: self.database.prepare.or(below.database.prepare),
            },
            postmaster: Postmaster {
                max_workers: self.postmaster.max_workers.or(below.postmaster.max_workers),
                starts_per_tick: (self.postmaster.starts_per_tick)
                    .or(below.postmaster.starts_per_tick),
                shutdown_timeout: (self.postmaster.shutdown_timeout)
                    .or(below.postmaster.shutdown_timeout),
            },
            http: Http {
                listen: self.http.listen.or(below.http.listen),
            },
            worker,
        }
    }
}

/// A length of time with its unit: "1s", "250ms", "2m". Never a bare number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span(pub(super) Duration);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum StartTime {
    PostmasterStart,
    ConsistentState,
    RecoveryFinished,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ConnectionKind {
    Home,
    Own,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Fold {
    Delete,
    Truncate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RestartTime {
    After(Duration),
    Backoff(Backoff),
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Backoff {
    pub(super) initial: Span,
    pub(super) max: Span,
    pub(super) healthy_after: Span,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MaxRestarts {
    pub(super) restarts: u32,
    pub(super) within: Span,
}

/// What a [`Span`] expects.
const SPAN: &str = r#"a duration with its unit, such as "1s", "250ms" or "2m""#;

/// What a [`RestartTime`] expects.
const RESTART_TIME: &str = r#"a duration with its unit, such as "60s", or "never", or { initial = "1s", max = "60s", healthy_after = "60s" }"#;

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text(SPAN, |text| {
            humantime::parse_duration(text).ok().map(Self)
        }))
    }
}

impl<'de> Deserialize<'de> for RestartTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOrTable)
    }
}

/// Visits a [`RestartTime`]: a text, or the table of a backoff.
struct TextOrTable;

impl<'de> Visitor<'de> for TextOrTable {
    type Value = RestartTime;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(RESTART_TIME)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<RestartTime, E> {
        if text == "never" {
            return Ok(RestartTime::Never);
        }
        let interval = humantime::parse_duration(text);
        let interval = interval.map_err(|_| E::custom(format_args!("expected {RESTART_TIME}")))?;
        Ok(RestartTime::After(interval))
    }

    fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<RestartTime, A::Error> {
        Backoff::deserialize(MapAccessDeserializer::new(table)).map(RestartTime::Backoff)
    }
}

/// Visits a text, and nothing that could be taken for one.
struct Text<T>(&'static str, fn(&str) -> Option<T>);

impl<T> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.1)(text).ok_or_else(|| E::custom(format_args!("expected {}", self.0)))
    }
}
