//! The clients: some write rows together with what the ledger says of them, others compare the two.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_postgres::{Client, Error, NoTls};

use crate::support::LONG;

/// What a transaction of a writer may do. The totals of keys from 1,000 on are always refused.
const WRITES: [&str; 12] = [
    "WITH d AS (INSERT INTO l.q SELECT random() * 30, random() * 900 - 400 FROM generate_series(1, 3) RETURNING k, v) \
     INSERT INTO l.ledger SELECT 'q', k, v, 1 FROM d",
    "WITH d AS (INSERT INTO l.p SELECT random() * 30, random() * 900 - 400 FROM generate_series(1, 3) RETURNING k, v) \
     INSERT INTO l.ledger SELECT 'p', k, v, 1 FROM d",
    "WITH d AS (INSERT INTO l.q SELECT random() * 300, g FROM generate_series(1, 200) AS g RETURNING k, v) \
     INSERT INTO l.ledger SELECT 'q', k, v, 1 FROM d",
    "WITH d AS (INSERT INTO l.p SELECT random() * 300, g FROM generate_series(1, 200) AS g RETURNING k, v) \
     INSERT INTO l.ledger SELECT 'p', k, v, 1 FROM d",
    "WITH d AS (INSERT INTO l.p SELECT random() * 30, 1e15 WHERE random() < 0.2 RETURNING k, v) \
     INSERT INTO l.ledger SELECT 'p', k, v, 1 FROM d",
    "WITH d AS (INSERT INTO l.q SELECT 1000 + random() * 20, 1e15 WHERE random() < 0.1 RETURNING k, v) \
     INSERT INTO l.ledger SELECT 'q', k, v, 1 FROM d",
    "WITH d AS (INSERT INTO l.counted SELECT 'delta', random() * 900 FROM generate_series(1, 3) RETURNING value) \
     INSERT INTO l.ledger SELECT 'counted', 0, value, 0 FROM d",
    "WITH d AS (UPDATE l.p_total SET v = v + 7 WHERE k = (SELECT (random() * 30)::int) RETURNING k) \
     INSERT INTO l.ledger SELECT 'p', k, 7, 0 FROM d",
    "WITH d AS (UPDATE l.counted SET value = value + 7 WHERE type = 'total' RETURNING 1) \
     INSERT INTO l.ledger SELECT 'counted', 0, 7, 0 FROM d",
    "WITH d AS (UPDATE l.q SET v = v + 1 WHERE ctid = (SELECT ctid FROM l.q WHERE k < 1000 LIMIT 1) RETURNING k) \
     INSERT INTO l.ledger SELECT 'q', k, 1, 0 FROM d",
    "WITH d AS (DELETE FROM l.p WHERE ctid = (SELECT ctid FROM l.p LIMIT 1) RETURNING k, v) \
     INSERT INTO l.ledger SELECT 'p', k, -v, -1 FROM d",
    "CREATE TEMP TABLE taken ON COMMIT DROP AS SELECT * FROM l.p_total WHERE k = (SELECT (random() * 30)::int) FOR UPDATE; \
     DELETE FROM l.p_total AS t USING taken WHERE t.k = taken.k; SELECT pg_sleep(0.01); INSERT INTO l.p_total TABLE taken",
];

/// What is there, as one text.
const THERE: &str = "SELECT 'q' AS what, k, v, n FROM l.q_now UNION ALL SELECT 'p', k, v, n FROM l.p_now \
    UNION ALL SELECT 'p', k, v, 1 FROM l.p_rejected UNION ALL SELECT 'counted', 0, value, 0 FROM l.counted";

/// A query that adds up rows by key, into one text.
fn added_up(rows: &str) -> String {
    format!(
        "SELECT coalesce(string_agg(concat_ws(' ', what, k, v, n), ', ' ORDER BY what, k), '') FROM (\
         SELECT what, k, sum(v)::bigint AS v, sum(n)::bigint AS n FROM ({rows}) AS rows GROUP BY what, k) AS sums \
         WHERE v <> 0 OR n <> 0"
    )
}

