//! The configuration keys of a roll-up.

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::background_worker::{BackgroundWorker, StartTime};
use crate::functions::folding::keys;
use crate::functions::function::Mistake;
use crate::functions::relation::{NAME_MAX, Relation, check_name};
use crate::functions::session::{ConnectionKind, Place};

/// Suffix that turns the queue's name into the name of the table that poison is moved to.
const REJECTED: &str = "_rejected";

/// The largest number of columns in a key, which is PostgreSQL's limit for an index.
const KEYS_MAX: usize = 32;

/// What a roll-up adds up, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Settings {
    /// The table whose rows are consumed.
    #[schemars(with = "String")]
    pub(super) queue: Relation,
    /// The table that holds the totals of each key.
    #[schemars(with = "String")]
    pub(super) totals: Relation,
    /// The columns of both tables that make the key.
    #[serde(deserialize_with = "names")]
    #[schemars(length(min = 1, max = KEYS_MAX))]
    pub(super) keys: Vec<String>,
    /// What is added up.
    #[serde(default)]
    #[schemars(with = "SumSchema")]
    pub(super) sum: Columns,
    /// The column of the totals that counts.
    #[serde(deserialize_with = "name", default)]
    pub(super) count: Option<String>,
    /// The view of totals and queue together.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub(super) view: Option<Relation>,
    /// What becomes of deltas that cannot be added.
    #[serde(default)]
    pub on_poison: OnPoison,
    /// How long it naps between the end of one cycle and the next.
    #[serde(with = "crate::keys::duration", default = "keys::naptime")]
    #[schemars(with = "crate::keys::schema::Time")]
    pub naptime: Duration,
    /// The approximate largest number of deltas that it folds in one transaction.
    #[serde(
        deserialize_with = "crate::keys::number::positive",
        default = "keys::batch"
    )]
    #[schemars(range(min = 1))]
    pub batch: usize,
    /// How long one transaction of a backlog should take on the server: pieces grow and shrink towards it, up to `batch`.
    #[serde(with = "crate::keys::duration", default = "keys::fold_time")]
    #[schemars(with = "crate::keys::schema::Time")]
    pub fold_time: Duration,
    /// After folding this many deltas it has its queue vacuumed; `None` is never.
    #[serde(
        with = "crate::keys::number::zero_is_never",
        default = "keys::vacuum_after"
    )]
    #[schemars(with = "u64")]
    pub vacuum_after: Option<u64>,
    /// The database it connects to, if not the one of the connection settings.
    #[serde(deserialize_with = "crate::database::dbname::deserialize", default)]
    pub database: Option<String>,
    /// Where its statements run.
    #[serde(default)]
    pub connection: ConnectionKind,
}

/// What becomes of deltas that cannot be added: a sum that is out of range, a constraint, a trigger that raises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnPoison {
    /// The deltas of their key wait, and are tried again; all others are folded.
    #[default]
    Stop,
    /// They are moved to a table named like the queue with `_rejected` appended, and the rest of their key is folded.
    SetAside,
}

/// The spellings of the columns that are added up.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum SumSchema {
    /// Columns of both tables.
    Same(Vec<String>),
    /// Columns of the totals, each with its column of the queue.
    Apart(std::collections::BTreeMap<String, String>),
}

/// Columns that are added up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Columns(pub(super) Vec<Column>);

/// A column that is added up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Column {
    /// Its name in the totals.
    pub(super) total: String,
    /// Its name in the queue.
    pub(super) delta: String,
}

// === impl Settings ===

