//! Nothing is lost while clients insert deltas, update and replace the total, under every default isolation level.

use bgworker::worker_spi::Fold;
use tokio::task::JoinSet;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::support::database::{TestDatabase, brisk, table};
use crate::support::log::Log;

/// Four workers fold while four clients insert 10,000 ones in all, one client adds 1 to the total 100
/// times, and one deletes the total and inserts it again with the value it got back, 100 times.
async fn nothing_is_lost_under(isolation: &str, fold: Fold) {
    let db = TestDatabase::new().await;
    let name: String = db.value("SELECT current_database()::text").await;
    db.execute(&format!(
        "ALTER DATABASE {name} SET default_transaction_isolation = '{isolation}'"
    ))
    .await;
    let counted = table("s", "t");
    let mut settings = brisk(&counted);
    settings.fold = fold;
    // A worker that truncates gets a batch so small that there are usually more deltas.
    let (batch, rows) = match fold {
        Fold::Delete => (settings.batch, 1),
        Fold::Truncate => (1, 100),
    };
    settings.batch = batch;
    let log = Log::capture();
    let postmaster = db.postmaster();
    db.worker(&postmaster, "w0", settings.clone()).await;
    db.execute("INSERT INTO s.t VALUES ('total', 0)").await;
    let made: u32 = db.value("SELECT pg_relation_filenode('s.t')").await;
    for n in 1..4 {
        db.worker(&postmaster, &format!("w{n}"), settings.clone())
            .await;
    }
    let mut clients = JoinSet::new();
    for _ in 0..4 {
        clients.spawn_local(insert_ones(db.connect_plainly().await, 2_500 / rows, rows));
    }
    clients.spawn_local(add_to_total(db.connect_plainly().await, 100));
    clients.spawn_local(replace_total(db.connect_plainly().await, 100));
    let added: i64 = clients.join_all().await.into_iter().sum();
    db.wait_for_rows(&counted, &[&format!("total|{added}")])
        .await;
    assert!((10_000..=10_100).contains(&added), "{added}");
    let is_truncated = made != db.value::<u32>("SELECT pg_relation_filenode('s.t')").await;
    assert_eq!(is_truncated, fold == Fold::Truncate, "{}", log.text());
}

/// The result, or `None` if the isolation level makes the client retry. Any other failure panics.
fn again<T>(done: Result<T, tokio_postgres::Error>) -> Option<T> {
    match done {
        Ok(done) => Some(done),
        Err(error) => match error.code().map(SqlState::code) {
            Some("40001" | "40P01") => None,
            _ => panic!("{error:?}"),
        },
    }
}

/// Inserts deltas of 1. Like each client, it returns by how much it changed the sum.
async fn insert_ones(client: Client, times: i64, rows: i64) -> i64 {
    let insert = "INSERT INTO s.t SELECT 'delta', 1 FROM generate_series(1, $1::bigint)";
    let insert = client.prepare(insert).await.unwrap();
    for _ in 0..times {
        while again(client.execute(&insert, &[&rows]).await).is_none() {}
    }
    times * rows
}

/// Adds 1 to the total. At times there is no total, and nothing is added.
async fn add_to_total(client: Client, times: i64) -> i64 {
    let mut added = 0;
    for _ in 0..times {
        let add = "UPDATE s.t SET value = value + 1 WHERE type = 'total'";
        let rows = loop {
            if let Some(rows) = again(client.execute(add, &[]).await) {
                break rows;
            }
        };
        added += i64::try_from(rows).unwrap();
    }
    added
}

/// Deletes the total and inserts it again unchanged, in one transaction each time.
async fn replace_total(client: Client, times: i64) -> i64 {
    for _ in 0..times {
        while again(replace_total_once(&client).await).is_none() {
            client.batch_execute("ROLLBACK").await.unwrap();
        }
    }
    0
}

async fn replace_total_once(client: &Client) -> Result<(), tokio_postgres::Error> {
    client.batch_execute("BEGIN").await?;
    let take = "DELETE FROM s.t WHERE type = 'total' RETURNING value";
    for row in client.query(take, &[]).await? {
        let total: i64 = row.get(0);
        let put_back = "INSERT INTO s.t VALUES ('total', $1)";
        client.execute(put_back, &[&total]).await?;
    }
    client.batch_execute("COMMIT").await
}

#[actix::test]
async fn nothing_is_lost_where_read_committed_is_the_default() {
    nothing_is_lost_under("read committed", Fold::Delete).await;
}

#[actix::test]
async fn nothing_is_lost_where_repeatable_read_is_the_default() {
    nothing_is_lost_under("repeatable read", Fold::Delete).await;
}

#[actix::test]
async fn nothing_is_lost_where_serializable_is_the_default() {
    nothing_is_lost_under("serializable", Fold::Delete).await;
}

#[actix::test]
async fn nothing_is_lost_by_truncation_where_read_committed_is_the_default() {
    nothing_is_lost_under("read committed", Fold::Truncate).await;
}

#[actix::test]
async fn nothing_is_lost_by_truncation_where_serializable_is_the_default() {
    nothing_is_lost_under("serializable", Fold::Truncate).await;
}
