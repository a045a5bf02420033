//! The SQL of the built-in worker: names in, statements out.
//!
//! Pure text; nothing here talks to a server. The names of tables are quoted by [`Table`].

use super::shape::Shape;
use super::table::Table;
use crate::functions::folding::{
    Isolation, Piece, Queue, Undone, comment, has_trigger, hold, undo,
};
use crate::functions::quote::identifier;
use crate::functions::relation;

// === impl Table ===

impl Table {
    /// The queue, where its deltas wait, with those of its children. Rows with NULL are left alone.
    pub(super) fn queue(&self, shape: &Shape) -> Queue {
        Queue {
            relation: self.relation().clone(),
            delta: DELTA_TO_FOLD,
            has_children: shape.layout.has_children,
        }
    }

    /// Finds the process of the server whose transaction has locked or changed the total.
    pub(super) fn holder_of_total(&self, worker: &str) -> String {
        format!(
            "{} SELECT l.pid FROM (SELECT xmax FROM {} WHERE {TOTAL}) AS t JOIN pg_catalog.pg_locks AS l \
             ON l.transactionid OPERATOR(pg_catalog.=) t.xmax \
             WHERE l.locktype OPERATOR(pg_catalog.=) 'transactionid' AND l.granted LIMIT 1",
            comment(worker),
            self.sql()
        )
    }

    /// Finds a row with NULL, which a table that bgworker made cannot have.
    pub(super) fn with_null(&self) -> String {
        format!(
            "(SELECT ctid FROM {} WHERE ({DELTA} OR {TOTAL}) AND value IS NULL LIMIT 1)",
            self.sql()
        )
    }

    /// Folds the deltas of some blocks into the total. Returns one row: the new total, the number of deltas folded,
    /// the outcome, and how many blocks the table has; then a row that says how many seconds it took.
    ///
    /// It is one transaction, and exact whatever other clients do:
    ///
    /// - The total is locked first, and only if there is a delta. If it is gone, or another session holds
    ///   it, nothing is deleted: the deletion is gated on the lock.
    /// - Without a delta nothing is written, not even a row lock.
    /// - What is deleted is what is added up: see [`Isolation`].
    /// - The update finds the total by its type, not by the place where it was locked: a total that was updated in
    ///   between has moved.
    /// - The table must be what the worker knows of it: see [`Layout`](crate::functions::folding::Layout). Of a child,
    ///   deltas count, but not a total.
    /// - The deltas found, the deltas deleted, their sum and the new total must agree. Otherwise the statement undoes
    ///   itself by casting a sentence to a number, so that a trigger that keeps deltas or alters the total can
    ///   neither lose a delta nor count one twice. The deltas found are counted only if the table has triggers or
    ///   children, or none was deleted; else each is deleted, or another session has it. Last, the server is asked
    ///   how many it has deleted: see [`Queue::end`].
    /// - A sum of zero may leave the total untouched.
    /// - Rows with NULL, which a table that bgworker made cannot have, are left alone.
    /// - It does not wait for its commit to reach the disk: see [`Queue::unflushed`].
    ///
    /// The block numbers stand in its text, so that it is planned for the table as it is now: a plan made for a small
    /// table would read the whole of a large one for each piece.
    pub(super) fn fold(
        &self,
        worker: &str,
        shape: &Shape,
        piece: Piece,
        isolation: Isolation,
    ) -> String {
        let (table, queue) = (self.sql(), self.queue(shape));
        let deltas = format!("{} WHERE {}", queue.from(), queue.deltas(piece));
        let tables = [(self.relation(), &shape.layout)];
        format!(
            "{begin}WITH pending AS MATERIALIZED (SELECT obstacle, \
             obstacle IS NULL AND EXISTS (SELECT {deltas}) AS found, {deleted} AS deleted, {unflushed} \
             FROM (SELECT {obstacle} AS obstacle OFFSET 0) AS queue\
             ), total AS MATERIALIZED (\
             SELECT value FROM ONLY {table} WHERE {TOTAL} AND value IS NOT NULL \
             AND (SELECT found FROM pending) FOR UPDATE SKIP LOCKED\
             ), {folded}, updated AS (\
             UPDATE ONLY {table} AS t SET value = t.value OPERATOR(pg_catalog.+) folded.sum FROM folded \
             WHERE t.{TOTAL} AND folded.rows OPERATOR(pg_catalog.>) 0 RETURNING t.type, t.value\
             ), checked AS (\
             SELECT folded.rows, folded.sum, total.value AS before, {found} AS found, \
             CASE WHEN EXISTS (SELECT FROM updated) THEN (SELECT value FROM updated WHERE {TOTAL}) \
             ELSE total.value END AS after FROM folded, total\
             ) SELECT (SELECT after::pg_catalog.int8 FROM checked), (SELECT rows FROM folded), CASE \
             WHEN (SELECT obstacle FROM pending) IS NOT NULL THEN {undo}::pg_catalog.text \
             WHEN NOT (SELECT found FROM pending) THEN '{IDLE}' \
             WHEN NOT EXISTS (SELECT FROM total) THEN CASE \
             WHEN EXISTS (SELECT FROM ONLY {table} WHERE {TOTAL} AND value IS NOT NULL) \
             THEN '{SKIPPED}' ELSE '{NO_TOTAL}' END \
             ELSE (SELECT {outcome} FROM checked) END, {blocks}, {expects}{end}",
            begin = queue.begin(worker, isolation, None),
            obstacle = Queue::obstacle(isolation, &hold(&tables), &tables),
            deleted = queue.deleted(),
            unflushed = queue.unflushed(),
            folded = folded(&deltas, isolation),
            found = found(&queue, &deltas, shape, isolation),
            undo = undo("pending"),
            outcome = outcome(),
            blocks = queue.blocks(),
            expects = queue.expects(
                "SELECT deleted OPERATOR(pg_catalog.+) coalesce((SELECT rows FROM folded), 0) FROM pending"
            ),
            end = queue.end(&tables),
        )
    }

