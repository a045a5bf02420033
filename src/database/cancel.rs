//! A request to cancel what runs on a connection, sent on a connection of its own.
//!
//! As libpq does, bgworker holds it open until the server has closed it: PgBouncer before 1.19.1 fails an assertion, and ends,
//! if the client of a request is gone before a server has taken the request.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::NoTls;
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use tracing::debug;

use super::conninfo::Host;
use super::error::Cause;
use super::tls;

/// How long `cancel` waits.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long a request is held open if the server does not close it.
const HELD_FOR: Duration = Duration::from_secs(30);

/// A handle to cancel what runs on a connection.
#[derive(Clone)]
pub struct CancelToken {
    pub(super) token: tokio_postgres::CancelToken,
    pub(super) host: Host,
    /// `None` if the connection is not encrypted.
    pub(super) tls: Option<tls::Connector>,
}

/// What a socket is.
trait Duplex: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Duplex for S {}

/// A stream that bgworker ends only after its peer has.
struct UntilEnd<S>(S);

/// The TLS side of such a stream.
struct ToHostUntilEnd(tls::ToHost);

// === impl CancelToken ===

impl CancelToken {
    /// Asks the server to cancel what runs, and waits until it has taken the request, for a second at most. The connection
    /// must not be used for another statement afterwards.
    pub async fn cancel(&self) {
        let token = self.clone();
        let asking = tokio::spawn(async move {
            match tokio::time::timeout(HELD_FOR, token.ask()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(error, "could not cancel a statement"),
                Err(_) => debug!("could not cancel a statement within its deadline"),
            }
        });
        // A server that is silent is not waited for: the task holds the request open.
        let _ = tokio::time::timeout(PATIENCE, asking).await;
    }

    async fn ask(&self) -> Result<(), String> {
        let failed = |error: io::Error| error.to_string();
        match (self.host.socket_path(), self.host.socket_address()) {
            (Some(path), _) => {
                self.ask_on(UnixStream::connect(path).await.map_err(failed)?)
                    .await
            }
            (None, Some(address)) => {
                self.ask_on(TcpStream::connect(address).await.map_err(failed)?)
                    .await
            }
            (None, None) => Err("the host has no address".to_owned()),
        }
    }

    async fn ask_on<S: Duplex>(&self, socket: S) -> Result<(), String> {
        let socket = UntilEnd(socket);
        let asked = match &self.tls {
            Some(tls) => {
                let tls = ToHostUntilEnd(tls.to_host(&self.host.tls_name()));
                self.token.cancel_query_raw(socket, tls).await
            }
            None => self.token.cancel_query_raw(socket, NoTls).await,
        };
        asked.map_err(|error| Cause(&error).to_string())
    }
}

impl fmt::Debug for CancelToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelToken").finish_non_exhaustive()
    }
}

// === impl UntilEnd ===

impl<S: AsyncRead + Unpin> AsyncRead for UntilEnd<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for UntilEnd<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut rest = [0; 64];
        let mut rest = ReadBuf::new(&mut rest);
        loop {
            rest.clear();
            let read = ready!(Pin::new(&mut self.0).poll_read(cx, &mut rest));
            if read.is_err() || rest.filled().is_empty() {
                return Pin::new(&mut self.0).poll_shutdown(cx);
            }
        }
    }
}

impl<S: TlsStream + Unpin> TlsStream for UntilEnd<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.0.channel_binding()
    }
}

// === impl ToHostUntilEnd ===

impl<S: Duplex> TlsConnect<S> for ToHostUntilEnd {
    type Stream = UntilEnd<tls::Stream<S>>;
    type Error = native_tls::Error;
    type Future = BoxFuture<'static, Result<Self::Stream, native_tls::Error>>;

    fn connect(self, socket: S) -> Self::Future {
        Box::pin(async move { Ok(UntilEnd(self.0.connect(socket).await?)) })
    }
}
