//! libpq's `sslmode` on native-tls: all six, for connections and for cancel requests.
//!
//! Certificates and keys are renewed while we run: they are read again when they have changed.

mod stream;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;
use std::{fmt, fs};

use native_tls::{Certificate, Identity, TlsConnector};
use postgres_native_tls::set_postgresql_alpn;
use thiserror::Error;

pub(super) use self::stream::Connector;
use super::conninfo::{ConnInfoError, Values};
use super::error::causes;

/// What connections are encrypted with, and how far the server is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TlsSettings {
    mode: SslMode,
    roots: Roots,
    certificate: Option<Credential>,
    key: Option<Credential>,
    /// The handshake begins at once, without asking the server whether it has TLS.
    direct: bool,
}

/// Whether a connection is encrypted, and what of the server is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum SslMode {
    /// Never.
    Disable,
    /// If the server insists.
    Allow,
    /// If the server offers it. libpq's default.
    Prefer,
    /// Always. The certificate is verified only if there is a file of roots.
    Require,
    /// Always, by a server that somebody we trust vouches for.
    VerifyCa,
    /// Always, by the very server that we ask for.
    VerifyFull,
}

/// Whom we trust.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Roots {
    /// Those whom the system trusts.
    System,
    /// Those in a file, if it is there.
    File(PathBuf),
    /// Nobody is named.
    None,
}

/// A file that proves who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Credential {
    file: PathBuf,
    /// It was named: it must be there.
    named: bool,
}

/// One way to connect to a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    Plain,
    EncryptedIfOffered,
    Encrypted,
}

/// TLS could not be set up.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The TLS library refuses.
    #[error("could not set up TLS: {0}")]
    Library(#[from] native_tls::Error),
    /// There is nobody to trust.
    #[error(
        "root certificate file \"{}\" does not exist: either provide the file, use the system's \
         trusted roots with sslrootcert=system, or change sslmode to disable server certificate \
         verification",
        .file.display()
    )]
    NoRoots {
        /// Where they were looked for.
        file: PathBuf,
    },
    /// No file of roots is named, and there is no home directory to look in.
    #[error(
        "sslmode verifies the server's certificate: name a file of trusted roots with sslrootcert"
    )]
    NoRootsNamed,
    /// A file could not be read.
    #[error("could not read {what} file \"{}\": {cause}", .file.display())]
    Unreadable {
        /// What is in it.
        what: &'static str,
        /// Which.
        file: PathBuf,
        /// What the system or the TLS library says.
        cause: String,
    },
    /// There is a certificate of ours without its key.
    #[error("certificate present, but not private key file \"{}\"", .file.display())]
    NoKey {
        /// Where it was looked for.
        file: PathBuf,
    },
    /// Others could read the key.
    #[error(
        "private key file \"{}\" has group or world access; file must have permissions u=rw (0600) or \
         less if owned by the current user, or permissions u=rw,g=r (0640) or less if owned by root",
        .file.display()
    )]
    KeyAccess {
        /// Which.
        file: PathBuf,
    },
    /// The key is in a format that the TLS library does not read.
    #[error(
        "private key file \"{0}\" is not in PKCS #8 without a password; this makes one that is: openssl \
         pkcs8 -topk8 -nocrypt -in \"{0}\" -out \"{0}.pk8\"",
        .file.display()
    )]
    KeyFormat {
        /// Which.
        file: PathBuf,
    },
}

/// The last connector, and the files that it was made of. Making one takes tens of milliseconds where
/// the system's roots are read, and so much time is not to be taken from everybody at every connect.
#[derive(Debug, Default)]
pub(super) struct LastConnector(Mutex<Option<(Files, Connector)>>);