    /// Begins a transaction that locks all other clients out of the table, if it gets the lock soon.
    ///
    /// The statements that follow see what other clients committed before: each has a snapshot of its own.
    pub(super) fn lock(&self, worker: &str) -> String {
        format!(
            "{} BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '100ms'; \
             SET LOCAL idle_in_transaction_session_timeout = '5s'; \
             LOCK TABLE {} IN ACCESS EXCLUSIVE MODE",
            comment(worker),
            self.sql(),
        )
    }

    /// Sums up a table that is locked. Returns one row: whether it is a plain table of two columns, the number of its
    /// rows, of its deltas and of its totals that are not NULL, and the sum of all values.
    ///
    /// A table is not plain if something depends on its deletions or hides rows of it: triggers, foreign keys, rules,
    /// children, row security. Nor is a partition, or one that is no longer what the worker knows of it: a sum of its values
    /// may not be a bigint.
    pub(super) fn sum_up(&self, worker: &str, shape: &Shape) -> String {
        let table = self.sql();
        format!(
            "{worker} SELECT (SELECT relkind OPERATOR(pg_catalog.=) 'r' \
             AND NOT (relhastriggers OR relhasrules OR relhassubclass \
             OR relispartition OR pg_catalog.row_security_active(oid)) AND {columns} OPERATOR(pg_catalog.=) 2 AND {holds} \
             FROM pg_catalog.pg_class AS c WHERE oid OPERATOR(pg_catalog.=) {regclass}::pg_catalog.oid), \
             pg_catalog.count(*), pg_catalog.count(*) FILTER (WHERE {DELTA} AND value IS NOT NULL), \
             (SELECT pg_catalog.count(*) FROM {table} WHERE {TOTAL} AND value IS NOT NULL), \
             pg_catalog.sum(value)::pg_catalog.int8 FROM {table}",
            worker = comment(worker),
            regclass = self.relation().regclass(),
            columns = COUNT_COLUMNS,
            holds = hold(&[(self.relation(), &shape.layout)]),
        )
    }

    /// Empties a table that is locked, puts its total back, and ends the transaction.
    pub(super) fn truncate(&self, worker: &str, total: i64) -> String {
        format!(
            "{} TRUNCATE {table}; INSERT INTO {table} (type, value) VALUES ('total', '{total}'); COMMIT",
            comment(worker),
            table = self.sql(),
        )
    }

