//! The JSON Schema of a configuration file, put together from the structs that its keys are read into.

use serde_json::{Value, json};

use super::sections;
use super::worker::{WORKER, Which};
use crate::background_worker::BackgroundWorker;
use crate::functions::Functions;
use crate::keys::schema::{of, together};

/// The JSON Schema (draft 7) of a configuration file whose workers run these functions, for editors that complete and check
/// it. What holds only between several keys is left to [`read`](super::read).
#[must_use]
pub fn schema(functions: &Functions) -> Value {
    let mut properties = sections::schemas();
    let workers = json!({
        "type": "array",
        "description": "The workers, in the order in which they start.",
        "items": worker(functions),
    });
    properties.insert(WORKER.to_owned(), workers);
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "The configuration of bgworker",
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    })
}

/// A `[[worker]]`: which keys it has depends on its function.
fn worker(functions: &Functions) -> Value {
    let names: Vec<_> = functions.names().collect();
    let of_function = |name: &str| {
        let own = functions.lookup(name).map(|function| function.schema());
        let parts = [of::<BackgroundWorker>(), of::<Which>()];
        let mut object = together(parts.into_iter().chain(own));
        object["properties"]["function"]["enum"] = json!(names);
        object
    };
    // Without the key it is the default, which comes last.
    let others = names.iter().filter(|name| **name != Functions::DEFAULT);
    others.fold(of_function(Functions::DEFAULT), |rest, name| {
        json!({
            "if": { "properties": { "function": { "const": name } }, "required": ["function"] },
            "then": of_function(name),
            "else": rest,
        })
    })
}
