//! The JSON Schema of values that a configuration key spells in its own way.

use std::borrow::Cow;

use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

/// The schema of a settings struct, with everything in place.
pub(crate) fn of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft07().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let settings = settings.with_transform(RecursiveTransform(for_toml));
    settings.into_generator().into_root_schema_for::<T>().into()
}

/// An object that has the keys of all of these and no other.
pub(crate) fn together(parts: impl IntoIterator<Item = Value>) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    let mut takes_any = false;
    for part in parts {
        match part {
            Value::Object(mut part) => {
                if let Some(Value::Object(keys)) = part.remove("properties") {
                    properties.extend(keys);
                }
                if let Some(Value::Array(keys)) = part.remove("required") {
                    required.extend(keys);
                }
            }
            _ => takes_any = true,
        }
    }
    json!({
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": takes_any,
    })
}

/// Takes out what only Rust knows: TOML has no null, and editors follow no links of rustdoc.
fn for_toml(schema: &mut Schema) {
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|one| one != "null");
        if let [one] = &mut types[..] {
            let one = one.take();
            schema.insert("type".to_owned(), one);
        }
    }
    if schema.get("default").is_some_and(Value::is_null) {
        schema.remove("default");
    }
    if let Some(Value::String(text)) = schema.get_mut("description") {
        *text = without_links(text).replace('\n', " ");
    }
}

/// A text of rustdoc with the names of its links alone.
fn without_links(text: &str) -> String {
    let mut parts = text.split("[`");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once("`]").unwrap_or((part, ""));
        let target = rest.strip_prefix('(').and_then(|rest| rest.split_once(')'));
        plain.extend(["`", name, "`", target.map_or(rest, |(_, rest)| rest)]);
    }
    plain
}

/// A length of time, as [`duration`](super::duration) reads it.
pub(crate) struct Time;

impl JsonSchema for Time {
    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": r"^\s*(\d+(\.\d+)?\s*[A-Za-zµ]+\s*)+$",
            "examples": ["1s", "250ms", "2m"],
        })
    }
}