    pub(super) fn create_schema(&self) -> String {
        format!("CREATE SCHEMA IF NOT EXISTS {}", identifier(self.schema()))
    }

    /// Makes the table and its index: all or nothing, when sent as one message.
    ///
    /// Its replica identity lets a publication of all tables include it; that costs nothing unless changes are
    /// decoded.
    pub(super) fn create_table(&self) -> String {
        format!(
            "CREATE TABLE {table} (type pg_catalog.text NOT NULL CHECK ({TOTAL} OR {DELTA}), \
             value pg_catalog.int8 NOT NULL) WITH (fillfactor = 90); \
             ALTER TABLE {table} REPLICA IDENTITY FULL; \
             CREATE UNIQUE INDEX {index} ON {table} (type) WHERE {TOTAL}",
            table = self.sql(),
            index = self.index(),
        )
    }

    pub(super) fn add_column(&self, column: &str, kind: &str) -> String {
        format!(
            "ALTER TABLE {} ADD COLUMN {column} pg_catalog.{kind}",
            self.sql()
        )
    }

    pub(super) fn alter_column(&self, column: &str, kind: &str) -> String {
        format!(
            "ALTER TABLE {} ALTER COLUMN {column} TYPE pg_catalog.{kind} USING {column}::pg_catalog.{kind}",
            self.sql()
        )
    }

    pub(super) fn make_identity_optional(&self) -> String {
        format!(
            "ALTER TABLE {} ALTER COLUMN value SET GENERATED BY DEFAULT",
            self.sql()
        )
    }

    /// The server names the index: any other name may be taken.
    pub(super) fn create_index(&self) -> String {
        format!("CREATE UNIQUE INDEX ON {} (type) WHERE {TOTAL}", self.sql())
    }

    /// Merges several totals into one, then makes the index that keeps it the only one.
    pub(super) fn merge_totals(&self) -> String {
        format!(
            "BEGIN; LOCK TABLE {table}; WITH totals AS (DELETE FROM ONLY {table} WHERE {TOTAL} \
             RETURNING value) INSERT INTO {table} (type, value) \
             SELECT 'total', coalesce(pg_catalog.sum(value), 0) FROM totals; {index}; COMMIT",
            table = self.sql(),
            index = self.create_index(),
        )
    }

    /// Returns one row: whether there is more than one total, and whether they can be merged without loss. For that
    /// the sum must fit into the column, and the table must have no other columns and no triggers.
    pub(super) fn look_at_totals(&self, value_max: i64) -> String {
        format!(
            "SELECT pg_catalog.count(*) OPERATOR(pg_catalog.>) 1, {columns} OPERATOR(pg_catalog.=) 2 \
             AND NOT (SELECT relhastriggers FROM pg_catalog.pg_class \
             WHERE oid OPERATOR(pg_catalog.=) {regclass}::pg_catalog.oid) \
             AND pg_catalog.abs(coalesce(pg_catalog.sum(value), 0)) OPERATOR(pg_catalog.<=) {value_max} \
             FROM ONLY {table} AS t WHERE {TOTAL}",
            columns = COUNT_COLUMNS.replace(
                "c.oid",
                &format!("{}::pg_catalog.oid", self.relation().regclass())
            ),
            regclass = self.relation().regclass(),
            table = self.sql(),
        )
    }

    /// Returns whether each value is a whole number that a bigint holds.
    pub(super) fn has_whole_values(&self) -> String {
        let max = i64::MAX;
        format!(
            "SELECT NOT EXISTS (SELECT FROM {table} WHERE value IS NOT NULL AND NOT (\
             pg_catalog.abs(value::pg_catalog.numeric) OPERATOR(pg_catalog.<=) {max} \
             AND value::pg_catalog.numeric OPERATOR(pg_catalog.=) pg_catalog.trunc(value::pg_catalog.numeric)))",
            table = self.sql(),
        )
    }

