//! libpq's `sslmode` on native-tls: all six modes, for connections and for cancel requests.
//!
//! Certificates and keys may be renewed while bgworker runs: they are read again when they have changed.

mod stream;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;
use std::{fmt, fs};

use native_tls::{Certificate, Identity, TlsConnector};
use postgres_native_tls::set_postgresql_alpn;
use thiserror::Error;

pub(super) use self::stream::{Connector, Stream, ToHost};
use super::conninfo::ssl::{Roots, SslMode, TlsSettings};
use crate::regular_file;

/// TLS could not be set up.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The TLS library reports an error.
    #[error("could not set up TLS: {0}")]
    Library(#[from] native_tls::Error),
    /// The file of trusted roots does not exist.
    #[error(
        "root certificate file \"{}\" does not exist: either provide the file, use the system's \
         trusted roots with sslrootcert=system, or change sslmode to disable server certificate \
         verification",
        .file.display()
    )]
    NoRoots {
        /// Where the roots were looked for.
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
        /// What the file holds.
        what: &'static str,
        /// The file.
        file: PathBuf,
        /// What the system or the TLS library says.
        cause: String,
    },
    /// The client's certificate is there without its key.
    #[error("certificate present, but not private key file \"{}\"", .file.display())]
    NoKey {
        /// Where the key was looked for.
        file: PathBuf,
    },
    /// Other users could read the key.
    #[error(
        "private key file \"{}\" has group or world access; file must have permissions u=rw (0600) or \
         less if owned by the current user, or permissions u=rw,g=r (0640) or less if owned by root",
        .file.display()
    )]
    KeyAccess {
        /// The file of the key.
        file: PathBuf,
    },
    /// The key is in a format that the TLS library does not read.
    #[error(
        "private key file \"{0}\" is not in PKCS #8 without a password; this makes one that is: openssl \
         pkcs8 -topk8 -nocrypt -in \"{0}\" -out \"{0}.pk8\"",
        .file.display()
    )]
    KeyFormat {
        /// The file of the key.
        file: PathBuf,
    },
}

/// The last connector, and the files that it was made from. Making one takes tens of milliseconds if the system's roots
/// are read, too long to spend at every connect. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct LastConnector(Arc<Mutex<Option<(Files, Connector)>>>);

/// Files, and when each was last modified; `None` if it is not there.
type Files = Vec<(PathBuf, Option<SystemTime>)>;

// === impl LastConnector ===

impl LastConnector {
    /// Returns the connector for a connection made now: the last one, unless a file has changed. Blocks while the files'
    /// file system does.
    pub(super) fn get(&self, tls: &TlsSettings) -> Result<Connector, TlsError> {
        let files = files(tls);
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, connector)) = last.as_ref().filter(|(made_of, _)| *made_of == files) {
            return Ok(connector.clone());
        }
        let connector = connector(tls)?;
        *last = Some((files, connector.clone()));
        Ok(connector)
    }
}

fn files(tls: &TlsSettings) -> Files {
    let roots = match &tls.roots {
        Roots::File(file) => Some(file),
        Roots::System | Roots::None => None,
    };
    let credentials = [&tls.certificate, &tls.key].into_iter().flatten();
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

fn connector(tls: &TlsSettings) -> Result<Connector, TlsError> {
    let mut builder = TlsConnector::builder();
    match verified(tls)? {
        SslMode::VerifyFull => {}
        SslMode::VerifyCa => {
            builder.danger_accept_invalid_hostnames(true);
        }
        SslMode::Disable | SslMode::Allow | SslMode::Prefer | SslMode::Require => {
            builder.danger_accept_invalid_certs(true);
            builder.danger_accept_invalid_hostnames(true);
            // The roots would be read for nothing.
            builder.disable_built_in_roots(true);
        }
    }
    if let (Roots::File(file), true) = (&tls.roots, tls.mode >= SslMode::Require)
        && let Some(pem) = read_if_there("root certificate", file)?
    {
        builder.disable_built_in_roots(true);
        let roots = Certificate::stack_from_pem(&pem);
        for root in roots.map_err(|error| unreadable("root certificate", file, &error))? {
            builder.add_root_certificate(root);
        }
    }
    if let Some(identity) = identity(tls)? {
        builder.identity(identity);
    }
    if tls.direct {
        set_postgresql_alpn(&mut builder);
    }
    Ok(Connector::new(builder.build()?))
}

/// What to verify: with a file of roots, `require` is `verify-ca`, as in libpq.
fn verified(tls: &TlsSettings) -> Result<SslMode, TlsError> {
    match (tls.mode, &tls.roots) {
        (SslMode::Require, Roots::File(file)) if file.exists() => Ok(SslMode::VerifyCa),
        (SslMode::VerifyCa | SslMode::VerifyFull, Roots::File(file)) if !file.exists() => {
            Err(TlsError::NoRoots { file: file.clone() })
        }
        (SslMode::VerifyCa | SslMode::VerifyFull, Roots::None) => Err(TlsError::NoRootsNamed),
        (mode, _) => Ok(mode),
    }
}

/// The client's identity, if it has a certificate.
fn identity(tls: &TlsSettings) -> Result<Option<Identity>, TlsError> {
    let (Some(certificate), Some(key)) = (&tls.certificate, &tls.key) else {
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

fn read_if_there(what: &'static str, file: &Path) -> Result<Option<Vec<u8>>, TlsError> {
    match regular_file::read(file) {
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

/// Returns `true` if more users have access to a key than libpq allows: others, or the group, which may read it if root
/// owns it.
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

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}
