//! The SQL of a roll-up's folds: a shape in, statements out. Pure text.

use super::shape::{Shape, Sum};
use crate::functions::folding::{Isolation, Piece, Queue, comment, has_trigger, hold, undo};
use crate::functions::quote::{identifier, literal};
use crate::functions::relation::Relation;

/// First key of the advisory lock that the session folding a queue holds; the second one is the queue's oid.
const QUEUE_LOCK: i32 = 1_651_994_418;

/// First key of the advisory lock on totals; the second one is their oid.
const TOTALS_LOCK: i32 = 1_651_994_419;

/// The condition that it is this session's turn.
const IS_MY_TURN: &str = "(SELECT pg_catalog.count(*) FROM turn) OPERATOR(pg_catalog.>) 0";

/// Builds the statements of a roll-up.
pub(super) struct Statements<'s> {
    pub(super) worker: &'s str,
    pub(super) queue: &'s Relation,
    pub(super) totals: &'s Relation,
    pub(super) shape: &'s Shape,
}

/// Selects some of the deltas in a range of blocks.
#[derive(Clone, Copy, Debug)]
pub(super) enum Which<'w> {
    /// All deltas except those of these keys.
    AllBut(&'w [String]),
    /// The deltas of a share of all keys, except those of these keys.
    Share(Share, &'w [String]),
    /// The deltas of this key.
    Key(&'w str),
    /// The deltas of this key in these places.
    Rows(&'w str, &'w [String]),
}

/// A share of all keys: the keys whose hash ends in some bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    bits: u32,
    value: u64,
}

/// How a fold deals with other clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// At one snapshot, and not at all if a client has changed a delta or a total since.
    Snapshot,
    /// Wait for the locks on totals, as long as `lock_timeout` allows.
    Wait,
    /// Leave the deltas in the queue whose totals other clients hold.
    Around,
}

// === impl Share ===

impl Share {
    pub(super) const WHOLE: Self = Self { bits: 0, value: 0 };

    /// The two halves of this share; `None` if the hash has no bit left.
    pub(super) fn halves(self) -> Option<[Self; 2]> {
        let bits = self.bits + 1;
        (bits < u64::BITS)
            .then(|| [self.value, self.value | (1 << self.bits)].map(|value| Self { bits, value }))
    }
}

// === impl How ===

impl How {
    fn isolation(self) -> Isolation {
        match self {
            Self::Snapshot => Isolation::RepeatableRead,
            Self::Wait | Self::Around => Isolation::ReadCommitted,
        }
    }
}

// === impl Statements ===

