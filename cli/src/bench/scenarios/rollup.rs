//! Roll-ups: counters that many clients raise at once, and a backlog folded at once.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bgworker::database::{self, Connection, Database, DatabaseError};
use bgworker::rollup;
use tokio::time::Instant;

use super::{BYTES, MILLISECONDS, PER_SECOND, ROWS, SECOND, percentile};
use crate::bench::BenchArguments;
use crate::bench::baseline::Baseline;
use crate::bench::configured::Configured;
use crate::bench::fleet::PATIENCE;
use crate::bench::ground::{Ground, SCHEMA};
use crate::bench::progress::Progress;
use crate::bench::report::Report;
use crate::bench::usage::{LongestTransaction, Usage};

/// How many clients raise counters.
const WRITERS: usize = 16;

/// How many counters there are.
const COUNTERS: [u32; 3] = [1, 10, 1_000];

/// The backlogs: how many keys each has, and the keys of the roll-up that fold it for throughput, if that is measured.
const BACKLOGS: [(u32, &str); 4] = [
    (1, ""),
    (1_000, ""),
    (100_000, ""),
    (100_000, "fold_time = \"1s\", batch = 1000000"),
];

/// How often each way of folding a backlog is measured; the medians are reported.
const ROUNDS: usize = 3;

/// How many steps each scenario takes.
pub(in crate::bench) const COUNTERS_STEPS: usize = COUNTERS.len();
pub(in crate::bench) const ROLLUP_STEPS: usize = BACKLOGS.len() * (ROUNDS + 1);

/// What clients that raise counters have done.
struct Raised {
    transactions: i64,
    /// Milliseconds.
    latencies: Vec<f64>,
    wal: f64,
}

/// Measures counters that clients raise back to back: by deltas that a roll-up folds meanwhile, and by upserts into
/// the totals.
pub(in crate::bench) async fn counters(
    ground: &Ground,
    arguments: &BenchArguments,
    report: &mut Report,
    progress: &Progress,
) -> Result<(), Box<dyn Error>> {
    let time = SECOND * arguments.seconds;
    for keys in COUNTERS {
        progress.step(format!("counters: {keys}"));
        let (q, t) = make(ground).await?;
        let workers = start(ground, "naptime = \"100ms\"").await?;
        let insert =
            format!("INSERT INTO {q} SELECT (pg_catalog.random() * {keys})::int % {keys}, 1");
        let ours = raise(ground, &insert, time).await?;
        let waiting: i64 = ground.value(&format!("SELECT count(*) FROM {q}")).await?;
        is_folded(&workers, ours.transactions.unsigned_abs()).await?;
        workers.stop().await?;
        check(ground, &t, ours.transactions).await?;
        let mut baseline = None;
        if arguments.baseline {
            make(ground).await?;
            let upsert = format!(
                "INSERT INTO {t} AS t SELECT (pg_catalog.random() * {keys})::int % {keys}, 1, 1 \
                 ON CONFLICT (k) DO UPDATE SET v = t.v + excluded.v, n = t.n + excluded.n"
            );
            let upserted = raise(ground, &upsert, time).await?;
            check(ground, &t, upserted.transactions).await?;
            baseline = Some(upserted);
        }
        let which = match keys {
            1 => "one counter".to_owned(),
            keys => format!("{keys} counters"),
        };
        let rate = |raised: &Raised| raised.transactions as f64 / time.as_secs_f64();
        let wal = |raised: &Raised| raised.wal / raised.transactions.max(1) as f64;
        let what = format!("{which} raised by {WRITERS} clients");
        let other = baseline.as_ref().map(rate);
        report.add("counters", what, PER_SECOND, rate(&ours), other);
        let what = format!("{which}: write-ahead log of a transaction");
        let other = baseline.as_ref().map(wal);
        report.add("counters", what, BYTES, wal(&ours), other);
        let mut latencies = ours.latencies;
        let what = format!("{which}: a transaction, p99");
        let other = baseline.map(|mut raised| percentile(&mut raised.latencies, 99));
        report.add(
            "counters",
            what,
            MILLISECONDS,
            percentile(&mut latencies, 99),
            other,
        );
        let what = format!("{which}: deltas that wait at the end");
        report.add("counters", what, ROWS, waiting as f64, None);
    }
    Ok(())
}

