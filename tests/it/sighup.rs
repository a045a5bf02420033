//! SIGHUP: a worker that naps is woken, looks at its settings, and no more often than it must.

use std::time::{Duration, Instant};

use bgworker::worker_spi::{ConnectionKind, ROWS_FOLDED, Settings};

use crate::support::database::{TestDatabase, cycles, napping, table};
use crate::support::{eventually, within};

const SECOND: Duration = Duration::from_secs(1);

#[actix::test]
async fn a_sighup_folds_what_a_long_naptime_would_leave() {
    let db = TestDatabase::new().await;
    let postmaster = db.postmaster();
    let counted = table("schema4", "counted");
    napping(&db, &postmaster, &counted, ConnectionKind::Home).await;
    db.execute("INSERT INTO schema4.counted VALUES ('total', 0), ('delta', 1)")
        .await;
    postmaster.sighup();
    within(2 * SECOND, "the delta is folded", || async {
        db.rows(&counted).await == ["total|1"]
    })
    .await;
}

#[actix::test]
async fn a_sighup_uses_the_new_naptime() {
    let db = TestDatabase::new().await;
    let counted = table("s", "t");
    let postmaster = db.postmaster();
    let mut settings = Settings::new(counted.clone());
    settings.naptime = Duration::from_secs(600);
    let worker = db.worker(&postmaster, "w", settings).await;
    db.execute("INSERT INTO s.t VALUES ('total', 0), ('delta', 1)")
        .await;
    worker
        .settings
        .send_modify(|settings| settings.naptime = Duration::from_millis(20));
    postmaster.sighup();
    within(SECOND, "the sighup folds", || async {
        db.rows(&counted).await == ["total|1"]
    })
    .await;
    db.execute("INSERT INTO s.t VALUES ('delta', 1)").await;
    within(SECOND, "the next nap is short", || async {
        db.rows(&counted).await == ["total|2"]
    })
    .await;
}

#[actix::test]
async fn a_thousand_sighups_in_100_ms_are_merged_and_the_postmaster_answers_meanwhile() {
    let db = TestDatabase::new().await;
    let postmaster = db.postmaster();
    let mut settings = Settings::new(table("s", "t"));
    settings.naptime = Duration::from_secs(86_400);
    let worker = db.worker(&postmaster, "w", settings).await;
    cycles(&postmaster, worker.id, 0).await;
    db.execute("INSERT INTO s.t VALUES ('total', 0), ('delta', 1)")
        .await;
    let before = (postmaster.worker(worker.id).await.unwrap().unwrap()).report;
    let mut interval = tokio::time::interval(Duration::from_millis(1));
    for _ in 0..100 {
        interval.tick().await;
        (0..10).for_each(|_| postmaster.sighup());
        let asked = Instant::now();
        postmaster.status().await.unwrap();
        assert!(asked.elapsed() < Duration::from_millis(50));
    }
    eventually("it naps again", || async {
        let status = postmaster.worker(worker.id).await.unwrap().unwrap();
        status.report.napping && status.report.count(ROWS_FOLDED) == 1
    })
    .await;
    let after = (postmaster.worker(worker.id).await.unwrap().unwrap()).report;
    // Ten at once are one, or two where the first was told in between.
    let extra = after.cycles - before.cycles;
    assert!((1..=200).contains(&extra), "{extra}");
}
