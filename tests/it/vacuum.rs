//! Vacuums: the room of folded deltas is given back.

use bgworker::worker_spi::ROWS_FOLDED;
use tracing::Level;

use crate::support::database::{TestDatabase, brisk, table};
use crate::support::eventually;
use crate::support::log::Log;

#[actix::test]
async fn a_big_fold_is_followed_by_a_vacuum_that_gives_the_room_back() {
    let log = Log::capture();
    let db = TestDatabase::new().await;
    let postmaster = db.postmaster();
    let counted = table("s", "t");
    let mut settings = brisk(&counted);
    settings.vacuum_after = Some(10_000);
    settings.batch = 1_000;
    let worker = db.worker(&postmaster, "w", settings).await;
    db.execute("INSERT INTO s.t VALUES ('total', 0)").await;
    // Whoever looks at the table at the wrong moment holds a vacuum back: then the next one does it.
    for round in 1..=10 {
        db.execute("INSERT INTO s.t SELECT 'delta', 1 FROM generate_series(1, 20000)")
            .await;
        eventually("all is folded and vacuumed", || async {
            let status = postmaster.worker(worker.id).await.unwrap().unwrap();
            let vacuums = log.with(Level::DEBUG, "vacuumed its table").len();
            status.report.count(ROWS_FOLDED) == round * 20_000 && vacuums as u64 >= round
        })
        .await;
        db.wait_for_rows(&counted, &[&format!("total|{}", round * 20_000)])
            .await;
        if db.value::<i64>("SELECT pg_relation_size('s.t')").await == 8192 {
            return;
        }
    }
    panic!("the room was not given back: {}", log.text());
}
