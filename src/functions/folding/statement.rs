//! The statements that all folders share: looks, sizes, vacuum. Pure text.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::layout::Layout;
use super::undone::Undone;
use crate::functions::relation::{self, Relation};
use crate::functions::session::ProbeSql;

/// Characters that are percent-encoded in a comment.
const COMMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b' ')
    .remove(b'-')
    .remove(b'_')
    .remove(b'.');

/// The setting, for the length of a transaction, with which a fold tells its last statement how many rows the session
/// must have deleted from the queue by then.
const DELETED: &str = "bgworker.deleted";

/// The transaction isolation of a fold: how it makes sure that it deletes exactly what it adds up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::functions) enum Isolation {
    /// It adds up and deletes the rows of one snapshot, and fails if another client has changed one of them since. The
    /// queue must have neither triggers nor children: a trigger could keep a row that was added up.
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
    /// Its children's rows wait as well.
    pub(in crate::functions) has_children: bool,
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
            self.blocks(),
            self.relation.regclass(),
        )
    }

    /// The words that read, or delete from, the queue with its children if it has any, and else the queue alone: a child
    /// that it gets meanwhile has to wait.
    pub(in crate::functions) fn from(&self) -> String {
        let only = if self.has_children { "" } else { "ONLY " };
        format!("FROM {only}{}", self.relation.sql())
    }

    /// The condition for a delta in these blocks, of a child as well.
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
    /// The locks come before the snapshot: from then on, no other client can give one of the tables another column, a
    /// trigger or a rule, and the snapshot shows those that are there. The queue may still get a child.
    pub(in crate::functions) fn begin(
        &self,
        worker: &str,
        isolation: Isolation,
        totals: Option<&Relation>,
    ) -> String {
        let set = match isolation {
            Isolation::RepeatableRead => {
                let totals =
                    totals.map_or_else(String::new, |totals| format!(", {}", totals.sql()));
                format!(
                    "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; LOCK TABLE {}{totals} IN ROW EXCLUSIVE MODE; ",
                    self.relation.sql()
                )
            }
            Isolation::ReadCommitted => String::new(),
        };
        format!("{} {set}", comment(worker))
    }

    /// What a fold ends with: a statement that returns how many seconds the fold has taken on the server, and undoes it if
    /// the server has deleted another number of rows than the fold has [expected](Self::expects).
    ///
    /// It is a statement of its own, because a deletion whose rows nothing reads runs after everything else in its
    /// statement, and a cascade after that. Triggers that are deferred run before it, since they can delete rows as well;
    /// tables that are bare have none.
    pub(in crate::functions) fn end(&self, tables: &[(&Relation, &Layout)]) -> String {
        let deferred = if tables.iter().all(|(_, layout)| layout.is_bare) {
            ""
        } else {
            "; SET CONSTRAINTS ALL IMMEDIATE"
        };
        let took = "; SELECT pg_catalog.date_part('epoch', \
                    pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) pg_catalog.statement_timestamp())";
        format!("{deferred}{took}, {}", self.miscounted())
    }

    /// An expression that undoes a fold if the server has deleted another number of rows than it has
    /// [expected](Self::expects).
    pub(in crate::functions) fn miscounted(&self) -> String {
        let surplus = format!(
            "{} OPERATOR(pg_catalog.-) pg_catalog.current_setting('{DELETED}')::pg_catalog.int8",
            self.deleted()
        );
        format!(
            "CASE WHEN pg_catalog.current_setting('track_counts')::pg_catalog.bool \
             AND ({surplus}) OPERATOR(pg_catalog.<>) 0 THEN {} END",
            Undone::Miscounted.sql(
                "the deltas added up and the rows deleted differ by %s",
                &surplus
            )
        )
    }

    /// An expression for the number of rows that the session has deleted from the queue, and from its children if it has any;
    /// only the difference of two counts.
    pub(in crate::functions) fn deleted(&self) -> String {
        let deleted = "pg_catalog.pg_stat_get_xact_tuples_deleted";
        if self.has_children {
            return self.in_tree(&format!("pg_catalog.sum({deleted}(oid))::pg_catalog.int8"));
        }
        format!("{deleted}({}::pg_catalog.oid)", self.relation.regclass())
    }

    /// An expression by which a fold says how many rows the session must have deleted when the fold ends.
    pub(in crate::functions) fn expects(&self, deleted: &str) -> String {
        format!("pg_catalog.set_config('{DELETED}', ({deleted})::pg_catalog.text, true)")
    }

    /// An expression for the number of blocks of the queue, or of its largest child.
    pub(in crate::functions) fn blocks(&self) -> String {
        if !self.has_children {
            return self.relation.blocks();
        }
        self.in_tree(
            "pg_catalog.max(pg_catalog.pg_relation_size(oid)) OPERATOR(pg_catalog./) \
             pg_catalog.current_setting('block_size')::pg_catalog.int8",
        )
    }

    /// A scalar of the OIDs of the queue and its children.
    fn in_tree(&self, scalar: &str) -> String {
        format!(
            "(WITH RECURSIVE tree AS (SELECT {}::pg_catalog.oid AS oid UNION SELECT i.inhrelid \
             FROM pg_catalog.pg_inherits AS i JOIN tree ON i.inhparent OPERATOR(pg_catalog.=) tree.oid) \
             SELECT {scalar} FROM tree)",
            self.relation.regclass()
        )
    }

    /// A scalar that says why a fold must undo itself before it has done anything, for [`undo`]; NULL if it need not. `holds` is the
    /// condition that its tables are what the worker knows of them.
    ///
    /// At one snapshot the deletion comes last, so a trigger on other totals would still find the deltas, and must not
    /// exist either.
    pub(in crate::functions) fn obstacle(
        isolation: Isolation,
        holds: &str,
        tables: &[(&Relation, &Layout)],
    ) -> String {
        let is_plain = match isolation {
            Isolation::RepeatableRead => tables
                .iter()
                .filter(|(_, layout)| !layout.is_bare)
                .map(|(table, _)| {
                    let not_plain =
                        Undone::NotPlain.mark() + "the queue or the totals have a trigger";
                    format!(" WHEN {} THEN '{not_plain}'", has_trigger(table))
                })
                .collect(),
            Isolation::ReadCommitted => String::new(),
        };
        let changed = Undone::Changed.mark() + "its tables are no longer what they were";
        format!("CASE WHEN NOT ({holds}) THEN '{changed}'{is_plain} END")
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

    /// How many blocks the table has, and whether this condition holds.
    pub(super) fn measure(&self, worker: &str, holds: &str) -> String {
        format!("{} SELECT {}, {holds}", comment(worker), self.blocks())
    }
}

