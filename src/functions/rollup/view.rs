//! The view of totals and queue together: the statements that make it, and what is wrong with one that exists. Pure.

use sha2::{Digest as _, Sha256};

use super::objects::key_list;
use super::settings::Settings;
use super::shape::Number;
use super::tables::{TableColumn, Tables};
use crate::functions::quote::{identifier, literal};
use crate::functions::relation::Relation;

/// The name of the view's subquery. A digest of the query follows, by which a worker knows its own views: the server keeps
/// a query in a form of its own, but with such names. Earlier versions had no digest.
const ROWS: &str = "rows";

/// What is wrong with a view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flaw {
    /// What is wrong, as the sentence about the view goes on.
    pub(super) why: String,
    /// The view shows wrong values, and was not only made by another version.
    pub(super) is_wrong: bool,
    /// A worker made it.
    pub(super) is_ours: bool,
    /// It can be replaced as it is, so that its grants and what depends on it stay.
    pub(super) is_replaceable: bool,
}

/// Creates the view of totals and queue together, or replaces it: exact at every moment, since a fold is one transaction.
/// It reads the whole queue, and shows each key of which the count or a sum is not 0; without a count, every key.
///
/// From PostgreSQL 15 on, readers need SELECT on both tables: the view does not lend them its owner's rights. The
/// server finds out whether the queue has a column that counts: if it has none, the name resolves to the 1 beside it.
/// A count is numeric, or else bigint.
pub(super) fn create(settings: &Settings, view: &Relation, count: Number) -> Vec<String> {
    let query = query(settings, count, &rows(settings, count));
    let view = view.sql();
    vec![
        format!("CREATE OR REPLACE VIEW {view} AS {query}"),
        // Older servers do not know `security_invoker`.
        format!(
            "DO {}",
            literal(&format!(
                "BEGIN IF pg_catalog.current_setting('server_version_num')::pg_catalog.int4 \
                 OPERATOR(pg_catalog.>=) 150000 THEN EXECUTE {}; END IF; END",
                literal(&format!("ALTER VIEW {view} SET (security_invoker = true)"))
            ))
        ),
    ]
}

/// The query of the view, whose subquery has this name.
fn query(settings: &Settings, count: Number, rows: &str) -> String {
    let keys = key_list(&settings.keys);
    let (mut shown, mut of_totals, mut of_queue) = (vec![keys.clone()], vec![], vec![]);
    let mut having = Vec::new();
    let mut add = |name: &str, cast: &str| {
        let sum = format!("coalesce(pg_catalog.sum({name}), 0)");
        shown.push(format!("{sum}{cast} AS {name}"));
        having.push(format!("{sum} OPERATOR(pg_catalog.<>) 0"));
        of_totals.push(name.to_owned());
    };
    for column in &settings.sum.0 {
        let (total, delta) = (identifier(&column.total), identifier(&column.delta));
        add(&total, "");
        of_queue.push(format!("q.{delta} AS {total}"));
    }
    let one = settings.count.as_ref().map_or_else(String::new, |name| {
        let name = identifier(name);
        let is_numeric = count == Number::Numeric;
        add(&name, if is_numeric { "" } else { "::pg_catalog.int8" });
        of_queue.push(name.clone());
        format!("(SELECT 1 AS {name}) AS one CROSS JOIN LATERAL ")
    });
    let having = match &settings.count {
        Some(_) => format!(" HAVING {}", having.join(" OR ")),
        None => String::new(),
    };
    let of_queue_keys = settings
        .keys
        .iter()
        .map(|key| format!("q.{}", identifier(key)));
    format!(
        "SELECT {} FROM (SELECT {keys}, {} FROM {} UNION ALL SELECT d.* FROM {one}(SELECT {}, {} FROM {} AS q) AS d) \
         AS {rows} GROUP BY {keys}{having}",
        shown.join(", "),
        of_totals.join(", "),
        settings.totals.sql(),
        of_queue_keys.collect::<Vec<_>>().join(", "),
        of_queue.join(", "),
        settings.queue.sql(),
    )
}