/// Measures a backlog, of few and of many keys, folded at once.
pub(in crate::bench) async fn rollup(
    ground: &Ground,
    arguments: &BenchArguments,
    report: &mut Report,
    progress: &Progress,
) -> Result<(), Box<dyn Error>> {
    let rows = arguments.rows;
    for (keys, with) in BACKLOGS {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 1..=ROUNDS {
            progress.step(format!("rollup: {keys} keys, round {round} of {ROUNDS}"));
            ours.push(fold(ground, rows, (keys, with)).await?);
            if arguments.baseline {
                theirs.push(fold_by_hand(ground, rows, keys).await?);
            }
        }
        progress.step(format!("rollup: {keys} keys, the longest transaction"));
        let watcher = LongestTransaction::watch(ground).await?;
        fold(ground, rows, (keys, with)).await?;
        let longest = watcher.stop().await?;
        let theirs = arguments.baseline.then(|| percentile(&mut theirs, 50));
        let keys = match (keys, with) {
            (1, _) => "one key".to_owned(),
            (keys, "") => format!("{keys} keys"),
            (keys, with) => format!("{keys} keys with {with}"),
        };
        let what = format!("folding {rows} deltas of {keys}");
        report.add(
            "rollup",
            what,
            MILLISECONDS,
            percentile(&mut ours, 50),
            theirs,
        );
        let what = format!("its longest transaction, {keys}");
        report.add("rollup", what, MILLISECONDS, longest, theirs);
    }
    Ok(())
}

/// Makes the tables, and returns their names.
async fn make(ground: &Ground) -> Result<(String, String), Box<dyn Error>> {
    let (q, t) = (format!("{SCHEMA}.rollup_q"), format!("{SCHEMA}.rollup_t"));
    let sql = format!(
        "SET LOCAL lock_timeout = 0; DROP TABLE IF EXISTS {q}, {t}; \
         CREATE TABLE {q} (k int NOT NULL, v bigint NOT NULL); \
         CREATE TABLE {t} (k int PRIMARY KEY, v bigint NOT NULL DEFAULT 0, n bigint NOT NULL DEFAULT 0) \
         WITH (fillfactor = 50)"
    );
    ground.client.batch_execute("make tables", &sql).await?;
    Ok((q, t))
}

/// Starts a roll-up, and waits until it has had a cycle.
async fn start(ground: &Ground, with: &str) -> Result<Configured, Box<dyn Error>> {
    let worker = format!(
        "[[worker]]\nname = \"rollup\"\nfunction = \"rollup\"\nqueue = \"{SCHEMA}.rollup_q\"\n\
         totals = \"{SCHEMA}.rollup_t\"\nkeys = [\"k\"]\nsum = [\"v\"]\ncount = \"n\"\n{with}\n"
    );
    let workers = Configured::start(ground, &worker, database::Settings::default()).await?;
    let begin = Instant::now();
    loop {
        let found = workers.postmaster.workers().await?;
        if found
            .registered
            .iter()
            .any(|worker| worker.report.cycles > 0)
        {
            return Ok(workers);
        }
        if let Some(why) = found.ended.first().and_then(|worker| worker.reason.clone()) {
            return Err(why.to_string().into());
        }
        if begin.elapsed() > PATIENCE {
            return Err("the roll-up did not start working in time".into());
        }
        tokio::time::sleep(SECOND / 200).await;
    }
}

/// Waits until this many rows are folded.
async fn is_folded(workers: &Configured, rows: u64) -> Result<(), Box<dyn Error>> {
    let begin = Instant::now();
    loop {
        let found = workers.postmaster.workers().await?.registered;
        if found
            .iter()
            .any(|worker| worker.report.count(rollup::ROWS_FOLDED) == rows)
        {
            return Ok(());
        }
        if begin.elapsed() > PATIENCE {
            return Err("the deltas were not folded".into());
        }
        tokio::time::sleep(SECOND / 1000).await;
    }
}

