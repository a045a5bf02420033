//! The Postmaster over HTTP, to be mounted in an actix-web application.
//!
//! Asks the Postmaster and renders its answers; keeps the last hour of each worker, and changes nothing: it serves only GET and
//! HEAD. No answer holds a secret, but answers name workers, tables and errors: do not expose them to untrusted
//! networks.
//!
//! | path | is |
//! |---|---|
//! | `/` | a page that shows every worker, live |
//! | `/livez` | 200 if the Postmaster has answered within a second; no database is asked |
//! | `/readyz` | 200 if there are workers, every one is healthy, and none waits for a primary for too long, else 503 with those that are not, and why the server is away or no primary |
//! | `/status` | a [`Snapshot`] as JSON |
//! | `/worker?name=NAME` | one worker with its last hour, its last runs and its configuration, as JSON |
//! | `/events` | server-sent events: `status` for the first [`Snapshot`], `worker` for each [`Event`](crate::Event), `changes` for what changed |
//! | `/metrics` | OpenMetrics text, for Prometheus |
//!
//! ```
//! use actix_web::{App, web};
//! use bgworker::PostmasterHandle;
//!
//! fn app(postmaster: &PostmasterHandle) {
//!     let workers = web::scope("/workers").configure(bgworker::http::configure(postmaster.clone()));
//!     let app = App::new().service(workers);
//!     # drop(app);
//! }
//! ```

mod changes;
mod detail;
mod events;
mod history;
mod metrics;
mod moment;
mod published;
mod sent;
mod snapshot;
mod state;

use std::sync::Arc;
use std::time::Duration;

use actix_web::body::SizedStream;
use actix_web::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CROSS_ORIGIN_OPENER_POLICY,
    CROSS_ORIGIN_RESOURCE_POLICY, HeaderName, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use actix_web::web::{self, Bytes, Query, ServiceConfig};
use actix_web::{FromRequest, Handler, HttpResponse, HttpResponseBuilder, Resource, Responder};
use serde::Deserialize;

use self::detail::Detail;
use self::events::Broadcast;
use self::history::History;
use self::moment::{Moment, Moments};
use self::sent::pieces;
pub use self::snapshot::{JobSnapshot, ServerSnapshot, Snapshot, WorkerSnapshot};
pub use self::state::State;
use crate::database::ServerState;
use crate::postmaster::PostmasterHandle;

/// How long the Postmaster may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// The page may use its own style and script, and ask the server that it comes from.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What a browser may do with each answer: nothing of it is a script or a frame, and pages of other origins get none.
const CAUTIONS: [(HeaderName, &str); 5] = [
    (
        CONTENT_SECURITY_POLICY,
        "default-src 'none'; frame-ancestors 'none'",
    ),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (CROSS_ORIGIN_RESOURCE_POLICY, "same-origin"),
    (CROSS_ORIGIN_OPENER_POLICY, "same-origin"),
    (REFERRER_POLICY, "no-referrer"),
];

/// Adds the endpoints to an application, or to a scope of it.
///
/// Call it once, and clone the result for each thread of the server: the clones share the last hour of the workers, which is
/// sampled from the first use on, in the actix system that uses it.
///
/// The streams of `/events` end when the Postmaster has exited. Shut it down before the server is stopped,
/// or the server waits for them.
pub fn configure(postmaster: PostmasterHandle) -> impl FnOnce(&mut ServiceConfig) + Clone + Send {
    configure_with(postmaster, |_| None)
}

/// Adds the endpoints, as [`configure`] does, and shows what this returns for the name of a worker as its configuration.
/// Everyone who can reach the page sees it: it must hold no secret.
pub fn configure_with(
    postmaster: PostmasterHandle,
    configuration: impl Fn(&str) -> Option<String> + Clone + Send + 'static,
) -> impl FnOnce(&mut ServiceConfig) + Clone + Send {
    let (history, broadcast) = (History::default(), Broadcast::new());
    let moments = Moments::new(postmaster.clone());
    move |config| {
        history.sample(postmaster.clone());
        broadcast.begin(moments.clone());
        let all = moments.clone();
        config.service(answering("/worker", move |asked: Query<Asked>| {
            let configuration = configuration(&asked.name);
            let asked = asked.into_inner();
            worker(all.clone(), asked, history.clone(), configuration)
        }));
        // A scope passes on what follows its prefix, with the slash or without.
        for path in ["", "/"] {
            config.service(answering(path, page));
        }
        config.service(answering("/livez", move || live(postmaster.clone())));
        let all = moments.clone();
        config.service(answering("/readyz", move || ready(all.clone())));
        let all = moments.clone();
        config.service(answering("/status", move || {
            text(all.clone(), Moment::json, "application/json")
        }));
        let all = moments.clone();
        config.service(answering("/metrics", move || {
            text(all.clone(), Moment::metrics, metrics::CONTENT_TYPE)
        }));
        config.service(answering("/events", move || {
            events::events(broadcast.clone(), moments.clone())
        }));
    }
}

/// What a client asks of one worker.
#[derive(Deserialize)]
struct Asked {
    name: String,
}

