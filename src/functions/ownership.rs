//! Whose a table is that the worker did not make just now, and whether a statement on it could run another role's code.
//!
//! A trigger, a default or a policy runs with the rights of the role whose statement it is. So a table is looked at
//! before it is used: only roles that are trusted may own it or put triggers on it, and it has nothing that runs code.
//! SQL that looks, and pure text; nothing here runs a statement.

use std::fmt;

use thiserror::Error;
use tokio_postgres::Row;

use super::quote::identifier;
use super::relation::{self, Relation, shown};

/// The role that the statements run as, whether it is a superuser, and the owner of the database. A superuser's session that
/// runs as another role is the superuser's: the code of that role could take its rights back.
const US: &str = "(SELECT m.oid, m.rolsuper, d.datdba FROM pg_catalog.pg_roles AS m, pg_catalog.pg_database AS d \
    WHERE m.rolname OPERATOR(pg_catalog.=) CASE WHEN (SELECT s.rolsuper FROM pg_catalog.pg_roles AS s \
    WHERE s.rolname OPERATOR(pg_catalog.=) session_user) THEN session_user ELSE current_user END \
    AND d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())";

/// Whether a role `r` is trusted whatever the settings are: the role itself, a superuser, and the owner of the database,
/// unless the role is a superuser and so has more rights than that owner.
const IS_TRUSTED: &str = "(r.rolsuper OR r.oid OPERATOR(pg_catalog.=) us.oid OR NOT us.rolsuper \
    AND (r.oid OPERATOR(pg_catalog.=) us.datdba OR r.rolname OPERATOR(pg_catalog.=) 'pg_database_owner'))";

/// A trigger that runs code. Those of foreign keys are the server's own; the clone of a trigger on a partition counts as
/// internal before PostgreSQL 15, so the function decides too. What initdb has made has an OID below 16384.
pub(super) const RUNS_CODE: &str = "(NOT t.tgisinternal \
    OR t.tgfoid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid)";

/// The OIDs of `now`, `statement_timestamp`, `clock_timestamp`, `nextval` and `gen_random_uuid`: they run no code.
const HARMLESS: &str = "'{1299,2648,2649,1574,3432}'::pg_catalog.oid[]";

/// The columns that [`Facts`] are read from, for a relation `c` in a schema `n`; either may be NULL.
pub(super) fn columns() -> String {
    let (owner, schema_owner) = (doubted("c.relowner"), doubted("n.nspowner"));
    format!(
        "{owner} AS doubted_owner, {schema_owner} AS doubted_schema_owner, \
         ARRAY(SELECT coalesce(r.rolname::pg_catalog.text, '') FROM {US} AS us, pg_catalog.aclexplode(c.relacl) AS a \
         LEFT JOIN pg_catalog.pg_roles AS r ON r.oid OPERATOR(pg_catalog.=) a.grantee \
         WHERE a.privilege_type OPERATOR(pg_catalog.=) 'TRIGGER' AND a.grantee OPERATOR(pg_catalog.<>) c.relowner \
         AND NOT coalesce({IS_TRUSTED}, false) ORDER BY 1) AS trigger_makers, {}",
        columns_of_code()
    )
}

/// A scalar: the name of the role with this OID, unless it is trusted whatever the settings are.
pub(super) fn doubted(role: &str) -> String {
    format!(
        "(SELECT r.rolname::pg_catalog.text FROM pg_catalog.pg_roles AS r, {US} AS us \
         WHERE r.oid OPERATOR(pg_catalog.=) {role} AND NOT {IS_TRUSTED})"
    )
}

