//! Finds what cannot be added: folds a piece of the queue in parts, each of them smaller after one that failed, until one
//! key is left. Pure: the statement, and what it returns.
//!
//! The server itself does this, in one anonymous block, with a subtransaction for each part: so a thousand failures write
//! nothing to its log, and cost no round trip.

use std::time::Duration;

use tokio_postgres::SimpleQueryRow;

use super::statement::{How, PATIENCE, Statements, hash, key, queue};
use crate::database::{CANCELLED, UNDONE};
use crate::functions::folding::{Piece, Undone, comment};
use crate::functions::ownership;
use crate::functions::quote::literal;
use crate::functions::relation::Relation;

/// The setting, for the length of a transaction, in which the block leaves its report.
const REPORT: &str = "bgworker.report";

/// Rows of a part up to which its statement is planned once for the whole block.
const FEW: u32 = 32;

/// Number of values that the report has before its findings.
const TOLD: usize = 8;

/// Number of values of each finding.
const FOUND: usize = 7;

/// What happens to a key that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Treatment {
    /// It is tried again, alone.
    Retry = 1,
    /// Each of its deltas is tried alone, and moved away if it fails again.
    Move = 2,
    /// Its deltas wait.
    Wait = 3,
}

/// Keys that are known, by the hashes of their texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct KnownKeys(pub(super) Vec<KnownKey>);

/// A key that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KnownKey {
    pub(super) hash: i64,
    pub(super) treatment: Treatment,
    /// The SQLSTATE with which a delta must fail to be moved away.
    pub(super) sqlstate: Option<String>,
}

/// A piece that is to be folded in parts.
pub(super) struct Halving<'h> {
    pub(super) statements: &'h Statements<'h>,
    pub(super) piece: Piece,
    pub(super) how: How,
    pub(super) known: &'h KnownKeys,
    /// The table to which deltas are moved.
    pub(super) rejected: Option<&'h Relation>,
    /// Roles whose table for poison is trusted, by the settings.
    pub(super) trusted_owners: &'h [String],
    /// How long the parts may take, but for the one that is under way at the end; or as long as it took to read the keys.
    pub(super) budget: Duration,
    /// The order of the keys follows from it, so that no key is always the last.
    pub(super) seed: i64,
    pub(super) first: Part,
    /// Each part is one key: the server has cancelled one with more.
    pub(super) one_by_one: bool,
}

/// How much of a piece the first part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Whole,
    /// Less than what is known to fail.
    Little,
    /// This many keys.
    Keys(u32),
}

/// What the block has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// No other session was folding the queue.
    pub(super) is_mine: bool,
    pub(super) rows: u64,
    pub(super) keys: u64,
    /// How many keys were left because other clients hold their totals.
    pub(super) around: u64,
    /// How many keys the next part would have had.
    pub(super) size: u32,
    /// How many blocks the queue has.
    pub(super) blocks: u32,
    /// It has tried all keys.
    pub(super) is_done: bool,
    pub(super) took: Duration,
    pub(super) findings: Vec<Finding>,
}

/// What the block has found out about a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) hash: i64,
    pub(super) what: What,
    /// The text of the key, cut; empty after the first few findings.
    pub(super) key: String,
    pub(super) failure: PartFailure,
}

/// What was found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// It was folded after it had failed earlier.
    Folded,
    /// It, or one of its deltas, cannot be added.
    Failed,
    /// One of its deltas was moved away.
    Moved,
    /// One of its deltas could not be moved away either.
    Stuck,
}

/// The error of a part with a single key or delta.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PartFailure {
    pub(super) sqlstate: String,
    pub(super) message: String,
    pub(super) constraint: String,
    pub(super) column: String,
}

/// How much is shown of a key, in characters.
const KEY_MAX: usize = 100;

/// The block. Operators in it are named by [`qualified`]; what stands in braces is inserted afterwards.
const BLOCK: &str = include_str!("halving.sql");

