//! The event stream with many clients: what each is sent, and how many there may be.

use std::pin::Pin;
use std::time::Duration;

use actix_web::App;
use actix_web::body::{MessageBody, to_bytes};
use actix_web::http::StatusCode;
use actix_web::test::{TestRequest, call_service, init_service};
use bgworker::http::configure;
use bgworker::supervision::Shutdown;
use bgworker::testing::{PausedClock, Probe, Script};
use bgworker::{BackgroundWorker, PostmasterHandle, WorkerContext};

use crate::support::postmaster;

const SECOND: Duration = Duration::from_secs(1);

/// A request of the app.
macro_rules! events {
    () => {
        TestRequest::get().uri("/events").to_request()
    };
}

async fn register(postmaster: &PostmasterHandle, name: &str) {
    let main = Probe::new().main(Script::NAPS);
    let worker = BackgroundWorker::new(name);
    postmaster.register(worker, main).await.unwrap();
}

async fn text(body: impl MessageBody) -> String {
    let text = to_bytes(body).await.ok().unwrap();
    String::from_utf8(text.to_vec()).unwrap()
}

#[actix::test]
async fn a_client_that_comes_later_is_sent_a_snapshot_and_then_the_same_as_the_others() {
    let clock = PausedClock::pause();
    let postmaster = postmaster();
    register(&postmaster, "a").await;
    let app = init_service(App::new().configure(configure(postmaster.clone()))).await;
    let first = call_service(&app, events!()).await.into_body();
    let first = actix::spawn(text(first));
    clock.advance(5 * SECOND).await;
    let second = call_service(&app, events!()).await.into_body();
    let second = actix::spawn(text(second));
    clock.advance(5 * SECOND).await;
    register(&postmaster, "b").await;
    clock.advance(5 * SECOND).await;
    postmaster.shut_down(Shutdown::Smart);
    postmaster.exited().await.unwrap();
    let (first, second) = (first.await.unwrap(), second.await.unwrap());
    let (snapshot, rest) = second.split_once("\n\n").unwrap();
    assert!(snapshot.starts_with("event: status\ndata: "), "{snapshot}");
    assert!(snapshot.contains("\"name\":\"a\"") && !snapshot.contains("\"name\":\"b\""));
    assert!(
        rest.contains("\"name\":\"b\"") && !rest.contains("event: status"),
        "{rest}"
    );
    assert!(first.ends_with(rest), "{first}\n\n{second}");
}

#[actix::test]
async fn a_client_that_falls_behind_is_sent_a_snapshot_again() {
    let clock = PausedClock::pause();
    let postmaster = postmaster();
    register(&postmaster, "a").await;
    let app = init_service(App::new().configure(configure(postmaster.clone()))).await;
    let mut body = Box::pin(call_service(&app, events!()).await.into_body());
    let first = std::future::poll_fn(|cx| Pin::new(&mut body).poll_next(cx)).await;
    let first = first.unwrap().ok().unwrap();
    assert!(first.starts_with(b"event: status\n"));
    // It reads nothing for a minute.
    clock.advance(60 * SECOND).await;
    register(&postmaster, "b").await;
    clock.advance(5 * SECOND).await;
    let rest = actix::spawn(async move { text(body).await });
    clock.advance(5 * SECOND).await;
    postmaster.shut_down(Shutdown::Smart);
    postmaster.exited().await.unwrap();
    let rest = rest.await.unwrap();
    let (snapshot, _) = rest.split_once("\n\n").unwrap();
    assert!(snapshot.starts_with("event: status\ndata: "), "{snapshot}");
    assert!(snapshot.contains("\"name\":\"b\""), "{snapshot}");
}

#[actix::test]
async fn after_256_clients_the_next_is_told_so_until_one_leaves() {
    let _clock = PausedClock::pause();
    let postmaster = postmaster();
    let app = init_service(App::new().configure(configure(postmaster))).await;
    let mut clients = Vec::new();
    for _ in 0..256 {
        clients.push(call_service(&app, events!()).await);
    }
    assert!(
        clients
            .iter()
            .all(|client| client.status() == StatusCode::OK)
    );
    let refused = call_service(&app, events!()).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    let why = text(refused.into_body()).await;
    assert_eq!(why, "256 clients receive events already: close a page\n");
    clients.pop();
    assert_eq!(call_service(&app, events!()).await.status(), StatusCode::OK);
}

#[actix::test]
async fn the_detail_of_an_error_is_left_to_the_log() {
    let clock = PausedClock::pause();
    let postmaster = postmaster();
    let main = |mut context: WorkerContext| async move {
        context.ready();
        let why = "add: ERROR: duplicate key (SQLSTATE 23505); DETAIL: Key (k)=(a@b.c) exists.; HINT: none";
        context.progress().failed(why);
        context.progress().did_not(why, SECOND);
        context.nap(SECOND).await;
        Err(bgworker::WorkerError::failed(why))
    };
    postmaster
        .register(BackgroundWorker::new("w"), main)
        .await
        .unwrap();
    let app = init_service(App::new().configure(configure(postmaster.clone()))).await;
    let listening = call_service(&app, events!()).await.into_body();
    let listening = actix::spawn(text(listening));
    for _ in 0..2 {
        clock.advance(SECOND).await;
        for path in ["/status", "/readyz", "/worker?name=w"] {
            let request = TestRequest::get().uri(path).to_request();
            let answer = text(call_service(&app, request).await.into_body()).await;
            assert!(!answer.contains("a@b.c"), "{path}: {answer}");
            assert!(
                answer.contains("(SQLSTATE 23505); HINT: none"),
                "{path}: {answer}"
            );
        }
    }
    postmaster.shut_down(Shutdown::Fast);
    postmaster.exited().await.unwrap();
    let heard = listening.await.unwrap();
    assert!(heard.contains("(SQLSTATE 23505); HINT: none"), "{heard}");
    assert!(!heard.contains("a@b.c"), "{heard}");
}
