//! The password file: passwords by host, port, database and user. Mirrors libpq's `passwordFromFile`.
//!
//! It is read at every connect, so that a password can be changed without a restart.

use std::fs::{self, Metadata};
use std::io;
use std::path::Path;

use super::Host;
use crate::regular_file;

/// The host name that a socket in the default directory counts as.
const LOCALHOST: &str = "localhost";

/// The default directory of sockets.
const DEFAULT_SOCKET_DIRECTORY: &str = "/var/run/postgresql";

/// The password of a user for a database at a host, from the first line that matches.
///
/// # Errors
///
/// If the file is there but not used: a warning that says why. The sentences about plain files and access are libpq's.
pub(super) fn find(
    file: &Path,
    host: &Host,
    dbname: &str,
    user: &str,
) -> Result<Option<Vec<u8>>, String> {
    let shown = file.display();
    let metadata = match fs::metadata(file) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("could not read password file \"{shown}\": {error}")),
    };
    if !metadata.is_file() {
        return Err(format!("password file \"{shown}\" is not a plain file"));
    }
    if can_others_read(&metadata) {
        return Err(format!(
            "password file \"{shown}\" has group or world access; permissions should be u=rw (0600) \
             or less: it is not used"
        ));
    }
    let text = regular_file::read(file)
        .map_err(|error| format!("could not read password file \"{shown}\": {error}"))?;
    let address = host.address.map(|address| address.to_string());
    let host_name = match host.name.as_deref().or(address.as_deref()) {
        None | Some(DEFAULT_SOCKET_DIRECTORY) => LOCALHOST,
        Some(name) => name,
    };
    let port = host.port.to_string();
    let wanted = [host_name, &port, dbname, user];
    // The password of another line may have any encoding.
    let mut lines = text.split(|byte| *byte == b'\n');
    Ok(lines.find_map(|line| password(line, wanted)))
}

#[cfg(unix)]
fn can_others_read(metadata: &Metadata) -> bool {
    std::os::unix::fs::MetadataExt::mode(metadata) & 0o077 != 0
}

#[cfg(not(unix))]
fn can_others_read(_: &Metadata) -> bool {
    false
}

/// The password of a line, if its first four fields match.
fn password(line: &[u8], wanted: [&str; 4]) -> Option<Vec<u8>> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.starts_with(b"#") {
        return None;
    }
    let mut rest = line;
    for wanted in wanted {
        let (field, after) = take_field(rest)?;
        // A lone star matches everything; an escaped one is a star.
        if field != wanted.as_bytes() && !rest.starts_with(b"*:") {
            return None;
        }
        rest = after;
    }
    Some(unescaped(rest)).filter(|password| !password.is_empty())
}

/// The field up to the next unescaped colon, and what follows that.
fn take_field(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut escaped = false;
    let end = text.iter().position(|byte| {
        let is_end = *byte == b':' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        is_end
    })?;
    Some((unescaped(&text[..end]), &text[end + 1..]))
}

fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        plain.extend(if *byte == b'\\' {
            bytes.next()
        } else {
            Some(byte)
        });
    }
    plain
}
