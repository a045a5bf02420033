//! The SQL of the built-in worker: names in, statements out.
//!
//! Pure text; nothing here talks to a server. The names of tables are quoted by [`Table`], those of workers by
//! the comment that they stand in.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::table::{Table, quoted};

/// What may stand in a comment as it is.
const COMMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b' ')
    .remove(b'-')
    .remove(b'_')
    .remove(b'.');

// === impl Table ===

impl Table {
    /// Looks for something to fold.
    ///
    /// Writes nothing, and is all that an idle cycle does. It is small on purpose: what a backend keeps
    /// of a prepared statement is the memory of a fleet.
    ///
    /// `may_be_null` says whether to look for rows with NULL at all.
    pub(super) fn probe(&self, worker: &str, may_be_null: bool) -> ProbeSql {
        let table = self.sql();
        let mut scalars = vec![format!(
            "(SELECT ctid FROM {table} WHERE type = 'delta' AND value IS NOT NULL LIMIT 1)"
        )];
        if may_be_null {
            scalars.push(format!(
                "(SELECT ctid FROM {table} WHERE type IN ('delta', 'total') AND value IS NULL LIMIT 1)"
            ));
        }
        ProbeSql {
            asker: in_comment(worker),
            scalars,
        }
    }

    /// Folds the deltas of some blocks into the total, and says what came of it: one row of the new
    /// total, the number of deltas folded, the outcome, and whether the table has blocks beyond.
    ///
    /// One statement, so one transaction, and exact under READ COMMITTED whatever others do:
    ///
    /// - The total is locked first, and only if there is a delta. If it is gone, or somebody holds
    ///   it, nothing is deleted: the deletion is gated on the lock.
    /// - Without a delta nothing is written, not even a row lock.
    /// - The update finds the total by its type, not by the place where it was locked: a total
    ///   that was updated in between has moved.
    /// - If deltas were deleted and the total was not updated, which a trigger can bring about, the
    ///   division by zero at the end undoes it all.
    /// - Rows with NULL, which our own tables cannot have, are left alone.
    ///
    /// The blocks stand in its text, so that it is planned for the table as it is now: a plan that was
    /// made for a small table would read the whole of a big one for each piece.
    pub(super) fn fold(&self, worker: &str, Piece { from, blocks }: Piece) -> String {
        let table = self.sql();
        let worker = comment(worker);
        let end = from.saturating_add(blocks);
        let deltas = format!(
            "ctid >= '({from},0)'::tid AND ctid < '({end},0)'::tid \
             AND type = 'delta' AND value IS NOT NULL"
        );
        format!(
            "{worker} WITH pending AS MATERIALIZED (\
             SELECT EXISTS (SELECT FROM {table} WHERE {deltas}) AS found\
             ), total AS MATERIALIZED (\
             SELECT ctid FROM {table} WHERE type = 'total' AND value IS NOT NULL \
             AND (SELECT found FROM pending) FOR UPDATE SKIP LOCKED\
             ), deleted AS (\
             DELETE FROM {table} WHERE {deltas} \
             AND EXISTS (SELECT FROM total) RETURNING value\
             ), folded AS (\
             SELECT sum(value) AS sum, count(*) AS rows FROM deleted\
             ), updated AS (\
             UPDATE {table} AS t SET value = t.value + folded.sum FROM folded \
             WHERE t.type = 'total' AND folded.rows > 0 RETURNING t.value::bigint, folded.rows\
             ) SELECT (SELECT value FROM updated), (SELECT rows FROM updated), CASE \
             WHEN EXISTS (SELECT FROM updated) THEN '{FOLDED}' \
             WHEN (SELECT rows FROM folded) > 0 THEN (1 / (SELECT count(*) FROM updated))::text \
             WHEN NOT (SELECT found FROM pending) THEN '{IDLE}' \
             WHEN EXISTS (SELECT FROM {table} WHERE type = 'total' AND value IS NOT NULL) \
             THEN '{SKIPPED}' ELSE '{NO_TOTAL}' END, \
             pg_relation_size({literal}::regclass) / current_setting('block_size')::bigint > {end}",
            literal = literal(&table),
        )
    }

    /// Gives the room of folded deltas back.
    pub(super) fn vacuum(&self, worker: &str) -> String {
        format!("{} VACUUM {}", comment(worker), self.sql())
    }

    /// How many blocks the table has.
    pub(super) fn count_blocks(&self, worker: &str) -> String {
        format!(
            "{} SELECT pg_relation_size({}::regclass) / current_setting('block_size')::bigint",
            comment(worker),
            literal(&self.sql()),
        )
    }

