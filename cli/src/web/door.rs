//! The way in for clients: how many there are, which names they may ask for, and how long they may be silent.

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actix_http::HttpService;
use actix_server::GracefulShutdownSignal;
use actix_service::{
    IntoServiceFactory as _, Service as _, ServiceFactory, ServiceFactoryExt as _, fn_factory,
    fn_service, map_config,
};
use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{AppConfig, ServiceRequest, ServiceResponse};
use actix_web::http::header::{CONTENT_TYPE, HOST, X_CONTENT_TYPE_OPTIONS};
use actix_web::middleware::{Next, from_fn};
use actix_web::rt::net::TcpStream;
use actix_web::web::ServiceConfig;
use actix_web::{App, Error, HttpResponse};

use super::connections::Connections;
use super::host;

/// How long a client may take for the head of a request, or be silent between two requests.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// Clones share the connections.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) connections: Arc<Mutex<Connections>>,
    /// The names of this instance.
    pub(super) hosts: Arc<[String]>,
}

// === impl Door ===

impl Door {
    /// The service of each connection.
    pub(super) fn connections<E: FnOnce(&mut ServiceConfig) + Clone + 'static>(
        &self,
        endpoints: &E,
        stopping: GracefulShutdownSignal,
    ) -> impl ServiceFactory<TcpStream, Config = ()> + use<E> {
        let door = self.clone();
        let app = App::new()
            .configure(endpoints.clone())
            .wrap(from_fn(move |request, next| {
                door.clone().answer(request, next)
            }))
            .into_factory()
            .map_err(|error: Error| error.error_response());
        let http = HttpService::build()
            .graceful_shutdown_signal(move || {
                let stopping = stopping.clone();
                async move { stopping.notified().await }
            })
            .client_request_timeout(SILENCE_MAX)
            .keep_alive(SILENCE_MAX)
            .finish(map_config(app, |()| AppConfig::default()))
            .tcp();
        self.limited(http)
    }

    /// Serves each connection until it must give way to another.
    fn limited<H>(&self, http: H) -> impl ServiceFactory<TcpStream, Config = ()> + use<H>
    where
        H: ServiceFactory<TcpStream, Config = (), Response = (), InitError = ()> + 'static,
    {
        let (door, http) = (self.clone(), Rc::new(http));
        fn_factory(move || {
            let (door, http) = (door.clone(), Rc::clone(&http));
            async move {
                let http = Rc::new(http.new_service(()).await?);
                let serve = move |stream: TcpStream| {
                    let (door, http) = (door.clone(), Rc::clone(&http));
                    async move {
                        let Ok(client) = stream.peer_addr() else {
                            return Ok::<_, Infallible>(());
                        };
                        let mut place = door.open().enter(client);
                        tokio::select! {
                            // What a client does wrong is of no interest here.
                            _ = http.call(stream) => {}
                            _ = &mut place.is_open => {}
                        }
                        door.open().leave(&place);
                        Ok(())
                    }
                };
                Ok::<_, ()>(fn_service(serve))
            }
        })
    }

    /// Answers one request.
    async fn answer(
        self,
        request: ServiceRequest,
        next: Next<impl MessageBody + 'static>,
    ) -> Result<ServiceResponse<BoxBody>, Error> {
        let client = request.peer_addr();
        if let Some(client) = client {
            self.open().heard(client);
        }
        if !self.is_ours(&request) {
            return Ok(request.into_response(misdirected()));
        }
        let response = next.call(request).await?.map_into_boxed_body();
        let content_type = response.headers().get(CONTENT_TYPE);
        if let Some(client) = client
            && content_type.is_some_and(|is| is == "text/event-stream")
        {
            self.open().listens(client);
        }
        Ok(response)
    }

    /// `true` if the request names this instance, or no one: then it does not come from a browser.
    fn is_ours(&self, request: &ServiceRequest) -> bool {
        let in_headers = request.headers().get_all(HOST);
        let in_headers = in_headers.map(|host| host.to_str().unwrap_or_default());
        let mut named = in_headers.chain(request.uri().host());
        named.all(|name| host::is_ours(name, &self.hosts))
    }

    fn open(&self) -> MutexGuard<'_, Connections> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn misdirected() -> HttpResponse {
    HttpResponse::MisdirectedRequest()
        .insert_header((X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .content_type("text/plain; charset=utf-8")
        .body(
            "this instance does not have the name in the Host header: add the name to \"hosts\" in [http], or ask \
             for an address\n",
        )
}
