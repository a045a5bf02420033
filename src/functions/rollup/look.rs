//! Looks up the tables and the view of a roll-up in the database, with one query for each kind of object.

use tokio_postgres::types::Type;

use super::objects;
use super::settings::Settings;
use super::tables::{Deferrable, Table, TableColumn, Tables};
use crate::database::{DatabaseError, ErrorClass, Parameters};
use crate::functions::folding::{COLUMN_VERSIONS, HAS_CHILDREN, IS_BARE};
use crate::functions::ownership;
use crate::functions::relation::Relation;
use crate::functions::session::Session;

/// The wanted relations: names, each with its place.
const WANTED: &str = "(VALUES (0, $1::pg_catalog.text, $2::pg_catalog.text), (1, $3, $4), (2, $5, $6), (3, $7, $8)) \
    AS wanted (place, schema, name) \
    LEFT JOIN pg_catalog.pg_namespace AS n ON n.nspname OPERATOR(pg_catalog.=) wanted.schema \
    LEFT JOIN pg_catalog.pg_class AS c ON c.relnamespace OPERATOR(pg_catalog.=) n.oid \
    AND c.relname OPERATOR(pg_catalog.=) wanted.name";

/// One row for each relation that is wanted.
///
/// A view that a worker has made is known by a name in its query. It is looked for in the server's own form of the query,
/// since to show it in SQL, the server itself uses operators that it looks up in the search path.
const RELATIONS: &str = "\
    SELECT place, current_user::pg_catalog.text AS role, c.relkind::pg_catalog.text AS kind, \
    c.oid AS oid, pg_catalog.row_security_active(c.oid) AS row_security, \
    (SELECT rulename::pg_catalog.text FROM pg_catalog.pg_rewrite WHERE ev_class OPERATOR(pg_catalog.=) c.oid \
    AND ev_type OPERATOR(pg_catalog.<>) '1' ORDER BY rulename LIMIT 1) AS rule, \
    CASE WHEN c.relhassubclass AND c.relkind OPERATOR(pg_catalog.=) 'r' THEN (SELECT pg_catalog.string_agg( \
    pg_catalog.format('ALTER TABLE %I.%I NO INHERIT %I.%I', hn.nspname, h.relname, n.nspname, c.relname), '; ' ORDER BY h.oid) \
    FROM pg_catalog.pg_inherits AS i JOIN pg_catalog.pg_class AS h ON h.oid OPERATOR(pg_catalog.=) i.inhrelid \
    JOIN pg_catalog.pg_namespace AS hn ON hn.oid OPERATOR(pg_catalog.=) h.relnamespace \
    WHERE i.inhparent OPERATOR(pg_catalog.=) c.oid) END AS disinherit, \
    n.oid IS NOT NULL AS has_schema, \
    c.relispartition OR c.reloftype OPERATOR(pg_catalog.<>) 0::pg_catalog.oid AS is_bound, \
    pg_catalog.has_schema_privilege(n.oid, 'USAGE') AS may_use_schema, \
    pg_catalog.has_schema_privilege(n.oid, 'CREATE') AS may_create, \
    pg_catalog.has_table_privilege(c.oid, 'SELECT') AS may_select, \
    pg_catalog.has_table_privilege(c.oid, 'INSERT') AS may_insert, \
    pg_catalog.has_table_privilege(c.oid, 'UPDATE') AS may_update, \
    pg_catalog.has_table_privilege(c.oid, 'DELETE') AS may_delete, \
    ARRAY(SELECT part FROM pg_catalog.pg_rewrite AS w \
    JOIN pg_catalog.pg_depend AS d ON d.objid OPERATOR(pg_catalog.=) w.oid \
    AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid \
    JOIN pg_catalog.pg_class AS r ON r.oid OPERATOR(pg_catalog.=) d.refobjid \
    JOIN pg_catalog.pg_namespace AS rn ON rn.oid OPERATOR(pg_catalog.=) r.relnamespace \
    LEFT JOIN pg_catalog.pg_attribute AS ra ON ra.attrelid OPERATOR(pg_catalog.=) d.refobjid \
    AND d.refobjsubid OPERATOR(pg_catalog.>) 0 AND ra.attnum OPERATOR(pg_catalog.=) d.refobjsubid \
    CROSS JOIN LATERAL pg_catalog.unnest(ARRAY[rn.nspname::pg_catalog.text, r.relname::pg_catalog.text, \
    coalesce(ra.attname::pg_catalog.text, '')]) AS part \
    WHERE w.ev_class OPERATOR(pg_catalog.=) c.oid AND r.oid OPERATOR(pg_catalog.<>) c.oid) AS reads, \
    pg_catalog.pg_has_role(c.relowner, 'USAGE') AS is_owned, \
    (SELECT CASE WHEN pg_catalog.strpos(tree, ':aliasname one ') OPERATOR(pg_catalog.>) 0 \
    AND pg_catalog.strpos(tree, ':aliasname rows ') OPERATOR(pg_catalog.>) 0 THEN 'rows' \
    ELSE pg_catalog.substring(tree, ':aliasname (rows_[0-9a-f]{8}) ') END \
    FROM (SELECT ev_action::pg_catalog.text AS tree FROM pg_catalog.pg_rewrite \
    WHERE ev_class OPERATOR(pg_catalog.=) c.oid AND ev_type OPERATOR(pg_catalog.=) '1') AS view) AS rows";

