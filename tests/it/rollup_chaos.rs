//! Roll-ups compete with each other and with anything that clients may do: what was inserted is still there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::database::TestDatabase;
use crate::support::rollup::Rollup;
use crate::support::{eventually, machine};

/// Two queues that feed the same totals.
const QUEUES: [&str; 2] = ["s.q", "s.p"];

const KEYS: &str = "queue = '{queue}'\ntotals = 's.t'\nkeys = ['k']\nsum = ['v']\ncount = 'n'\nnaptime = '1ms'\nbatch = 500";

/// Statements of clients beside the folders. A trigger logs what is inserted into a queue; statements that change the
/// sums in another way record that in `s.gone`.
const CLIENTS: [&str; 9] = [
    "INSERT INTO s.p SELECT 20 - g, g FROM generate_series(1, 19) AS g",
    "INSERT INTO s.q SELECT (random() * 20)::int, g FROM generate_series(1, 3) AS g",
    "INSERT INTO s.q SELECT (random() * 20)::int, -g FROM generate_series(1, 3) AS g",
    "INSERT INTO s.q VALUES (3, 1)",
    "INSERT INTO s.q SELECT (random() * 20)::int, NULL",
    "WITH more AS (UPDATE s.t SET v = v + 1 WHERE k = 5 RETURNING k) INSERT INTO s.gone SELECT k, -1, 0 FROM more",
    "WITH gone AS (DELETE FROM s.t WHERE k = (SELECT (random() * 20)::int) RETURNING k, v, n) INSERT INTO s.gone SELECT * FROM gone",
    "UPDATE s.q SET v = v WHERE ctid = (SELECT ctid FROM s.q LIMIT 1)",
    "WITH gone AS (DELETE FROM s.q WHERE ctid = (SELECT ctid FROM s.q LIMIT 1) RETURNING k, v) \
     INSERT INTO s.gone SELECT k, coalesce(v, 0), 1 FROM gone",
];

async fn chaos(isolation: &str) {
    let db = TestDatabase::new().await;
    let name: String = db.value("SELECT current_database()::text").await;
    db.execute(&format!(
        "CREATE SCHEMA s; CREATE TABLE s.q (k int NOT NULL, v bigint); CREATE TABLE s.p (LIKE s.q); \
         CREATE TABLE s.t (k int PRIMARY KEY, v bigint, n bigint); \
         CREATE TABLE s.gone (k int, v bigint, n bigint); \
         CREATE TABLE s.log (k int, v bigint); \
         CREATE FUNCTION s.log() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN INSERT INTO s.log SELECT k, coalesce(v, 0) FROM new_rows; RETURN NULL; END'; \
         CREATE TRIGGER log AFTER INSERT ON s.q REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION s.log(); \
         CREATE TRIGGER log AFTER INSERT ON s.p REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION s.log(); \
         ALTER DATABASE {name} SET default_transaction_isolation = '{isolation}'; \
         ALTER DATABASE {name} SET deadlock_timeout = '5ms'"
    ))
    .await;
    let mut folders = Vec::new();
    for queue in QUEUES.iter().cycle().take(8) {
        folders.push(Rollup::start(&db, &KEYS.replace("{queue}", queue)).await);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for sql in CLIENTS {
        let client = db.connect_plainly().await;
        let stop = Arc::clone(&stop);
        clients.push(actix_rt::spawn(async move {
            let mut done = 0;
            while !stop.load(Ordering::Relaxed) {
                // A statement that conflicts with another is rolled back as a whole.
                let sql = format!("BEGIN ISOLATION LEVEL READ COMMITTED; {sql}; COMMIT");
                match client.batch_execute(&sql).await {
                    Ok(()) => done += 1,
                    Err(_) => client.batch_execute("ROLLBACK").await.unwrap(),
                }
            }
            done
        }));
    }
    // Terminates sessions that fold, at random.
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND query LIKE '/* bgworker: r */%' AND random() < 0.2",
        )
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        assert!(client.await.unwrap() > 0);
    }
    eventually("all is folded", || async {
        db.value::<i64>("SELECT count(*) FROM (TABLE s.q UNION ALL TABLE s.p) AS waiting")
            .await
            == 0
    })
    .await;
    let wrong: i64 = db
        .value(
            "SELECT count(*) FROM (SELECT k, sum(v) AS v, count(*) AS n FROM s.log GROUP BY k) AS log \
             FULL JOIN (SELECT k, sum(v) AS v, sum(n) AS n FROM (TABLE s.t UNION ALL TABLE s.gone) AS there GROUP BY k) AS there \
             USING (k) WHERE coalesce(log.v, 0) <> coalesce(there.v, 0) OR coalesce(log.n, 0) <> coalesce(there.n, 0)",
        )
        .await;
    assert_eq!(wrong, 0, "{isolation}");
    let folded: i64 = db.value("SELECT count(*) FROM s.log").await;
    assert!(folded > 500, "{folded}");
    let mut active = 0;
    for folder in &folders {
        let status = folder.status().await.expect("it works still");
        active += usize::from(status.report.count("rows_folded") > 0);
    }
    assert!(active > 1, "{active} of them have folded");
    let deadlocks: i64 = db
        .value("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        .await;
    assert_eq!(deadlocks, 0, "{isolation}");
}

#[actix::test]
async fn nothing_is_lost_or_counted_twice_in_chaos_whatever_isolation_is_the_default() {
    let _machine = machine();
    for isolation in ["read committed", "repeatable read", "serializable"] {
        chaos(isolation).await;
    }
}
