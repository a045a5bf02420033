//! What the built-in worker creates before its first cycle, and which tables it refuses.

use bgworker::ExitStatus;
use bgworker::worker_spi::{InvalidTable, Table};
use tracing::Level;

use crate::support::database::{TestDatabase, brisk, register, table};
use crate::support::eventually;
use crate::support::log::Log;
use crate::support::statements::mends;

/// The reason why a worker that cannot work on `s.t` ends.
async fn refusal(db: &TestDatabase) -> String {
    let postmaster = db.postmaster();
    let worker = register(&postmaster, "w", brisk(&table("s", "t"))).await;
    eventually("the worker ends", || async {
        postmaster.worker(worker.id).await.unwrap().is_none()
    })
    .await;
    let ended = postmaster.workers().await.unwrap().ended;
    assert_eq!(ended[0].exit, ExitStatus::Failed);
    ended[0].reason.as_deref().unwrap().to_owned()
}

#[actix::test]
async fn the_table_that_it_makes_is_the_samples_with_bigint_and_room_on_its_pages() {
    let db = TestDatabase::new().await;
    let postmaster = db.postmaster();
    db.worker(
        &postmaster,
        "w",
        brisk(&table("our schema2", "counted rows")),
    )
    .await;
    let made: String = db
        .value(
            "SELECT string_agg(concat_ws(' ', attname, format_type(atttypid, NULL), attnotnull), \
             ', ' ORDER BY attnum) || '; ' || array_to_string(reloptions, ',') \
             FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid \
             WHERE relname = 'counted rows' AND attnum > 0 GROUP BY reloptions",
        )
        .await;
    assert_eq!(made, "type text t, value bigint t; fillfactor=90");
    let index: String = db
        .value("SELECT indexdef FROM pg_indexes WHERE tablename = 'counted rows'")
        .await;
    assert_eq!(
        index,
        "CREATE UNIQUE INDEX \"counted rows_unique_total\" ON \"our schema2\".\"counted rows\" \
         USING btree (type) WHERE (type = 'total'::text)"
    );
}

#[actix::test]
async fn a_role_that_may_create_nothing_works_when_all_exists() {
    let db = TestDatabase::new().await;
    let counted = table("s", "t");
    let postmaster = db.postmaster();
    db.worker(&postmaster, "owner", brisk(&counted)).await;
    let role = format!(
        "{}_role",
        db.value::<String>("SELECT current_database()::text").await
    );
    db.execute(&format!(
        "CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA s TO {role}; \
         GRANT SELECT, UPDATE, DELETE ON s.t TO {role}; INSERT INTO s.t VALUES ('total', 0)"
    ))
    .await;
    let restricted = TestDatabase::at(&db.conninfo_with("user", &role)).await;
    let postmaster = restricted.postmaster();
    restricted
        .worker(&postmaster, "restricted", brisk(&counted))
        .await;
    db.execute("INSERT INTO s.t VALUES ('delta', 1)").await;
    db.wait_for_rows(&counted, &["total|1"]).await;
}

#[actix::test]
async fn a_table_without_a_unique_index_is_refused_with_the_statement_that_mends_it() {
    let db = TestDatabase::new().await;
    db.execute(
        "CREATE SCHEMA s; CREATE TABLE s.t (type text, value bigint); \
         INSERT INTO s.t VALUES ('total', 1), ('delta', 2)",
    )
    .await;
    let reason = refusal(&db).await;
    let (what, mend) = reason.split_once("this makes one: ").expect(&reason);
    assert!(what.contains("no unique index"), "{reason}");
    db.execute(mend).await;
    let postmaster = db.postmaster();
    db.worker(&postmaster, "w", brisk(&table("s", "t"))).await;
    db.wait_for_rows(&table("s", "t"), &["total|3"]).await;
}

#[actix::test]
async fn several_totals_are_refused_with_the_statements_that_make_them_one() {
    let db = TestDatabase::new().await;
    db.execute(
        "CREATE SCHEMA s; CREATE TABLE s.t (type text, value integer); \
         INSERT INTO s.t VALUES ('total', 1), ('total', 10), ('delta', 2)",
    )
    .await;
    let reason = refusal(&db).await;
    let (what, mend) = reason
        .split_once("keeps the total unique: ")
        .expect(&reason);
    assert!(what.contains("more than one total"), "{reason}");
    db.execute(mend).await;
    let postmaster = db.postmaster();
    db.worker(&postmaster, "w", brisk(&table("s", "t"))).await;
    db.wait_for_rows(&table("s", "t"), &["total|13"]).await;
}