/// When files were last modified; `None` for those that are not there.
type Files = Vec<(PathBuf, Option<SystemTime>)>;

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

    /// The ways to connect, each tried if the one before failed for a reason that it may mend. A Unix
    /// socket is never encrypted.
    pub(super) fn attempts(&self, is_socket: bool) -> &'static [Attempt] {
        match self.mode {
            _ if is_socket => &[Attempt::Plain],
            SslMode::Disable => &[Attempt::Plain],
            SslMode::Allow => &[Attempt::Plain, Attempt::Encrypted],
            SslMode::Prefer => &[Attempt::EncryptedIfOffered, Attempt::Plain],
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[Attempt::Encrypted],
        }
    }

    /// Whether there is no other way to connect.
    pub(super) fn is_required(&self, is_socket: bool) -> bool {
        *self.attempts(is_socket) == [Attempt::Encrypted]
    }

    pub(super) fn is_direct(&self) -> bool {
        self.direct
    }

    /// What connections of this moment need: the last connector, unless a file has changed.
    pub(super) fn connector(&self, last: &LastConnector) -> Result<Connector, TlsError> {
        let files = self.files();
        let mut last = last.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, connector)) = last.as_ref().filter(|(made_of, _)| *made_of == files) {
            return Ok(connector.clone());
        }
        let connector = self.new_connector()?;
        *last = Some((files, connector.clone()));
        Ok(connector)
    }

    fn files(&self) -> Files {
        let roots = match &self.roots {
            Roots::File(file) => Some(file),
            Roots::System | Roots::None => None,
        };
        let credentials = [&self.certificate, &self.key].into_iter().flatten();
        let files = roots
            .into_iter()
            .chain(credentials.map(|credential| &credential.file));
        files
            .map(|file| {
                (
                    file.clone(),
                    fs::metadata(file).and_then(|file| file.modified()).ok(),
                )
            })
            .collect()
    }

    fn new_connector(&self) -> Result<Connector, TlsError> {
        let mut builder = TlsConnector::builder();
        match self.verified()? {
            SslMode::VerifyFull => {}
            SslMode::VerifyCa => {
                builder.danger_accept_invalid_hostnames(true);
            }
            SslMode::Disable | SslMode::Allow | SslMode::Prefer | SslMode::Require => {
                builder.danger_accept_invalid_certs(true);
                builder.danger_accept_invalid_hostnames(true);
                // They would be read for nothing.
                builder.disable_built_in_roots(true);
            }
        }
        if let (Roots::File(file), true) = (&self.roots, self.mode >= SslMode::Require)
            && let Some(pem) = read_if_there("root certificate", file)?
        {
            builder.disable_built_in_roots(true);
            let roots = Certificate::stack_from_pem(&pem);
            for root in roots.map_err(|error| unreadable("root certificate", file, &error))? {
                builder.add_root_certificate(root);
            }
        }
        if let Some(identity) = self.identity()? {
            builder.identity(identity);
        }
        if self.direct {
            set_postgresql_alpn(&mut builder);
        }
        Ok(Connector::new(builder.build()?))
    }

    /// What is verified: with a file of roots, `require` is `verify-ca`, as in libpq.
    fn verified(&self) -> Result<SslMode, TlsError> {
        match (self.mode, &self.roots) {
            (SslMode::Require, Roots::File(file)) if file.exists() => Ok(SslMode::VerifyCa),
            (SslMode::VerifyCa | SslMode::VerifyFull, Roots::File(file)) if !file.exists() => {
                Err(TlsError::NoRoots { file: file.clone() })
            }
            (SslMode::VerifyCa | SslMode::VerifyFull, Roots::None) => Err(TlsError::NoRootsNamed),
            (mode, _) => Ok(mode),
        }
    }

    /// Who we are, if we have a certificate.
    fn identity(&self) -> Result<Option<Identity>, TlsError> {
        let (Some(certificate), Some(key)) = (&self.certificate, &self.key) else {
            return Ok(None);
        };
        let Some(chain) = read_if_there("certificate", &certificate.file)? else {
            return match certificate.named {
                true => Err(unreadable(
                    "certificate",
                    &certificate.file,
                    &"it does not exist",
                )),
                false => Ok(None),
            };
        };
        let file = &key.file;
        let Some(pem) = read_if_there("private key", file)? else {
            return Err(TlsError::NoKey { file: file.clone() });
        };
        if can_others_read(file) {
            return Err(TlsError::KeyAccess { file: file.clone() });
        }
        if !String::from_utf8_lossy(&pem).contains("-----BEGIN PRIVATE KEY-----") {
            return Err(TlsError::KeyFormat { file: file.clone() });
        }
        let identity = Identity::from_pkcs8(&chain, &pem);
        let identity =
            identity.map_err(|error| unreadable("certificate", &certificate.file, &error))?;
        Ok(Some(identity))
    }
}

/// Whether a connection failed in its TLS handshake.
pub(super) fn is_handshake(error: &tokio_postgres::Error) -> bool {
    causes(error).any(|cause| cause.downcast_ref::<native_tls::Error>().is_some())
}

fn read_if_there(what: &'static str, file: &Path) -> Result<Option<Vec<u8>>, TlsError> {
    match fs::read(file) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(what, file, &error)),
    }
}

fn unreadable(what: &'static str, file: &Path, cause: &dyn fmt::Display) -> TlsError {
    TlsError::Unreadable {
        what,
        file: file.to_owned(),
        cause: cause.to_string(),
    }
}

/// Whether more may read a key than libpq would have it: others, or a group, unless root owns it.
#[cfg(unix)]
fn can_others_read(file: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = fs::metadata(file);
    metadata.is_ok_and(|metadata| {
        let others = if metadata.uid() == 0 { 0o037 } else { 0o077 };
        metadata.mode() & others != 0
    })
}

#[cfg(not(unix))]
fn can_others_read(_: &Path) -> bool {
    false
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

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}
