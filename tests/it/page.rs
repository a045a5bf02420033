//! The page in a real browser: what it shows while a worker fails, backs off, is parked and recovers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix_web::{App, HttpServer, web};
use bgworker::database::ServerState;
use bgworker::http::configure;
use bgworker::supervision::{Limits, Shutdown};
use bgworker::testing::FakeServer;
use bgworker::{BackgroundWorker, JobState, RestartTime, WorkerContext, WorkerError};
use serde_json::json;
use tokio::time::Instant;

use crate::support::browser::Browser;

const SECOND: Duration = Duration::from_secs(1);

/// The text of the first row, column by column.
const ROW: &str =
    "Array.from(document.querySelectorAll('#rows tr:first-child td'), (td) => td.textContent)";
/// The state in the first row, without the time until the next start.
const STATE: &str = "(document.querySelector('#rows .state')?.textContent ?? '').split(',')[0]";
const HEALTH: &str = "document.querySelector('#health').textContent";
const CLASS: &str = "document.querySelector('#rows tr')?.className";

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
            "document.querySelector('#rows .state').textContent.includes('starts in')",
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

/// The names that the page shows, from top to bottom.
const NAMES: &str =
    "Array.from(document.querySelectorAll('#rows td.name'), (td) => td.textContent)";

/// Types into the filter.
fn filter(text: &str) -> String {
    format!("(filter.value = {text:?}, filter.dispatchEvent(new Event('input')), true)")
}

/// Serves a Postmaster until the page was looked at.
async fn served(postmaster: &bgworker::PostmasterHandle, look: impl FnOnce(&str) + Send + 'static) {
    let handle = postmaster.clone();
    let app = move || App::new().configure(configure(handle.clone()));
    let server = HttpServer::new(app).workers(1).disable_signals();
    let server = server.bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", server.addrs()[0]);
    let server = server.run();
    let stop = server.handle();
    actix::spawn(server);
    let looking = tokio::task::spawn_blocking(move || look(&url));
    looking.await.unwrap();
    postmaster.shut_down(Shutdown::Smart);
    postmaster.exited().await.unwrap();
    stop.stop(true).await;
}

#[actix::test]
async fn ten_thousand_workers_are_a_screenful_of_rows_and_those_that_need_attention_come_first() {
    let limits = Limits::default().max_workers(10_000).starts_per_tick(100);
    let postmaster = bgworker::Postmaster::launch(limits, None).unwrap();
    for n in 0..10_000 {
        let main = move |mut context: WorkerContext| async move {
            if n == 7_777 {
                return Err(WorkerError::failed("out of cheese"));
            }
            context.ready();
            context.progress().succeeded();
            while !context.nap(SECOND).await.is_stop() {}
            Ok(())
        };
        let worker = BackgroundWorker::new(format!("w{n}"))
            .start_time(bgworker::StartTime::PostmasterStart)
            .restart_time(RestartTime::After(1000 * SECOND));
        postmaster.register(worker, main).await.unwrap();
    }
    served(&postmaster, |url| {
        let browser = Browser::open(url, 1200, 800);
        browser.wait_for("document.querySelector('#counts').textContent", &json!("10,000 workers"));
        browser.wait_for(&format!("{NAMES}[0]"), &json!("w7777"));
        browser.wait_for(&format!("{NAMES}[1]"), &json!("w0"));
        let rows = browser.value("document.querySelectorAll('#rows tr').length");
        assert!(rows.as_u64().unwrap() < 60, "{rows}");
        // The last ones, by the scroll bar.
        browser.value("scrollTo(0, document.documentElement.scrollHeight)");
        browser.wait_for(&format!("{NAMES}.at(-1)"), &json!("w9999"));
        // How long what one message of changes costs takes.
        let cost = "(() => { const begin = performance.now(); list(); return performance.now() - begin; })()";
        let cost = browser.value(cost).as_f64().unwrap();
        println!("sorting and drawing 10,000 workers: {cost:.0} ms");
        assert!(cost < 500.0, "{cost}");
        browser.value(&filter("w123"));
        browser.wait_for("document.querySelector('#shown').textContent", &json!("11 of 10,000"));
        browser.value(&filter("cheese"));
        browser.wait_for(NAMES, &json!(["w7777"]));
        browser.value(&filter(""));
        // By name, upwards and downwards.
        browser.value("document.querySelector('#workers th button').click()");
        browser.wait_for(&format!("{NAMES}[0]"), &json!("w0"));
        browser.value("document.querySelector('#workers th button').click()");
        browser.value("scrollTo(0, 0)");
        let cost = browser.value("(() => { const begin = performance.now(); list(); return performance.now() - begin; })()");
        println!("the same by name: {:.0} ms", cost.as_f64().unwrap());
        assert!(cost.as_f64().unwrap() < 500.0, "{cost}");
        browser.wait_for(&format!("{NAMES}[0]"), &json!("w9999"));
        let sorted = "document.querySelector('#workers th').getAttribute('aria-sort')";
        assert_eq!(browser.value(sorted), json!("descending"));
    })
    .await;
}

