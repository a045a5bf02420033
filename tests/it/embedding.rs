//! Inside an actix-web application under load: its clients notice nothing of what its workers go through.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::error::ErrorInternalServerError;
use actix_web::{App, HttpServer, web};
use bgworker::database::Connection;
use bgworker::supervision::{Shutdown, WorkerState};
use bgworker::testing::{Probe, Script};
use bgworker::{
    BackgroundWorker, ExitStatus, PostmasterHandle, RequestError, RestartTime, WaitError,
    WorkerContext, WorkerError,
};

use crate::support::database::{TestDatabase, brisk, table};
use crate::support::{eventually, postmaster};

const MOMENT: Duration = Duration::from_millis(20);

/// Number of concurrent clients, each on a connection that it keeps.
const CLIENTS: usize = 4;

async fn insert(client: web::Data<Connection>) -> actix_web::Result<&'static str> {
    let sql = "INSERT INTO s.t (type, value) VALUES ('delta', 1)";
    let inserted = client.batch_execute("insert a delta", sql).await;
    inserted.map_err(ErrorInternalServerError)?;
    Ok("inserted")
}

async fn total(client: web::Data<Connection>) -> actix_web::Result<String> {
    let sql = "SELECT value FROM s.t WHERE type = 'total'";
    let rows = client.query("read the total", sql, &[]).await;
    let rows = rows.map_err(ErrorInternalServerError)?;
    Ok(rows[0].get::<_, i64>(0).to_string())
}

async fn slow(client: web::Data<Connection>) -> actix_web::Result<&'static str> {
    let slept = client.batch_execute("sleep", "SELECT pg_sleep(0.5)").await;
    slept.map_err(ErrorInternalServerError)?;
    Ok("slept")
}

/// The application's web server, on this System.
fn serve(client: Connection, postmaster: PostmasterHandle) -> (String, ServerHandle) {
    let client = web::Data::new(client);
    let app = move || {
        App::new()
            .app_data(client.clone())
            .route("/deltas", web::post().to(insert))
            .route("/total", web::get().to(total))
            .route("/slow", web::get().to(slow))
            .configure(bgworker::http::configure(postmaster.clone()))
    };
    let server = HttpServer::new(app).workers(2).disable_signals();
    let server = server.bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", server.addrs()[0]);
    let server = server.run();
    let handle = server.handle();
    actix::spawn(server);
    (url, handle)
}

/// Clients that insert one delta after the other until they are stopped.
struct Load {
    is_on: Arc<AtomicBool>,
    inserted: Arc<AtomicI64>,
    clients: Vec<JoinHandle<Result<(), ureq::Error>>>,
}

impl Load {
    fn start(url: &str) -> Self {
        let is_on = Arc::new(AtomicBool::new(true));
        let inserted = Arc::new(AtomicI64::new(0));
        let client = || {
            let (url, is_on, inserted) = (url.to_owned(), is_on.clone(), inserted.clone());
            std::thread::spawn(move || {
                let agent = ureq::agent();
                while is_on.load(Ordering::Relaxed) {
                    let mut answer = agent.post(format!("{url}/deltas")).send_empty()?;
                    assert_eq!(answer.body_mut().read_to_string()?, "inserted");
                    inserted.fetch_add(1, Ordering::Relaxed);
                    agent.get(format!("{url}/total")).call()?;
                }
                Ok(())
            })
        };
        let clients = (0..CLIENTS).map(|_| client()).collect();
        Self {
            is_on,
            inserted,
            clients,
        }
    }

    /// Waits until more than 50 further deltas were inserted.
    async fn goes_on(&self) {
        let before = self.inserted.load(Ordering::Relaxed);
        let more = async || self.inserted.load(Ordering::Relaxed) > before + 50;
        eventually("requests are answered", more).await;
    }

    /// Stops the clients and returns how many deltas they inserted. Panics if a request failed.
    async fn end(self) -> i64 {
        self.is_on.store(false, Ordering::Relaxed);
        let ended = move || {
            for client in self.clients {
                client.join().unwrap().unwrap();
            }
            self.inserted.load(Ordering::Relaxed)
        };
        tokio::task::spawn_blocking(ended).await.unwrap()
    }
}

fn brief(name: &str) -> BackgroundWorker {
    BackgroundWorker::new(name).restart_time(RestartTime::After(MOMENT))
}

/// Becomes ready when the test allows it, and stops, once asked, when the test allows it again.
async fn slow_to_start_and_to_stop(
    mut context: WorkerContext,
    go: Arc<tokio::sync::Notify>,
) -> Result<(), WorkerError> {
    go.notified().await;
    context.ready();
    context.latch().stop_requested().await;
    go.notified().await;
    Ok(())
}