async fn worker(
    moments: Moments,
    Asked { name }: Asked,
    history: History,
    configuration: Option<String>,
) -> HttpResponse {
    let moment = match take(&moments).await {
        Ok(moment) => moment,
        Err(unavailable) => return unavailable,
    };
    let detail = move |moment: &Moment| Detail::of(moment, &name, &history, configuration);
    match moment.make(detail).await.flatten() {
        Some(detail) => fresh(HttpResponse::Ok())
            .content_type("application/json")
            .json(detail),
        None => fresh(HttpResponse::NotFound()).body("no background worker has this name\n"),
    }
}

/// A path that answers GET and, without the body, HEAD.
fn answering<H, A>(path: &str, handler: H) -> Resource
where
    A: FromRequest + 'static,
    H: Handler<A, Output: Responder>,
{
    web::resource(path)
        .route(web::get().to(handler.clone()))
        .route(web::head().to(handler))
}

async fn page() -> HttpResponse {
    fresh(HttpResponse::Ok())
        .insert_header((CONTENT_SECURITY_POLICY, PAGE_POLICY))
        .content_type("text/html; charset=utf-8")
        .body(include_str!("http/page.html"))
}

async fn live(postmaster: PostmasterHandle) -> HttpResponse {
    match tokio::time::timeout(ANSWER_TIMEOUT, postmaster.status()).await {
        Ok(Ok(_)) => fresh(HttpResponse::Ok()).body("the Postmaster answers\n"),
        Ok(Err(error)) => unavailable(&error),
        Err(_) => unavailable(&"the Postmaster does not answer"),
    }
}

async fn ready(moments: Moments) -> HttpResponse {
    let why_not = |moment: &Moment| {
        let snapshot = moment.snapshot();
        (!snapshot.healthy).then(|| why_not_ready(snapshot).join("\n"))
    };
    match take(&moments).await {
        Err(unavailable) => unavailable,
        Ok(moment) => match moment.make(why_not).await {
            Some(Some(why)) => unavailable(&why),
            Some(None) => fresh(HttpResponse::Ok()).body("every background worker is healthy\n"),
            None => unavailable(&"the server is stopping"),
        },
    }
}

/// What is wrong with the server, and with each unhealthy worker.
fn why_not_ready(snapshot: &Snapshot) -> Vec<String> {
    let mut why = Vec::new();
    if let Some(server) = &snapshot.server
        && let Some((seconds, trouble)) = server.trouble()
    {
        let state = &server.state;
        why.push(format!("server is {state}; for {seconds:.0} s: {trouble}"));
    }
    let ill = snapshot.workers.iter().filter(|worker| !worker.healthy);
    why.extend(ill.map(|worker| why_it_is_ill(worker, snapshot.server.as_ref())));
    if why.is_empty() {
        why.push("no background worker is registered".to_owned());
    }
    why
}

/// Why a worker is unhealthy. What there is to say of its job is never the reason.
fn why_it_is_ill(worker: &WorkerSnapshot, server: Option<&ServerSnapshot>) -> String {
    let WorkerSnapshot { name, state, .. } = worker;
    let why = match (worker.failure(), worker.last_cycle_seconds) {
        _ if *state == State::Parked => match server {
            Some(ServerSnapshot { state, .. })
                if [ServerState::Away, ServerState::Standby]
                    .iter()
                    .any(|missing| *state == missing.to_string()) =>
            {
                format!(": the server is {state}")
            }
            Some(_) | None => ", and waits for its turn to start".to_owned(),
        },
        (Some(failure), _) => format!(": {failure}"),
        (None, Some(age)) if worker.job.is_some() => {
            format!(", and has not been able to look at its job for {age:.0} s")
        }
        (None, Some(age)) => format!(", and its last success was {age:.0} s ago"),
        (None, None) if !worker.has_been_ready => ", and was never ready".to_owned(),
        (None, None) => String::new(),
    };
    format!("background worker \"{name}\" is {state}{why}")
}

/// What [`Moment`] makes of itself. It may be large, and is sent in pieces.
async fn text(
    moments: Moments,
    make: fn(&Moment) -> Bytes,
    content_type: &'static str,
) -> HttpResponse {
    let moment = match take(&moments).await {
        Ok(moment) => moment,
        Err(unavailable) => return unavailable,
    };
    let text = moment.make(make).await.unwrap_or_default();
    let length = text.len() as u64;
    fresh(HttpResponse::Ok())
        .content_type(content_type)
        .body(SizedStream::new(length, Box::pin(pieces(text))))
}

/// Takes a moment, within [`ANSWER_TIMEOUT`].
async fn take(moments: &Moments) -> Result<Arc<Moment>, HttpResponse> {
    match tokio::time::timeout(ANSWER_TIMEOUT, moments.take()).await {
        Ok(Ok(moment)) => Ok(moment),
        Ok(Err(error)) => Err(unavailable(&error)),
        Err(_) => Err(unavailable(&"the Postmaster does not answer")),
    }
}

fn unavailable(why: &dyn std::fmt::Display) -> HttpResponse {
    fresh(HttpResponse::ServiceUnavailable()).body(format!("{why}\n"))
}

/// Forbids caching: what is true now may be false in a second.
fn fresh(mut response: HttpResponseBuilder) -> HttpResponseBuilder {
    response.insert_header((CACHE_CONTROL, "no-store"));
    for caution in CAUTIONS {
        response.insert_header(caution);
    }
    response.content_type("text/plain; charset=utf-8");
    response
}
