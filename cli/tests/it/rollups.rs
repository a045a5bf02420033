//! Roll-ups by the program: the examples of `conf/rollups.toml`, and what `ddl` prints for them.

use std::path::Path;

use nix::sys::signal::Signal;

use crate::configuration::Config;
use crate::program::{bgworker, run, start};
use crate::support::database::TestDatabase;
use crate::support::eventually;

/// The text of the examples, with the test's database in place of theirs.
fn text(conninfo: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf/rollups.toml");
    let text = std::fs::read_to_string(path).unwrap();
    text.replace(
        "postgresql://localhost/shop",
        &conninfo.replace('"', "\\\""),
    )
}

/// The statements in the examples' comments that begin with this text.
fn statements(text: &str, begin: &str) -> Vec<String> {
    let sql = text.lines().filter_map(|line| line.strip_prefix("#   "));
    let sql: String = sql.flat_map(|line| [line, " "]).collect();
    let statements = sql.split("; ").map(str::trim);
    let statements = statements.filter(|statement| statement.starts_with(begin));
    statements.map(str::to_owned).collect()
}

/// What each example's query returns in its last column after the insert.
const FOUND: [&str; 4] = ["1", "97", "0.0417", "13"];

/// `true` if each query returns that, and nothing waits in a queue.
async fn is_folded(db: &TestDatabase, queries: &[String]) -> bool {
    let views = "SELECT count(*) FROM pg_views WHERE schemaname = 'public'";
    if db.value::<i64>(views).await < 3 {
        return false;
    }
    for (query, expected) in std::iter::zip(queries, FOUND) {
        let found = format!("SELECT coalesce(min(found::text), '') FROM ({query}) AS found");
        let found: String = db.value(&found).await;
        if found.trim_matches(['(', ')']).rsplit(',').next() != Some(expected) {
            return false;
        }
    }
    let waiting = "SELECT (SELECT count(*) FROM page_view_delta) + (SELECT count(*) FROM stock_delta) \
                   + (SELECT count(*) FROM usage_delta) + (SELECT count(*) FROM event_delta)";
    db.value::<i64>(waiting).await == 0
}

#[actix::test]
async fn each_example_works_with_the_tables_insert_and_query_in_its_comments() {
    let db = TestDatabase::new().await;
    let text = text(db.conninfo());
    let tables = statements(&text, "CREATE TABLE");
    assert_eq!(tables.len(), 8);
    db.execute(&tables.join("; ")).await;
    let config = Config::new(&text.replace("naptime = \"5s\"", "naptime = \"100ms\""));
    let mut instance = start(&config.path);
    for insert in statements(&text, "INSERT") {
        db.execute(&insert).await;
    }
    let queries = statements(&text, "SELECT");
    assert_eq!(queries.len(), FOUND.len());
    eventually("all is folded", || is_folded(&db, &queries)).await;
    let rejected: i64 = db.value("SELECT count(*) FROM usage_delta_rejected").await;
    assert_eq!(rejected, 1);
    // A view also shows what still waits.
    instance.signal(Signal::SIGTERM);
    assert_eq!(instance.wait().0, Some(0), "{:?}", instance.said);
    db.execute("INSERT INTO stock_delta VALUES (1, 4711, -7)")
        .await;
    let now: i64 = db.value("SELECT pieces::bigint FROM stock_now").await;
    assert_eq!(now, 90);
}

#[actix::test]
async fn ddl_output_lets_a_role_without_create_rights_roll_up() {
    let db = TestDatabase::new().await;
    let role = db
        .value::<String>("SELECT 'plain_' || current_database()")
        .await;
    let text = text(&db.conninfo_with("user", &role));
    db.execute(&format!(
        "CREATE ROLE {role} LOGIN; REVOKE CREATE ON SCHEMA public FROM PUBLIC"
    ))
    .await;
    db.execute(&statements(&text, "CREATE TABLE").join("; "))
        .await;
    let config = Config::new(&text.replace("naptime = \"5s\"", "naptime = \"100ms\""));
    let (code, ddl, err) = run(bgworker().args(["ddl", "--config"]).arg(&config.path));
    assert_eq!((code, &*err), (0, ""));
    db.execute(&ddl).await;
    let mut instance = start(&config.path);
    for insert in statements(&text, "INSERT") {
        db.execute(&insert).await;
    }
    let queries = statements(&text, "SELECT");
    eventually("all is folded", || is_folded(&db, &queries)).await;
    instance.signal(Signal::SIGTERM);
    assert_eq!(instance.wait().0, Some(0), "{:?}", instance.said);
    db.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))
        .await;
}
