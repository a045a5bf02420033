//! libpq's `ssl*` settings: whether a connection is encrypted, which authorities it trusts, and what it presents.
//!
//! Only values: nothing here reads a file or connects.

use std::fmt;
use std::path::PathBuf;

use super::ConnInfoError;
use super::values::Values;

/// How connections are encrypted, and how far the server is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsSettings {
    pub(crate) mode: SslMode,
    pub(crate) roots: Roots,
    pub(crate) certificate: Option<Credential>,
    pub(crate) key: Option<Credential>,
    /// `true` if the handshake begins at once, without asking the server whether it has TLS.
    pub(crate) direct: bool,
}

/// Whether a connection is encrypted, and what is verified about the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SslMode {
    /// Never.
    Disable,
    /// If the server insists.
    Allow,
    /// If the server offers it. libpq's default.
    Prefer,
    /// Always. The certificate is verified only if there is a file of roots.
    Require,
    /// Always. The server's certificate must be signed by a trusted authority.
    VerifyCa,
    /// Always. The certificate must also name the host that the client asked for.
    VerifyFull,
}

/// The certificate authorities that the client trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Roots {
    /// The operating system's.
    System,
    /// Those in a file, if it is there.
    File(PathBuf),
    /// No authority is named.
    None,
}

/// A file that proves the client's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Credential {
    pub(crate) file: PathBuf,
    /// `true` if the settings name it: then it must be there.
    pub(crate) named: bool,
}

/// One way to connect to a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    Plain,
    EncryptedIfOffered,
    Encrypted,
}

// === impl TlsSettings ===

impl TlsSettings {
    pub(super) fn from_values(values: &Values<'_>) -> Result<Self, ConnInfoError> {
        let given = values.one_of("sslmode", &SslMode::WORDS)?;
        let roots = match values.get("sslrootcert").as_deref() {
            Some("system") => Roots::System,
            _ => values
                .file("sslrootcert", ".postgresql/root.crt")
                .map_or(Roots::None, Roots::File),
        };
        let mode = match (&roots, given) {
            (Roots::System, None) => SslMode::VerifyFull,
            (_, given) => given.unwrap_or(SslMode::Prefer),
        };
        if roots == Roots::System && mode != SslMode::VerifyFull {
            return Err(ConnInfoError::Contradiction(format!(
                "weak sslmode \"{mode}\" may not be used with sslrootcert=system (use \"verify-full\")"
            )));
        }
        let direct = values.one_of("sslnegotiation", &[("postgres", false), ("direct", true)])?;
        let direct = direct.unwrap_or(false);
        if direct && mode < SslMode::Require {
            return Err(ConnInfoError::Contradiction(format!(
                "weak sslmode \"{mode}\" may not be used with sslnegotiation=direct (use \"require\", \
                 \"verify-ca\", or \"verify-full\")"
            )));
        }
        let credential = |keyword, in_home| {
            let named = values.get(keyword).is_some();
            let file = values.file(keyword, in_home)?;
            Some(Credential { file, named })
        };
        Ok(Self {
            mode,
            roots,
            certificate: credential("sslcert", ".postgresql/postgresql.crt"),
            key: credential("sslkey", ".postgresql/postgresql.key"),
            direct,
        })
    }

    /// The ways to connect, in order. Each is tried if the one before failed for a reason that this one may avoid. A
    /// Unix socket is never encrypted.
    pub(crate) fn attempts(&self, is_socket: bool) -> &'static [Attempt] {
        match self.mode {
            _ if is_socket => &[Attempt::Plain],
            SslMode::Disable => &[Attempt::Plain],
            SslMode::Allow => &[Attempt::Plain, Attempt::Encrypted],
            SslMode::Prefer => &[Attempt::EncryptedIfOffered, Attempt::Plain],
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[Attempt::Encrypted],
        }
    }

    /// Returns `true` if an encrypted connection is the only way.
    pub(crate) fn is_required(&self, is_socket: bool) -> bool {
        *self.attempts(is_socket) == [Attempt::Encrypted]
    }

    pub(crate) fn is_direct(&self) -> bool {
        self.direct
    }
}

// === impl SslMode ===

impl SslMode {
    const WORDS: [(&'static str, Self); 6] = [
        ("disable", Self::Disable),
        ("allow", Self::Allow),
        ("prefer", Self::Prefer),
        ("require", Self::Require),
        ("verify-ca", Self::VerifyCa),
        ("verify-full", Self::VerifyFull),
    ];
}

impl fmt::Display for SslMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = Self::WORDS.iter().find(|(_, mode)| mode == self);
        f.write_str(word.map_or("", |(word, _)| word))
    }
}

// === impl Attempt ===

impl From<Attempt> for tokio_postgres::config::SslMode {
    fn from(attempt: Attempt) -> Self {
        match attempt {
            Attempt::Plain => Self::Disable,
            Attempt::EncryptedIfOffered => Self::Prefer,
            Attempt::Encrypted => Self::Require,
        }
    }
}