/// Names the schema of each operator between spaces, and makes one line of it, without comments.
fn qualified(sql: &str) -> String {
    let operator = |word: &str| match word {
        "+" | "-" | "/" | "*" | "#" | "=" | "<>" | "<" | "<=" | ">" | ">=" => {
            format!("OPERATOR(pg_catalog.{word})")
        }
        word => word.to_owned(),
    };
    let lines = sql.lines().map(str::trim);
    let lines = lines.filter(|line| !line.starts_with("--"));
    let words: Vec<_> = lines
        .flat_map(|line| line.split(' '))
        .map(operator)
        .collect();
    words.join(" ")
}

// === impl KnownKeys ===

impl KnownKeys {
    fn moves(&self) -> bool {
        self.0.iter().any(|one| one.treatment == Treatment::Move)
    }

    /// Rows of hash, treatment and SQLSTATE.
    fn sql(&self) -> String {
        let list = |each: fn(&KnownKey) -> String| {
            let each: Vec<_> = self.0.iter().map(each).collect();
            literal(&format!("{{{}}}", each.join(",")))
        };
        format!(
            "ROWS FROM (pg_catalog.unnest({}::pg_catalog.int8[]), pg_catalog.unnest({}::pg_catalog.int4[]), \
             pg_catalog.unnest({}::pg_catalog.text[]))",
            list(|one| one.hash.to_string()),
            list(|one| (one.treatment as i32).to_string()),
            list(|one| one.sqlstate.clone().unwrap_or_else(|| "NULL".to_owned())),
        )
    }
}

// === impl Halving ===

