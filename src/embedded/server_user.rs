//! Whom the server runs as: ourselves, or, where we are root, an unprivileged user.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{
    MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown, fchown,
};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::OFlag;
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

    fn uid(self) -> u32 {
        match self {
            Self::Ourselves => Uid::effective().as_raw(),
            Self::Other { uid, .. } => uid,
        }
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

    /// Makes a directory of this user's that only it can enter, or takes one that is empty, and
    /// returns its absolute path.
    pub(super) fn make_directory(self, path: &Path) -> Result<PathBuf, EmbeddedError> {
        // What lies above is for everybody to pass: this user is not we.
        fs::create_dir_all(path).map_err(io_error("make the directory", path))?;
        let path = fs::canonicalize(path).map_err(io_error("find", path))?;
        let mut entries = fs::read_dir(&path).map_err(io_error("read", &path))?;
        if entries.next().is_none() {
            let private = fs::Permissions::from_mode(0o700);
            fs::set_permissions(&path, private).map_err(io_error("close to others", &path))?;
            self.own(&path)?;
        } else if fs::metadata(&path)
            .map_err(io_error("look at", &path))?
            .uid()
            != self.uid()
        {
            return Err(EmbeddedError::OtherOwner { data_dir: path });
        }
        Ok(path)
    }

    /// Opens a log of this user's, for appending and reading.
    ///
    /// Its directory belongs to that user, who must not be able to make us open, or give away, a
    /// file of ours: links are not followed, and what is given away is what was opened.
    pub(super) fn open_log(self, path: &Path) -> Result<File, EmbeddedError> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .read(true)
            .mode(0o600)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(path)
            .map_err(io_error("open", path))?;
        if let Self::Other { uid, gid } = self {
            fchown(&log, Some(uid), Some(gid)).map_err(io_error("change the owner of", path))?;
        }
        Ok(log)
    }
}
