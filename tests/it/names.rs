//! Names of schemas, tables and workers, with any characters, and where the server shows them.

use std::time::Duration;

use bgworker::worker_spi::{ConnectionKind, Settings, Table};

use crate::support::database::{TestDatabase, brisk, cycles, table};
use crate::support::eventually;

#[actix::test]
async fn the_server_shows_the_name_of_each_worker_and_napping_ones_are_idle() {
    let db = TestDatabase::new().await;
    let postmaster = db.postmaster();
    for (name, connection) in [
        ("SPI worker 1", ConnectionKind::Own),
        ("*/ drop", ConnectionKind::Own),
        ("at home", ConnectionKind::Home),
    ] {
        let mut settings = Settings::new(table("s", "t"));
        settings.connection = Some(connection);
        settings.naptime = Duration::from_secs(600);
        let worker = db.worker(&postmaster, name, settings).await;
        cycles(&postmaster, worker.id, 0).await;
    }
    let shown = "SELECT string_agg(application_name || ': ' || state || ': ' || \
                 substring(query for 27), ', ' ORDER BY application_name COLLATE \"C\" DESC) \
                 FROM pg_stat_activity WHERE datname = current_database() \
                 AND pid <> pg_backend_pid()";
    eventually("all nap", || async {
        db.value::<String>(shown).await
            == "bgworker: idle: /* bgworker: at home */ SEL, \
                SPI worker 1: idle: /* bgworker: SPI worker 1 *, \
                */ drop: idle: /* bgworker: %2A%2F drop */"
    })
    .await;
}

/// Folds once, with names that would break careless SQL.
async fn fold_with_names(schema: &str, name: &str, worker: &str) {
    let db = TestDatabase::new().await;
    let postmaster = db.postmaster();
    let counted = Table::new(schema, name).unwrap();
    db.worker(&postmaster, worker, brisk(&counted)).await;
    db.execute(&format!(
        "INSERT INTO {} VALUES ('total', 100), ('delta', 5), ('delta', -3), ('delta', 40)",
        counted.sql()
    ))
    .await;
    db.wait_for_rows(&counted, &["total|142"]).await;
}

#[actix::test]
async fn names_of_any_kind_are_taken_as_they_are() {
    let longest = "x".repeat(50);
    for name in [
        "our schema2",
        "we\"ird",
        "o'brien",
        "Ünï",
        "select",
        "\"; drop table x; --",
        "*/ drop",
        "a.b",
        "$1",
        &longest,
    ] {
        fold_with_names(name, name, name).await;
    }
}