/// Gives the room of folded deltas back.
pub(super) fn vacuum(worker: &str, table: &Relation) -> String {
    format!("{} VACUUM {}", comment(worker), table.sql())
}

/// How many blocks a table has.
pub(super) fn count_blocks(worker: &str, table: &Relation) -> String {
    format!("{} SELECT {}", comment(worker), table.blocks())
}

/// Lets a role see all rows of every table, whatever the policies are.
pub(in crate::functions) fn bypass_row_security(role: &str) -> String {
    format!("ALTER ROLE {} BYPASSRLS", relation::role(role))
}

/// An expression that tells whether a table has a trigger, other than those of constraints: they run after a row was
/// deleted, and cannot keep it.
///
/// A trigger that a partition has of its parent counts. Not every version tells it from a constraint's by `tgisinternal`.
pub(in crate::functions) fn has_trigger(relation: &Relation) -> String {
    format!(
        "EXISTS (SELECT FROM pg_catalog.pg_trigger WHERE tgrelid OPERATOR(pg_catalog.=) {}::pg_catalog.oid \
         AND tgconstraint OPERATOR(pg_catalog.=) 0::pg_catalog.oid)",
        relation.regclass()
    )
}

/// An expression of type integer that undoes the statement for the obstacle that a step has found.
pub(in crate::functions) fn undo(step: &str) -> String {
    format!("pg_catalog.format('bgworker%s', (SELECT obstacle FROM {step}))::pg_catalog.int4")
}

/// A comment that names the worker whose statement it is.
pub(in crate::functions) fn comment(worker: &str) -> String {
    format!("/* bgworker: {} */", in_comment(worker))
}

/// The name, encoded so that it cannot end the comment it is in.
fn in_comment(worker: &str) -> String {
    utf8_percent_encode(worker, COMMENT).to_string()
}