/// One row for each column of these relations.
///
/// The values of a key are told apart by the default btree operator class of its type, or of a type to which it is
/// binary-coercible, such as text for varchar.
const COLUMNS: &str = "\
    SELECT place, a.attname::pg_catalog.text AS name, pg_catalog.format_type(a.atttypid, a.atttypmod) AS shown, \
    CASE WHEN tn.nspname OPERATOR(pg_catalog.=) 'pg_catalog' THEN y.typname::pg_catalog.text END AS kind, \
    CASE WHEN y.typname OPERATOR(pg_catalog.=) 'numeric' AND a.atttypmod OPERATOR(pg_catalog.>=) 4 \
    THEN (((a.atttypmod OPERATOR(pg_catalog.-) 4) OPERATOR(pg_catalog.&) 2047) \
    OPERATOR(pg_catalog.#) 1024) OPERATOR(pg_catalog.-) 1024 END AS scale, \
    CASE WHEN a.attcollation OPERATOR(pg_catalog.<>) y.typcollation \
    THEN pg_catalog.format('%I.%I', ln.nspname, l.collname) END AS collation, \
    coalesce(l.collisdeterministic, true) AS is_deterministic, \
    a.attnotnull AS not_null, a.attgenerated OPERATOR(pg_catalog.<>) '' AS is_generated, \
    a.attgenerated OPERATOR(pg_catalog.=) 'v' AS is_virtual, \
    a.attidentity OPERATOR(pg_catalog.=) 'a' AS is_identity, \
    EXISTS (SELECT FROM pg_catalog.pg_partitioned_table AS p WHERE p.partrelid OPERATOR(pg_catalog.=) c.oid \
    AND a.attnum OPERATOR(pg_catalog.=) ANY (p.partattrs::pg_catalog.int2[])) AS is_in_partition_key, \
    a.atthasdef OR a.attidentity OPERATOR(pg_catalog.<>) '' AS has_default, \
    b.typtype OPERATOR(pg_catalog.=) 'e' OR bn.nspname OPERATOR(pg_catalog.=) 'pg_catalog' \
    AND b.typtype OPERATOR(pg_catalog.=) 'b' AND b.typcategory OPERATOR(pg_catalog.<>) 'A' \
    AND EXISTS (SELECT FROM pg_catalog.pg_opclass AS o JOIN pg_catalog.pg_am AS m ON m.oid OPERATOR(pg_catalog.=) o.opcmethod \
    WHERE m.amname OPERATOR(pg_catalog.=) 'btree' AND o.opcdefault AND (o.opcintype OPERATOR(pg_catalog.=) b.oid \
    OR EXISTS (SELECT FROM pg_catalog.pg_cast AS t WHERE t.castsource OPERATOR(pg_catalog.=) b.oid \
    AND t.casttarget OPERATOR(pg_catalog.=) o.opcintype AND t.castmethod OPERATOR(pg_catalog.=) 'b' \
    AND t.castcontext OPERATOR(pg_catalog.=) 'i'))) AS can_be_key";

