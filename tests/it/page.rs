//! The page in a real browser: what it shows while a worker fails, backs off, is parked and recovers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix_web::{App, HttpServer, web};
use bgworker::database::ServerState;
use bgworker::http::configure;
use bgworker::supervision::{Limits, Shutdown};
use bgworker::testing::FakeServer;
use bgworker::{BackgroundWorker, RestartTime, WorkerContext, WorkerError};
use serde_json::json;

use crate::support::browser::Browser;

const SECOND: Duration = Duration::from_secs(1);

/// The text of the first row, column by column.
const ROW: &str = "Array.from(document.querySelectorAll('#workers tbody tr:first-child td'), (td) => td.textContent)";
/// The state in the first row, without the time until the next start.
const STATE: &str =
    "(document.querySelector('#workers tbody .state')?.textContent ?? '').split(',')[0]";
const HEALTH: &str = "document.querySelector('#health').textContent";
const CLASS: &str = "document.querySelector('#workers tbody tr')?.className";

/// Shows one worker, with markup and scripts in its name and errors, while the test sets the state of the server.
#[actix::test]
async fn the_page_shows_a_worker_that_fails_backs_off_is_parked_and_recovers() {
    let name = "<b>w</b>";
    let (postmaster, server) = FakeServer::launch(Limits::default()).unwrap();
    let fails = Arc::new(AtomicBool::new(true));
    let is_told_to_fail = Arc::clone(&fails);
    let main = move |mut context: WorkerContext| {
        let fails = Arc::clone(&is_told_to_fail);
        async move {
            if fails.load(Ordering::Relaxed) {
                return Err(WorkerError::failed(
                    "<script>document.title = 'hacked'</script>",
                ));
            }
            context.ready();
            context.progress().succeeded();
            context.progress().count("rows_folded", 1_234_567);
            context.progress().level("total", -42);
            while !context.nap(SECOND).await.is_stop() {}
            Ok(())
        }
    };
    let worker = BackgroundWorker::new(name).restart_time(RestartTime::After(2 * SECOND));
    let handle = postmaster.clone();
    let app =
        move || App::new().service(web::scope("/workers").configure(configure(handle.clone())));
    let web_server = HttpServer::new(app)
        .workers(1)
        .disable_signals()
        .bind("127.0.0.1:0")
        .unwrap();
    let url = format!("http://{}/workers", web_server.addrs()[0]);
    let web_server = web_server.run();
    let stop = web_server.handle();
    actix::spawn(web_server);

    let (looked_at, mut looks) = tokio::sync::mpsc::unbounded_channel();
    let looking = tokio::task::spawn_blocking(move || {
        let look = |what| looked_at.send(what).unwrap();
        let browser = Browser::open(&url, 1200, 800);
        browser.wait_for(HEALTH, &json!("no workers"));
        browser.wait_for("document.querySelector('#none').hidden", &json!(false));
        look("no workers");
        browser.wait_for(STATE, &json!("registered"));
        assert_eq!(browser.value(&format!("{ROW}[0]")), json!(name));
        look("registered");
        browser.wait_for(STATE, &json!("backing off"));
        browser.wait_for(HEALTH, &json!("1 not healthy"));
        assert_eq!(browser.value(CLASS), json!("bad"));
        let error = browser.value(&format!("{ROW}.at(-1)"));
        assert!(error.as_str().unwrap().contains("<script>"), "{error}");
        browser.wait_for(
            "document.querySelector('#workers .state').textContent.includes('starts in')",
            &json!(true),
        );
        look("backing off");
        browser.wait_for(STATE, &json!("napping"));
        browser.wait_for(CLASS, &json!("good"));
        browser.wait_for(HEALTH, &json!("healthy"));
        browser.wait_for(
            &format!("{ROW}[5] + ' ' + {ROW}[6]"),
            &json!("1,234,567 -42"),
        );
        look("recovered");
        browser.wait_for(STATE, &json!("parked"));
        browser.wait_for(
            "document.querySelector('#server').textContent.replace(/[0-9]+/, 'N')",
            &json!("server: away for N s"),
        );
        let trouble = "document.querySelector('#trouble').textContent";
        browser.wait_for(trouble, &json!("could not connect to <b>it</b>"));
        look("parked");
        browser.wait_for(STATE, &json!("napping"));
        // Events are listed as they happen, the newest first.
        let told = "Array.from(document.querySelectorAll('li'), (li) => li.lastChild.textContent.split(';')[0])";
        let told = browser.value(told);
        let told: Vec<_> = told
            .as_array()
            .unwrap()
            .iter()
            .map(|line| line.as_str().unwrap())
            .collect();
        let w = |what: &str| format!("{name}: {what}");
        assert_eq!(told[0], w("ready"), "{told:?}");
        assert!(
            told.contains(&&*w(
                "exited: failed: <script>document.title = 'hacked'</script>"
            )),
            "{told:?}"
        );
        assert_eq!(browser.value("document.title"), json!("bgworker"));
        // The page fits the width of a phone.
        drop(browser);
        let phone = Browser::open(&url, 390, 800);
        phone.wait_for(STATE, &json!("napping"));
        let overflow =
            "document.documentElement.scrollWidth - document.documentElement.clientWidth";
        assert_eq!(phone.value(overflow), json!(0));
        look("phone");
        phone.wait_for(HEALTH, &json!("not answering"));
        phone.wait_for("document.querySelector('#notice').hidden", &json!(false));
    });
    // Each look makes the next thing happen, until the page has been seen in every state.
    while let Some(seen) = looks.recv().await {
        match seen {
            "no workers" => {
                let registered = postmaster.register(worker.clone(), main.clone()).await;
                drop(registered.unwrap());
            }
            "registered" => server.becomes(ServerState::Primary),
            "backing off" => fails.store(false, Ordering::Relaxed),
            "recovered" => server.goes_away("could not connect to <b>it</b>"),
            "parked" => server.becomes(ServerState::Primary),
            _ => {
                postmaster.shut_down(Shutdown::Smart);
                postmaster.exited().await.unwrap();
                stop.stop(true).await;
            }
        }
    }
    looking.await.unwrap();
}
