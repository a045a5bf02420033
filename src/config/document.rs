//! One TOML document: every mistake of form in it, and where each of its keys stands.
//!
//! Deserialization stops at the first mistake. So the offending entry is cut out and the rest read
//! again, until what is left is well-formed; each round costs microseconds.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Deserialize as _;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::schema;
use crate::spelling;

/// A document, read as far as it can be.
#[derive(Debug)]
pub(super) struct Document {
    /// Where the keys stand, as byte offsets, by their dotted path.
    places: BTreeMap<String, usize>,
    /// The starts of the lines.
    lines: Vec<usize>,
    pub(super) mistakes: Vec<Mistake>,
}

/// A mistake of form.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mistake {
    pub(super) offset: usize,
    pub(super) key: String,
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

/// More rounds than any document has mistakes that are worth listing.
const ROUNDS_MAX: usize = 1_000;

// === impl Document ===

impl Document {
    /// Reads a document, and what is well-formed in it.
    pub(super) fn read(text: &str) -> (Self, schema::Document) {
        let (mut root, errors) = DeTable::parse_recoverable(text);
        let mut mistakes: Vec<_> = errors
            .iter()
            .map(|error| Mistake {
                offset: error.span().map_or(0, |span| span.start),
                key: String::new(),
                message: format!("this is not TOML: {}", error.message()),
                hint: None,
            })
            .collect();
        let mut places = BTreeMap::new();
        note_places(root.get_ref(), "", &mut places);
        let mut read = schema::Document::default();
        for _ in 0..ROUNDS_MAX {
            match schema::Document::deserialize(toml::Deserializer::from(root.clone())) {
                Ok(document) => {
                    read = document;
                    break;
                }
                Err(error) => {
                    let span = error.span().unwrap_or(0..0);
                    let Some(key) = cut(root.get_mut(), &span) else {
                        mistakes.push(mistake(span.start, String::new(), error.message()));
                        break;
                    };
                    // What the parser made up where there is no TOML has no place of its own.
                    let made_up = span.is_empty().then(|| places.get(&key).copied()).flatten();
                    let offset = made_up.unwrap_or(span.start);
                    mistakes.push(mistake(offset, key, error.message()));
                }
            }
        }
        let newlines = text.match_indices('\n').map(|(offset, _)| offset + 1);
        let document = Self {
            places,
            lines: std::iter::once(0).chain(newlines).collect(),
            mistakes,
        };
        (document, read)
    }

    /// Line and column, from 1, of a byte offset.
    pub(super) fn line_and_column(&self, offset: usize) -> (usize, usize) {
        let line = self.lines.partition_point(|start| *start <= offset);
        let start = line.checked_sub(1).and_then(|line| self.lines.get(line));
        (line, offset - start.copied().unwrap_or(0) + 1)
    }

    /// Where a key stands, or else the nearest table around it.
    pub(super) fn place(&self, key: &str) -> Option<usize> {
        std::iter::successors(Some(key), |key| {
            key.rfind(['.', '[']).map(|end| &key[..end])
        })
        .find_map(|key| self.places.get(key).copied())
    }

    /// Whether a key stands in it.
    pub(super) fn has(&self, key: &str) -> bool {
        self.places.contains_key(key)
    }
}

fn note_places(table: &DeTable<'_>, path: &str, places: &mut BTreeMap<String, usize>) {
    for (key, value) in table {
        let path = joined(path, key.get_ref());
        places.insert(path.clone(), key.span().start);
        match value.get_ref() {
            DeValue::Table(table) => note_places(table, &path, places),
            DeValue::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    if let DeValue::Table(table) = item.get_ref() {
                        let path = format!("{path}[{index}]");
                        places.insert(path.clone(), item.span().start);
                        note_places(table, &path, places);
                    }
                }
            }
            _ => {}
        }
    }
}

/// Cuts the setting that holds the span out of its section, or out of the document where it is in
/// none, and returns the path of the innermost entry that does.
fn cut(root: &mut DeTable<'_>, span: &Range<usize>) -> Option<String> {
    for (section, value) in root.iter_mut() {
        let path = section.get_ref().as_ref();
        let found = match value.get_mut() {
            DeValue::Table(table) => cut_entry(table, path, span),
            DeValue::Array(tables) => {
                tables
                    .iter_mut()
                    .enumerate()
                    .find_map(|(index, table)| match table.get_mut() {
                        DeValue::Table(table) => {
                            cut_entry(table, &format!("{path}[{index}]"), span)
                        }
                        _ => None,
                    })
            }
            _ => None,
        };
        if found.is_some() {
            return found;
        }
    }
    cut_entry(root, "", span)
}

fn cut_entry(table: &mut DeTable<'_>, path: &str, span: &Range<usize>) -> Option<String> {
    let holds = |(key, value): &(&Spanned<_>, &Spanned<_>)| {
        holds(&key.span(), span) || holds(&value.span(), span)
    };
    let (key, value) = table.iter().find(holds)?;
    let innermost = innermost(value, joined(path, key.get_ref()), span);
    let key = key.clone();
    table.remove(&key)?;
    Some(innermost)
}

/// The path of the innermost entry in a value that holds the span.
fn innermost(value: &Spanned<DeValue<'_>>, path: String, span: &Range<usize>) -> String {
    let inner = value.get_ref().as_table().and_then(|table| {
        table
            .iter()
            .find(|(key, value)| holds(&key.span(), span) || holds(&value.span(), span))
    });
    match inner {
        Some((key, value)) => innermost(value, joined(&path, key.get_ref()), span),
        None => path,
    }
}

fn holds(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

fn joined(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// Says what the deserializer said, but never repeats a value: it may be a secret.
fn mistake(offset: usize, key: String, message: &str) -> Mistake {
    let quoted: Vec<_> = message.split('`').skip(1).step_by(2).collect();
    let (message, hint) = match (message.split_once(' '), quoted.split_first()) {
        (Some(("unknown", rest)), Some((word, known))) => {
            let what = if rest.starts_with("variant") {
                "value"
            } else {
                "key"
            };
            let hint = match spelling::nearest(word, known.iter().copied()) {
                Some(nearest) => format!("did you mean \"{nearest}\"?"),
                None => format!("the {what}s here are {}", known.join(", ")),
            };
            // A value may be a secret in the wrong place, and so may a key that is no word.
            let word = if what == "key" {
                spelling::quoted_word(word)
            } else {
                String::new()
            };
            (format!("unknown {what}{word}"), Some(hint))
        }
        (Some(("invalid", rest)), _) => {
            let found = rest.split([' ', '`', '"', ',']).nth(1).unwrap_or_default();
            let expected = match rest.rsplit_once("expected ") {
                Some((_, "usize" | "u32")) => "a whole number that is not negative",
                Some((_, "a sequence")) => "a list of tables, each under [[worker]]",
                Some((_, "i64")) => "a whole number",
                Some((_, expected)) => expected,
                None => "something else",
            };
            (
                format!("expected {expected}, but found a value of type {found}"),
                None,
            )
        }
        _ => (message.to_owned(), None),
    };
    Mistake {
        offset,
        key,
        message,
        hint,
    }
}