/// The columns about what runs code. An immutable function of the server's own is harmless; others may run SQL that they
/// are given as text. Indexes call only immutable functions.
fn columns_of_code() -> String {
    let calls = |class: &str, object: &str| {
        format!(
            "EXISTS (SELECT FROM pg_catalog.pg_depend AS e \
             WHERE e.classid OPERATOR(pg_catalog.=) 'pg_catalog.{class}'::pg_catalog.regclass::pg_catalog.oid \
             AND e.objid OPERATOR(pg_catalog.=) {object} AND e.refobjid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid \
             AND e.refclassid OPERATOR(pg_catalog.=) ANY (ARRAY['pg_catalog.pg_proc'::pg_catalog.regclass::pg_catalog.oid, \
             'pg_catalog.pg_operator'::pg_catalog.regclass::pg_catalog.oid, \
             'pg_catalog.pg_type'::pg_catalog.regclass::pg_catalog.oid]))"
        )
    };
    let default_calls = calls("pg_attrdef", "d.oid");
    let index_calls = calls("pg_class", "x.indexrelid");
    format!(
        "ARRAY(SELECT t.tgname::pg_catalog.text FROM pg_catalog.pg_trigger AS t \
         WHERE t.tgrelid OPERATOR(pg_catalog.=) c.oid AND {RUNS_CODE} ORDER BY 1) AS triggers, \
         ARRAY(SELECT w.rulename::pg_catalog.text FROM pg_catalog.pg_rewrite AS w \
         WHERE w.ev_class OPERATOR(pg_catalog.=) c.oid ORDER BY 1) AS rules, \
         c.relrowsecurity AND pg_catalog.row_security_active(c.oid) AS has_policies, \
         c.relispartition OR EXISTS (SELECT FROM pg_catalog.pg_inherits AS i \
         WHERE i.inhparent OPERATOR(pg_catalog.=) c.oid OR i.inhrelid OPERATOR(pg_catalog.=) c.oid) AS has_family, \
         ARRAY(SELECT a.attname::pg_catalog.text FROM pg_catalog.pg_attrdef AS d JOIN pg_catalog.pg_attribute AS a \
         ON a.attrelid OPERATOR(pg_catalog.=) d.adrelid AND a.attnum OPERATOR(pg_catalog.=) d.adnum \
         WHERE d.adrelid OPERATOR(pg_catalog.=) c.oid AND a.attgenerated OPERATOR(pg_catalog.=) '' \
         AND ({default_calls} OR EXISTS (SELECT FROM pg_catalog.regexp_matches(d.adbin::pg_catalog.text, ':funcid ([0-9]+)', 'g') \
         AS f (id) JOIN pg_catalog.pg_proc AS p ON p.oid OPERATOR(pg_catalog.=) f.id[1]::pg_catalog.oid \
         WHERE p.provolatile OPERATOR(pg_catalog.<>) 'i' AND p.oid OPERATOR(pg_catalog.<>) ALL ({HARMLESS}))) ORDER BY 1) AS defaults, \
         ARRAY(SELECT a.attname::pg_catalog.text FROM pg_catalog.pg_attribute AS a \
         WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid AND a.attgenerated OPERATOR(pg_catalog.<>) '' ORDER BY 1) AS generated, \
         ARRAY(SELECT o.conname::pg_catalog.text FROM pg_catalog.pg_constraint AS o \
         WHERE o.conrelid OPERATOR(pg_catalog.=) c.oid \
         AND (o.contype OPERATOR(pg_catalog.=) 'c' OR o.contype OPERATOR(pg_catalog.=) 'x') ORDER BY 1) AS checks, \
         ARRAY(SELECT i.relname::pg_catalog.text FROM pg_catalog.pg_index AS x \
         JOIN pg_catalog.pg_class AS i ON i.oid OPERATOR(pg_catalog.=) x.indexrelid \
         WHERE x.indrelid OPERATOR(pg_catalog.=) c.oid AND {index_calls} \
         ORDER BY 1) AS indexes, \
         ARRAY(SELECT a.attname::pg_catalog.text FROM pg_catalog.pg_attribute AS a \
         WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped \
         AND a.atttypid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid ORDER BY a.attnum) AS made_types"
    )
}