    pub(super) fn insert_initial_total(&self) -> String {
        format!(
            "INSERT INTO {} (type, value) VALUES ('total', $1::pg_catalog.int8) ON CONFLICT DO NOTHING",
            self.sql()
        )
    }

    /// Grants a role what a worker needs on the table.
    pub(super) fn grant(&self, role: &str) -> String {
        format!(
            "GRANT USAGE ON SCHEMA {} TO {role}; GRANT SELECT, INSERT, UPDATE, DELETE ON {} TO {role}",
            identifier(self.schema()),
            self.sql(),
            role = relation::role(role),
        )
    }
}

/// The condition for a delta. Here and everywhere, names are looked up only in `pg_catalog`: the search path is the
/// user's own, and another role may have planted a better match in one of its schemas.
const DELTA: &str = "type OPERATOR(pg_catalog.=) 'delta'";

/// The condition for a delta that can be folded.
const DELTA_TO_FOLD: &str = "type OPERATOR(pg_catalog.=) 'delta' AND value IS NOT NULL";

/// The condition for the total.
const TOTAL: &str = "type OPERATOR(pg_catalog.=) 'total'";

/// An expression for the number of columns of the table `c`.
const COUNT_COLUMNS: &str = "(SELECT pg_catalog.count(*) FROM pg_catalog.pg_attribute \
     WHERE attrelid OPERATOR(pg_catalog.=) c.oid AND attnum OPERATOR(pg_catalog.>) 0 AND NOT attisdropped)";

/// The outcome of a fold: deltas were folded.
pub(super) const FOLDED: &str = "folded";
/// The outcome of a fold: there was no delta.
pub(super) const IDLE: &str = "idle";
/// The outcome of a fold: another session holds the total or the deltas, or has just replaced the total.
pub(super) const SKIPPED: &str = "skipped";
/// The outcome of a fold: there are deltas and no total.
pub(super) const NO_TOTAL: &str = "no total";

/// The steps that add up and delete these deltas.
fn folded(deltas: &str, isolation: Isolation) -> String {
    let from = format!("{deltas} AND EXISTS (SELECT FROM total)");
    let sums = "SELECT pg_catalog.sum(value) AS sum, pg_catalog.count(*) AS rows";
    match isolation {
        Isolation::RepeatableRead => {
            format!("folded AS MATERIALIZED ({sums} {from}), deleted AS (DELETE {from})")
        }
        Isolation::ReadCommitted => {
            format!("deleted AS (DELETE {from} RETURNING value), folded AS ({sums} FROM deleted)")
        }
    }
}

/// An expression for the number of these deltas that should have been deleted.
fn found(queue: &Queue, deltas: &str, shape: &Shape, isolation: Isolation) -> String {
    let all = format!("(SELECT pg_catalog.count(*) {deltas})");
    match isolation {
        Isolation::RepeatableRead => "folded.rows".to_owned(),
        Isolation::ReadCommitted if queue.has_children => all,
        Isolation::ReadCommitted if shape.layout.is_bare => {
            format!(
                "CASE WHEN folded.rows OPERATOR(pg_catalog.=) 0 THEN {all} ELSE folded.rows END"
            )
        }
        Isolation::ReadCommitted => format!(
            "CASE WHEN folded.rows OPERATOR(pg_catalog.=) 0 OR {} THEN {all} ELSE folded.rows END",
            has_trigger(&queue.relation),
        ),
    }
}

/// An expression for the outcome of a fold that has locked the total. It undoes the fold if something does not agree.
fn outcome() -> String {
    format!(
        "CASE WHEN found OPERATOR(pg_catalog.<>) rows THEN {kept}::pg_catalog.text \
         WHEN rows OPERATOR(pg_catalog.=) 0 THEN '{SKIPPED}' \
         WHEN (after OPERATOR(pg_catalog.=) (before OPERATOR(pg_catalog.+) sum)) IS NOT TRUE \
         THEN {altered}::pg_catalog.text ELSE '{FOLDED}' END",
        kept = Undone::Kept.sql("of %s deltas %s could be deleted", "found, rows"),
        altered = Undone::Altered.sql(
            "the total is %s and not %s",
            "after, before OPERATOR(pg_catalog.+) sum"
        ),
    )
}