/// The rest of that query, after the wanted relations.
const COLUMNS_OF: &str = " \
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid OPERATOR(pg_catalog.=) c.oid \
    AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped \
    JOIN pg_catalog.pg_type AS y ON y.oid OPERATOR(pg_catalog.=) a.atttypid \
    JOIN pg_catalog.pg_namespace AS tn ON tn.oid OPERATOR(pg_catalog.=) y.typnamespace \
    JOIN pg_catalog.pg_type AS b ON b.oid OPERATOR(pg_catalog.=) \
    CASE WHEN y.typtype OPERATOR(pg_catalog.=) 'd' THEN y.typbasetype ELSE y.oid END \
    JOIN pg_catalog.pg_namespace AS bn ON bn.oid OPERATOR(pg_catalog.=) b.typnamespace \
    LEFT JOIN pg_catalog.pg_collation AS l ON l.oid OPERATOR(pg_catalog.=) a.attcollation \
    LEFT JOIN pg_catalog.pg_namespace AS ln ON ln.oid OPERATOR(pg_catalog.=) l.collnamespace \
    ORDER BY place, a.attnum";

/// One row for each index of a table: its columns, and whether it keeps them unique at every moment.
const INDEXES: &str = "\
    SELECT i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL AS is_usable, \
    CASE WHEN NOT i.indimmediate THEN (SELECT conname::pg_catalog.text FROM pg_catalog.pg_constraint AS o \
    WHERE o.conindid OPERATOR(pg_catalog.=) i.indexrelid AND o.conrelid OPERATOR(pg_catalog.=) i.indrelid \
    AND o.contype OPERATOR(pg_catalog.<>) 'x' LIMIT 1) END AS deferrable, i.indisprimary AS is_primary, \
    i.indisprimary OR i.indisreplident AS is_identity, \
    ARRAY(SELECT a.attname::pg_catalog.text FROM pg_catalog.unnest(i.indkey) WITH ORDINALITY AS k (attnum, n) \
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid OPERATOR(pg_catalog.=) i.indrelid \
    AND a.attnum OPERATOR(pg_catalog.=) k.attnum WHERE k.n OPERATOR(pg_catalog.<=) i.indnkeyatts) AS keys, \
    ARRAY(SELECT a.attname::pg_catalog.text FROM pg_catalog.unnest(i.indkey) AS k (attnum) \
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid OPERATOR(pg_catalog.=) i.indrelid \
    AND a.attnum OPERATOR(pg_catalog.=) k.attnum) AS columns \
    FROM pg_catalog.pg_index AS i JOIN pg_catalog.pg_class AS c ON c.oid OPERATOR(pg_catalog.=) i.indrelid \
    JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace \
    WHERE n.nspname OPERATOR(pg_catalog.=) $1::pg_catalog.text AND c.relname OPERATOR(pg_catalog.=) $2::pg_catalog.text";

