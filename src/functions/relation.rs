//! A table or a view, by its schema and its name: as it stands in a statement, and as people write it.
//!
//! Pure text. Names are stored unquoted, and quoted on output.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::quote::{identifier, literal};

/// Longest name that PostgreSQL does not truncate, in bytes (`NAMEDATALEN - 1`).
pub(super) const NAME_MAX: usize = 63;

/// Why a text does not name a relation.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum InvalidRelation {
    #[error("it must be a schema and a name, such as public.{0}")]
    NoSchema(String),
    #[error("it must be a schema and a name with a dot between them, and double quotes are closed")]
    Malformed,
    #[error("PostgreSQL would take {0} for another name: put it in double quotes, \"{0}\"")]
    NeedsQuotes(String),
    #[error(transparent)]
    Name(#[from] InvalidName),
}

/// Why a text is not a name in PostgreSQL.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum InvalidName {
    #[error("a name is empty")]
    Empty,
    #[error("a name must not contain NUL")]
    Nul,
    #[error("the name \"{name}\" is {} bytes long: {NAME_MAX} bytes is the limit", name.len())]
    TooLong { name: String },
}

/// The names of a table or a view.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Relation {
    pub(super) schema: String,
    pub(super) name: String,
}

// === impl Relation ===

impl Relation {
    /// `schema.name`, quoted for a statement.
    pub(super) fn sql(&self) -> String {
        format!("{}.{}", identifier(&self.schema), identifier(&self.name))
    }

    /// The relation as an expression of type `regclass`.
    pub(super) fn regclass(&self) -> String {
        format!("{}::pg_catalog.regclass", literal(&self.sql()))
    }

    /// An expression for the number of blocks of the table.
    pub(super) fn blocks(&self) -> String {
        format!(
            "(pg_catalog.pg_relation_size({}) OPERATOR(pg_catalog./) \
             pg_catalog.current_setting('block_size')::pg_catalog.int8)",
            self.regclass()
        )
    }
}

impl fmt::Display for Relation {
    /// `schema.name`, each in quotes unless it is [plain](is_plain).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", shown(&self.schema), shown(&self.name))
    }
}

/// A name as people write it: in quotes unless it is plain.
pub(super) fn shown(name: &str) -> String {
    if is_plain(name) {
        name.to_owned()
    } else {
        identifier(name)
    }
}

/// The name of a role in a statement for people: in quotes only if it must be.
pub(super) fn role(name: &str) -> String {
    let is_word = SPECIAL.split(' ').any(|word| word == name);
    if is_plain(name) && !name.is_empty() && !is_word {
        name.to_owned()
    } else {
        identifier(name)
    }
}

/// Words that SQL reserves, and those that mean other roles.
const SPECIAL: &str = "all analyse analyze and any array as asc asymmetric authorization binary both case cast check collate \
    collation column concurrently constraint create cross current_catalog current_date current_role current_schema \
    current_time current_timestamp current_user default deferrable desc distinct do else end except false fetch for \
    foreign freeze from full grant group having ilike in initially inner intersect into is isnull join lateral leading \
    left like limit localtime localtimestamp natural none not notnull null offset on only or order outer overlaps placing \
    primary public references returning right select session_user similar some symmetric system_user table tablesample \
    then to trailing true union unique user using variadic verbose when where window with";

/// `true` if a name is written without quotes: lower-case letters, digits and underscores, and no digit first.
pub(super) fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    name.chars().all(plain) && !name.starts_with(|c: char| c.is_ascii_digit())
}

/// Refuses a name that PostgreSQL would refuse or truncate.
pub(super) fn check_name(name: &str) -> Result<(), InvalidName> {
    if name.is_empty() {
        Err(InvalidName::Empty)
    } else if name.contains('\0') {
        Err(InvalidName::Nul)
    } else if name.len() > NAME_MAX {
        let name = name.to_owned();
        Err(InvalidName::TooLong { name })
    } else {
        Ok(())
    }
}

/// Splits a name, plain or in double quotes, off the front of a text.
fn take_name(text: &str) -> Result<(String, &str), InvalidRelation> {
    let Some(mut rest) = text.strip_prefix('"') else {
        let end = text.find('.').unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        if name.contains('"') {
            return Err(InvalidRelation::Malformed);
        }
        if !is_plain(name) {
            return Err(InvalidRelation::NeedsQuotes(name.to_owned()));
        }
        return Ok((name.to_owned(), rest));
    };
    let mut name = String::new();
    loop {
        let end = rest.find('"').ok_or(InvalidRelation::Malformed)?;
        name += &rest[..end];
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(more) => {
                name.push('"');
                rest = more;
            }
            None => return Ok((name, rest)),
        }
    }
}

impl FromStr for Relation {
    type Err = InvalidRelation;

    /// Reads what [`Display`](fmt::Display) writes.
    fn from_str(text: &str) -> Result<Self, InvalidRelation> {
        let (schema, rest) = take_name(text)?;
        if rest.is_empty() {
            return Err(InvalidRelation::NoSchema(shown(&schema)));
        }
        let rest = rest.strip_prefix('.').ok_or(InvalidRelation::Malformed)?;
        let (name, rest) = take_name(rest)?;
        if !rest.is_empty() {
            return Err(InvalidRelation::Malformed);
        }
        check_name(&schema)?;
        check_name(&name)?;
        Ok(Self { schema, name })
    }
}

impl serde::Serialize for Relation {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Relation {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_quoted_only_if_it_must_be() {
        for (name, expected) in [
            ("periodic", "periodic"),
            ("user", "\"user\""),
            ("public", "\"public\""),
            ("App", "\"App\""),
            ("a-b", "\"a-b\""),
        ] {
            assert_eq!(role(name), expected);
        }
    }

    #[test]
    fn what_is_shown_is_read_again() {
        for (schema, name) in [
            ("shop", "sale_delta"),
            ("our.schema", "a \"b\""),
            ("S", "Ü.x"),
            ("1", "\""),
        ] {
            let relation = Relation {
                schema: schema.to_owned(),
                name: name.to_owned(),
            };
            assert_eq!(relation.to_string().parse(), Ok(relation));
        }
    }

    #[test]
    fn what_postgresql_would_take_for_another_name_is_refused() {
        for (text, expected) in [
            (
                "sale",
                "it must be a schema and a name, such as public.sale",
            ),
            (
                "Shop.sale",
                "PostgreSQL would take Shop for another name: put it in double quotes, \"Shop\"",
            ),
            ("shop.", "a name is empty"),
            (
                "a.b.c",
                "it must be a schema and a name with a dot between them, and double quotes are closed",
            ),
            (
                "\"a.b",
                "it must be a schema and a name with a dot between them, and double quotes are closed",
            ),
        ] {
            let error = text.parse::<Relation>().unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
    }
}