/// What decides whether a table is trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// Its owner, unless the worker trusts that role in any case.
    pub(super) owner: Option<String>,
    /// The same for the owner of its schema, who could put another table in its place.
    pub(super) schema_owner: Option<String>,
    /// Other roles that may put triggers on it; `""` is every role.
    pub(super) trigger_makers: Vec<String>,
    pub(super) triggers: Vec<String>,
    pub(super) rules: Vec<String>,
    /// Row security applies to the role.
    pub(super) has_policies: bool,
    /// It has parents or children.
    pub(super) has_family: bool,
    /// Columns with a default that calls more than harmless functions.
    pub(super) defaults: Vec<String>,
    pub(super) generated: Vec<String>,
    /// Constraints with an expression or an operator.
    pub(super) checks: Vec<String>,
    /// Indexes that call what others have made.
    pub(super) indexes: Vec<String>,
    /// Columns of types that initdb has not made.
    pub(super) made_types: Vec<String>,
}

/// What is not used, because a statement on it could run another role's code: all that is wrong, each with the statement
/// that mends it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "what other roles have made is not used if a statement on it could run their code with the rights of {}: {}",
    shown(.role), list(.doubts)
)]
pub(super) struct UntrustedTables {
    role: String,
    doubts: Vec<Doubt>,
}

/// What is wrong with a table, or a schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Doubt {
    what: String,
    /// The statement that mends it.
    mend: Option<String>,
}

// === impl Facts ===

impl Facts {
    /// Reads what a query with [`columns`] has found.
    pub(super) fn of(row: &Row) -> Self {
        let is = |column: &str| row.get::<_, Option<bool>>(column) == Some(true);
        Self {
            owner: row.get("doubted_owner"),
            schema_owner: row.get("doubted_schema_owner"),
            trigger_makers: row.get("trigger_makers"),
            triggers: row.get("triggers"),
            rules: row.get("rules"),
            has_policies: is("has_policies"),
            has_family: is("has_family"),
            defaults: row.get("defaults"),
            generated: row.get("generated"),
            checks: row.get("checks"),
            indexes: row.get("indexes"),
            made_types: row.get("made_types"),
        }
    }

    /// What keeps a role from using a table; `trusted` are the owners that the settings trust.
    pub(super) fn doubts(&self, relation: &Relation, role: &str, trusted: &[String]) -> Vec<Doubt> {
        let table = relation.sql();
        let is_doubted = |name: &&String| !trusted.contains(name);
        let mut doubts = Vec::new();
        let mut add = |what: String, mend: Option<String>| {
            let what = format!("{relation} {what}");
            doubts.push(Doubt { what, mend });
        };
        if let Some(owner) = self.owner.as_ref().filter(is_doubted) {
            let give = format!("ALTER TABLE {table} OWNER TO {}", relation::role(role));
            let mend = or_trust(&give, owner);
            add(format!("belongs to {}", shown(owner)), Some(mend));
        }
        for maker in self.trigger_makers.iter().filter(is_doubted) {
            let (from, what) = match &**maker {
                "" => ("PUBLIC".to_owned(), "each role".to_owned()),
                name => (relation::role(name), shown(name)),
            };
            let revoke = format!("REVOKE TRIGGER ON {table} FROM {from}");
            add(format!("may get triggers from {what}"), Some(revoke));
        }
        for (names, what, mend) in self.code() {
            for name in names {
                let mend = mend
                    .replace("SCHEMA", &identifier(&relation.schema))
                    .replace("RELATION", &table)
                    .replace("NAME", &identifier(name));
                add(what.replace("NAME", &shown(name)), Some(mend));
            }
        }
        if self.has_policies {
            let disable = format!("ALTER TABLE {table} DISABLE ROW LEVEL SECURITY");
            add("has row security".to_owned(), Some(disable));
        }
        if self.has_family {
            add("has a parent or children".to_owned(), None);
        }
        for name in &self.made_types {
            let what = format!(
                "has a column {} of a type that a role has made",
                shown(name)
            );
            add(what, None);
        }
        doubts
    }