impl Settings {
    pub(super) fn place(&self) -> Place<'_> {
        Place {
            dbname: self.database.as_deref(),
            connection: self.connection,
            in_order: true,
        }
    }

    /// The table that poison is moved to, if it is to be set aside.
    pub(super) fn rejected(&self) -> Option<Relation> {
        let Relation { schema, name } = &self.queue;
        (self.on_poison == OnPoison::SetAside).then(|| Relation {
            schema: schema.clone(),
            name: format!("{name}{REJECTED}"),
        })
    }

    /// `true` if these columns are exactly those of the key, in any order.
    pub(super) fn is_key(&self, columns: &[String]) -> bool {
        columns.len() == self.keys.len() && self.keys.iter().all(|key| columns.contains(key))
    }

    /// `true` if a column of the totals is one of those that these settings name.
    pub(super) fn is_of_totals(&self, column: &str) -> bool {
        self.keys.iter().any(|key| key == column) || self.total_columns().any(|one| one == column)
    }

    /// `true` if these settings name a column, of either table.
    pub(super) fn names(&self, column: &str) -> bool {
        self.is_of_totals(column) || self.sum.0.iter().any(|sum| sum.delta == column)
    }

    /// The columns of the totals that are added to.
    pub(super) fn total_columns(&self) -> impl Iterator<Item = &str> {
        let sums = self.sum.0.iter().map(|column| &*column.total);
        sums.chain(self.count.as_deref())
    }

    /// Finds the mistakes in these settings.
    pub(super) fn check(&self, worker: &BackgroundWorker) -> Vec<Mistake> {
        let mut mistakes = Vec::new();
        if worker.start_time == StartTime::ConsistentState {
            let message = "a roll-up writes: it can only start at \"recovery_finished\"";
            mistakes.push(Mistake::new("start_time", message));
        }
        mistakes.extend(keys::check_fold_time(self.fold_time));
        if self.totals == self.queue {
            let message = "it is the queue: totals need a table of their own";
            mistakes.push(Mistake::new("totals", message));
        }
        if let Some(view) = &self.view
            && (*view == self.queue || *view == self.totals)
        {
            let message = "it is a table of this worker: a view needs a name of its own";
            mistakes.push(Mistake::new("view", message));
        }
        if self.keys.is_empty() || self.keys.len() > KEYS_MAX {
            let message = format!("there must be 1 to {KEYS_MAX} columns");
            let hint = "for one total without a key, set function = \"worker_spi\"";
            let mistake = Mistake::new("keys", message);
            mistakes.push(if self.keys.is_empty() {
                mistake.hint(hint)
            } else {
                mistake
            });
        }
        if self.total_columns().next().is_none() {
            let mistake = Mistake::new("sum", "there is nothing to add up");
            mistakes.push(mistake.hint("name columns of numbers here, or set \"count\""));
        }
        mistakes.extend(self.check_twice());
        if let Some(rejected) = self.rejected()
            && rejected.name.len() > NAME_MAX
        {
            let message = format!(
                "the name of the table for poison, {rejected}, is longer than {NAME_MAX} bytes"
            );
            mistakes.push(Mistake::new("on_poison", message));
        }
        mistakes
    }

    /// Finds a column of the totals that is named twice.
    fn check_twice(&self) -> Option<Mistake> {
        let keys = self.keys.iter().map(|name| ("keys", &**name));
        let sums = self.sum.0.iter().map(|column| ("sum", &*column.total));
        let count = self.count.iter().map(|name| ("count", &**name));
        let mut seen = HashSet::new();
        let mut all = keys.chain(sums).chain(count);
        let (key, name) = all.find(|(_, name)| !seen.insert(*name))?;
        let message = format!("column \"{name}\" of the totals is named twice");
        Some(Mistake::new(key, message))
    }
}

// === impl Columns ===

impl Serialize for Columns {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.iter().all(|column| column.total == column.delta) {
            return serializer.collect_seq(self.0.iter().map(|column| &column.total));
        }
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for Column { total, delta } in &self.0 {
            map.serialize_entry(total, delta)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Columns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ColumnsVisitor)
    }
}

/// Accepts a list of names, or a table from names in the totals to names in the queue.
struct ColumnsVisitor;

impl<'de> Visitor<'de> for ColumnsVisitor {
    type Value = Columns;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("names of columns, or a table of total_column = \"delta_column\"")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Columns, A::Error> {
        let mut columns = Vec::new();
        while let Some(name) = seq.next_element::<String>()? {
            check_name(&name).map_err(serde::de::Error::custom)?;
            columns.push(Column {
                total: name.clone(),
                delta: name,
            });
        }
        Ok(Columns(columns))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Columns, A::Error> {
        let mut columns = Vec::new();
        while let Some((total, delta)) = map.next_entry::<String, String>()? {
            for name in [&total, &delta] {
                check_name(name).map_err(serde::de::Error::custom)?;
            }
            columns.push(Column { total, delta });
        }
        Ok(Columns(columns))
    }
}

fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    for name in &names {
        check_name(name).map_err(serde::de::Error::custom)?;
    }
    Ok(names)
}

fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let name = String::deserialize(deserializer)?;
    check_name(&name).map_err(serde::de::Error::custom)?;
    Ok(Some(name))
}