#[actix::test]
async fn a_job_that_needs_attention_stands_out_though_its_instance_is_healthy() {
    let postmaster = bgworker::Postmaster::launch(Limits::default(), None).unwrap();
    let main = |mut context: WorkerContext| async move {
        let progress = context.progress();
        progress.looked();
        let begin = Instant::now() - 300 * SECOND;
        let why = "division <b>by</b> zero";
        progress.job(JobState::GivenUp, begin, Some(why.into()));
        context.ready();
        while !context.nap(SECOND).await.is_stop() {}
        Ok(())
    };
    let worker = BackgroundWorker::new("j").start_time(bgworker::StartTime::PostmasterStart);
    postmaster.register(worker, main).await.unwrap();
    served(&postmaster, move |url| {
        let browser = Browser::open(url, 1200, 800);
        browser.wait_for(STATE, &json!("given up"));
        browser.wait_for(CLASS, &json!("bad"));
        browser.wait_for(HEALTH, &json!("healthy, but 1 job needs attention"));
        browser.wait_for(&format!("{ROW}.at(-1)"), &json!("division <b>by</b> zero"));
        browser.wait_for(&format!("{ROW}[3]"), &json!("none known"));
        let since = browser.value(&format!("{ROW}[2]"));
        assert!(since.as_str().unwrap().starts_with("5 min"), "{since}");
        browser.value("document.querySelector('#rows a').click()");
        browser.wait_for(
            "document.querySelector('#state').textContent",
            &json!("given up"),
        );
    })
    .await;
}

#[actix::test]
async fn a_worker_has_a_view_of_its_own_with_its_figures_and_its_last_runs() {
    let postmaster = bgworker::Postmaster::launch(Limits::default(), None).unwrap();
    let main = |mut context: WorkerContext| async move {
        context.ready();
        let progress = context.progress();
        progress.succeeded();
        progress.count("rows_written", 12);
        progress.did("12 rows", SECOND / 4);
        progress.did_not("<b>no</b> rows", 2 * SECOND);
        progress.failed("<b>no</b> rows");
        while !context.nap(SECOND).await.is_stop() {}
        Ok(())
    };
    let name = "a & b / 100 %";
    let worker = BackgroundWorker::new(name).start_time(bgworker::StartTime::PostmasterStart);
    postmaster.register(worker, main).await.unwrap();
    served(&postmaster, move |url| {
        let browser = Browser::open(url, 1200, 800);
        browser.wait_for(NAMES, &json!([name]));
        for (element, spoken) in [
            ("#filter", "searchbox: Filter"),
            ("#workers", "table: "),
            ("#workers th button", "button: worker"),
            ("#workers th:nth-child(2)", "columnheader: state"),
            ("#rows tr", "row: "),
            ("#rows a", "link: a & b / 100 %"),
            ("#health", "status: "),
        ] {
            assert!(browser.spoken(element).starts_with(spoken), "{}", browser.spoken(element));
        }
        browser.value("document.querySelector('#rows a').click()");
        let text = |of: &str| format!("document.querySelector('{of}').textContent");
        browser.wait_for(&text("#title"), &json!(name));
        browser.wait_for(&text("#state"), &json!("napping"));
        browser.wait_for(&text("#error"), &json!("<b>no</b> rows"));
        let runs = "Array.from(document.querySelectorAll('#runs tbody tr'), (row) => \
                    row.cells[1].textContent + ': ' + row.cells[2].textContent)";
        browser.wait_for(runs, &json!(["2.0 s: <b>no</b> rows", "250 ms: 12 rows"]));
        let plots = "Array.from(document.querySelectorAll('#plots figcaption span'), (one) => one.textContent)";
        let expected = ["cycles per minute", "failures in a row", "rows written per minute"];
        browser.wait_for(plots, &json!(expected));
        let spoken = browser.spoken("#plots svg");
        assert!(spoken.contains(": cycles per minute, last hour: 0 to "), "{spoken}");
        // The view is a place of its own, and Escape leads back.
        browser.value("dispatchEvent(new KeyboardEvent('keydown', { key: 'Escape' }))");
        browser.wait_for("document.querySelector('#worker').hidden", &json!(true));
        browser.wait_for(NAMES, &json!([name]));
    })
    .await;
}