/// The name of the subquery, which tells one query from another.
fn rows(settings: &Settings, count: Number) -> String {
    let digest = Sha256::digest(query(settings, count, ROWS).as_bytes());
    let digits = digest.iter().take(4).map(|byte| format!("{byte:02x}"));
    format!("{ROWS}_{}", digits.collect::<String>())
}

/// The type of the view's count: numeric, or bigint.
pub(super) fn count(settings: &Settings, tables: &Tables) -> Number {
    let count = settings.count.as_ref();
    let count = count.and_then(|count| tables.totals.columns.get(count));
    match count.and_then(TableColumn::number) {
        Some(Number::Numeric) => Number::Numeric,
        _ => Number::BigInt,
    }
}

/// Finds what is wrong with a view.
pub(super) fn flaw(settings: &Settings, tables: &Tables) -> Option<Flaw> {
    let count = count(settings, tables);
    let made = tables.view.rows.as_deref();
    let wrong = wrong(settings, tables, count);
    let is_wrong = wrong.is_some();
    let why = match wrong {
        Some(why) => why,
        None if made.is_none_or(|made| made == rows(settings, count)) => return None,
        None if made == Some(ROWS) => "was made by an earlier version of bgworker".to_owned(),
        None => "was made for other settings, or by another version of bgworker".to_owned(),
    };
    Some(Flaw {
        why,
        is_wrong,
        is_ours: made.is_some(),
        is_replaceable: is_replaceable(settings, tables, count),
    })
}

/// Says why a view does not show what totals and queue are together, if that can be seen from outside.
fn wrong(settings: &Settings, tables: &Tables, count_type: Number) -> Option<String> {
    let Tables { view, queue, .. } = tables;
    let keys = settings.keys.iter().map(String::as_str);
    let mut columns = keys.chain(settings.total_columns());
    if let Some(column) = columns.find(|name| view.columns.get(name).is_none()) {
        return Some(format!("has no column \"{column}\""));
    }
    let mut tables = [&settings.queue, &settings.totals].into_iter();
    if let Some(table) = tables.find(|table| !view.does_read(table)) {
        return Some(format!("does not read {table}"));
    }
    let count = settings.count.as_deref()?;
    if queue.columns.get(count).is_some() && !view.does_read_column(&settings.queue, count) {
        let queue = &settings.queue;
        return Some(format!(
            "counts the rows of {queue} and not its column \"{count}\""
        ));
    }
    let shown = view.columns.get(count).and_then(TableColumn::number);
    let rounds = count_type == Number::Numeric && shown != Some(Number::Numeric);
    rounds.then(|| format!("rounds the column \"{count}\""))
}

/// `true` if the columns of the new view begin with those of the old one, which is what `CREATE OR REPLACE VIEW` needs.
fn is_replaceable(settings: &Settings, tables: &Tables, count: Number) -> bool {
    let Tables {
        view,
        queue,
        totals,
        ..
    } = tables;
    let of_sum = |total: &str, delta: &str| {
        let numbers = [totals.columns.get(total), queue.columns.get(delta)];
        let mut numbers = numbers
            .into_iter()
            .map(|column| column.and_then(TableColumn::number));
        let is_small = |number| matches!(number, Some(Number::SmallInt | Number::Integer));
        if numbers.all(is_small) {
            Number::BigInt
        } else {
            Number::Numeric
        }
    };
    let sums = settings
        .sum
        .0
        .iter()
        .map(|column| of_sum(&column.total, &column.delta));
    let mut numbers = sums.chain(settings.count.iter().map(|_| count));
    let keys = settings.keys.len();
    let names = settings.keys.iter().map(String::as_str);
    let new: Vec<_> = names.chain(settings.total_columns()).collect();
    let is_same = |(n, (old, new)): (usize, (&TableColumn, &&str))| {
        let of_totals = totals.columns.get(new);
        let is_alike = if n < keys {
            of_totals
                .is_some_and(|new| (&new.shown, &new.collation) == (&old.shown, &old.collation))
        } else {
            old.scale.is_none() && old.number() == numbers.next()
        };
        old.name == **new && is_alike
    };
    let old = &view.columns.0;
    old.len() <= new.len() && old.iter().zip(&new).enumerate().all(is_same)
}