/// Looks at the relations, their columns, and the indexes of the totals.
pub(super) async fn look(
    session: &Session,
    settings: &Settings,
    trusted_owners: &[String],
) -> Result<Tables, DatabaseError> {
    let (view, rejected) = (settings.view.clone(), settings.rejected());
    let wanted = [
        Some(&settings.queue),
        Some(&settings.totals),
        view.as_ref(),
        rejected.as_ref(),
    ];
    let names = || {
        let names = wanted.iter().flat_map(|relation| name(*relation));
        names.collect::<Parameters>()
    };
    let doing = "look for the tables";
    let sql = format!(
        "{RELATIONS}, {} AS readers, {COLUMN_VERSIONS} AS layout, {IS_BARE} AS is_bare, {HAS_CHILDREN} AS has_children, {} FROM {WANTED}",
        used_by(""),
        ownership::columns()
    );
    let mut tables = Tables {
        trusted_owners: trusted_owners.to_vec(),
        ..Tables::default()
    };
    for row in session.query(doing, &sql, names()).await? {
        tables.role = row.get("role");
        if let Some(table) = tables.at(row.get("place")) {
            *table = Table::from(&row);
        }
    }
    if tables.queue.kind.is_none() || tables.totals.kind.is_none() {
        tables.others = other_tables(session).await?;
    }
    let doing = "look at the columns";
    let used_by = used_by("AND d.refobjsubid OPERATOR(pg_catalog.=) a.attnum");
    let sql = format!("{COLUMNS}, {used_by} AS used_by FROM {WANTED}{COLUMNS_OF}");
    for row in session.query(doing, &sql, names()).await? {
        if let Some(table) = tables.at(row.get("place")) {
            table.columns.0.push(TableColumn::from(&row));
        }
    }
    look_at_indexes(session, settings, &mut tables).await?;
    look_at_rows(session, settings, &mut tables).await?;
    Ok(tables)
}

/// Looks at the indexes of the totals.
async fn look_at_indexes(
    session: &Session,
    settings: &Settings,
    tables: &mut Tables,
) -> Result<(), DatabaseError> {
    let names: Parameters = name(Some(&settings.totals)).collect();
    for row in session.query("look at the indexes", INDEXES, names).await? {
        if row.get("is_usable") {
            tables.unique.push(row.get("keys"));
        }
        if let Some(constraint) = row.get("deferrable") {
            let is_primary: bool = row.get("is_primary");
            tables.deferrable.push(Deferrable {
                constraint,
                kind: if is_primary { "PRIMARY KEY" } else { "UNIQUE" },
                keys: row.get("keys"),
            });
        }
        if row.get("is_identity") {
            tables.identity.extend(row.get::<_, Vec<String>>("keys"));
        }
        tables.indexed.extend(row.get::<_, Vec<String>>("columns"));
    }
    Ok(())
}

/// The names of all tables, for one that does not exist.
async fn other_tables(session: &Session) -> Result<Vec<String>, DatabaseError> {
    let sql = "SELECT pg_catalog.format('%s.%s', n.nspname, c.relname) AS name FROM pg_catalog.pg_class AS c \
        JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace \
        WHERE c.relkind OPERATOR(pg_catalog.=) ANY ('{r,p}'::pg_catalog.\"char\"[]) \
        AND n.nspname OPERATOR(pg_catalog.<>) ALL ('{pg_catalog,information_schema,pg_toast}'::pg_catalog.name[]) LIMIT 10000";
    let rows = session.query("look for the tables", sql, Vec::new());
    Ok(rows.await?.iter().map(|row| row.get("name")).collect())
}

/// Looks at the rows, as far as what is wrong with the tables depends on them.
async fn look_at_rows(
    session: &Session,
    settings: &Settings,
    tables: &mut Tables,
) -> Result<(), DatabaseError> {
    let has_all = |table: &Table| {
        let mut keys = settings.keys.iter();
        table.may_read() && keys.all(|key| table.columns.get(key).is_some())
    };
    if has_all(&tables.totals) && !tables.unique.iter().any(|keys| settings.is_key(keys)) {
        let sql = objects::show_duplicates(settings);
        tables.has_duplicates = is_any(session, &sql).await?;
    }
    if tables.queue.may_read() {
        let nullable = settings.keys.iter().filter(|key| {
            let column = tables.queue.columns.get(key);
            column.is_some_and(|column| !column.not_null)
        });
        for key in nullable {
            let sql = objects::show_null(&settings.queue, key);
            if is_any(session, &sql).await? {
                tables.with_null.push(key.clone());
            }
        }
    }
    Ok(())
}

