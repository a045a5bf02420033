//! One TOML document: where each of its keys is, and every mistake of form in it.
//!
//! Deserialization stops at the first mistake. So the offending entry is cut out and the rest is read again, until what
//! is left is well-formed; each round costs microseconds. A missing required key is made up, so that reading can go on:
//! the result then has a mistake, and is never used.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue, Error};

use crate::spelling;

/// A document, read as far as possible.
#[derive(Debug)]
pub(super) struct Document {
    /// The places of the keys, as byte offsets, by dotted path.
    places: BTreeMap<String, usize>,
    /// The byte offsets at which lines start.
    lines: Vec<usize>,
    /// The first header that is no TOML.
    lost_from: Option<usize>,
    pub(super) mistakes: Vec<Misread>,
}

/// A mistake of form.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Misread {
    pub(super) offset: usize,
    pub(super) key: String,
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

/// The most rounds of reading: more than any table has mistakes worth listing.
const ROUNDS_MAX: usize = 1_000;

/// The place of a made-up value: nowhere.
const MADE_UP: Range<usize> = usize::MAX..usize::MAX;

/// Made-up values; one of them fits most required keys.
const PLACEHOLDERS: &str = "text = '1s'\nnames = 'a.b'\nnumber = 1\nis = true\nlist = []";

// === impl Document ===

impl Document {
    /// Parses a text; the table is what is left to read.
    pub(super) fn parse(text: &str) -> (Self, DeTable<'_>) {
        let (root, errors) = DeTable::parse_recoverable(text);
        let root = root.into_inner();
        let mistakes = errors.iter().map(|error| Misread {
            offset: error.span().map_or(0, |span| span.start),
            key: String::new(),
            message: format!("this is not TOML: {}", error.message()),
            hint: None,
        });
        let mut places = BTreeMap::new();
        note_places(&root, "", &mut places);
        let newlines = text.match_indices('\n').map(|(offset, _)| offset + 1);
        let mut document = Self {
            places,
            lines: std::iter::once(0).chain(newlines).collect(),
            lost_from: None,
            mistakes: mistakes.collect(),
        };
        document.lost_from = document.broken_header(text);
        (document, root)
    }

    /// The offset of the first header that is no TOML, if there is one: what follows may have been read into another table.
    fn broken_header(&self, text: &str) -> Option<usize> {
        let line_of = |offset: usize| self.lines.partition_point(|start| *start <= offset) - 1;
        let begins = self
            .mistakes
            .iter()
            .map(|one| self.lines[line_of(one.offset)]);
        begins.filter(|begin| text[*begin..].starts_with('[')).min()
    }

    /// `true` if a mistake may only follow from a header that is no TOML.
    fn is_lost(&self, mistake: &Misread) -> bool {
        !mistake.key.is_empty() && self.lost_from.is_some_and(|from| mistake.offset >= from)
    }

    /// The mistakes that do not follow from others.
    pub(super) fn told(&self) -> impl Iterator<Item = &Misread> {
        let mistakes = self.mistakes.iter();
        mistakes.filter(|mistake| !self.is_lost(mistake))
    }

