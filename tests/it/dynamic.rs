//! Workers that come and go while the Postmaster runs, and the tasks that wait for them.

use std::time::Duration;

use bgworker::supervision::{Shutdown, WorkerState};
use bgworker::{
    BackgroundWorker, Event, EventKind, ExitStatus, PostmasterHandle, RequestError, RestartTime,
    StartTime, WaitError, WorkerContext, WorkerHandle,
};
use tokio::sync::broadcast::error::RecvError;

use crate::support::database::database;
use crate::support::postmaster;
use bgworker::testing::{PausedClock, Probe, Script};

const SECOND: Duration = Duration::from_secs(1);

async fn register(postmaster: &PostmasterHandle, name: &str, script: Script) -> WorkerHandle {
    let worker = BackgroundWorker::new(name).restart_time(RestartTime::Never);
    let main = Probe::new().main(script);
    postmaster.register(worker, main).await.unwrap()
}

/// A main that reports ready one second after its start.
async fn ready_after_a_second(mut context: WorkerContext) -> Result<(), bgworker::WorkerError> {
    tokio::time::sleep(SECOND).await;
    context.ready();
    context.latch().stop_requested().await;
    Ok(())
}

#[actix::test]
async fn a_handle_goes_from_not_yet_started_to_started_to_ready_to_stopped() {
    let _clock = PausedClock::pause();
    let postmaster = postmaster();
    let worker = BackgroundWorker::new("w");
    let worker = postmaster
        .register(worker, ready_after_a_second)
        .await
        .unwrap();
    let state = || async {
        let status = postmaster.worker(worker.id()).await.unwrap();
        status.map(|status| status.state)
    };
    worker.started().await.unwrap();
    assert_eq!(state().await, Some(WorkerState::Starting));
    worker.ready().await.unwrap();
    assert_eq!(state().await, Some(WorkerState::Running));
    worker.started().await.unwrap();
    assert!(worker.ended().is_none());
    worker.terminate();
    let ended = worker.stopped().await.unwrap();
    assert_eq!((ended.exit, ended.starts), (ExitStatus::Stopped, 1));
    assert_eq!(state().await, None);
    assert_eq!(worker.ended().unwrap().exit, ExitStatus::Stopped);
    let ended = WaitError::Ended(ExitStatus::Stopped);
    assert_eq!(worker.started().await.unwrap_err(), ended);
    assert_eq!(worker.ready().await.unwrap_err(), ended);
    worker.stopped().await.unwrap();
}

#[actix::test]
async fn waiting_for_a_worker_that_ends_before_it_is_ready_is_an_error() {
    let _clock = PausedClock::pause();
    let postmaster = postmaster();
    let worker = BackgroundWorker::new("w").restart_time(RestartTime::Never);
    let main = |_: WorkerContext| async { Err(bgworker::WorkerError::failed("not today")) };
    let worker = postmaster.register(worker, main).await.unwrap();
    let error = worker.ready().await.unwrap_err();
    assert_eq!(error, WaitError::Ended(ExitStatus::Failed));
    let reason = worker.ended().unwrap().reason.clone();
    assert_eq!(reason.as_deref(), Some("not today"));
}

