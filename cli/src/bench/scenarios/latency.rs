//! The time from an insert to its fold.

use std::error::Error;
use std::time::Duration;

use tokio::time::Instant;

use super::{MILLISECONDS, SECOND, percentile};
use crate::bench::BenchArguments;
use crate::bench::fleet::{Fleet, PATIENCE};
use crate::bench::ground::Ground;
use crate::bench::progress::Progress;
use crate::bench::report::Report;

/// Measures the time from an insert to its fold.
pub(in crate::bench) async fn latency(
    ground: &Ground,
    arguments: &BenchArguments,
    report: &mut Report,
    progress: &Progress,
) -> Result<(), Box<dyn Error>> {
    const NAPTIME: Duration = Duration::from_millis(10);
    progress.step("latency");
    let tables = ground.tables("latency", 1).await?;
    let table = &tables[0];
    let fleet = Fleet::on(ground, &tables, 1, NAPTIME).await?;
    let begin = Instant::now();
    let mut took = Vec::new();
    let insert = format!("INSERT INTO {} VALUES ('delta', 1)", table.sql());
    let total = format!(
        "SELECT value::pg_catalog.int8 FROM {} WHERE type OPERATOR(pg_catalog.=) 'total'",
        table.sql()
    );
    while begin.elapsed() < SECOND * arguments.seconds {
        ground.client.batch_execute("insert", &insert).await?;
        let inserted = Instant::now();
        while ground.value::<i64>(&total).await? <= took.len() as i64 {
            if inserted.elapsed() > PATIENCE {
                return Err("a delta was not folded".into());
            }
        }
        took.push(inserted.elapsed().as_secs_f64() * 1e3);
    }
    fleet.stop().await?;
    ground.check(table, took.len() as i64).await?;
    for (what, percent) in [("p50", 50), ("p99", 99), ("at most", 100)] {
        let what = format!("from an insert to its fold, naptime 10 ms, {what}");
        report.add(
            "latency",
            what,
            MILLISECONDS,
            percentile(&mut took, percent),
            None,
        );
    }
    Ok(())
}