/// Connects, once the server answers.
async fn connected(conninfo: &str) -> Client {
    let connecting = async {
        loop {
            if let Ok((client, connection)) = tokio_postgres::connect(conninfo, NoTls).await {
                actix::spawn(connection);
                return client;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let connected = tokio::time::timeout(LONG, connecting).await;
    connected.expect("the server answers")
}

/// Writes until told to stop, and returns how many transactions have succeeded.
pub(super) async fn write(conninfo: String, stop: Arc<AtomicBool>) -> u64 {
    let (mut client, mut written) = (connected(&conninfo).await, 0);
    while !stop.load(Ordering::Relaxed) {
        let writes = (0..fastrand::usize(1..3)).map(|_| WRITES[fastrand::usize(0..WRITES.len())]);
        let writes: Vec<_> = writes.collect();
        let end = if fastrand::u8(0..10) == 0 {
            "ROLLBACK"
        } else {
            "COMMIT"
        };
        let transaction = format!("BEGIN; {}; {end}", writes.join("; "));
        match client.batch_execute(&transaction).await {
            Ok(()) => written += 1,
            Err(_) if client.is_closed() => client = connected(&conninfo).await,
            // It conflicts with others, or a table is not as usual.
            Err(_) => drop(client.batch_execute("ROLLBACK").await),
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..20))).await;
        while !stop.load(Ordering::Relaxed) && is_long(&client).await {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    written
}

/// `true` if more rows wait than the folders of a busy machine take within some seconds: a long run would end with a queue that
/// takes minutes.
async fn is_long(client: &Client) -> bool {
    let waiting = "SELECT count(*) = 20000 FROM \
        (SELECT FROM l.q WHERE k < 1000 UNION ALL SELECT FROM l.p LIMIT 20000) AS waiting";
    let waiting = client.query_one(waiting, &[]).await;
    waiting.is_ok_and(|row| row.get(0))
}

/// Compares what is there with the ledger, in one snapshot. An error says that it could not be read.
async fn compare(client: &Client, isolation: &str) -> Result<[String; 2], Error> {
    let (there, ledger) = (added_up(THERE), added_up("TABLE l.ledger"));
    let found = if isolation == "READ COMMITTED" {
        // Each statement has a snapshot of its own.
        let row = client
            .query_one(&format!("SELECT ({there}), ({ledger})"), &[])
            .await?;
        [row.get(0), row.get(1)]
    } else {
        // The lock comes before the snapshot: a child of the queue that ends meanwhile would be missed.
        let begin = format!(
            "BEGIN ISOLATION LEVEL {isolation} READ ONLY; LOCK TABLE l.q IN ACCESS SHARE MODE"
        );
        client.batch_execute(&begin).await?;
        let ledger = client.query_one(&ledger, &[]).await?;
        let there = client.query_one(&there, &[]).await?;
        client.batch_execute("COMMIT").await?;
        [there.get(0), ledger.get(0)]
    };
    Ok(found)
}

/// Asserts that what is there is what the ledger says. Returns `false` if it could not be read.
pub(super) async fn assert_equal(client: &Client, isolation: &str) -> bool {
    let Ok([there, ledger]) = compare(client, isolation).await else {
        return false;
    };
    if there != ledger {
        let [there_lines, ledger_lines] =
            [&there, &ledger].map(|text| text.split(", ").collect::<Vec<_>>());
        let more = there_lines
            .iter()
            .filter(|line| !ledger_lines.contains(line));
        let less = ledger_lines
            .iter()
            .filter(|line| !there_lines.contains(line));
        panic!(
            "{isolation}: there is {:?} where the ledger has {:?}",
            more.collect::<Vec<_>>(),
            less.collect::<Vec<_>>()
        );
    }
    true
}

/// Compares until told to stop, and returns how often it could.
pub(super) async fn read(conninfo: String, isolation: &str, stop: Arc<AtomicBool>) -> u64 {
    let (mut client, mut read) = (connected(&conninfo).await, 0);
    while !stop.load(Ordering::Relaxed) {
        if assert_equal(&client, isolation).await {
            read += 1;
        } else if client.is_closed() {
            client = connected(&conninfo).await;
        } else {
            drop(client.batch_execute("ROLLBACK").await);
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..100))).await;
    }
    read
}