impl Statements<'_> {
    /// Folds the deltas of some blocks into the totals of their keys. Returns one row: whether it was this session's
    /// turn, the number of deltas folded, of keys folded, of keys whose totals other clients hold, and of blocks in the
    /// queue, and 0 if all is right; then a row that says how many seconds it took.
    ///
    /// One transaction, and exact whatever other clients do. Each step is forced to wait for the one before it, but for the
    /// deletion at one snapshot, which runs last:
    ///
    /// - One session at a time folds a queue. A second one gives way at once. Folds of several queues into the same
    ///   totals take turns: one that adds a new total while it holds others would deadlock with one that does the same
    ///   in another order.
    /// - What is deleted is what is added up: see [`Isolation`].
    /// - Existing totals are locked in the order of their keys, an order that clients can follow too. Then the upsert
    ///   adds to them.
    /// - The tables and the view must be what the worker knows of them: see [`holds`].
    /// - Each new total must equal the old one plus the sum of the deltas, and all deltas found must have been deleted,
    ///   or the statement fails on purpose, by casting a sentence to a number, and is undone: so neither a trigger that
    ///   alters or suppresses a total nor one that keeps deltas can make the fold lose a delta or count it twice. The
    ///   deltas found are counted only if the queue has triggers, or if none was deleted. Last, the server is asked how
    ///   many it has deleted: see [`Queue::end`].
    /// - Sums have the type in which the server adds them up, and new totals are compared with them: a column that
    ///   rounds, because its type was changed, undoes the fold as well.
    /// - NULL counts as 0, in deltas and in totals. NaN and infinity, after which no total would ever be right again,
    ///   undo it.
    /// - It does not wait for its commit to reach the disk: see [`Queue::unflushed`].
    ///
    /// The block numbers are part of the text, so that the statement is planned for the table as it is now.
    pub(super) fn fold(&self, piece: Piece, which: Which<'_>, how: How) -> String {
        let queue = queue(self.queue);
        let deltas = format!("{}{}", queue.deltas(piece), self.is_meant(which));
        // What is folded, and how many keys are left out because other clients hold their totals.
        let none = "0::pg_catalog.int8";
        let (steps, deltas, left) = match how {
            How::Snapshot => {
                let steps = vec![
                    self.folded_at_snapshot(&deltas),
                    self.held("folded", ""),
                    self.gone_at_snapshot(&deltas),
                ];
                (steps, deltas, none)
            }
            How::Wait => {
                let steps = vec![self.gone(&deltas), self.folded(), self.held("folded", "")];
                (steps, deltas, none)
            }
            How::Around => {
                let is_free = self.is_key_of("q", "free");
                let free = format!("{deltas} AND EXISTS (SELECT FROM free WHERE {is_free})");
                let steps = vec![
                    self.wanted(&deltas),
                    self.held("wanted", " SKIP LOCKED"),
                    self.free(),
                    self.gone(&free),
                    self.folded(),
                ];
                let left = "(SELECT pg_catalog.count(*) FROM wanted) OPERATOR(pg_catalog.-) \
                            (SELECT pg_catalog.count(*) FROM free)";
                (steps, free, left)
            }
        };
        let steps = std::iter::once(self.mine(how)).chain(steps);
        let steps = steps.chain([self.put(), self.counted(&deltas, how)]);
        let expected = "gone OPERATOR(pg_catalog.+) (SELECT deleted FROM mine)";
        format!(
            "{begin}WITH {steps} SELECT (SELECT ok FROM mine), gone, keys, {left}, {blocks}, CASE \
             WHEN (SELECT obstacle FROM mine) IS NOT NULL THEN {undo} \
             WHEN found OPERATOR(pg_catalog.<>) gone THEN \
             pg_catalog.format('bgworker: of %s deltas %s could be deleted', found, gone)::pg_catalog.int4 \
             WHEN EXISTS (SELECT FROM folded WHERE {is_no_number}) THEN \
             pg_catalog.format('bgworker: a sum of %s deltas is NaN or infinite', gone)::pg_catalog.int4 \
             WHEN right_keys OPERATOR(pg_catalog.<>) keys THEN \
             pg_catalog.format('bgworker: of %s totals %s are what they should be', keys, right_keys)::pg_catalog.int4 \
             ELSE 0 END, {expects} FROM counted{end}",
            begin = queue.begin(self.worker, how.isolation(), Some(self.totals)),
            steps = steps.collect::<Vec<_>>().join(", "),
            undo = undo("mine"),
            blocks = queue.blocks(),
            is_no_number = self.is_no_number(),
            expects = queue.expects(expected),
            end = queue.end(),
        )
    }

    /// Steps that try to claim the queue for this session, and then wait for its turn at the totals.
    fn mine(&self, how: How) -> String {
        let oid = |relation: &Relation| {
            let regclass = relation.regclass();
            format!(
                "{regclass}::pg_catalog.oid::pg_catalog.int8::pg_catalog.bit(32)::pg_catalog.int4"
            )
        };
        let queue = queue(self.queue);
        let holds = holds(self.queue, self.totals, self.shape);
        let tables = [
            (self.queue, &self.shape.queue),
            (self.totals, &self.shape.totals),
        ];
        format!(
            "mine AS MATERIALIZED (SELECT obstacle, \
             obstacle IS NULL AND pg_catalog.pg_try_advisory_xact_lock({QUEUE_LOCK}, {}) AS ok, {}, {} AS deleted \
             FROM (SELECT {} AS obstacle OFFSET 0) AS queue), \
             turn AS MATERIALIZED (SELECT pg_catalog.pg_advisory_xact_lock({TOTALS_LOCK}, {}) FROM mine WHERE ok)",
            oid(self.queue),
            queue.unflushed(),
            queue.deleted(),
            Queue::obstacle(how.isolation(), &holds, &tables),
            oid(self.totals),
        )
    }

    /// Step that lists the keys of the deltas.
    fn wanted(&self, deltas: &str) -> String {
        format!(
            "wanted AS MATERIALIZED (SELECT DISTINCT {} FROM ONLY {} AS q WHERE {deltas} AND {IS_MY_TURN})",
            self.each_key(", ", |n, key| format!("q.{key} AS k{n}")),
            self.queue.sql(),
        )
    }

    /// Step that lists the keys whose totals this statement has locked, or that have no total yet.
    fn free(&self) -> String {
        format!(
            "free AS MATERIALIZED (SELECT {} FROM wanted \
             WHERE (SELECT pg_catalog.count(*) FROM held) OPERATOR(pg_catalog.>=) 0 \
             AND (EXISTS (SELECT FROM held WHERE {}) OR NOT EXISTS (SELECT FROM {} AS t WHERE {})))",
            self.each_key(", ", |n, _| format!("k{n}")),
            self.is_same_key("held", "wanted"),
            self.totals.sql(),
            self.is_key_of("t", "wanted"),
        )
    }

    /// Step that deletes deltas from the queue.
    fn gone(&self, deltas: &str) -> String {
        let values = self.each_sum("", |n, sum| match &sum.delta {
            Some(delta) => format!(", q.{} AS d{n}", identifier(delta)),
            None => String::new(),
        });
        format!(
            "gone AS (DELETE FROM ONLY {} AS q WHERE {deltas} AND {IS_MY_TURN} RETURNING {}{values})",
            self.queue.sql(),
            self.each_key(", ", |n, key| format!("q.{key} AS k{n}")),
        )
    }

    /// Step that deletes deltas from the queue without a look at what they are. Nothing reads it, so it runs last.
    fn gone_at_snapshot(&self, deltas: &str) -> String {
        let queue = self.queue.sql();
        format!("gone AS (DELETE FROM ONLY {queue} AS q WHERE {deltas} AND {IS_MY_TURN})")
    }

    /// Step that adds up the deleted deltas by key.
    fn folded(&self) -> String {
        let key = |n, _: &str| format!("gone.k{n}");
        self.added_up("gone", key, |n, _| format!("gone.d{n}"))
    }

    /// Step that adds up deltas in the queue by key.
    fn folded_at_snapshot(&self, deltas: &str) -> String {
        let queue = self.queue.sql();
        let from = format!("ONLY {queue} AS q WHERE {deltas} AND {IS_MY_TURN}");
        let delta = |_, delta: &str| format!("q.{}", identifier(delta));
        self.added_up(&from, |_, key| format!("q.{key}"), delta)
    }

    /// Step that adds up by key what it finds there.
    fn added_up(
        &self,
        from: &str,
        key: impl Fn(usize, &str) -> String,
        delta: impl Fn(usize, &str) -> String,
    ) -> String {
        let keys = self.each_key(", ", |n, name| format!("{} AS k{n}", key(n, name)));
        let sums = self.each_sum("", |n, sum| match &sum.delta {
            Some(name) => format!(", coalesce(pg_catalog.sum({}), 0) AS s{n}", delta(n, name)),
            None => format!(", pg_catalog.count(*) AS s{n}"),
        });
        format!(
            "folded AS MATERIALIZED (\
             SELECT {keys}{sums}, pg_catalog.count(*) AS deltas FROM {from} GROUP BY {})",
            self.each_key(", ", key),
        )
    }

    /// Step that locks the existing totals of some keys, in the order of the keys.
    fn held(&self, keys_of: &str, skip: &str) -> String {
        format!(
            "held AS MATERIALIZED (SELECT {} FROM {} AS t JOIN {keys_of} ON {} \
             ORDER BY {} FOR NO KEY UPDATE OF t{skip})",
            self.total_row(),
            self.totals.sql(),
            self.is_key_of("t", keys_of),
            self.each_key(", ", |_, key| format!("t.{key}")),
        )
    }

    /// Step that adds the sums to the totals, once these are locked.
    fn put(&self) -> String {
        let (keys, totals) = (
            self.each_key(", ", |_, key| key.to_owned()),
            self.each_sum("", |_, sum| format!(", {}", identifier(&sum.total))),
        );
        let set = self.each_sum(", ", |_, sum| {
            let total = identifier(&sum.total);
            format!("{total} = coalesce(t.{total}, 0) OPERATOR(pg_catalog.+) excluded.{total}")
        });
        let folded = self.each_key(", ", |n, _| format!("k{n}"));
        format!(
            "put AS (INSERT INTO {} AS t ({keys}{totals}) SELECT {folded}{} FROM folded \
             WHERE (SELECT pg_catalog.count(*) FROM held) OPERATOR(pg_catalog.>=) 0 ORDER BY {folded} \
             ON CONFLICT ({keys}) DO UPDATE SET {set} RETURNING {})",
            self.totals.sql(),
            self.each_sum("", |n, _| format!(", s{n}")),
            self.total_row(),
        )
    }

    /// Step that counts the deltas found, the deltas deleted, and the totals that are what they should be.
    fn counted(&self, deltas: &str, how: How) -> String {
        let found = match how {
            How::Snapshot => "NULL::pg_catalog.int8".to_owned(),
            How::Wait | How::Around => {
                let has_trigger = if self.shape.queue.is_bare {
                    String::new()
                } else {
                    format!("{} OR ", has_trigger(self.queue))
                };
                format!(
                    "CASE WHEN {IS_MY_TURN} AND ({has_trigger}NOT EXISTS (SELECT FROM folded)) \
                     THEN (SELECT pg_catalog.count(*) FROM ONLY {} AS q WHERE {deltas}) END",
                    self.queue.sql(),
                )
            }
        };
        format!(
            "counted AS MATERIALIZED (SELECT \
             (SELECT coalesce(pg_catalog.sum(deltas), 0)::pg_catalog.int8 FROM folded) AS gone, \
             (SELECT pg_catalog.count(*) FROM folded) AS keys, \
             (SELECT pg_catalog.count(*) FROM put JOIN folded ON {} LEFT JOIN held ON {} WHERE {}) AS right_keys, \
             {found} AS found)",
            self.is_same_key("put", "folded"),
            self.is_same_key("put", "held"),
            self.each_sum(" AND ", |n, _| format!(
                "put.s{n} OPERATOR(pg_catalog.=) (coalesce(held.s{n}, 0) OPERATOR(pg_catalog.+) folded.s{n})"
            )),
        )
    }

    /// The condition that a sum is NaN or infinite.
    fn is_no_number(&self) -> String {
        let each = self.each_sum("", |n, sum| match sum.delta {
            Some(_) => format!(
                " OR s{n}::pg_catalog.numeric OPERATOR(pg_catalog.=) \
                 ANY ('{{NaN,Infinity,-Infinity}}'::pg_catalog.numeric[])"
            ),
            None => String::new(),
        });
        format!("false{each}")
    }

    /// The key and the sums of a total `t`.
    fn total_row(&self) -> String {
        let keys = self.each_key(", ", |n, key| format!("t.{key} AS k{n}"));
        let sums = self.each_sum("", |n, sum| {
            format!(", t.{} AS s{n}", identifier(&sum.total))
        });
        format!("{keys}{sums}")
    }

    /// The condition that rows of two steps have the same key.
    fn is_same_key(&self, one: &str, other: &str) -> String {
        self.each_key(" AND ", |n, _| {
            format!("{one}.k{n} OPERATOR(pg_catalog.=) {other}.k{n}")
        })
    }

    /// The condition that a row of a table has the key of a row of a step.
    fn is_key_of(&self, table: &str, step: &str) -> String {
        self.each_key(" AND ", |n, key| {
            format!("{table}.{key} OPERATOR(pg_catalog.=) {step}.k{n}")
        })
    }

    /// Selects up to two of the keys that the selected deltas have.
    pub(super) fn two_keys(&self, piece: Piece, which: Which<'_>) -> String {
        format!(
            "{} SELECT DISTINCT {} FROM ONLY {} AS q WHERE {}{} LIMIT 2",
            comment(self.worker),
            self.key(),
            self.queue.sql(),
            queue(self.queue).deltas(piece),
            self.is_meant(which),
        )
    }

    /// Selects the places of the deltas of a key.
    pub(super) fn places(&self, piece: Piece, key: &str) -> String {
        format!(
            "{} SELECT ctid::pg_catalog.text FROM ONLY {} AS q WHERE {}{}",
            comment(self.worker),
            self.queue.sql(),
            queue(self.queue).deltas(piece),
            self.is_meant(Which::Key(key)),
        )
    }

    /// Moves one delta of a key to another table.
    pub(super) fn set_aside(&self, place: &str, key: &str, rejected: &Relation) -> String {
        format!(
            "{} WITH gone AS (DELETE FROM ONLY {} AS q WHERE ctid OPERATOR(pg_catalog.=) {}::pg_catalog.tid{} RETURNING q.*) \
             INSERT INTO {} SELECT * FROM gone",
            comment(self.worker),
            self.queue.sql(),
            literal(place),
            self.is_meant(Which::Key(key)),
            rejected.sql(),
        )
    }

    /// The key of a row of the queue, as one text.
    fn key(&self) -> String {
        let keys = self.each_key(", ", |_, key| format!("q.{key}"));
        format!("ROW({keys})::pg_catalog.text")
    }

    /// The condition that selects these deltas.
    fn is_meant(&self, which: Which<'_>) -> String {
        let list = |texts: &[String]| {
            let texts: Vec<_> = texts.iter().map(|text| literal(text)).collect();
            texts.join(", ")
        };
        let key = self.key();
        let but = |keys: &[String]| match keys {
            [] => String::new(),
            _ => format!(
                " AND {key} OPERATOR(pg_catalog.<>) ALL (ARRAY[{}]::pg_catalog.text[])",
                list(keys)
            ),
        };
        let is = |one: &str| format!(" AND {key} OPERATOR(pg_catalog.=) {}", literal(one));
        match which {
            Which::AllBut(keys) => but(keys),
            Which::Share(Share { bits, value }, keys) => {
                let mask = (1_u64 << bits) - 1;
                format!(
                    " AND (pg_catalog.hashtextextended({key}, 0) OPERATOR(pg_catalog.&) {mask}::pg_catalog.int8) \
                     OPERATOR(pg_catalog.=) {value}::pg_catalog.int8{}",
                    but(keys)
                )
            }
            Which::Key(one) => is(one),
            Which::Rows(one, places) => format!(
                "{} AND ctid OPERATOR(pg_catalog.=) ANY (ARRAY[{}]::pg_catalog.tid[])",
                is(one),
                list(places)
            ),
        }
    }

    /// Text for each column of the key, joined.
    fn each_key(&self, between: &str, each: impl Fn(usize, &str) -> String) -> String {
        let keys = self.shape.keys.iter().enumerate();
        let each: Vec<_> = keys.map(|(n, key)| each(n, &identifier(key))).collect();
        each.join(between)
    }

    /// Text for each column that is added up, joined.
    fn each_sum(&self, between: &str, each: impl Fn(usize, &Sum) -> String) -> String {
        let sums = self.shape.sums.iter().enumerate();
        let each: Vec<_> = sums.map(|(n, sum)| each(n, sum)).collect();
        each.join(between)
    }
}

/// A queue whose rows are all deltas.
pub(super) fn queue(relation: &Relation) -> Queue {
    Queue {
        relation: relation.clone(),
        delta: "true",
        has_children: false,
    }
}

/// A condition: queue and totals are what the worker knows of them, and its view has not been dropped.
pub(super) fn holds(queue: &Relation, totals: &Relation, shape: &Shape) -> String {
    let view = shape.view.map_or_else(String::new, |view| {
        format!(" AND EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid OPERATOR(pg_catalog.=) {view}::pg_catalog.oid)")
    });
    let tables = hold(&[(queue, &shape.queue), (totals, &shape.totals)]);
    format!("{tables}{view}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_halves_of_a_share_are_all_of_it_and_nothing_twice() {
        let mut shares = vec![Share::WHOLE];
        for _ in 0..4 {
            shares = shares
                .iter()
                .filter_map(|share| share.halves())
                .flatten()
                .collect();
        }
        let mut values: Vec<_> = shares.iter().map(|share| share.value).collect();
        values.sort_unstable();
        assert_eq!(values, (0..16).collect::<Vec<_>>());
        let deepest = Share { bits: 63, value: 0 };
        assert_eq!(deepest.halves(), None);
    }
}
