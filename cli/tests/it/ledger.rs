//! What clients have written is there at every moment, whatever happens: clients, folders, statements that change the
//! tables, and ends of sessions, instances and servers meet at random. A ledger says what must be there. Clients write
//! it in the transactions in which they write the rest, so it holds what was committed.
//!
//! `LEDGER_SECONDS` sets how long they meet. The ordinary run has seconds for it; a long one is
//! `LEDGER_SECONDS=3600 cargo test --package bgworker-cli --test it ledger -- --nocapture`.

mod clients;
mod disturbances;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;

use self::clients::{read, write};
use self::disturbances::Disturbances;
use crate::configuration::Config;
use crate::support::database::TestDatabase;
use crate::support::server::TestServer;
use crate::support::{eventually, machine};

/// A roll-up whose bad deltas wait, one whose bad deltas are set aside, a worker of the sample, and a job.
const WORKERS: &str = r#"
[[worker]]
name = "waits"
function = "rollup"
queue = "l.q"
totals = "l.q_total"
keys = ["k"]
sum = ["v"]
count = "n"
view = "l.q_now"
naptime = "20ms"
batch = 1000
restart_time = "100ms"

[[worker]]
name = "sets aside"
function = "rollup"
queue = "l.p"
totals = "l.p_total"
keys = ["k"]
sum = ["v"]
count = "n"
view = "l.p_now"
on_poison = "set_aside"
naptime = "20ms"
batch = 1000
restart_time = "100ms"

[[worker]]
name = "sample"
schema = "l"
table = "counted"
initial_total = 0
naptime = "20ms"
restart_time = "100ms"

[[worker]]
name = "ticks"
function = "sql"
every = "1s"
missed = "each"
restart_time = "100ms"
sql = "INSERT INTO l.effect VALUES (current_setting('bgworker.tick')::timestamptz)"
"#;

/// The totals refuse a delta of a thousand million million.
const TABLES: &str = "CREATE SCHEMA l; \
    CREATE TABLE l.ledger (what text NOT NULL, k int NOT NULL, v numeric NOT NULL, n bigint NOT NULL); \
    CREATE TABLE l.q (k int NOT NULL, v numeric NOT NULL); CREATE TABLE l.p (LIKE l.q INCLUDING ALL); \
    CREATE TABLE l.q_total (k int PRIMARY KEY, v numeric CHECK (v < 1e14), n bigint); \
    CREATE TABLE l.p_total (LIKE l.q_total INCLUDING ALL); CREATE TABLE l.p_rejected (LIKE l.p); \
    CREATE TABLE l.effect (tick timestamptz); \
    CREATE FUNCTION l.keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
    CREATE FUNCTION l.alter() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.v = NEW.v + 1; RETURN NEW; END'";

/// How long everything meets.
fn duration() -> Duration {
    let seconds = std::env::var("LEDGER_SECONDS").map(|text| text.parse().unwrap());
    Duration::from_secs(seconds.unwrap_or(12))
}

/// Waits until nothing waits but deltas that no total can hold.
async fn is_folded(db: &TestDatabase) {
    eventually("all is folded", || async {
        let waiting = "SELECT (SELECT count(*) FROM l.q WHERE k < 1000) + (SELECT count(*) FROM l.p) \
                       + (SELECT count(*) FROM l.counted WHERE type = 'delta')";
        db.value::<i64>(waiting).await == 0
    })
    .await;
}

#[actix::test]
async fn what_clients_have_written_is_there_at_every_moment_whatever_happens() {
    let _machine = machine();
    let server = TestServer::start_with(&[
        ("max_connections", "200"),
        ("deadlock_timeout", "20ms"),
        ("restart_after_crash", "on"),
    ]);
    let conninfo = server.conninfo();
    let db = TestDatabase::at(&conninfo).await;
    db.execute(TABLES).await;
    let config = Config::new(&format!("[database]\nurl = \"{conninfo}\"\n{WORKERS}"));
    let mut disturbances = Disturbances::begin(server, &config);
    eventually("the tables are made", || async {
        let made = "SELECT to_regclass('l.q_now') IS NOT NULL AND to_regclass('l.p_now') IS NOT NULL \
                    AND to_regclass('l.counted') IS NOT NULL";
        db.value::<bool>(made).await
    })
    .await;
    drop(db);

    let stop = Arc::new(AtomicBool::new(false));
    let spawn_writer = |_| actix::spawn(write(conninfo.clone(), Arc::clone(&stop)));
    let writers: Vec<_> = (0..5).map(spawn_writer).collect();
    let isolations = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"];
    let spawn_reader =
        |isolation| actix::spawn(read(conninfo.clone(), isolation, Arc::clone(&stop)));
    let readers = isolations.map(spawn_reader);
    let disturbed = disturbances.go_on_for(duration()).await;
    stop.store(true, Ordering::Relaxed);
    let (mut written, mut read) = (0, 0);
    for writer in writers {
        written += writer.await.unwrap();
    }
    for reader in readers {
        read += reader.await.unwrap();
    }
    println!("{written} transactions written, {read} read, {disturbed} disturbances");
    assert!(written > 100 && read > 10, "{written} {read}");

    let (server, instances) = disturbances.end();
    let db = TestDatabase::at(&conninfo).await;
    is_folded(&db).await;
    for mut instance in instances {
        instance.signal(Signal::SIGTERM);
        assert_eq!(instance.wait().0, Some(0), "{:?}", instance.said);
    }
    let good = "SELECT count(*) FROM l.p_rejected WHERE v < 1e15";
    assert_eq!(db.value::<i64>(good).await, 0, "good deltas are set aside");
    let twice = "SELECT count(*) - count(DISTINCT tick) FROM l.effect";
    assert_eq!(db.value::<i64>(twice).await, 0, "ticks run twice");
    clients::assert_equal(&db.connect_plainly().await, "READ COMMITTED").await;
    drop(server);
}