#[actix::test]
async fn a_table_of_another_shape_is_refused_with_the_statement_that_mends_it() {
    for (create, expected) in [
        (
            "TABLE s.t (type text)",
            "\"value\" must be bigint or integer, but is missing",
        ),
        (
            "TABLE s.t (value bigint)",
            "\"type\" must be text, but is missing",
        ),
        (
            "TABLE s.t (type text, value numeric)",
            "\"value\" must be bigint or integer, but is numeric",
        ),
        (
            "TABLE s.t (type integer, value bigint)",
            "\"type\" must be text, but is integer",
        ),
        (
            "VIEW s.t AS SELECT 'delta' AS type, 1 AS value",
            "not an ordinary table",
        ),
    ] {
        let db = TestDatabase::new().await;
        db.execute(&format!("CREATE SCHEMA s; CREATE {create}"))
            .await;
        let reason = refusal(&db).await;
        assert!(
            reason.contains("s.t") && reason.contains(expected),
            "{create}: {reason}"
        );
        if create.starts_with("VIEW") {
            continue;
        }
        // The missing index is told at once.
        for mend in mends(&reason) {
            db.execute(&mend).await;
        }
        db.execute("INSERT INTO s.t (type, value) VALUES ('total', 1), ('delta', 2)")
            .await;
        let postmaster = db.postmaster();
        db.worker(&postmaster, "w", brisk(&table("s", "t"))).await;
        eventually("it folds", || async {
            let sum = "SELECT sum(value)::bigint FROM s.t WHERE type = 'total' AND \
                       NOT EXISTS (SELECT FROM s.t WHERE type = 'delta')";
            let total: Option<i64> = db.value(sum).await;
            total == Some(3)
        })
        .await;
    }
}

#[actix::test]
async fn a_role_that_may_not_create_the_schema_or_the_table_gets_the_grant() {
    let db = TestDatabase::new().await;
    let name: String = db.value("SELECT current_database()::text").await;
    let role = format!("{name}_role");
    db.execute(&format!("CREATE ROLE {role} LOGIN")).await;
    let restricted = TestDatabase::at(&db.conninfo_with("user", &role)).await;
    for (before, expected) in [
        (String::new(), "GRANT CREATE ON DATABASE"),
        (
            format!("REVOKE CREATE ON DATABASE {name} FROM {role}; CREATE SCHEMA s"),
            "GRANT USAGE, CREATE ON SCHEMA \"s\"",
        ),
    ] {
        db.execute(&before).await;
        let reason = refusal(&restricted).await;
        assert!(reason.contains(expected), "{reason}");
        for mend in mends(&reason) {
            db.execute(&mend).await;
        }
    }
    let postmaster = restricted.postmaster();
    let settings = brisk(&table("s", "t")).initial_total(0);
    restricted.worker(&postmaster, "w", settings).await;
}

/// Asserts that a worker on `s.t` cannot get ready while a client's transaction is in the way, and can afterwards.
async fn waits_while_a_client(db: &TestDatabase, holds: &str, initial_total: Option<i64>) {
    let client = db.connect().await;
    client.batch_execute("hold", holds).await.unwrap();
    let postmaster = db.postmaster();
    let mut settings = brisk(&table("s", "t"));
    settings.initial_total = initial_total;
    let worker = register(&postmaster, "w", settings).await;
    let status = || async {
        let status = postmaster.worker(worker.id).await.unwrap();
        status.expect("the worker has ended")
    };
    eventually("it has given up waiting for the lock", || async {
        let error = status().await.report.last_error;
        error.is_some_and(|error| error.contains("55P03"))
    })
    .await;
    client.batch_execute("let go", "ROLLBACK").await.unwrap();
    eventually("it is ready", || async { status().await.report.cycles > 0 }).await;
    assert_eq!(status().await.starts, 1, "it was never an exit");
}