    /// What could run code, by name: what is said of it, and the statement that takes it away.
    fn code(&self) -> [(&[String], &'static str, &'static str); 6] {
        [
            (
                &self.triggers,
                "has the trigger NAME",
                "DROP TRIGGER NAME ON RELATION",
            ),
            (
                &self.rules,
                "has the rule NAME",
                "DROP RULE NAME ON RELATION",
            ),
            (
                &self.defaults,
                "has a column NAME whose default calls a function",
                "ALTER TABLE RELATION ALTER COLUMN NAME DROP DEFAULT",
            ),
            (
                &self.generated,
                "has a generated column NAME",
                "ALTER TABLE RELATION ALTER COLUMN NAME DROP EXPRESSION",
            ),
            (
                &self.checks,
                "has the constraint NAME, which evaluates an expression",
                "ALTER TABLE RELATION DROP CONSTRAINT NAME",
            ),
            (
                &self.indexes,
                "has the index NAME, which calls another role's function",
                "DROP INDEX SCHEMA.NAME",
            ),
        ]
    }

    /// What keeps a role from using tables in a schema.
    pub(super) fn doubt_of_schema(
        &self,
        schema: &str,
        role: &str,
        trusted: &[String],
    ) -> Option<Doubt> {
        let owner = self.schema_owner.as_ref();
        let owner = owner.filter(|owner| !trusted.contains(owner))?;
        let (sql, role) = (identifier(schema), relation::role(role));
        let give = format!("ALTER SCHEMA {sql} OWNER TO {role}");
        Some(Doubt {
            what: format!("the schema {} belongs to {}", shown(schema), shown(owner)),
            mend: Some(or_trust(&give, owner)),
        })
    }
}

// === impl UntrustedTables ===

impl UntrustedTables {
    /// Refuses what is in doubt.
    pub(super) fn refuse(role: &str, doubts: Vec<Doubt>) -> Result<(), Self> {
        if doubts.is_empty() {
            return Ok(());
        }
        Err(Self {
            role: role.to_owned(),
            doubts,
        })
    }
}

/// A statement that gives something to another owner, or how to trust its owner.
fn or_trust(give: &str, owner: &str) -> String {
    format!(
        "{give}; or set trusted_owners = [{owner:?}] in [database], if that role may have these rights"
    )
}

fn list(doubts: &[Doubt]) -> String {
    let doubts: Vec<_> = doubts.iter().map(ToString::to_string).collect();
    doubts.join("; ")
}

// === impl Doubt ===

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match &self.mend {
            Some(mend) => write!(f, " ({mend})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(facts: &Facts) -> String {
        let relation = Relation {
            schema: "s".to_owned(),
            name: "t".to_owned(),
        };
        let doubts = facts.doubts(&relation, "me", &["friend".to_owned()]);
        let judged = UntrustedTables::refuse("me", doubts);
        judged.map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once_each_with_what_mends_it() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let facts = Facts {
            owner: Some("Other".to_owned()),
            trigger_makers: names(&["", "friend", "x"]),
            triggers: names(&["a", "B"]),
            checks: names(&["c"]),
            indexes: names(&["i"]),
            ..Facts::default()
        };
        assert_eq!(
            judged(&facts),
            "what other roles have made is not used if a statement on it could run their code with the rights of me: \
             s.t belongs to \"Other\" (ALTER TABLE \"s\".\"t\" OWNER TO me; or set trusted_owners = [\"Other\"] \
             in [database], if that role may have these rights); \
             s.t may get triggers from each role (REVOKE TRIGGER ON \"s\".\"t\" FROM PUBLIC); \
             s.t may get triggers from x (REVOKE TRIGGER ON \"s\".\"t\" FROM x); \
             s.t has the trigger a (DROP TRIGGER \"a\" ON \"s\".\"t\"); \
             s.t has the trigger \"B\" (DROP TRIGGER \"B\" ON \"s\".\"t\"); \
             s.t has the constraint c, which evaluates an expression (ALTER TABLE \"s\".\"t\" DROP CONSTRAINT \"c\"); \
             s.t has the index i, which calls another role's function (DROP INDEX \"s\".\"i\")"
        );
    }

    #[test]
    fn an_owner_that_the_settings_trust_is_trusted_but_triggers_are_not() {
        let mut facts = Facts {
            owner: Some("friend".to_owned()),
            trigger_makers: vec!["friend".to_owned()],
            ..Facts::default()
        };
        assert_eq!(judged(&facts), "");
        facts.triggers.push("a".to_owned());
        assert!(judged(&facts).contains("the trigger a"));
    }
}
