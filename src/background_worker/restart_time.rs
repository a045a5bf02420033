//! A restart time as a configuration key spells it: a duration, `"never"`, or the table of a backoff.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde::ser::{Serialize, Serializer};

use super::{Backoff, RestartTime};
use crate::keys::duration;

/// What a restart time is expected to look like.
const EXPECTED: &str = r#"a duration with its unit, such as "60s", or "never", or { initial = "1s", max = "60s", healthy_after = "60s" }"#;

/// The spelling of [`RestartTime::Never`].
const NEVER: &str = "never";

impl Serialize for RestartTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::After(interval) => duration::serialize(interval, serializer),
            Self::Backoff(backoff) => backoff.serialize(serializer),
            Self::Never => serializer.serialize_str(NEVER),
        }
    }
}

impl<'de> Deserialize<'de> for RestartTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOrTable)
    }
}

/// Visits a restart time in either form.
struct TextOrTable;

impl<'de> Visitor<'de> for TextOrTable {
    type Value = RestartTime;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<RestartTime, E> {
        if text == NEVER {
            return Ok(RestartTime::Never);
        }
        let interval = humantime::parse_duration(text);
        let interval = interval.map_err(|_| E::custom(format_args!("expected {EXPECTED}")))?;
        Ok(RestartTime::After(interval))
    }

    fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<RestartTime, A::Error> {
        Backoff::deserialize(MapAccessDeserializer::new(table)).map(RestartTime::Backoff)
    }
}

impl schemars::JsonSchema for RestartTime {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "RestartTime".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let never = schemars::json_schema!({ "const": NEVER });
        let time = generator.subschema_for::<crate::keys::schema::Time>();
        let backoff = generator.subschema_for::<Backoff>();
        schemars::json_schema!({ "anyOf": [never, time, backoff] })
    }
}