    /// Begins a transaction that has the table for itself, if it gets it soon.
    ///
    /// What others have committed before is seen by the statements that follow: each has a snapshot of
    /// its own.
    pub(super) fn lock(&self, worker: &str) -> String {
        format!(
            "{} BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '100ms'; \
             SET LOCAL idle_in_transaction_session_timeout = '5s'; \
             LOCK TABLE {} IN ACCESS EXCLUSIVE MODE",
            comment(worker),
            self.sql(),
        )
    }

    /// Sums up a table that is locked: one row of whether it is a plain table of our two columns, the
    /// number of its rows, of deltas and of totals that are not NULL, and the sum of all values.
    ///
    /// A table is not plain if something hangs on its deletions or hides rows of it: triggers, foreign
    /// keys, rules, children, row security.
    pub(super) fn sum_up(&self, worker: &str) -> String {
        let table = self.sql();
        let literal = literal(&table);
        format!(
            "{worker} SELECT (SELECT relkind = 'r' AND NOT (relhastriggers OR relhasrules OR relhassubclass \
             OR relispartition OR row_security_active(oid)) AND (SELECT count(*) FROM pg_attribute \
             WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) = 2 \
             FROM pg_class AS c WHERE oid = {literal}::regclass), count(*), \
             count(*) FILTER (WHERE type = 'delta' AND value IS NOT NULL), \
             (SELECT count(*) FROM {table} WHERE type = 'total' AND value IS NOT NULL), \
             sum(value)::bigint FROM {table}",
            worker = comment(worker),
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
        format!("CREATE SCHEMA IF NOT EXISTS {}", quoted(self.schema()))
    }

    /// Makes the table and its index: both or neither, when sent as one message.
    pub(super) fn create_table(&self) -> String {
        format!(
            "CREATE TABLE {table} (type text NOT NULL CHECK (type IN ('total', 'delta')), \
             value bigint NOT NULL) WITH (fillfactor = 90); {index}",
            table = self.sql(),
            index = self.create_index(),
        )
    }

    pub(super) fn add_column(&self, column: &str, kind: &str) -> String {
        format!("ALTER TABLE {} ADD COLUMN {column} {kind}", self.sql())
    }

    pub(super) fn alter_column(&self, column: &str, kind: &str) -> String {
        format!(
            "ALTER TABLE {} ALTER COLUMN {column} TYPE {kind} USING {column}::{kind}",
            self.sql()
        )
    }

    pub(super) fn create_index(&self) -> String {
        format!(
            "CREATE UNIQUE INDEX {} ON {} (type) WHERE type = 'total'",
            self.index(),
            self.sql(),
        )
    }

    /// Makes one total of several, then the index that keeps it the only one.
    pub(super) fn merge_totals(&self) -> String {
        format!(
            "BEGIN; LOCK TABLE {table}; WITH totals AS (DELETE FROM {table} WHERE type = 'total' \
             RETURNING value) INSERT INTO {table} (type, value) SELECT 'total', sum(value) FROM totals; {index}; \
             COMMIT",
            table = self.sql(),
            index = self.create_index(),
        )
    }

    pub(super) fn count_totals(&self) -> String {
        let table = self.sql();
        format!("SELECT count(*) FROM (SELECT FROM {table} WHERE type = 'total' LIMIT 2) AS totals")
    }

    pub(super) fn insert_initial_total(&self) -> String {
        format!(
            "INSERT INTO {} (type, value) VALUES ('total', $1::bigint) ON CONFLICT DO NOTHING",
            self.sql()
        )
    }
}

/// What an idle cycle wants to know: where there is some delta; and, if need be, where there is a row with NULL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProbeSql {
    /// Whose it is, as a comment has it.
    pub(super) asker: String,
    /// Scalar subqueries of type `tid`.
    pub(super) scalars: Vec<String>,
}

/// Some blocks of a table, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) from: u32,
    pub(super) blocks: u32,
}

/// The SQLSTATE with which a fold undoes itself.
pub(super) const UNDONE: &str = "22012";
/// The outcome of a fold: deltas were folded.
pub(super) const FOLDED: &str = "folded";
/// The outcome of a fold: there was no delta.
pub(super) const IDLE: &str = "idle";
/// The outcome of a fold: somebody else holds the total, or has just replaced it.
pub(super) const SKIPPED: &str = "skipped";
/// The outcome of a fold: there are deltas and no total.
pub(super) const NO_TOTAL: &str = "no total";

/// Says whose statement it is.
fn comment(worker: &str) -> String {
    format!("/* bgworker: {} */", in_comment(worker))
}

/// A name that cannot end the comment it is in.
fn in_comment(worker: &str) -> String {
    utf8_percent_encode(worker, COMMENT).to_string()
}

/// A text, as a statement has it whatever `standard_conforming_strings` is.
fn literal(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('\'', "''");
    format!("E'{text}'")
}