#[actix::test]
async fn terminate_ends_a_worker_in_any_state_and_old_handles_name_no_worker() {
    let _clock = PausedClock::pause();
    // No server listens here: a worker that needs one is never started.
    let postmaster = bgworker::Postmaster::launch(
        bgworker::supervision::Limits::default(),
        Some(database("host=/no/such/directory")),
    )
    .unwrap();
    let early = |name: &str| BackgroundWorker::new(name).start_time(StartTime::PostmasterStart);
    let probe = Probe::new();
    let not_started = register(&postmaster, "not started", Script::NAPS).await;
    let runs = postmaster
        .register(early("runs"), probe.main(Script::NAPS))
        .await
        .unwrap();
    let fails = probe.main(Script::FailAfter(Duration::ZERO));
    let backs_off = postmaster
        .register(early("backs off"), fails)
        .await
        .unwrap();
    runs.ready().await.unwrap();
    backs_off.ready().await.unwrap();
    tokio::time::sleep(SECOND).await;
    for worker in [&not_started, &runs, &backs_off] {
        worker.terminate();
        worker.terminate();
        assert_eq!(worker.stopped().await.unwrap().exit, ExitStatus::Stopped);
    }
    let next = postmaster
        .register(early("next"), probe.main(Script::NAPS))
        .await
        .unwrap();
    next.ready().await.unwrap();
    let same_slot = [&not_started, &runs, &backs_off]
        .into_iter()
        .find(|worker| worker.id().slot() == next.id().slot())
        .expect("the slot is used again");
    assert_ne!(same_slot.id().generation(), next.id().generation());
    same_slot.terminate();
    assert!(postmaster.worker(same_slot.id()).await.unwrap().is_none());
    let state = postmaster.worker(next.id()).await.unwrap().unwrap().state;
    assert_eq!(state, WorkerState::Running);
}

#[actix::test]
async fn a_shutdown_refuses_registrations_and_releases_waiters() {
    let _clock = PausedClock::pause();
    let postmaster = bgworker::Postmaster::launch(
        bgworker::supervision::Limits::default(),
        Some(database("host=/no/such/directory")),
    )
    .unwrap();
    let worker = register(&postmaster, "never started", Script::NAPS).await;
    let waits = {
        let worker = worker.clone();
        actix_rt::spawn(async move { worker.ready().await })
    };
    let stopped = {
        let worker = worker.clone();
        actix_rt::spawn(async move { worker.stopped().await })
    };
    tokio::time::sleep(SECOND).await;
    postmaster.shut_down(Shutdown::Smart);
    assert_eq!(waits.await.unwrap().unwrap_err(), WaitError::ShuttingDown);
    assert_eq!(stopped.await.unwrap().unwrap().exit, ExitStatus::Stopped);
    postmaster.exited().await.unwrap();
    let late = BackgroundWorker::new("late");
    let refused = postmaster
        .register(late, Probe::new().main(Script::NAPS))
        .await;
    assert!(matches!(refused.unwrap_err(), RequestError::Refused(_)));
    assert_eq!(
        worker.started().await.unwrap_err(),
        WaitError::Ended(ExitStatus::Stopped)
    );
}

#[actix::test]
async fn subscribers_receive_the_events_of_a_workers_life() {
    let _clock = PausedClock::pause();
    let postmaster = postmaster();
    let mut events = postmaster.subscribe().await.unwrap();
    let worker = BackgroundWorker::new("w").restart_time(RestartTime::After(SECOND));
    let main = Probe::new().main(Script::FailAfter(SECOND));
    let worker = postmaster.register(worker, main).await.unwrap();
    let mut told = Vec::new();
    while told.len() < 6 {
        let Event {
            worker: id,
            name,
            kind,
            ..
        } = events.recv().await.unwrap();
        assert_eq!((id, &*name), (worker.id(), "w"));
        told.push(kind);
    }
    let incarnation = |number| bgworker::Incarnation {
        worker: worker.id(),
        number,
    };
    assert_eq!(
        told,
        [
            EventKind::Registered,
            EventKind::Started(incarnation(1)),
            EventKind::Ready(incarnation(1)),
            EventKind::Exited {
                incarnation: incarnation(1),
                exit: ExitStatus::Failed,
                reason: Some("the script says so".into()),
                restart_in: Some(SECOND),
            },
            EventKind::Started(incarnation(2)),
            EventKind::Ready(incarnation(2)),
        ]
    );
    worker.terminate();
    worker.stopped().await.unwrap();
    while events.recv().await.unwrap().kind != EventKind::Unregistered(ExitStatus::Stopped) {}
    postmaster.shut_down(Shutdown::Smart);
    postmaster.exited().await.unwrap();
    drop(postmaster);
    drop(worker);
    assert_eq!(events.recv().await.unwrap_err(), RecvError::Closed);
}