#[actix::test]
async fn no_request_fails_while_workers_crash_come_and_go_and_the_application_ends() {
    let db = TestDatabase::new().await;
    let table = table("s", "t");
    let postmaster = db.postmaster();
    db.worker(&postmaster, "folds", brisk(&table).initial_total(0))
        .await;
    let (url, web_server) = serve(db.connect().await, postmaster.clone());
    let load = Load::start(&url);
    load.goes_on().await;

    // Two workers fail and panic again and again, beside one that folds.
    let probe = Probe::new();
    let mut crashing = Vec::new();
    for (name, script) in [
        ("fails", Script::FailAfter(MOMENT)),
        ("panics", Script::PanicAfter(MOMENT)),
    ] {
        crashing.push(
            postmaster
                .register(brief(name), probe.main(script))
                .await
                .unwrap(),
        );
    }
    for worker in &crashing {
        let is_restarted = async || {
            let status = postmaster.worker(worker.id()).await.unwrap();
            status.is_some_and(|status| status.starts > 10)
        };
        eventually("it is started again and again", is_restarted).await;
    }
    load.goes_on().await;

    // A handle follows a worker that is registered meanwhile.
    let go = Arc::new(tokio::sync::Notify::new());
    let started = Arc::clone(&go);
    let main = move |context| slow_to_start_and_to_stop(context, Arc::clone(&started));
    let late = postmaster
        .register(brief("late"), main.clone())
        .await
        .unwrap();
    late.started().await.unwrap();
    let state = async |id| {
        postmaster
            .worker(id)
            .await
            .unwrap()
            .map(|status| status.state)
    };
    assert_eq!(state(late.id()).await, Some(WorkerState::Starting));
    go.notify_one();
    late.ready().await.unwrap();
    assert_eq!(state(late.id()).await, Some(WorkerState::Running));
    load.goes_on().await;
    late.terminate();
    go.notify_one();
    assert_eq!(late.stopped().await.unwrap().exit, ExitStatus::Stopped);

    // Terminating a worker ends it in any state. Another worker reuses a slot, and old handles do not affect it.
    for worker in &crashing {
        worker.terminate();
        worker.terminate();
        worker.stopped().await.unwrap();
    }
    let next = postmaster
        .register(brief("next"), probe.main(Script::NAPS))
        .await
        .unwrap();
    next.ready().await.unwrap();
    assert!(
        crashing
            .iter()
            .chain([&late])
            .any(|old| old.id().slot() == next.id().slot())
    );
    for old in crashing.iter().chain([&late]) {
        assert_ne!(old.id(), next.id());
        old.terminate();
    }
    load.goes_on().await;
    assert_eq!(state(next.id()).await, Some(WorkerState::Running));

    // A second Postmaster in this System ends without affecting the first.
    let other = self::postmaster();
    let same_name = other
        .register(brief("next"), probe.main(Script::NAPS))
        .await
        .unwrap();
    same_name.ready().await.unwrap();
    other.shut_down(Shutdown::Immediate);
    other.exited().await.unwrap();
    load.goes_on().await;
    assert_eq!(state(next.id()).await, Some(WorkerState::Running));

    // A shutdown refuses registrations and releases waiters, while requests are answered.
    let lingers = postmaster
        .register(brief("lingers"), main.clone())
        .await
        .unwrap();
    lingers.started().await.unwrap();
    go.notify_one();
    lingers.ready().await.unwrap();
    let never_ready = postmaster
        .register(brief("never ready"), main)
        .await
        .unwrap();
    never_ready.started().await.unwrap();
    let waits = actix::spawn({
        let never_ready = never_ready.clone();
        async move { never_ready.ready().await }
    });
    tokio::task::yield_now().await;
    postmaster.shut_down(Shutdown::Smart);
    assert_eq!(waits.await.unwrap().unwrap_err(), WaitError::ShuttingDown);
    load.goes_on().await;
    let refused = postmaster
        .register(brief("too late"), probe.main(Script::NAPS))
        .await;
    assert!(matches!(refused.unwrap_err(), RequestError::Refused(_)));
    postmaster.shut_down(Shutdown::Immediate);
    postmaster.exited().await.unwrap();
    let inserted = load.end().await;
    assert_eq!(db.sum(&table).await, inserted);

    // The web server stops last; a request under way is still answered.
    let slow = tokio::task::spawn_blocking(move || ureq::get(format!("{url}/slow")).call());
    let is_under_way = async || {
        let sql = "SELECT count(*) FROM pg_stat_activity \
                   WHERE query LIKE 'SELECT pg_sleep%' AND datname = current_database()";
        db.value::<i64>(sql).await == 1
    };
    eventually("the request is under way", is_under_way).await;
    web_server.stop(true).await;
    let mut answer = slow.await.unwrap().unwrap();
    assert_eq!(answer.body_mut().read_to_string().unwrap(), "slept");
}
