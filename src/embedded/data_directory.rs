//! A data directory: which process holds it, which version made it, whether a server serves it.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::unistd::Uid;

use super::binaries::Binaries;
use super::error::{EmbeddedError, io_error};
use super::server_user::ServerUser;
use super::{POSTGRES, poll};

/// How long to wait until a server that is being stopped has released its directory.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(30);

/// A server that still accepts connections after this long is not being stopped.
const STOPPING_TIMEOUT: Duration = Duration::from_secs(2);

/// Takes the lock on a data directory, which the watchdog of an earlier run may still hold.
pub(super) fn lock(data_dir: &Path) -> Result<File, EmbeddedError> {
    let directory = File::open(data_dir).map_err(io_error("open", data_dir))?;
    let mut failure = None;
    let mut try_lock = || match directory.try_lock() {
        Ok(()) => true,
        Err(TryLockError::WouldBlock) => false,
        Err(TryLockError::Error(error)) => {
            failure = Some(error);
            true
        }
    };
    let locked = poll(STOPPING_TIMEOUT, &mut try_lock)
        || (!is_served(data_dir, None) && poll(RELEASE_TIMEOUT, try_lock));
    match failure {
        Some(error) => Err(io_error("lock", data_dir)(error)),
        None if locked => Ok(directory),
        None => Err(EmbeddedError::InUse {
            data_dir: data_dir.to_owned(),
        }),
    }
}

/// The major version of PostgreSQL that made the directory; `None` if it is not a cluster.
pub(super) fn version(data_dir: &Path) -> Option<String> {
    let version = fs::read_to_string(data_dir.join("PG_VERSION")).ok()?;
    let version = version.trim();
    let is_version = version.chars().all(|c| c.is_ascii_digit() || c == '.');
    is_version.then(|| version.to_owned())
}

/// `true` if a server accepts connections to the directory; with `socket_dir`, only if its socket is there.
///
/// Both facts are in the server's pid file, in lines five and eight, which `pg_ctl` reads too.
pub(super) fn is_served(data_dir: &Path, socket_dir: Option<&Path>) -> bool {
    fs::read_to_string(data_dir.join("postmaster.pid")).is_ok_and(|text| {
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        let is_there = socket_dir.is_none_or(|dir| lines.get(4).map(Path::new) == Some(dir));
        is_there && matches!(lines.get(7), Some(&("ready" | "standby")))
    })
}

/// Removes what an interrupted initdb has left behind, for example after a power failure.
pub(super) fn clear_if_unfinished(data_dir: &Path) -> Result<(), EmbeddedError> {
    let unfinished = unfinished(data_dir);
    // A marker that another user put there is no reason to remove anything.
    let is_ours =
        |marker: fs::Metadata| marker.is_file() && marker.uid() == Uid::effective().as_raw();
    if !fs::symlink_metadata(&unfinished).is_ok_and(is_ours) {
        return Ok(());
    }
    let entries = fs::read_dir(data_dir).map_err(io_error("read", data_dir))?;
    for entry in entries {
        let path = entry.map_err(io_error("read", data_dir))?.path();
        let removed = if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.map_err(io_error("remove", &path))?;
    }
    fs::remove_file(&unfinished).map_err(io_error("remove", &unfinished))
}

/// The file that stands beside a data directory while initdb is at work in it.
fn unfinished(data_dir: &Path) -> PathBuf {
    let mut path = data_dir.as_os_str().to_owned();
    path.push(".initdb");
    PathBuf::from(path)
}

/// Makes a cluster in an empty directory.
pub(super) fn initdb(
    data_dir: &Path,
    lock: &File,
    binaries: &Binaries,
    user: ServerUser,
) -> Result<(), EmbeddedError> {
    let mut entries = fs::read_dir(data_dir).map_err(io_error("read", data_dir))?;
    if entries.next().is_some() {
        return Err(EmbeddedError::NotACluster {
            data_dir: data_dir.to_owned(),
        });
    }
    user.own(data_dir)?;
    let unfinished = unfinished(data_dir);
    File::create(&unfinished).map_err(io_error("make", &unfinished))?;
    // If this process is killed meanwhile, initdb goes on: it holds the lock, so its work is not taken for done.
    let lock = lock.try_clone().map_err(io_error("lock", data_dir))?;
    let mut initdb = Command::new(binaries.program("initdb"));
    initdb
        .args([
            "--auth=trust",
            "--encoding=UTF8",
            "--no-locale",
            "--no-instructions",
        ])
        .arg(format!("--username={POSTGRES}"))
        .arg("--pgdata")
        .arg(data_dir)
        .current_dir("/")
        // A Ctrl-C at the terminal is for this process to handle.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::from(lock))
        .stderr(Stdio::piped());
    user.assume(&mut initdb);
    let output = initdb
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .map_err(io_error("run initdb for", data_dir))?;
    if output.status.success() {
        return fs::remove_file(&unfinished).map_err(io_error("remove", &unfinished));
    }
    Err(EmbeddedError::Initdb {
        data_dir: data_dir.to_owned(),
        output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
