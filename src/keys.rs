//! The keys of a settings struct, as serde's derive knows them, and how their values are written.
//!
//! A key is a field: its name, its default, its type and its bounds stand in its struct and nowhere else. Nothing here
//! knows which structs there are, reads a file, or keeps a value.

pub mod duration;
pub(crate) mod number;
pub(crate) mod schema;

use std::fmt;

use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize};

/// The keys of a struct, in its order. A type that is no struct, such as a map, has none, and takes any key.
pub(crate) fn of<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
    match T::deserialize(Fields) {
        Err(NoValue(fields)) => fields,
        Ok(_) => &[],
    }
}

/// The value of each key, in the order of the struct. A key without a value is left out.
pub(crate) fn values<T: Serialize>(settings: &T) -> Result<toml::Table, toml::ser::Error> {
    toml::Table::try_from(settings)
}

/// The keys whose values differ, in the order of `new`; keys that only `old` has come last.
pub(crate) fn that_differ(old: &toml::Table, new: &toml::Table) -> Vec<String> {
    let changed = new
        .iter()
        .filter(|(key, value)| old.get(*key) != Some(*value));
    let gone = old.iter().filter(|(key, _)| !new.contains_key(*key));
    changed.chain(gone).map(|(key, _)| key.clone()).collect()
}

/// A deserializer without a value: a struct that asks it for one says which fields it has.
struct Fields;

/// The fields of a struct that asked.
#[derive(Debug)]
struct NoValue(&'static [&'static str]);

impl<'de> Deserializer<'de> for Fields {
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
