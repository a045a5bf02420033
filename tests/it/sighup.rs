//! SIGHUP wakes a napping worker, which reads its settings again, no more often than necessary.

use std::time::{Duration, Instant};

use bgworker::worker_spi::{ConnectionKind, ROWS_FOLDED, Settings};

use crate::support::database::{TestDatabase, napping, table};
use crate::support::stage::Stage;
use crate::support::{busy, eventually, within};

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
    let stage =
        Stage::with(|table| Settings::new(table.clone()).naptime(Duration::from_secs(600))).await;
    stage
        .execute("INSERT INTO s.t VALUES ('total', 0), ('delta', 1)")
        .await;
    stage
        .worker
        .settings
        .send_modify(|settings| settings.naptime = Duration::from_millis(20));
    stage.postmaster.sighup();
    within(SECOND, "the sighup folds", || async {
        stage.rows().await == ["total|1"]
    })
    .await;
    stage.execute("INSERT INTO s.t VALUES ('delta', 1)").await;
    within(SECOND, "the next nap is short", || async {
        stage.rows().await == ["total|2"]
    })
    .await;
}

#[actix::test]
async fn a_thousand_sighups_in_100_ms_are_merged_and_the_postmaster_answers_meanwhile() {
    let stage =
        Stage::with(|table| Settings::new(table.clone()).naptime(Duration::from_secs(86_400)))
            .await;
    stage.cycles(0).await;
    stage
        .execute("INSERT INTO s.t VALUES ('total', 0), ('delta', 1)")
        .await;
    let before = stage.status().await.report;
    let mut interval = tokio::time::interval(Duration::from_millis(1));
    for _ in 0..100 {
        interval.tick().await;
        (0..10).for_each(|_| stage.postmaster.sighup());
        let asked = Instant::now();
        stage.postmaster.status().await.unwrap();
        assert!(asked.elapsed() < busy(Duration::from_millis(50)));
    }
    eventually("it naps again", || async {
        let status = stage.status().await;
        status.report.napping && status.report.count(ROWS_FOLDED) == 1
    })
    .await;
    let after = stage.status().await.report;
    // Ten at once count as one, or as two if the worker received the first before the others.
    let extra = after.cycles - before.cycles;
    assert!((1..=200).contains(&extra), "{extra}");
}
