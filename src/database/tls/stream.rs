//! An encrypted native-tls stream, bound to the server's certificate however that is signed.
//!
//! The stream of postgres-native-tls has no channel binding for certificates signed with RSA-PSS, with which psql can
//! connect.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use sha2::{Digest as _, Sha256, Sha384, Sha512};
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};

/// The TLS side of connections and of cancel requests.
#[derive(Clone)]
pub(crate) struct Connector(native_tls::TlsConnector);

/// The TLS side of one host's connections.
pub(crate) struct ToHost {
    connector: tokio_native_tls::TlsConnector,
    host: String,
}

/// An encrypted stream.
pub(crate) struct Stream<S>(tokio_native_tls::TlsStream<BufReader<S>>);

/// `rsassaPss` in DER.
const RSA_PSS: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a];

/// `id-sha384` and `id-sha512`.
const SHA_384: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02];
const SHA_512: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03];

/// The DER tags on the way to the hash of a signature.
const OBJECT_IDENTIFIER: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const HASH_ALGORITHM: u8 = 0xa0;

// === impl Connector ===

impl Connector {
    pub(super) fn new(connector: native_tls::TlsConnector) -> Self {
        Self(connector)
    }

    /// The TLS side of connections to a host with this name.
    pub(crate) fn to_host(&self, host: &str) -> ToHost {
        ToHost {
            connector: self.0.clone().into(),
            host: host.to_owned(),
        }
    }
}

impl<S> MakeTlsConnect<S> for Connector
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Stream<S>;
    type TlsConnect = ToHost;
    type Error = native_tls::Error;

    fn make_tls_connect(&mut self, host: &str) -> Result<ToHost, native_tls::Error> {
        Ok(self.to_host(host))
    }
}

impl<S> TlsConnect<S> for ToHost
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Stream<S>;
    type Error = native_tls::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Stream<S>, native_tls::Error>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        Box::pin(async move {
            let stream = self.connector.connect(&self.host, BufReader::new(stream));
            Ok(Stream(stream.await?))
        })
    }
}

// === impl Stream ===

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Stream<S> {
    fn channel_binding(&self) -> ChannelBinding {
        let stream = self.0.get_ref();
        let known = stream.tls_server_end_point().ok().flatten();
        let certificate = || stream.peer_certificate().ok()??.to_der().ok();
        match known.or_else(|| pss_end_point(&certificate()?)) {
            Some(end_point) => ChannelBinding::tls_server_end_point(end_point),
            None => ChannelBinding::none(),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
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
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// The end point of a certificate that is signed with RSA-PSS (`tls-server-end-point`, RFC 5929): the certificate's
/// hash, by the hash function of its signature, but at least SHA-256.
fn pss_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let (whole, _) = take(certificate, SEQUENCE)?;
    let (_, rest) = take(whole, SEQUENCE)?;
    let (algorithm, _) = take(rest, SEQUENCE)?;
    let (name, parameters) = take(algorithm, OBJECT_IDENTIFIER)?;
    if name != RSA_PSS {
        return None;
    }
    let hash = || {
        let (parameters, _) = take(parameters, SEQUENCE)?;
        let (hash, _) = take(parameters, HASH_ALGORITHM)?;
        let (hash, _) = take(hash, SEQUENCE)?;
        Some(take(hash, OBJECT_IDENTIFIER)?.0)
    };
    // If none is named, it is SHA-1, which is too weak.
    Some(match hash() {
        Some(SHA_384) => Sha384::digest(certificate).to_vec(),
        Some(SHA_512) => Sha512::digest(certificate).to_vec(),
        Some(_) | None => Sha256::digest(certificate).to_vec(),
    })
}

/// The content of the first value, if it has this tag, and what follows it.
fn take(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, rest) = der.split_first()?;
    let (length, rest) = rest.split_first()?;
    let (length, rest) = match length.checked_sub(0x80) {
        None => (usize::from(*length), rest),
        Some(bytes) => {
            let (bytes, rest) = rest.split_at_checked(usize::from(bytes))?;
            let length = bytes.iter().try_fold(0_usize, |length, byte| {
                length.checked_mul(256)?.checked_add(usize::from(*byte))
            });
            (length?, rest)
        }
    };
    let (content, rest) = rest.split_at_checked(length)?;
    (*found == tag).then_some((content, rest))
}
