//! The text and the fields of every log event: both are promises, because users search for them.

use std::time::Duration;

use bgworker::supervision::{Limits, Shutdown};
use bgworker::{Access, BackgroundWorker, Postmaster, RestartTime, StartTime};
use tracing::Level;

use crate::support::database::{TestDatabase, brisk, register, table};
use crate::support::log::Log;
use crate::support::{eventually, postmaster};
use bgworker::testing::{PausedClock, Probe, Script};

const SECOND: Duration = Duration::from_secs(1);

#[actix::test]
async fn a_workers_life_without_a_database() {
    let _clock = PausedClock::pause();
    let log = Log::capture();
    let postmaster = postmaster();
    let probe = Probe::new();
    for (name, script, restart_time) in [
        (
            "SPI worker 1",
            Script::FailAfter(SECOND),
            RestartTime::Never,
        ),
        (
            "SPI worker 2",
            Script::PanicAfter(2 * SECOND),
            RestartTime::After(2 * SECOND),
        ),
        (
            "SPI worker 3",
            Script::FinishAfter(3 * SECOND),
            RestartTime::DEFAULT,
        ),
        (
            "SPI worker 4",
            Script::LoseDatabaseAfter(7 * SECOND / 2),
            RestartTime::DEFAULT,
        ),
    ] {
        let worker = BackgroundWorker::new(name).restart_time(restart_time);
        postmaster
            .register(worker, probe.main(script))
            .await
            .unwrap();
    }
    tokio::time::sleep(Duration::from_millis(4500)).await;
    postmaster.shut_down(Shutdown::Fast);
    postmaster.shut_down(Shutdown::Immediate);
    postmaster.exited().await.unwrap();
    insta::assert_snapshot!(log.text());
}

#[actix::test]
async fn refusals() {
    let log = Log::capture();
    let limits = Limits::default().max_workers(1);
    let postmaster = Postmaster::launch(limits, None).unwrap();
    let probe = Probe::new();
    let early = BackgroundWorker::new("early")
        .access(Access::Database)
        .start_time(StartTime::PostmasterStart);
    postmaster
        .register(early, probe.main(Script::NAPS))
        .await
        .unwrap_err();
    postmaster
        .register(BackgroundWorker::new("first"), probe.main(Script::NAPS))
        .await
        .unwrap();
    for name in ["first", "second"] {
        let worker = BackgroundWorker::new(name);
        postmaster
            .register(worker, probe.main(Script::NAPS))
            .await
            .unwrap_err();
    }
    postmaster.shut_down(Shutdown::Smart);
    let late = BackgroundWorker::new("late");
    postmaster
        .register(late, probe.main(Script::NAPS))
        .await
        .unwrap_err();
    insta::assert_snapshot!(log.text());
}

#[actix::test]
async fn a_built_in_workers_life() {
    let db = TestDatabase::new().await;
    let log = Log::capture();
    let postmaster = db.postmaster();
    let counted = table("our schema2", "counted rows");
    let worker = db
        .worker(&postmaster, "SPI worker 2", brisk(&counted))
        .await;
    let name = counted.sql();
    db.execute(&format!(
        "INSERT INTO {name} VALUES ('delta', 1), ('delta', 2)"
    ))
    .await;
    eventually("the warning", || async {
        !log.with(Level::WARN, "no total").is_empty()
    })
    .await;
    db.execute(&format!("INSERT INTO {name} VALUES ('total', 0)"))
        .await;
    db.wait_for_rows(&counted, &["total|3"]).await;
    eventually("it is reported", || async {
        !log.with(Level::INFO, "is now 3").is_empty()
    })
    .await;
    postmaster.sighup();
    eventually("the sighup", || async {
        !log.with(Level::DEBUG, "got sighup!").is_empty()
    })
    .await;
    postmaster.terminate(worker.id).await.unwrap();
    eventually("it ends", || async {
        postmaster.worker(worker.id).await.unwrap().is_none()
    })
    .await;
    postmaster.shut_down(Shutdown::Smart);
    postmaster.exited().await.unwrap();
    insta::assert_snapshot!(log.text());
}

#[actix::test]
async fn a_worker_that_the_server_refuses() {
    let db = TestDatabase::new().await;
    let log = Log::capture();
    let postmaster = db.postmaster();
    let mut settings = brisk(&table("s", "t"));
    settings.database = Some("nowhere".to_owned());
    let worker = register(&postmaster, "lost", settings).await;
    eventually("it ends", || async {
        postmaster.worker(worker.id).await.unwrap().is_none()
    })
    .await;
    let text = log.text();
    let (_, rest) = text.split_once("\"nowhere\" at ").unwrap();
    let (server, _) = rest.split_once(": FATAL").unwrap();
    insta::assert_snapshot!(text.replace(server, "[server]"));
}
