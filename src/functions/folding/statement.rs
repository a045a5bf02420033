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

/// An expression for how many seconds a statement has taken on the server.
pub(in crate::functions) const TOOK: &str = "pg_catalog.date_part('epoch', \
    pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) pg_catalog.statement_timestamp())";

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

/// A comment that names the worker whose statement it is.
pub(in crate::functions) fn comment(worker: &str) -> String {
    format!("/* bgworker: {} */", in_comment(worker))
}

/// The name, encoded so that it cannot end the comment it is in.
fn in_comment(worker: &str) -> String {
    utf8_percent_encode(worker, COMMENT).to_string()
}