    /// Takes the table of this name out of the document.
    pub(super) fn take_table<'t>(&mut self, root: &mut DeTable<'t>, name: &str) -> DeTable<'t> {
        let Some(value) = root.remove(name) else {
            return DeTable::new();
        };
        match value.into_inner() {
            DeValue::Table(table) => table,
            other => {
                self.expected(name, &format!("a table, under [{name}]"), &other);
                DeTable::new()
            }
        }
    }

    /// Takes the tables of this name out of the document.
    pub(super) fn take_tables<'t>(
        &mut self,
        root: &mut DeTable<'t>,
        name: &str,
    ) -> Vec<DeTable<'t>> {
        let expected = format!("a list of tables, each under [[{name}]]");
        let items = match root.remove(name).map(Spanned::into_inner) {
            None => return Vec::new(),
            Some(DeValue::Array(items)) => items,
            Some(other) => {
                self.expected(name, &expected, &other);
                return Vec::new();
            }
        };
        let mut tables = Vec::new();
        for item in items {
            match item.into_inner() {
                DeValue::Table(table) => tables.push(table),
                other => self.expected(name, &expected, &other),
            }
        }
        tables
    }

    fn expected(&mut self, key: &str, expected: &str, found: &DeValue<'_>) {
        let found = found.type_str();
        self.mistakes.push(Misread {
            offset: self.place(key).unwrap_or(0),
            key: key.to_owned(),
            message: format!("expected {expected}, but found a value of type {found}"),
            hint: None,
        });
    }

    /// Refuses all keys that are left in a table; `known` are the keys that it may have. A required key that is
    /// misspelt here is then not reported as missing.
    pub(super) fn refuse_unknown(&mut self, table: &DeTable<'_>, path: &str, known: &[&str]) {
        for key in table.keys() {
            self.mistakes.push(unknown(key, path, known));
        }
    }

    /// Reads a table whose keys are all meant for the type it is read into. Mistakes in it are noted, and its
    /// well-formed entries are left in it. `None` only if there is a mistake.
    pub(super) fn read<T>(
        &mut self,
        table: &mut DeTable<'_>,
        path: &str,
        read: impl Fn(toml::Deserializer<'_>) -> Result<T, Error>,
    ) -> Option<T> {
        let attempt = |table: &DeTable<'_>| {
            read(toml::Deserializer::from(Spanned::new(
                MADE_UP,
                table.clone(),
            )))
        };
        for _ in 0..ROUNDS_MAX {
            let error = match attempt(table) {
                Ok(read) => return Some(read),
                Err(error) => error,
            };
            let span = error.span().unwrap_or(MADE_UP);
            if let (MADE_UP, Some(missing)) = (span.clone(), missing(&error)) {
                let value = self.make_up(path, missing, |value| {
                    let mut with = table.clone();
                    with.insert(made_up(missing), value.clone());
                    attempt(&with).map_or_else(|error| self::missing(&error).is_some(), |_| true)
                })?;
                table.insert(made_up(missing), value);
            } else if let Some(key) = cut(table, path, &span) {
                // What the parser made up where there is no TOML has no place of its own.
                let place = self.places.get(&key).copied();
                let offset = place.filter(|_| span.is_empty()).unwrap_or(span.start);
                self.mistakes.push(misread(offset, key, error.message()));
            } else {
                let offset = self.place(path).unwrap_or(0);
                let mistake = misread(offset, path.to_owned(), error.message());
                self.mistakes.push(mistake);
                return None;
            }
        }
        None
    }

    /// Notes that a key is missing, and makes up a value that fits.
    fn make_up(
        &mut self,
        path: &str,
        missing: &str,
        fits: impl Fn(&Spanned<DeValue<'static>>) -> bool,
    ) -> Option<Spanned<DeValue<'static>>> {
        let key = joined(path, missing);
        let is_misspelt = |mistake: &Misread| {
            let parent = mistake.key.rsplit_once('.').map(|(parent, _)| parent);
            parent == Some(path) && mistake.hint == Some(spelling::did_you_mean(missing))
        };
        if !self.mistakes.iter().any(is_misspelt) {
            self.mistakes.push(Misread {
                offset: self.place(&key).unwrap_or(0),
                key,
                message: format!("the worker has no \"{missing}\""),
                hint: Some("it is required".to_owned()),
            });
        }
        let (values, _) = DeTable::parse_recoverable(PLACEHOLDERS);
        let values = values.into_inner().into_iter();
        let mut values = values.map(|(_, value)| Spanned::new(MADE_UP, value.into_inner()));
        values.find(fits)
    }

    /// The line and column, from 1, of a byte offset.
    pub(super) fn line_and_column(&self, offset: usize) -> (usize, usize) {
        let line = self.lines.partition_point(|start| *start <= offset);
        let start = line.checked_sub(1).and_then(|line| self.lines.get(line));
        (line, offset - start.copied().unwrap_or(0) + 1)
    }

    /// The place of a key, or else of the nearest table around it.
    pub(super) fn place(&self, key: &str) -> Option<usize> {
        std::iter::successors(Some(key), |key| {
            key.rfind(['.', '[']).map(|end| &key[..end])
        })
        .find_map(|key| self.places.get(key).copied())
    }

    /// `true` if the document has this key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.places.contains_key(key)
    }
}

/// Refuses a key; `known` are those that may stand in its place.
pub(super) fn unknown(key: &Spanned<Cow<'_, str>>, path: &str, known: &[&str]) -> Misread {
    let word = key.get_ref();
    Misread {
        offset: key.span().start,
        key: joined(path, word),
        message: format!("unknown key{}", spelling::quoted_word(word)),
        hint: Some(spelling::suggestion(word, "the keys here are", known)),
    }
}

/// Takes the entries with these keys out of a table.
pub(super) fn part<'t>(table: &mut DeTable<'t>, keys: &[&str]) -> DeTable<'t> {
    let (part, rest) = std::mem::take(table)
        .into_iter()
        .partition(|(key, _)| keys.contains(&key.get_ref().as_ref()));
    *table = rest;
    part
}

/// The key that an error says is missing.
fn missing(error: &Error) -> Option<&str> {
    let key = error.message().strip_prefix("missing field `")?;
    key.strip_suffix('`')
}

/// A key that is nowhere in the document.
fn made_up(key: &str) -> Spanned<Cow<'static, str>> {
    Spanned::new(MADE_UP, Cow::Owned(key.to_owned()))
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

/// Cuts the entry that holds the span out of a table, and returns the path of the innermost one that does.
fn cut(table: &mut DeTable<'_>, path: &str, span: &Range<usize>) -> Option<String> {
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

/// Turns the deserializer's message into a mistake, but never repeats a value: it may be a secret.
fn misread(offset: usize, key: String, message: &str) -> Misread {
    let quoted: Vec<_> = message.split('`').skip(1).step_by(2).collect();
    let (message, hint) = match (message.split_once(": "), quoted.split_first()) {
        (_, Some((word, known))) if message.starts_with("unknown ") => {
            let what = if message.starts_with("unknown variant") {
                "value"
            } else {
                "key"
            };
            let hint = spelling::suggestion(word, &format!("the {what}s here are"), known);
            // A value may be a secret in the wrong place, and so may a key that is no word.
            let word = if what == "key" {
                spelling::quoted_word(word)
            } else {
                String::new()
            };
            (format!("unknown {what}{word}"), Some(hint))
        }
        (Some(("invalid type" | "invalid value", rest)), _) => {
            let found = rest.split([' ', '`', '"', ',']).next().unwrap_or_default();
            let expected = match rest.rsplit_once("expected ") {
                Some((_, "usize" | "u64" | "u32" | "u16" | "u8")) => {
                    "a whole number that is not negative"
                }
                Some((_, "isize" | "i64" | "i32" | "i16" | "i8")) => "a whole number",
                Some((_, "f64" | "f32")) => "a number",
                Some((_, "a sequence")) => "a list, such as [\"a\", \"b\"]",
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
    Misread {
        offset,
        key,
        message,
        hint,
    }
}
