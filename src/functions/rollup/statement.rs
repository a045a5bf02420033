//! The SQL of a roll-up's folds: a shape in, statements out. Pure text.

use super::shape::{Shape, Sum};
use crate::functions::advisory_lock::{IN_THIS_DATABASE, LockClass, of_table};
use crate::functions::folding::{
    Isolation, Layout, Piece, Queue, Undone, comment, has_trigger, hold, undo,
};
use crate::functions::quote::{identifier, literal};
use crate::functions::relation::Relation;

/// An expression by which a transaction waits for a lock no longer than this, in a session of a pooler as well.
pub(super) const PATIENCE: &str = "pg_catalog.set_config('lock_timeout', '100ms', true)";

/// What a fold says of deltas that are still there.
const KEPT: &str = "of %s deltas %s could be deleted";

/// The condition that it is this session's turn.
const IS_MY_TURN: &str = "(SELECT pg_catalog.count(*) FROM turn) OPERATOR(pg_catalog.>) 0";

/// Builds the statements of a roll-up.
pub(super) struct Statements<'s> {
    pub(super) worker: &'s str,
    pub(super) queue: &'s Relation,
    pub(super) totals: &'s Relation,
    pub(super) shape: &'s Shape,
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
    pub(super) fn fold(&self, piece: Piece, how: How) -> String {
        self.fold_those(&queue(self.queue).deltas(piece), how)
    }

    /// The same for the deltas of a condition.
    pub(super) fn fold_those(&self, deltas: &str, how: How) -> String {
        let queue = queue(self.queue);
        format!(
            "{}{}{}",
            queue.begin(self.worker, how.isolation(), Some(self.totals)),
            self.adding(deltas, how),
            queue.end(&self.tables()),
        )
    }

    /// The statement of a fold that adds up the deltas of this condition.
    pub(super) fn adding(&self, deltas: &str, how: How) -> String {
        let queue = queue(self.queue);
        // What is folded, and how many keys are left out because other clients hold their totals.
        let none = "0::pg_catalog.int8";
        let (steps, deltas, left) = match how {
            How::Snapshot => {
                let steps = vec![
                    self.folded_at_snapshot(deltas),
                    self.held("folded", ""),
                    self.gone_at_snapshot(deltas),
                ];
                (steps, deltas.to_owned(), none)
            }
            How::Wait => {
                let steps = vec![self.gone(deltas), self.folded(), self.held("folded", "")];
                (steps, deltas.to_owned(), none)
            }
            How::Around => {
                let is_free = self.is_key_of("q", "free");
                let free = format!("{deltas} AND EXISTS (SELECT FROM free WHERE {is_free})");
                let steps = vec![
                    self.wanted(deltas),
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
            "WITH {steps} SELECT (SELECT ok FROM mine) AS is_mine, gone, keys, {left} AS around, {blocks} AS blocks, CASE \
             WHEN (SELECT obstacle FROM mine) IS NOT NULL THEN {undo} \
             WHEN found OPERATOR(pg_catalog.<>) gone AND gone OPERATOR(pg_catalog.=) 0 THEN {kept_all} \
             WHEN found OPERATOR(pg_catalog.<>) gone THEN {kept} \
             WHEN EXISTS (SELECT FROM folded WHERE {is_no_number}) THEN {not_a_number} \
             WHEN right_keys OPERATOR(pg_catalog.<>) keys THEN {altered} ELSE 0 END AS checked, {expects} FROM counted",
            steps = steps.collect::<Vec<_>>().join(", "),
            undo = undo("mine"),
            blocks = queue.blocks(),
            is_no_number = self.is_no_number(),
            kept_all = Undone::KeptAll.sql(KEPT, "found, gone"),
            kept = Undone::Kept.sql(KEPT, "found, gone"),
            not_a_number = Undone::NotANumber.sql("a sum of %s deltas is NaN or infinite", "gone"),
            altered = Undone::Altered.sql(
                "of %s totals %s are what they should be",
                "keys, right_keys"
            ),
            expects = queue.expects(expected),
        )
    }

    /// Steps that try to claim the queue for this session, and then wait for its turn at the totals.
    fn mine(&self, how: How) -> String {
        let queue = queue(self.queue);
        let holds = holds(self.queue, self.totals, self.shape);
        format!(
            "mine AS MATERIALIZED (SELECT obstacle, obstacle IS NULL AND {} AS ok, {}, {PATIENCE}, {} AS deleted \
             FROM (SELECT {} AS obstacle OFFSET 0) AS queue), \
             turn AS MATERIALIZED (SELECT {} FROM mine WHERE ok)",
            self.claim(),
            queue.unflushed(),
            queue.deleted(),
            Queue::obstacle(how.isolation(), &holds, &self.tables()),
            self.take_turn(),
        )
    }

    /// The tables, and what the worker knows of them.
    fn tables(&self) -> [(&Relation, &Layout); 2] {
        [
            (self.queue, &self.shape.queue),
            (self.totals, &self.shape.totals),
        ]
    }

    /// An expression that tries to claim the queue for this transaction.
    pub(super) fn claim(&self) -> String {
        let keys = LockClass::Queue.keys(&of_table(self.queue));
        format!("pg_catalog.pg_try_advisory_xact_lock({keys})")
    }

    /// An expression that waits for the turn of this transaction at the totals.
    pub(super) fn take_turn(&self) -> String {
        let keys = LockClass::Totals.keys(&of_table(self.totals));
        format!("pg_catalog.pg_advisory_xact_lock({keys})")
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

    /// Finds a delta of the queue, from a block on: where it is, and the transaction that wrote it.
    pub(super) fn first_delta(&self, from: u32) -> String {
        self.delta(&format!(
            "q.ctid OPERATOR(pg_catalog.>=) '({from},0)'::pg_catalog.tid"
        ))
    }

    /// Finds this delta, if it has not been folded.
    pub(super) fn this_delta(&self, place: &str, writer: &str) -> String {
        self.delta(&format!(
            "q.ctid OPERATOR(pg_catalog.=) {}::pg_catalog.tid AND q.xmin OPERATOR(pg_catalog.=) {}::pg_catalog.xid",
            literal(place),
            literal(writer)
        ))
    }

    fn delta(&self, which: &str) -> String {
        format!(
            "{} SELECT pg_catalog.concat(q.ctid) AS place, pg_catalog.concat(q.xmin) AS writer FROM ONLY {} AS q WHERE {which} LIMIT 1",
            comment(self.worker),
            self.queue.sql()
        )
    }

    /// Finds the session that has the queue, and what it has begun.
    pub(super) fn holder_of_queue(&self) -> String {
        let is_it = LockClass::Queue.is_of(&of_table(self.queue));
        format!(
            "{} SELECT pid, virtualtransaction FROM pg_catalog.pg_locks WHERE {is_it} AND granted LIMIT 1",
            comment(self.worker)
        )
    }

    /// Finds sessions that have written to the totals or locked some, or have their turn at them.
    pub(super) fn holders_of_totals(&self) -> String {
        format!(
            "{} SELECT DISTINCT pid FROM pg_catalog.pg_locks WHERE granted AND (({}) OR (locktype OPERATOR(pg_catalog.=) 'relation' \
             AND relation OPERATOR(pg_catalog.=) {}::pg_catalog.oid AND mode OPERATOR(pg_catalog.<>) 'AccessShareLock' \
             AND {IN_THIS_DATABASE})) AND pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid() ORDER BY pid LIMIT 5",
            comment(self.worker),
            LockClass::Totals.is_of(&of_table(self.totals)),
            self.totals.regclass(),
        )
    }

    /// Text for each column of the key, joined.
    pub(super) fn each_key(&self, between: &str, each: impl Fn(usize, &str) -> String) -> String {
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

/// Counts the rows that wait, up to a limit.
pub(super) fn count(worker: &str, queue: &Relation, limit: u32) -> String {
    format!(
        "{} SELECT pg_catalog.count(*) FROM (SELECT FROM ONLY {} LIMIT {limit}) AS rows",
        comment(worker),
        queue.sql()
    )
}

/// Finds out which of these keys, by their hashes, have deltas among the first rows.
pub(super) fn which_are_there(
    worker: &str,
    queue: &Relation,
    keys: &[String],
    hashes: &[i64],
    limit: u32,
) -> String {
    let hashes: Vec<_> = hashes.iter().map(i64::to_string).collect();
    format!(
        "{} SELECT DISTINCT hash FROM (SELECT {} AS hash FROM ONLY {} AS q LIMIT {limit}) AS rows \
         WHERE hash OPERATOR(pg_catalog.=) ANY ('{{{}}}'::pg_catalog.int8[])",
        comment(worker),
        hash(keys),
        queue.sql(),
        hashes.join(","),
    )
}

/// The key of a row of the queue, as one text.
pub(super) fn key(keys: &[String]) -> String {
    let keys: Vec<_> = keys
        .iter()
        .map(|key| format!("q.{}", identifier(key)))
        .collect();
    format!("ROW({})::pg_catalog.text", keys.join(", "))
}

/// A hash of the key of a row of the queue: that of each column goes into the next. Of a long key it takes a fifth of
/// the time that the text of the row would take.
///
/// The text of a value is that of its type's output function: a cast of an enumeration to text can be made by the owner of
/// the enumeration, and would run that role's code with the rights of the worker's role. It is NULL if the value is.
pub(super) fn hash(keys: &[String]) -> String {
    keys.iter().fold("0".to_owned(), |before, key| {
        let key = identifier(key);
        format!(
            "pg_catalog.hashtextextended(CASE WHEN q.{key} IS NOT NULL THEN pg_catalog.concat(q.{key}) END, {before})"
        )
    })
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