/// Fails unless the totals count this many rows, and their sum is as large.
async fn check(ground: &Ground, totals: &str, rows: i64) -> Result<(), Box<dyn Error>> {
    let sql = format!("SELECT coalesce(pg_catalog.sum(n), 0)::pg_catalog.int8 FROM {totals}");
    let counted: i64 = ground.value(&sql).await?;
    let sql = format!("SELECT coalesce(pg_catalog.sum(v), 0)::pg_catalog.int8 FROM {totals}");
    let summed: i64 = ground.value(&sql).await?;
    if (counted, summed) == (rows, rows) {
        return Ok(());
    }
    Err(format!("{totals} counts {counted} rows and {summed} of {rows}: deltas were lost").into())
}

/// Runs a statement back to back on as many connections as there are writers.
async fn raise(ground: &Ground, sql: &str, time: Duration) -> Result<Raised, Box<dyn Error>> {
    let settings = database::Settings::default();
    let database = Database::new(ground.conninfo.clone(), settings)?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for _ in 0..WRITERS {
        clients.push(database.connect("bgworker bench", None).await?);
    }
    let then = Usage::now(ground).await?;
    let tasks: Vec<_> = clients
        .into_iter()
        .map(|client| tokio::spawn(back_to_back(client, sql.to_owned(), Arc::clone(&stop))))
        .collect();
    tokio::time::sleep(time).await;
    stop.store(true, Ordering::Relaxed);
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await??);
    }
    let used = Usage::now(ground).await?.since(&then);
    Ok(Raised {
        transactions: latencies.len() as i64,
        latencies,
        wal: used.wal,
    })
}

async fn back_to_back(
    client: Connection,
    sql: String,
    stop: Arc<AtomicBool>,
) -> Result<Vec<f64>, DatabaseError> {
    let statement = client.prepare("prepare", &sql).await?;
    // A client waits for the others without limit.
    client.batch_execute("wait", "SET lock_timeout = 0").await?;
    let mut latencies = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let begin = Instant::now();
        client.query_prepared("raise a counter", &statement).await?;
        latencies.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    client.close().await;
    Ok(latencies)
}

/// Fills the queue with this many rows, spread over `keys` keys.
async fn fill(ground: &Ground, q: &str, rows: u32, keys: u32) -> Result<(), Box<dyn Error>> {
    let sql = format!(
        "INSERT INTO {q} SELECT (g * 7919::int8 % {keys})::int, 1 FROM pg_catalog.generate_series(1, {rows}) AS g"
    );
    ground.client.batch_execute("fill", &sql).await?;
    ground.checkpoint().await
}

/// How long a roll-up takes to fold a backlog, in milliseconds.
async fn fold(
    ground: &Ground,
    rows: u32,
    (keys, with): (u32, &str),
) -> Result<f64, Box<dyn Error>> {
    let (q, t) = make(ground).await?;
    let with = with.replace(", ", "\n");
    let workers = start(ground, &format!("naptime = \"1d\"\n{with}")).await?;
    fill(ground, &q, rows, keys).await?;
    let begin = Instant::now();
    workers.postmaster.sighup();
    is_folded(&workers, u64::from(rows)).await?;
    let took = begin.elapsed().as_secs_f64() * 1e3;
    workers.stop().await?;
    check(ground, &t, i64::from(rows)).await?;
    Ok(took)
}

/// How long the statement takes that people write by hand, in milliseconds.
async fn fold_by_hand(ground: &Ground, rows: u32, keys: u32) -> Result<f64, Box<dyn Error>> {
    let (q, t) = make(ground).await?;
    fill(ground, &q, rows, keys).await?;
    let statement = format!(
        "WITH gone AS (DELETE FROM {q} RETURNING k, v) INSERT INTO {t} AS t \
         SELECT k, pg_catalog.sum(v), pg_catalog.count(*) FROM gone GROUP BY k \
         ON CONFLICT (k) DO UPDATE SET v = t.v + excluded.v, n = t.n + excluded.n"
    );
    let baseline = Baseline::of(ground, vec![statement]).await?;
    let took = baseline.once().await?;
    check(ground, &t, i64::from(rows)).await?;
    Ok(took.as_secs_f64() * 1e3)
}
