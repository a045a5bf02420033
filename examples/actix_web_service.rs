//! A web service whose handlers insert deltas and read totals, while a built-in worker folds them.
//!
//! `curl -X POST localhost:8080/deltas/5` inserts, `curl localhost:8080/total` reads, and
//! <http://localhost:8080/workers/> shows the worker. Ctrl-C or SIGTERM ends it: first the workers, which
//! ends their event streams, then the web server, then the private PostgreSQL server.

use std::error::Error;

use actix_web::error::ErrorServiceUnavailable;
use actix_web::{App, HttpServer, Responder, web};
use bgworker::database::{self, ConnInfo, Connection, Database};
use bgworker::embedded::{Cluster, ClusterSettings};
use bgworker::supervision::{Limits, Shutdown};
use bgworker::worker_spi::{self, Settings, Table};
use bgworker::{Access, BackgroundWorker, Postmaster};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

async fn insert(client: web::Data<Connection>, value: web::Path<i32>) -> actix_web::Result<String> {
    let sql = format!("INSERT INTO shop.sales VALUES ('delta', {value})");
    let inserted = client.batch_execute("insert a delta", &sql).await;
    inserted.map_err(ErrorServiceUnavailable)?;
    Ok(format!("inserted {value}\n"))
}

async fn total(client: web::Data<Connection>) -> actix_web::Result<impl Responder> {
    let sql = "SELECT value FROM shop.sales WHERE type = 'total'";
    let rows = client.query("read the total", sql, &[]).await;
    let rows = rows.map_err(ErrorServiceUnavailable)?;
    let total: i64 = rows.first().map_or(0, |row| row.get(0));
    Ok(format!("{total}\n"))
}

#[actix::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // The PostgreSQL server; an application of your own has one already.
    let cluster = tokio::task::spawn_blocking(|| Cluster::start(ClusterSettings::temporary()));
    let cluster = cluster.await??;
    let conninfo = ConnInfo::parse(&cluster.conninfo(), |_| None)?;
    let database = Database::new(conninfo, database::Settings::default())?;

    // The workers, before the web server: they live on this thread, not on one of the web server's.
    let postmaster = Postmaster::launch(Limits::default(), Some(database.clone()))?;
    let settings = Settings::new(Table::new("shop", "sales")?).initial_total(0);
    let (_settings, receiver) = watch::channel(settings);
    let worker = BackgroundWorker::new("sales").access(Access::Database);
    let worker = postmaster
        .register(worker, worker_spi::main(receiver))
        .await?;
    worker.ready().await?; // its table exists

    // The web server. It must not handle signals: it would stop the System, and the workers with it.
    let client = web::Data::new(database.connect("shop", None).await?);
    let endpoints = bgworker::http::configure(postmaster.clone());
    let app = move || {
        let workers = web::scope("/workers").configure(endpoints.clone());
        App::new()
            .app_data(client.clone())
            .route("/deltas/{value}", web::post().to(insert))
            .route("/total", web::get().to(total))
            .service(workers)
    };
    let address = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let server = HttpServer::new(app)
        .workers(2)
        .disable_signals()
        .bind(address)?;
    for address in server.addrs() {
        println!("listening on http://{address}/");
    }
    let server = server.run();
    let web_server = server.handle();
    let serving = actix::spawn(server);

    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    postmaster.shut_down(Shutdown::Smart);
    postmaster.exited().await?;
    println!("the workers have ended");
    web_server.stop(true).await;
    serving.await??;
    println!("the web server has ended");
    tokio::task::spawn_blocking(|| cluster.stop()).await??;
    println!("all have ended");
    Ok(())
}