#[actix::test]
async fn a_lock_on_the_table_is_waited_for_before_the_first_cycle_too() {
    let db = TestDatabase::new().await;
    db.execute(&made_by_the_worker()).await;
    waits_while_a_client(
        &db,
        "BEGIN; LOCK TABLE s.t IN SHARE MODE; LOCK TABLE s.t",
        None,
    )
    .await;
}

#[actix::test]
async fn another_clients_uncommitted_schema_or_total_is_waited_for() {
    let db = TestDatabase::new().await;
    waits_while_a_client(&db, "BEGIN; CREATE SCHEMA s", None).await;
    let db = TestDatabase::new().await;
    db.execute(&made_by_the_worker()).await;
    let holds = "BEGIN; INSERT INTO s.t VALUES ('total', 5)";
    waits_while_a_client(&db, holds, Some(0)).await;
    db.wait_for_rows(&table("s", "t"), &["total|0"]).await;
}

fn made_by_the_worker() -> String {
    "CREATE SCHEMA s; CREATE TABLE s.t (type text NOT NULL, value bigint NOT NULL); \
     CREATE UNIQUE INDEX ON s.t (type) WHERE type = 'total'"
        .to_owned()
}

#[actix::test]
async fn columns_are_found_by_name_so_order_and_other_columns_do_not_matter() {
    let db = TestDatabase::new().await;
    db.execute(
        "CREATE SCHEMA s; CREATE TABLE s.t (value integer, note text, type text); \
         CREATE UNIQUE INDEX ON s.t (type) WHERE type = 'total'",
    )
    .await;
    let postmaster = db.postmaster();
    let mut settings = brisk(&table("s", "t"));
    settings.initial_total = Some(40);
    db.worker(&postmaster, "w", settings).await;
    db.execute("INSERT INTO s.t (type, value) VALUES ('delta', 2)")
        .await;
    db.wait_for_rows(&table("s", "t"), &["total|42"]).await;
}

#[test]
fn names_that_postgresql_would_truncate_are_refused_naming_the_limit() {
    let error = Table::new("x".repeat(64), "t").unwrap_err();
    assert!(
        error
            .to_string()
            .contains("64 bytes long: 63 bytes is the limit"),
        "{error}"
    );
    let error = Table::new("s", "x".repeat(51)).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("51 bytes long: 50 bytes is the limit"),
        "{error}"
    );
    // 32 letters of two bytes each.
    assert!(Table::new("ü".repeat(32), "t").is_err());
    assert!(Table::new("x".repeat(63), "x".repeat(50)).is_ok());
}

#[test]
fn an_empty_name_and_one_with_nul_are_refused() {
    assert_eq!(
        Table::new("", "t").unwrap_err(),
        InvalidTable::Empty { what: "schema" }
    );
    let error = Table::new("s", "a\0b").unwrap_err();
    assert_eq!(
        error.to_string(),
        "table name \"a\\0b\" must not contain NUL"
    );
}

#[actix::test]
async fn a_table_that_is_dropped_meanwhile_is_made_again_by_a_worker_that_never_restarts() {
    let db = TestDatabase::new().await;
    let log = Log::capture();
    let postmaster = db.postmaster();
    let counted = table("s", "t");
    let (_sender, settings) = tokio::sync::watch::channel(brisk(&counted));
    let worker = bgworker::BackgroundWorker::new("w")
        .access(bgworker::Access::Database)
        .restart_time(bgworker::RestartTime::Never);
    let main = bgworker::worker_spi::main(settings);
    let worker = postmaster.register(worker, main).await.unwrap();
    worker.ready().await.unwrap();
    let made = || log.with(Level::INFO, "made the table s.t").len();
    assert_eq!(made(), 1, "{}", log.text());
    db.execute("DROP TABLE s.t").await;
    eventually("it is made again", || async {
        db.value::<bool>("SELECT to_regclass('s.t') IS NOT NULL")
            .await
    })
    .await;
    eventually("the log says so", || async { made() == 2 }).await;
    assert!(!log.text().contains("are kept"), "{}", log.text());
    let status = postmaster.worker(worker.id()).await.unwrap().unwrap();
    assert_eq!(status.starts, 1);
}
