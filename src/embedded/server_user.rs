//! The user that the server runs as: this process's own or, if that is root, an unprivileged one.

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

/// The user that runs the server and owns its files.
#[derive(Clone, Copy, Debug)]
pub(super) enum ServerUser {
    /// The user of this process.
    Ourselves,
    /// Another user, since PostgreSQL refuses root.
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
            // The standard library drops the supplementary groups as well when root sets the user.
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

    /// Makes a directory that only this user can enter, or takes one that is empty, and returns its
    /// absolute path. One that is not empty must belong to this user.
    pub(super) fn make_directory(self, path: &Path) -> Result<PathBuf, EmbeddedError> {
        // The parents stay open to all: this user may be another than the one that makes them.
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

    /// Opens this user's log, for appending and reading.
    ///
    /// Its directory belongs to this user, which must not be able to make the process open, or give away, a
    /// file of the process's own user: links are not followed, and what is given away is what was opened.
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
