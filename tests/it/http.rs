//! The HTTP endpoints: their answers while workers are healthy and unhealthy.

use std::time::Duration;

use actix_web::App;
use actix_web::body::to_bytes;
use actix_web::http::{Method, StatusCode};
use actix_web::test::{TestRequest, call_service, init_service};
use bgworker::database::ServerState;
use bgworker::http::{Snapshot, configure};
use bgworker::supervision::{Limits, Shutdown};
use bgworker::testing::{FakeServer, PausedClock, Probe, Script};
use bgworker::{
    BackgroundWorker, JobState, PostmasterHandle, RestartTime, StartTime, WorkerContext,
    WorkerError,
};
use tokio::time::Instant;

use crate::support::database::{TestDatabase, brisk, table};
use crate::support::{eventually, postmaster};

const SECOND: Duration = Duration::from_secs(1);

async fn ask(postmaster: &PostmasterHandle, request: TestRequest) -> (StatusCode, String) {
    let app = init_service(App::new().configure(configure(postmaster.clone()))).await;
    let response = call_service(&app, request.to_request()).await;
    let status = response.status();
    let body = to_bytes(response.into_body()).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn get(postmaster: &PostmasterHandle, path: &str) -> (StatusCode, String) {
    ask(postmaster, TestRequest::get().uri(path)).await
}

async fn snapshot(postmaster: &PostmasterHandle) -> Snapshot {
    let (status, text) = get(postmaster, "/status").await;
    assert_eq!(status, StatusCode::OK);
    serde_json::from_str(&text).unwrap()
}

/// The name and state of each worker, and `true` if it is healthy.
async fn states(postmaster: &PostmasterHandle) -> Vec<(String, String, bool)> {
    let workers = snapshot(postmaster).await.workers.into_iter();
    workers
        .map(|worker| (worker.name, worker.state.to_string(), worker.healthy))
        .collect()
}

fn state(name: &str, state: &str, healthy: bool) -> (String, String, bool) {
    (name.to_owned(), state.to_owned(), healthy)
}

pub(crate) async fn is_ready(postmaster: &PostmasterHandle) -> bool {
    let (status, _) = get(postmaster, "/readyz").await;
    status == StatusCode::OK
}

#[actix::test]
async fn a_worker_is_healthy_where_its_start_time_allows_it_to_be() {
    let clock = PausedClock::pause();
    let (postmaster, server) = FakeServer::launch(Limits::default()).unwrap();
    let probe = Probe::new();
    for (name, start_time) in [
        ("early", StartTime::PostmasterStart),
        ("reads", StartTime::ConsistentState),
        ("writes", StartTime::RecoveryFinished),
    ] {
        let worker = BackgroundWorker::new(name).start_time(start_time);
        let main = probe.main(Script::NAPS);
        postmaster.register(worker, main).await.unwrap();
    }
    let in_state = |early: &str, reads: &str, writes: &str| {
        [("early", early), ("reads", reads), ("writes", writes)].map(|(n, s)| state(n, s, true))
    };
    clock.advance(SECOND).await;
    let never_ready = [
        state("early", "napping", true),
        state("reads", "registered", false),
        state("writes", "registered", false),
    ];
    assert_eq!(states(&postmaster).await, never_ready);
    let (status, why) = get(&postmaster, "/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    let reads = "background worker \"reads\" is registered, and was never ready\n";
    assert!(why.starts_with(reads), "{why}");
    for (is, expected) in [
        (
            ServerState::Standby,
            in_state("napping", "napping", "registered"),
        ),
        (
            ServerState::Primary,
            in_state("napping", "napping", "napping"),
        ),
        (
            ServerState::Standby,
            in_state("napping", "napping", "parked"),
        ),
        (ServerState::Away, in_state("napping", "parked", "parked")),
        (
            ServerState::Primary,
            in_state("napping", "napping", "napping"),
        ),
    ] {
        server.becomes(is);
        clock.advance(SECOND).await;
        assert_eq!(states(&postmaster).await, expected, "{is}");
        assert!(is_ready(&postmaster).await, "{is}");
        assert_eq!(get(&postmaster, "/livez").await.0, StatusCode::OK);
    }
}

#[actix::test]
async fn a_worker_that_fails_is_named_until_it_runs_again() {
    let clock = PausedClock::pause();
    let postmaster = postmaster();
    // Fails once, then runs.
    let main = |mut context: WorkerContext| async move {
        if context.incarnation().number == 1 {
            return Err(WorkerError::failed("the disk is on fire"));
        }
        context.ready();
        context.progress().succeeded();
        while !context.nap(SECOND).await.is_stop() {}
        Ok(())
    };
    let worker = BackgroundWorker::new("w").restart_time(RestartTime::After(10 * SECOND));
    postmaster.register(worker, main).await.unwrap();
    clock.advance(4 * SECOND).await;
    let (status, text) = get(&postmaster, "/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    let ill = "background worker \"w\" is backing off: the disk is on fire\n";
    assert_eq!(text, ill);
    let worker = &snapshot(&postmaster).await.workers[0];
    assert_eq!(worker.last_error.as_deref(), Some("the disk is on fire"));
    assert_eq!(worker.consecutive_failures, 1);
    assert_eq!(worker.next_start_seconds.unwrap().round(), 6.0);
    assert_eq!(worker.state_seconds.round(), 4.0);
    clock.advance(7 * SECOND).await;
    assert!(is_ready(&postmaster).await);
    let worker = &snapshot(&postmaster).await.workers[0];
    assert_eq!((worker.restarts, worker.consecutive_failures), (1, 0));
    assert_eq!(worker.last_success_seconds.unwrap().round(), 1.0);
    assert_eq!(worker.next_start_seconds, None);
}

#[actix::test]
async fn a_worker_whose_last_success_is_older_than_promised_is_not_healthy() {
    let clock = PausedClock::pause();
    let postmaster = postmaster();
    let main = |mut context: WorkerContext| async move {
        context.progress().promise_success_within(60 * SECOND);
        context.ready();
        context.progress().succeeded();
        // It stalls: awake, without reporting anything.
        context.latch().stop_requested().await;
        Ok(())
    };
    postmaster
        .register(BackgroundWorker::new("w"), main)
        .await
        .unwrap();
    clock.advance(59 * SECOND).await;
    assert!(is_ready(&postmaster).await);
    clock.advance(2 * SECOND).await;
    assert_eq!(states(&postmaster).await, [state("w", "running", false)]);
    let (status, text) = get(&postmaster, "/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    let ill = "background worker \"w\" is running, and its last success was 61 s ago\n";
    assert_eq!(text, ill);
    // The process is alive nevertheless: restarting it would not help.
    assert_eq!(get(&postmaster, "/livez").await.0, StatusCode::OK);
}

#[actix::test]
async fn a_run_may_take_its_time_and_what_became_of_a_job_fails_no_probe() {
    let clock = PausedClock::pause();
    let postmaster = postmaster();
    let main = |mut context: WorkerContext| async move {
        let progress = context.progress();
        progress.promise_success_within(120 * SECOND);
        progress.looked();
        context.ready();
        while !context.nap(30 * SECOND).await.is_stop() {
            let progress = context.progress();
            let run = progress.begin_run(3600 * SECOND);
            tokio::time::sleep(600 * SECOND).await;
            drop(run);
            let why = Some("division by zero".into());
            progress.job(JobState::GivenUp, Instant::now(), why);
        }
        Ok(())
    };
    let worker = BackgroundWorker::new("w");
    postmaster.register(worker, main).await.unwrap();
    clock.advance(330 * SECOND).await;
    let worker = &snapshot(&postmaster).await.workers[0];
    assert_eq!(worker.state_seconds.round(), 300.0, "since the run began");
    assert!(is_ready(&postmaster).await);
    clock.advance(310 * SECOND).await;
    let worker = &snapshot(&postmaster).await.workers[0];
    let job = worker.job.as_ref().unwrap();
    assert_eq!((&*job.state, job.needs_attention), ("given up", true));
    assert_eq!(worker.trouble().as_deref(), Some("division by zero"));
    assert_eq!(worker.last_success_seconds, None, "a look is none");
    assert!(is_ready(&postmaster).await);
    let (_, text) = get(&postmaster, "/metrics").await;
    let line = "bgworker_job_state{worker=\"w\",state=\"given up\"} 1.0";
    assert!(text.contains(line), "{text}");
}

#[actix::test]
async fn a_server_away_for_longer_than_promised_is_not_healthy_but_a_standby_is() {
    let clock = PausedClock::pause();
    let (postmaster, server) = FakeServer::launch(Limits::default()).unwrap();
    let main = |mut context: WorkerContext| async move {
        context.progress().promise_success_within(60 * SECOND);
        context.ready();
        context.progress().succeeded();
        while !context.nap(SECOND).await.is_stop() {
            context.progress().succeeded();
        }
        Ok(())
    };
    let worker = BackgroundWorker::new("w");
    postmaster.register(worker, main).await.unwrap();
    server.becomes(ServerState::Primary);
    clock.advance(SECOND).await;
    server.becomes(ServerState::Standby);
    clock.advance(1000 * SECOND).await;
    assert_eq!(states(&postmaster).await, [state("w", "parked", true)]);
    server.becomes(ServerState::Primary);
    clock.advance(SECOND).await;
    server.becomes(ServerState::Away);
    clock.advance(59 * SECOND).await;
    assert_eq!(states(&postmaster).await, [state("w", "parked", true)]);
    clock.advance(3 * SECOND).await;
    assert_eq!(states(&postmaster).await, [state("w", "parked", false)]);
    server.becomes(ServerState::Primary);
    clock.advance(SECOND).await;
    assert!(is_ready(&postmaster).await);
}

#[actix::test]
async fn an_instance_that_has_lost_its_primary_for_a_minute_is_not_ready_if_a_worker_needs_one() {
    let clock = PausedClock::pause();
    let (postmaster, server) = FakeServer::launch(Limits::default()).unwrap();
    let probe = Probe::new();
    let reads = BackgroundWorker::new("reads").start_time(StartTime::ConsistentState);
    let writes = BackgroundWorker::new("writes");
    postmaster
        .register(reads, probe.main(Script::NAPS))
        .await
        .unwrap();
    let readiness = async |state, seconds: u32| {
        server.becomes(state);
        clock.advance(seconds * SECOND).await;
        get(&postmaster, "/readyz").await
    };
    // A standby that was never a primary is what this instance was given.
    assert_eq!(readiness(ServerState::Standby, 100).await.0, StatusCode::OK);
    assert_eq!(readiness(ServerState::Primary, 1).await.0, StatusCode::OK);
    // What reads does not need the primary that is lost.
    assert_eq!(readiness(ServerState::Standby, 100).await.0, StatusCode::OK);
    postmaster
        .register(writes, probe.main(Script::NAPS))
        .await
        .unwrap();
    assert_eq!(readiness(ServerState::Primary, 1).await.0, StatusCode::OK);
    assert_eq!(readiness(ServerState::Standby, 59).await.0, StatusCode::OK);
    let (status, why) = readiness(ServerState::Standby, 2).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(why, "server is standby; for 61 s: there is no primary\n");
    assert_eq!(readiness(ServerState::Primary, 1).await.0, StatusCode::OK);
}

#[actix::test]
async fn a_worker_that_never_succeeds_is_late_counting_from_its_start() {
    let clock = PausedClock::pause();
    let postmaster = postmaster();
    let main = |mut context: WorkerContext| async move {
        context.progress().promise_success_within(60 * SECOND);
        context.ready();
        while !context.nap(SECOND).await.is_stop() {}
        Ok(())
    };
    postmaster
        .register(BackgroundWorker::new("w"), main)
        .await
        .unwrap();
    clock.advance(59 * SECOND).await;
    assert!(is_ready(&postmaster).await);
    clock.advance(2 * SECOND).await;
    assert!(!is_ready(&postmaster).await);
}

#[actix::test]
async fn a_failed_worker_is_unhealthy_until_another_has_its_name() {
    let clock = PausedClock::pause();
    let postmaster = postmaster();
    let probe = Probe::new();
    for (name, script) in [
        ("fails", Script::FailAfter(SECOND)),
        ("panics", Script::PanicAfter(SECOND)),
        ("is done", Script::FinishAfter(SECOND)),
    ] {
        let worker = BackgroundWorker::new(name).restart_time(RestartTime::Never);
        postmaster
            .register(worker, probe.main(script))
            .await
            .unwrap();
    }
    clock.advance(2 * SECOND).await;
    let mut found = states(&postmaster).await;
    found.sort();
    let expected = [
        state("fails", "failed", false),
        state("is done", "finished", true),
        state("panics", "crashed", false),
    ];
    assert_eq!(found, expected);
    for name in ["fails", "panics"] {
        assert!(!is_ready(&postmaster).await);
        let worker = BackgroundWorker::new(name);
        postmaster
            .register(worker, probe.main(Script::NAPS))
            .await
            .unwrap();
        clock.advance(SECOND).await;
    }
    assert!(is_ready(&postmaster).await);
}

#[actix::test]
async fn a_postmaster_without_workers_is_not_ready() {
    let postmaster = postmaster();
    let (status, why) = get(&postmaster, "/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(why, "no background worker is registered\n");
    assert!(!snapshot(&postmaster).await.healthy);
}

#[actix::test]
async fn a_restarted_worker_stays_healthy_for_the_time_that_it_promised() {
    let clock = PausedClock::pause();
    let (postmaster, server) = FakeServer::launch(Limits::default()).unwrap();
    // Its database goes away after its first success; from its second start on, it never becomes ready.
    let main = |mut context: WorkerContext| async move {
        context.progress().promise_success_within(60 * SECOND);
        if context.incarnation().number > 1 {
            context.latch().stop_requested().await;
            return Ok(());
        }
        context.ready();
        context.progress().succeeded();
        context.nap(SECOND).await;
        Err(WorkerError::DatabaseAway("gone".into()))
    };
    server.becomes(ServerState::Primary);
    let worker = BackgroundWorker::new("w");
    postmaster.register(worker, main).await.unwrap();
    clock.advance(59 * SECOND).await;
    assert_eq!(states(&postmaster).await, [state("w", "starting", true)]);
    clock.advance(2 * SECOND).await;
    assert_eq!(states(&postmaster).await, [state("w", "starting", false)]);
}

#[actix::test]
async fn a_parked_worker_says_why_it_is_parked_and_has_its_time_from_the_end_of_the_outage_on() {
    let clock = PausedClock::pause();
    let (postmaster, server) = FakeServer::launch(Limits::default()).unwrap();
    // From its second start on, it never becomes ready.
    let main = |mut context: WorkerContext| async move {
        let progress = context.progress();
        progress.promise_success_within(60 * SECOND);
        let remark = Some("another instance has this job too".into());
        progress.job(JobState::Waiting, Instant::now(), remark);
        if context.incarnation().number == 1 {
            context.ready();
            context.progress().succeeded();
        }
        context.latch().stop_requested().await;
        Ok(())
    };
    server.becomes(ServerState::Primary);
    let worker = BackgroundWorker::new("w");
    postmaster.register(worker, main).await.unwrap();
    clock.advance(SECOND).await;
    server.goes_away("connection closed by the proxy");
    clock.advance(150 * SECOND).await;
    let (status, why) = get(&postmaster, "/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    let away = "server is away; for 150 s: connection closed by the proxy";
    let parked = "background worker \"w\" is parked: the server is away";
    assert_eq!(why, format!("{away}\n{parked}\n"));
    server.becomes(ServerState::Primary);
    clock.advance(59 * SECOND).await;
    assert_eq!(states(&postmaster).await, [state("w", "starting", true)]);
    clock.advance(2 * SECOND).await;
    assert_eq!(states(&postmaster).await, [state("w", "starting", false)]);
}

#[actix::test]
async fn nothing_but_get_and_head_is_answered() {
    let postmaster = postmaster();
    postmaster
        .register(BackgroundWorker::new("w"), Probe::new().main(Script::NAPS))
        .await
        .unwrap();
    eventually("it is ready", || is_ready(&postmaster)).await;
    for path in ["/", "/livez", "/readyz", "/status", "/metrics", "/events"] {
        let head = TestRequest::default().method(Method::HEAD).uri(path);
        let app = init_service(App::new().configure(configure(postmaster.clone()))).await;
        let response = call_service(&app, head.to_request()).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
    }
    for path in ["/", "/livez", "/readyz", "/status", "/metrics", "/events"] {
        for request in [
            TestRequest::post(),
            TestRequest::put(),
            TestRequest::delete(),
            TestRequest::patch(),
        ] {
            let (status, _) = ask(&postmaster, request.uri(path)).await;
            assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
        }
    }
}

#[actix::test]
async fn a_postmaster_that_is_gone_is_reported_as_gone() {
    let postmaster = postmaster();
    let handle = postmaster.clone();
    postmaster.shut_down(Shutdown::Smart);
    postmaster.exited().await.unwrap();
    // It answers as long as a handle exists, and its event streams have ended.
    assert_eq!(get(&handle, "/livez").await.0, StatusCode::OK);
    let (status, text) = get(&handle, "/events").await;
    assert_eq!((status, &*text), (StatusCode::OK, ""));

    // A Postmaster whose System has stopped does not answer.
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let system = std::thread::spawn(|| {
        actix::System::new().block_on(async {
            let postmaster = crate::support::postmaster();
            let _ = sender.send(postmaster);
        });
    });
    let orphan = receiver.await.unwrap();
    system.join().unwrap();
    for path in ["/livez", "/readyz", "/status", "/metrics", "/events"] {
        let (status, text) = get(&orphan, path).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert_eq!(text, "the Postmaster has died\n", "{path}");
    }
}

#[actix::test]
async fn the_event_stream_has_events_and_snapshots_and_ends_with_the_postmaster() {
    let clock = PausedClock::pause();
    let postmaster = postmaster();
    let handle = postmaster.clone();
    let listening = actix::spawn(async move { get(&handle, "/events").await });
    clock.advance(SECOND / 10).await;
    let worker = BackgroundWorker::new("w").restart_time(RestartTime::After(2 * SECOND));
    let main = Probe::new().main(Script::FailAfter(SECOND / 2));
    postmaster.register(worker, main).await.unwrap();
    clock.advance(SECOND).await;
    postmaster.shut_down(Shutdown::Smart);
    postmaster.exited().await.unwrap();
    let (_, text) = listening.await.unwrap();
    let told: Vec<&str> = text
        .split("\n\n")
        .filter(|event| !event.is_empty())
        .collect();
    let happened: Vec<_> = told
        .iter()
        .filter_map(|event| event.strip_prefix("event: worker\ndata: "))
        .collect();
    let of_it = r#"{"worker":"w","slot":0,"generation":1,"kind":"#;
    let expected = [
        "\"registered\"}",
        "\"started\"}",
        "\"ready\"}",
        "\"exited\",\"exit\":\"failed\",\"reason\":\"the script says so\",\"restart_in_seconds\":2.0}",
        "\"unregistered\",\"exit\":\"stopped\"}",
    ];
    assert_eq!(happened, expected.map(|event| format!("{of_it}{event}")));
    let of_kind = |kind: &str| -> Vec<serde_json::Value> {
        let begin = format!("event: {kind}\ndata: ");
        let texts = told.iter().filter_map(|event| event.strip_prefix(&*begin));
        texts
            .map(|text| serde_json::from_str(text).unwrap())
            .collect()
    };
    // A snapshot arrives at once; what changed, soon after the worker was registered, and soon after it failed.
    let snapshots = of_kind("status");
    assert_eq!(snapshots.len(), 1);
    assert_eq!(snapshots[0]["workers"], serde_json::json!([]));
    let changes = of_kind("changes");
    let seen: Vec<_> = changes
        .iter()
        .map(|change| &change["workers"][0]["state"])
        .collect();
    assert_eq!(seen, ["ready", "backing off"]);
}

#[actix::test]
async fn metrics_have_their_names_and_the_values_of_the_snapshot() {
    let db = TestDatabase::new().await;
    let postmaster = db.postmaster();
    db.worker(&postmaster, "w \"1\"", brisk(&table("s", "t")))
        .await;
    db.execute("INSERT INTO s.t VALUES ('total', 40), ('delta', 1), ('delta', 1)")
        .await;
    db.wait_for_rows(&table("s", "t"), &["total|42"]).await;
    eventually("it says so", || async {
        snapshot(&postmaster).await.workers[0].figures.get("total") == Some(&42)
    })
    .await;
    let (_, text) = get(&postmaster, "/metrics").await;
    for line in [
        "bgworker_healthy{} 1.0",
        "bgworker_recovery_finished{} 1.0",
        "bgworker_worker_healthy{worker=\"w \\\"1\\\"\"} 1.0",
        "bgworker_worker_consecutive_failures{worker=\"w \\\"1\\\"\"} 0.0",
        "bgworker_worker_sum{worker=\"w \\\"1\\\"\"} 42.0",
        "bgworker_worker_rows_folded_total{worker=\"w \\\"1\\\"\"} 2",
        "bgworker_worker_restarts_total{worker=\"w \\\"1\\\"\"} 0",
        "# EOF",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    let success = text.lines().find_map(|line| {
        line.strip_prefix("bgworker_worker_last_success_timestamp_seconds{worker=\"w \\\"1\\\"\"} ")
    });
    let success: f64 = success.unwrap().parse().unwrap();
    let now = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap()
        .as_secs_f64();
    assert!((now - 60.0..=now).contains(&success), "{success}");
}

#[actix::test]
async fn workers_are_counted_in_each_state_those_too_that_failed_for_good() {
    let postmaster = postmaster();
    let main =
        |_: WorkerContext| async { Err::<(), WorkerError>(WorkerError::Failed("no".into())) };
    let worker = BackgroundWorker::new("w").restart_time(RestartTime::Never);
    let worker = postmaster.register(worker, main).await.unwrap();
    worker.stopped().await.unwrap();
    let (_, text) = get(&postmaster, "/metrics").await;
    for line in [
        "bgworker_workers{state=\"failed\"} 1.0",
        "bgworker_workers{state=\"running\"} 0.0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
}

#[actix::test]
async fn the_page_loads_nothing_from_elsewhere_and_may_connect_nowhere_else() {
    let postmaster = postmaster();
    let app = init_service(App::new().configure(configure(postmaster))).await;
    let response = call_service(&app, TestRequest::get().uri("/").to_request()).await;
    let policy = response
        .headers()
        .get("content-security-policy")
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    assert!(policy.starts_with("default-src 'none';"), "{policy}");
    let page = to_bytes(response.into_body()).await.unwrap();
    let page = String::from_utf8(page.to_vec()).unwrap();
    assert!(page.starts_with("<!doctype html>"));
    for elsewhere in ["http:", "https:", "src=", "@import", "url("] {
        assert!(!page.contains(elsewhere), "{elsewhere}");
    }
}
