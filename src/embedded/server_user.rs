//! Whom the server runs as: ourselves, or, where we are root, an unprivileged user.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{Uid, User};

use super::POSTGRES;
use super::error::{EmbeddedError, io_error};

/// Who runs the server and owns its files.
#[derive(Clone, Copy, Debug)]
pub(super) enum ServerUser {
    /// We do.
    Ourselves,
    /// Somebody else does, since PostgreSQL refuses root.
    Other { uid: u32, gid: u32 },
}

pub(super) fn is_root() -> bool {
    Uid::effective().is_root()
}

// === impl ServerUser ===

impl ServerUser {
    pub(super) fn find() -> Result<Self, EmbeddedError> {
        if !is_root() {
            return Ok(Self::Ourselves);
        }
        let user = User::from_name(POSTGRES).ok().flatten();
        let user = user.ok_or(EmbeddedError::NoServerUser)?;
        Ok(Self::Other {
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
        })
    }

    /// Makes a command run as this user.
    pub(super) fn assume(self, command: &mut Command) {
        if let Self::Other { uid, gid } = self {
            // The standard library drops the supplementary groups along with root.
            command.uid(uid).gid(gid);
        }
    }

    /// Gives a file or directory to this user.
    pub(super) fn own(self, path: &Path) -> Result<(), EmbeddedError> {
        match self {
            Self::Ourselves => Ok(()),
            Self::Other { uid, gid } => {
                chown(path, Some(uid), Some(gid)).map_err(io_error("change the owner of", path))
            }
        }
    }

    /// Makes a directory of this user's, if there is none, and returns its absolute path.
    pub(super) fn make_directory(self, path: &Path) -> Result<PathBuf, EmbeddedError> {
        if !path.exists() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(io_error("make the directory", path))?;
            self.own(path)?;
        }
        fs::canonicalize(path).map_err(io_error("find", path))
    }

    /// Opens a log of this user's, for appending and reading.
    pub(super) fn make_log(self, path: &Path) -> Result<File, EmbeddedError> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .read(true)
            .mode(0o600)
            .open(path)
            .map_err(io_error("open", path))?;
        self.own(path)?;
        Ok(log)
    }
}
