//! The statements that all folders share: looks, sizes, vacuum. Pure text.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::functions::quote::identifier;
use crate::functions::relation::Relation;
use crate::functions::session::ProbeSql;

/// Characters that are percent-encoded in a comment.
const COMMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b' ')
    .remove(b'-')
    .remove(b'_')
    .remove(b'.');

/// What a fold ends with: a statement that returns how many seconds the fold has taken on the server.
///
/// It is a statement of its own, because a deletion whose rows nothing reads runs after everything else in its statement.
pub(in crate::functions) const TOOK: &str = "; SELECT pg_catalog.date_part('epoch', \
    pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) pg_catalog.statement_timestamp())";

/// Why a fold at one snapshot undoes itself before it has done anything.
pub(super) const NOT_PLAIN: &str = "the queue is not a plain table";

/// The transaction isolation of a fold: how it makes sure that it deletes exactly what it adds up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::functions) enum Isolation {
    /// It adds up and deletes the rows of one snapshot, and fails if another client has changed one of them since. The
    /// queue must be a plain table: a trigger or a rule could keep a row that was added up.
    RepeatableRead,
    /// It adds up what the deletion returns, which takes a third longer. A row that another client has changed counts as
    /// it is now.
    ReadCommitted,
}

/// A table whose rows wait to be folded.
#[derive(Clone, Debug)]
pub(in crate::functions) struct Queue {
    pub(in crate::functions) relation: Relation,
    /// The condition for a row that can be folded.
    pub(in crate::functions) delta: &'static str,
}

/// Consecutive blocks of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::functions) struct Piece {
    pub(in crate::functions) from: u32,
    pub(in crate::functions) blocks: u32,
}

// === impl Queue ===

impl Queue {
    /// Looks for something to fold, for a row with NULL if that is asked for, and for policies that hide rows if the
    /// session cannot be set to refuse that.
    ///
    /// Writes nothing, and is all that an idle cycle does. It is small on purpose: a fleet costs the memory that
    /// backends keep for its prepared statements.
    pub(super) fn probe(
        &self,
        worker: &str,
        with_null: Option<String>,
        for_row_security: bool,
    ) -> ProbeSql {
        let table = self.relation.sql();
        let mut scalars = vec![format!(
            "(SELECT ctid FROM {table} WHERE {} LIMIT 1)",
            self.delta
        )];
        scalars.extend(with_null);
        if for_row_security {
            scalars.push(format!(
                "(SELECT '(0,0)'::pg_catalog.tid WHERE pg_catalog.row_security_active({}))",
                self.relation.regclass()
            ));
        }
        ProbeSql {
            prober: in_comment(worker),
            scalars,
        }
    }

    /// Looks for something to fold in some blocks of a large table. Returns one row: where the first delta is, how
    /// many blocks the table has, and whether policies hide rows.
    pub(super) fn look(&self, worker: &str, piece: Piece) -> String {
        format!(
            "{} SELECT (SELECT ctid FROM {} WHERE {} LIMIT 1), {}, pg_catalog.row_security_active({})",
            comment(worker),
            self.relation.sql(),
            self.deltas(piece),
            self.relation.blocks(),
            self.relation.regclass(),
        )
    }

    /// The condition for a delta in these blocks.
    pub(in crate::functions) fn deltas(&self, Piece { from, blocks }: Piece) -> String {
        let end = from.saturating_add(blocks);
        format!(
            "ctid OPERATOR(pg_catalog.>=) '({from},0)'::pg_catalog.tid \
             AND ctid OPERATOR(pg_catalog.<) '({end},0)'::pg_catalog.tid AND {}",
            self.delta
        )
    }

    /// What a fold begins with.
    ///
    /// The lock comes before the snapshot: from then on, no other client can give the queue a trigger or a rule. It may
    /// still get a child, so the fold takes rows from the queue only.
    pub(in crate::functions) fn begin(&self, worker: &str, isolation: Isolation) -> String {
        let set = match isolation {
            Isolation::RepeatableRead => format!(
                "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; LOCK TABLE {} IN ROW EXCLUSIVE MODE; ",
                self.relation.sql()
            ),
            Isolation::ReadCommitted => String::new(),
        };
        format!("{} {set}", comment(worker))
    }

    /// A scalar that tells whether a fold with this isolation deletes exactly what it adds up.
    pub(in crate::functions) fn is_plain(&self, isolation: Isolation) -> String {
        match isolation {
            Isolation::RepeatableRead => format!(
                "(SELECT relkind OPERATOR(pg_catalog.=) 'r' AND NOT (relhasrules OR relhassubclass) \
                 FROM pg_catalog.pg_class WHERE oid OPERATOR(pg_catalog.=) {}::pg_catalog.oid) AND NOT {}",
                self.relation.regclass(),
                has_trigger(&self.relation),
            ),
            Isolation::ReadCommitted => "true".to_owned(),
        }
    }

    /// A scalar that lets the transaction commit without waiting until its commit is on disk.
    ///
    /// A fold moves values from rows to a total. If the server crashes first, both are as they were before, and whatever
    /// other clients commit after the fold is written to disk after it. An unlogged queue would be empty, so the commit of
    /// its fold is waited for.
    pub(in crate::functions) fn unflushed(&self) -> String {
        format!(
            "(SELECT pg_catalog.set_config('synchronous_commit', 'off', true) FROM pg_catalog.pg_class \
             WHERE oid OPERATOR(pg_catalog.=) {}::pg_catalog.oid AND relpersistence OPERATOR(pg_catalog.=) 'p')",
            self.relation.regclass()
        )
    }

    /// Gives the room of folded deltas back.
    pub(super) fn vacuum(&self, worker: &str) -> String {
        format!("{} VACUUM {}", comment(worker), self.relation.sql())
    }

    /// How many blocks the table has.
    pub(super) fn count_blocks(&self, worker: &str) -> String {
        format!("{} SELECT {}", comment(worker), self.relation.blocks())
    }
}

/// Lets a role see all rows of every table, whatever the policies are.
pub(in crate::functions) fn bypass_row_security(role: &str) -> String {
    format!("ALTER ROLE {} BYPASSRLS", identifier(role))
}

/// An expression that tells whether a table has a trigger, other than those of its constraints: they never keep a row.
pub(in crate::functions) fn has_trigger(relation: &Relation) -> String {
    format!(
        "EXISTS (SELECT FROM pg_catalog.pg_trigger WHERE NOT tgisinternal \
         AND tgrelid OPERATOR(pg_catalog.=) {}::pg_catalog.oid)",
        relation.regclass()
    )
}

/// An expression of type integer that undoes the statement because the queue is not plain. Its text depends on a row, or
/// the planner would evaluate it.
pub(in crate::functions) fn not_plain(step: &str) -> String {
    format!(
        "pg_catalog.format('bgworker: {NOT_PLAIN}%s', (SELECT '' FROM {step}))::pg_catalog.int4"
    )
}

/// A comment that names the worker whose statement it is.
pub(in crate::functions) fn comment(worker: &str) -> String {
    format!("/* bgworker: {} */", in_comment(worker))
}

/// The name, encoded so that it cannot end the comment it is in.
fn in_comment(worker: &str) -> String {
    utf8_percent_encode(worker, COMMENT).to_string()
}