/// Whether a query returns a row. One that takes too long, or fails for a type without an equality, says nothing.
async fn is_any(session: &Session, sql: &str) -> Result<bool, DatabaseError> {
    let sql = format!("SELECT EXISTS ({sql})");
    match session.query("look at the rows", &sql, Vec::new()).await {
        Ok(rows) => Ok(rows.first().is_some_and(|row| row.get(0))),
        Err(error) if error.class() == ErrorClass::Away => Err(error),
        Err(_) => Ok(true),
    }
}

/// An array of what uses a relation `c`, or of that which fits a condition: views, triggers, policies, generated columns,
/// functions and publications, but not what belongs to the relation and is changed with it.
fn used_by(condition: &str) -> String {
    format!(
        "ARRAY(SELECT DISTINCT CASE WHEN w.oid IS NULL \
         THEN pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid) \
         ELSE pg_catalog.format('%s%I.%I', CASE WHEN v.relkind OPERATOR(pg_catalog.=) 'v' THEN 'view ' \
         WHEN v.relkind OPERATOR(pg_catalog.=) 'm' THEN 'materialized view ' ELSE 'rule of ' END, vn.nspname, v.relname) END \
         FROM pg_catalog.pg_depend AS d \
         LEFT JOIN pg_catalog.pg_rewrite AS w ON w.oid OPERATOR(pg_catalog.=) d.objid \
         AND d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_rewrite'::pg_catalog.regclass::pg_catalog.oid \
         LEFT JOIN pg_catalog.pg_class AS v ON v.oid OPERATOR(pg_catalog.=) w.ev_class \
         LEFT JOIN pg_catalog.pg_namespace AS vn ON vn.oid OPERATOR(pg_catalog.=) v.relnamespace \
         LEFT JOIN pg_catalog.pg_attrdef AS ad ON ad.oid OPERATOR(pg_catalog.=) d.objid \
         AND d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_attrdef'::pg_catalog.regclass::pg_catalog.oid \
         WHERE d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid \
         AND d.refobjid OPERATOR(pg_catalog.=) c.oid {condition} AND CASE \
         WHEN w.oid IS NOT NULL THEN w.ev_class OPERATOR(pg_catalog.<>) c.oid \
         WHEN ad.oid IS NOT NULL THEN ad.adnum OPERATOR(pg_catalog.<>) d.refobjsubid \
         WHEN d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid \
         THEN d.objid OPERATOR(pg_catalog.=) c.oid AND d.objsubid OPERATOR(pg_catalog.>) 0 \
         ELSE d.classid OPERATOR(pg_catalog.=) ANY (ARRAY['pg_catalog.pg_trigger'::pg_catalog.regclass::pg_catalog.oid, \
         'pg_catalog.pg_policy'::pg_catalog.regclass::pg_catalog.oid, \
         'pg_catalog.pg_proc'::pg_catalog.regclass::pg_catalog.oid, \
         'pg_catalog.pg_publication_rel'::pg_catalog.regclass::pg_catalog.oid]) END ORDER BY 1)"
    )
}

/// A schema and a name, as parameters.
fn name(
    relation: Option<&Relation>,
) -> impl Iterator<Item = (Box<dyn tokio_postgres::types::ToSql + Sync + Send>, Type)> + use<> {
    let schema = relation.map(|relation| relation.schema.clone());
    let name = relation.map(|relation| relation.name.clone());
    [schema, name].into_iter().map(|name| {
        let name: Box<dyn tokio_postgres::types::ToSql + Sync + Send> = Box::new(name);
        (name, Type::TEXT)
    })
}
