//! Vacuums give the room of folded deltas back.

use std::time::Duration;

use bgworker::worker_spi::ROWS_FOLDED;
use tracing::Level;

use crate::support::database::{TestDatabase, brisk};
use crate::support::eventually;
use crate::support::log::Log;
use crate::support::server::TestServer;
use crate::support::stage::Stage;

#[actix::test]
async fn a_big_fold_is_followed_by_a_vacuum_that_gives_the_room_back() {
    let log = Log::capture();
    // Up to PostgreSQL 14, a starting session of any database holds back a vacuum; this server has no other sessions.
    let server = TestServer::start();
    let db = TestDatabase::at(&server.conninfo()).await;
    let stage = Stage::on(db, |table| {
        brisk(table).vacuum_after(Some(10_000)).batch(1_000)
    })
    .await;
    stage.execute("INSERT INTO s.t VALUES ('total', 0)").await;
    // A session that reads the table at the wrong moment holds back a vacuum; then the next one gives the room back.
    for round in 1..=10 {
        stage
            .execute("INSERT INTO s.t SELECT 'delta', 1 FROM generate_series(1, 20000)")
            .await;
        eventually("all is folded", || async {
            stage.status().await.report.count(ROWS_FOLDED) == round * 20_000
        })
        .await;
        let is_small = async || stage.value::<i64>("SELECT pg_relation_size('s.t')").await == 8192;
        let given_back = eventually("the room is given back", is_small);
        if tokio::time::timeout(Duration::from_secs(3), given_back)
            .await
            .is_ok()
        {
            eventually("the vacuum is over", || async {
                !log.with(Level::DEBUG, "vacuumed its table").is_empty()
            })
            .await;
            stage.becomes(&[&format!("total|{}", round * 20_000)]).await;
            return;
        }
    }
    // The server's own account, and the snapshots that may hold the vacuum back.
    stage.execute("VACUUM (VERBOSE) s.t").await;
    let snapshots = "SELECT coalesce(string_agg(row(a.*)::text, chr(10)), '') FROM pg_stat_activity AS a \
         WHERE backend_xmin IS NOT NULL OR backend_xid IS NOT NULL";
    let snapshots: String = stage.value(snapshots).await;
    panic!("the room was not given back: {}{snapshots}", log.text());
}
