//! The jobs of `conf/jobs.toml`: each does what it says, on tables like those it names.

use std::path::Path;

use crate::configuration::Config;
use crate::program::{bgworker, run};
use crate::support::database::TestDatabase;

/// The file, with the test's databases in place of its own.
fn jobs(db: &TestDatabase, reports: &str) -> Config {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf/jobs.toml");
    let text = std::fs::read_to_string(path).unwrap();
    let url = db.conninfo().replace('"', "\\\"");
    let text = text.replace("postgresql://localhost/shop", &url);
    Config::new(&text.replace("\"reports\"", &format!("\"{reports}\"")))
}

async fn stage() -> TestDatabase {
    let db = TestDatabase::new().await;
    db.execute(
        "CREATE TABLE sale (day date, amount int); INSERT INTO sale VALUES ('2026-11-26', 2); DELETE FROM sale; \
         CREATE MATERIALIZED VIEW sale_by_day AS SELECT day, sum(amount) FROM sale GROUP BY day; \
         CREATE UNIQUE INDEX ON sale_by_day (day); INSERT INTO sale VALUES ('2026-11-26', 40), ('2026-11-26', 2); \
         CREATE TABLE event (day date) PARTITION BY RANGE (day); \
         CREATE TABLE event_20200101 PARTITION OF event FOR VALUES FROM ('2020-01-01') TO ('2020-01-02'); \
         CREATE TABLE session (id int PRIMARY KEY, expires_at timestamptz); \
         INSERT INTO session SELECT n, now() + (n - 25000.5) * '1 s'::interval FROM generate_series(1, 25100) AS n",
    )
    .await;
    db
}

fn once(config: &Config, name: &str) {
    let mut command = bgworker();
    command.args(["once", name, "--config"]).arg(&config.path);
    let (code, out, err) = run(&mut command);
    assert_eq!((code, &*err), (0, ""), "{out}");
}

#[actix::test]
async fn each_job_of_the_examples_does_what_it_says() {
    let db = stage().await;
    let reports = TestDatabase::new().await;
    reports
        .execute(
            "CREATE TABLE orders (created_at timestamptz); \
             CREATE TABLE orders_by_hour (hour timestamptz PRIMARY KEY, orders bigint); \
             INSERT INTO orders SELECT date_trunc('hour', now()) - n * '1 min'::interval FROM generate_series(21, 50) AS n",
        )
        .await;
    let name: String = reports.value("SELECT current_database()::text").await;
    let config = jobs(&db, &name);

    once(&config, "vacuum sales");
    once(&config, "refresh sales by day");
    let sum = "SELECT sum FROM sale_by_day";
    assert_eq!(db.value::<i64>(sum).await, 42);

    once(&config, "partitions of events");
    once(&config, "partitions of events");
    let partitions = "SELECT concat_ws(' ', count(*), count(*) FILTER (WHERE inhrelid = to_regclass('event_20200101'))) \
                      FROM pg_inherits WHERE inhparent = 'event'::regclass";
    assert_eq!(db.value::<String>(partitions).await, "8 0");

    once(&config, "purge sessions");
    let left = "SELECT count(*) FROM session WHERE expires_at < now() - '1 min'::interval";
    assert_eq!(db.value::<i64>(left).await, 0);
    assert!(db.value::<i64>("SELECT count(*) FROM session").await > 0);

    // The first run makes the job's row. With its last tick set to the start of the previous hour, the second run
    // counts what came in since then.
    once(&config, "count orders");
    reports
        .execute("UPDATE bgworker.job SET last_done = date_trunc('hour', now()) - '1 h'::interval; TRUNCATE orders_by_hour")
        .await;
    once(&config, "count orders");
    let orders: i64 = reports
        .value("SELECT sum(orders)::bigint FROM orders_by_hour")
        .await;
    assert_eq!(orders, 30);
}
