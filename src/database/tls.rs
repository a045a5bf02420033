//! libpq's `sslmode` on native-tls.
//!
//! Three of the six modes: those that encrypt without verifying whom they talk to, which is what
//! `prefer` and `require` mean in libpq, and the one that does not encrypt.

use postgres_native_tls::MakeTlsConnector;
use thiserror::Error;

/// Whether a connection is encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum SslMode {
    /// Never.
    Disable,
    /// If the server offers it. libpq's default.
    #[default]
    Prefer,
    /// Always, or not at all. The server's certificate is not verified.
    Require,
}

/// The TLS library could not be set up.
#[derive(Debug, Error)]
#[error("could not set up TLS: {0}")]
pub struct TlsError(native_tls::Error);

/// Makes the TLS side of connections and of cancel requests.
#[derive(Clone)]
pub(super) struct Connector(pub(super) MakeTlsConnector);

/// A connector that encrypts and verifies nothing, as `prefer` and `require` do.
pub(super) fn connector() -> Result<Connector, TlsError> {
    native_tls::TlsConnector::builder()
        .danger_accept_invalid_certs(true)
        .danger_accept_invalid_hostnames(true)
        .build()
        .map(|connector| Connector(MakeTlsConnector::new(connector)))
        .map_err(TlsError)
}

// === impl SslMode ===

impl SslMode {
    /// The words that libpq has for the modes that are supported.
    pub(super) const WORDS: [&'static str; 3] = ["disable", "prefer", "require"];

    /// The mode that libpq means by this word.
    pub(super) fn from_word(word: &str) -> Option<Self> {
        match word {
            "disable" => Some(Self::Disable),
            "prefer" => Some(Self::Prefer),
            "require" => Some(Self::Require),
            _ => None,
        }
    }
}

impl From<SslMode> for tokio_postgres::config::SslMode {
    fn from(mode: SslMode) -> Self {
        match mode {
            SslMode::Disable => Self::Disable,
            SslMode::Prefer => Self::Prefer,
            SslMode::Require => Self::Require,
        }
    }
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connector")
    }
}