impl Halving<'_> {
    /// Folds the piece in parts, as one transaction, and returns a [`Report`].
    ///
    /// Constraints that are deferred are checked with their part, or they would undo all of it in the end.
    pub(super) fn sql(&self) -> String {
        format!(
            "{} SET TRANSACTION ISOLATION LEVEL READ COMMITTED; SET CONSTRAINTS ALL IMMEDIATE; DO {}; \
             SELECT pg_catalog.unnest(line::pg_catalog.text[]) \
             FROM pg_catalog.unnest(pg_catalog.current_setting('{REPORT}')::pg_catalog.text[]) AS line",
            comment(self.statements.worker),
            literal(&self.block()),
        )
    }

    fn block(&self) -> String {
        let Self { statements, .. } = self;
        let fold = |places: &str| {
            let deltas = format!("q.ctid OPERATOR(pg_catalog.=) ANY ({places})");
            statements.adding(&deltas, self.how)
        };
        let is_key = statements.each_key(" AND ", |_, key| {
            format!("q.{key} OPERATOR(pg_catalog.=) t.{key}")
        });
        // Units up to the first bound are keys that are not known.
        let size = match self.first {
            Part::Whole => "bounds[1]".to_owned(),
            Part::Little => {
                "bounds[1] OPERATOR(pg_catalog./) 16 OPERATOR(pg_catalog.+) 1".to_owned()
            }
            Part::Keys(keys) => keys.to_string(),
        };
        let insertions = [
            ("{milliseconds}", self.budget.as_millis().to_string()),
            ("{size}", size),
            (
                "{most}",
                if self.one_by_one { 1 } else { i32::MAX }.to_string(),
            ),
            ("{cancelled}", literal(CANCELLED)),
            ("{seed}", self.seed.to_string()),
            ("{few}", FEW.to_string()),
            ("{undone}", literal(UNDONE)),
            ("{report}", literal(REPORT)),
            ("{claim}", statements.claim()),
            ("{patience}", PATIENCE.to_owned()),
            ("{take_turn}", statements.take_turn()),
            ("{known}", self.known.sql()),
            ("{moving}", self.moving()),
            ("{key}", key(&statements.shape.keys)),
            ("{hash}", hash(&statements.shape.keys)),
            ("{is_key}", is_key),
            ("{deltas}", queue(statements.queue).deltas(self.piece)),
            // As a subquery, the places are not known when it is planned: one plan is as good as another, and is kept.
            (
                "{fold_few}",
                fold("(SELECT bgworker.part)::pg_catalog.tid[]"),
            ),
            ("{fold_many}", literal(&fold("$1"))),
            ("{miscounted}", queue(statements.queue).miscounted()),
            ("{changed}", literal(&Undone::Changed.mark())),
            ("{deleted}", queue(statements.queue).deleted()),
            ("{deleted_others}", literal(&Undone::Miscounted.mark())),
            ("{blocks}", statements.queue.blocks()),
            ("{totals}", statements.totals.sql()),
            ("{queue}", statements.queue.sql()),
        ];
        insert(&qualified(BLOCK), &insertions)
    }

    /// Statements that find out whether deltas can be moved away, and how.
    fn moving(&self) -> String {
        let Some(rejected) = self.rejected.filter(|_| self.known.moves()) else {
            return String::new();
        };
        let queue = self.statements.queue;
        let delete = format!(
            "WITH gone AS (DELETE FROM ONLY {} AS q WHERE q.ctid OPERATOR(pg_catalog.=) $1 RETURNING ",
            queue.sql()
        );
        let insert_into = format!("), put AS (INSERT INTO {} (", rejected.sql());
        let kept = Undone::Kept.sql("%s deltas deleted and %s inserted", "deleted, inserted");
        let check = format!(
            " FROM gone RETURNING 1) SELECT CASE WHEN deleted OPERATOR(pg_catalog.=) 1 \
             AND inserted OPERATOR(pg_catalog.=) 1 THEN 0 ELSE {kept} END \
             FROM (SELECT pg_catalog.count(*) AS deleted FROM gone) AS gone, \
             (SELECT pg_catalog.count(*) AS inserted FROM put) AS put"
        );
        // The owner of the queue can run code as the worker in any case.
        let owner = |table: &Relation| {
            format!(
                "(SELECT relowner FROM pg_catalog.pg_class WHERE oid OPERATOR(pg_catalog.=) {}::pg_catalog.oid)",
                table.regclass()
            )
        };
        let trusted = self.trusted_owners.iter().map(|owner| literal(owner));
        let trusted_owners = format!(
            "ARRAY[{}]::pg_catalog.text[] OPERATOR(pg_catalog.||) \
             (SELECT rolname::pg_catalog.text FROM pg_catalog.pg_roles WHERE oid OPERATOR(pg_catalog.=) {})",
            trusted.collect::<Vec<_>>().join(", "),
            owner(queue)
        );
        let insertions = [
            ("{doubted_owner}", ownership::doubted(&owner(rejected))),
            ("{trusted_owners}", trusted_owners),
            ("{rejected_class}", rejected.regclass()),
            ("{rejected}", rejected.sql()),
            ("{queue_class}", queue.regclass()),
            ("{delete}", literal(&delete)),
            ("{insert}", literal(&insert_into)),
            ("{check}", literal(&check)),
        ];
        insert(&qualified(include_str!("moving.sql")), &insertions)
    }
}

/// Replaces names in braces, once each place: what is inserted is not looked at again.
fn insert(template: &str, insertions: &[(&str, String)]) -> String {
    let mut sql = String::new();
    let mut rest = template;
    while let Some(at) = rest.find('{') {
        let (before, here) = rest.split_at(at);
        sql += before;
        let insertion = insertions.iter().find(|(name, _)| here.starts_with(name));
        let (name, text) = insertion.map_or(("{", "{"), |(name, text)| (*name, &**text));
        sql += text;
        rest = &here[name.len()..];
    }
    sql + rest
}

// === impl Report ===

impl Report {
    /// Reads the values that the block returns, each a row. `None` if they are not a report.
    pub(super) fn read(rows: &[SimpleQueryRow]) -> Option<Self> {
        let values: Vec<_> = rows
            .iter()
            .map(|row| row.get(0).unwrap_or_default())
            .collect();
        Self::of(&values)
    }

    /// `true` if the server has cancelled the last part, which was one key.
    pub(super) fn was_cancelled(&self) -> bool {
        let last = self.findings.last();
        last.is_some_and(|finding| finding.failure.sqlstate == CANCELLED)
    }

    fn of(values: &[&str]) -> Option<Self> {
        let (told, findings) = values.split_at_checked(TOLD)?;
        let number = |at: usize| told[at].parse::<u64>().unwrap_or(0);
        let seconds = told[7].parse().unwrap_or(0.0);
        Some(Self {
            is_mine: told[0] == "t",
            rows: number(1),
            keys: number(2),
            around: number(3),
            size: u32::try_from(number(4)).unwrap_or(1),
            blocks: u32::try_from(number(5)).unwrap_or(u32::MAX),
            is_done: told[6] == "t",
            took: Duration::try_from_secs_f64(seconds).unwrap_or_default(),
            findings: findings
                .chunks_exact(FOUND)
                .filter_map(Finding::of)
                .collect(),
        })
    }
}

// === impl Finding ===

impl Finding {
    fn of(values: &[&str]) -> Option<Self> {
        let [what, hash, key, sqlstate, message, constraint, column] = *values else {
            return None;
        };
        let what = match what {
            "folded" => What::Folded,
            "failed" => What::Failed,
            "moved" => What::Moved,
            "stuck" => What::Stuck,
            _ => return None,
        };
        let owned = |text: &str| text.to_owned();
        Some(Self {
            hash: hash.parse().ok()?,
            what,
            key: shortened(key),
            failure: PartFailure {
                sqlstate: owned(sqlstate),
                message: owned(message),
                constraint: owned(constraint),
                column: owned(column),
            },
        })
    }
}

/// The text of a key, cut where it is too long for a message. The server sends one character more than is shown.
fn shortened(key: &str) -> String {
    match key.char_indices().nth(KEY_MAX) {
        Some((end, _)) => format!("{}…)", &key[..end]),
        None => key.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_cut_ends_as_one() {
        let key = |length| format!("({})", "ü".repeat(length));
        assert_eq!(shortened(&key(98)), key(98));
        let cut = shortened(&key(500));
        assert_eq!(cut.chars().count(), KEY_MAX + 2);
        assert!(cut.ends_with("ü…)"), "{cut}");
    }

    #[test]
    fn operators_between_spaces_are_named_and_nothing_else_is() {
        assert_eq!(
            qualified("a := b + c;\n    -- not d\n    d <= e"),
            "a := b OPERATOR(pg_catalog.+) c; d OPERATOR(pg_catalog.<=) e"
        );
    }

    #[test]
    fn what_is_inserted_is_not_looked_at_again() {
        let insertions = [("{a}", "{b}".to_owned()), ("{b}", "{a}".to_owned())];
        assert_eq!(insert("{a} {b} '{}'", &insertions), "{b} {a} '{}'");
    }

    #[test]
    fn a_report_is_read_as_it_is_written() {
        let values = [
            "t", "5", "2", "0", "4", "9", "f", "0.25", "failed", "-7", "(x)", "23514", "no", "c",
            "",
        ];
        let report = Report::of(&values).unwrap();
        assert_eq!((report.rows, report.keys, report.blocks), (5, 2, 9));
        assert!(report.is_mine && !report.is_done);
        assert_eq!(report.took, Duration::from_millis(250));
        let [finding] = &*report.findings else {
            panic!("{report:?}");
        };
        assert_eq!((finding.hash, finding.what), (-7, What::Failed));
        assert_eq!(finding.failure.constraint, "c");
        assert_eq!(Report::of(&values[..3]), None);
    }
}
