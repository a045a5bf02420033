//! A private PostgreSQL cluster, made from the binaries of this machine and stopped with this process.
//!
//! The server listens on a Unix socket in a directory that only its user can enter, and on nothing
//! else. It is the child of a *watchdog*, a shell in a process group of its own that reads a pipe
//! which this process holds. The pipe closes when it is dropped, and when this process dies in any way; then
//! the watchdog stops the server and removes what is temporary. There is no other way of stopping it, so the
//! one for emergencies is the one that is always used.
//!
//! Everything here blocks the calling thread: starting takes seconds the first time.

mod binaries;
mod data_directory;
mod error;
mod server_user;

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub use self::binaries::{Binaries, BinariesError};
pub use self::error::EmbeddedError;
use self::error::io_error;
use self::server_user::ServerUser;

/// The name of the superuser and of the database, as in PostgreSQL's sample.
const POSTGRES: &str = "postgres";

/// How long a server may take until it accepts connections, including crash recovery.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a server may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// What a server logs if another one is at work in its directory.
const LOCK_FILE_EXISTS: &str = "lock file \"postmaster.pid\" already exists";

/// How often to check a condition that cannot be waited for.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The longest path of a Unix socket that every system accepts, in bytes, without the final NUL.
const SOCKET_PATH_MAX: usize = 107;

/// The watchdog's script: `$1` postgres, `$2` its data directory, `$3` its socket directory,
/// `$4` the signal that stops it, `$5` what to remove in the end; then postgres's arguments.
///
/// The watchdog ignores HUP, INT, QUIT and TERM; the server sets handlers of its own. A server that does
/// not stop at its signal is sent SIGQUIT after 50 seconds.
const WATCHDOG: &str = r#"
trap '' HUP INT QUIT TERM
postgres=$1 data=$2 socket=$3 signal=$4 remove=$5; shift 5
exec 3<&0
"$postgres" -D "$data" -k "$socket" "$@" </dev/null 3<&- >&2 &
server=$!
(
    read -r _ <&3
    kill -"$signal" $server
    seconds=0
    while [ $seconds -lt 50 ]; do sleep 1; seconds=$((seconds + 1)); done
    kill -QUIT $server
) >/dev/null 2>&1 &
guard=$!
wait $server; status=$?
kill -KILL $guard 2>/dev/null
rm -rf "$socket"
if [ -n "$remove" ]; then rm -rf "$remove"; fi
exit $status
"#;

/// A running private server. Dropping it stops the server and waits until it has stopped.
#[derive(Debug)]
pub struct Cluster {
    data_dir: PathBuf,
    socket_dir: PathBuf,
    watchdog: Child,
    /// The server's log. It can be read here even after the watchdog has removed it.
    log: File,
    /// The offset at which the log of this run begins.
    log_begin: u64,
    /// Dropped to stop the server.
    leash: Option<ChildStdin>,
}

/// How to make a private server.
#[derive(Clone, Debug)]
pub struct ClusterSettings {
    data_dir: DataDir,
    options: Vec<(String, String)>,
}

#[derive(Clone, Debug)]
enum DataDir {
    /// Kept when the server stops.
    Kept(PathBuf),
    /// Made for this run, and removed with it.
    Temporary,
}

// === impl ClusterSettings ===

impl ClusterSettings {
    /// A durable cluster in this directory, created there if it is empty or missing.
    pub fn kept(data_dir: impl Into<PathBuf>) -> Self {
        Self::new(DataDir::Kept(data_dir.into()))
    }

    /// A cluster that is made for this run, and removed with it.
    #[must_use]
    pub fn temporary() -> Self {
        Self::new(DataDir::Temporary)
    }

    fn new(data_dir: DataDir) -> Self {
        Self {
            data_dir,
            options: Vec::new(),
        }
    }

    /// Sets one parameter of the server, as in `postgresql.conf`.
    #[must_use]
    pub fn option(mut self, parameter: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.push((parameter.into(), value.into()));
        self
    }

    /// Where a durable cluster is by default.
    ///
    /// For root, a directory that the server's user can reach; for other users, one in the
    /// working directory.
    #[must_use]
    pub fn default_data_dir() -> PathBuf {
        if server_user::is_root() {
            PathBuf::from("/var/lib/bgworker")
        } else {
            PathBuf::from("./.bgworker")
        }
    }
}

// === impl Cluster ===

impl Cluster {
    /// Starts the server, and waits until it accepts connections.
    ///
    /// # Errors
    ///
    /// If the server does not start; then nothing is left running.
    pub fn start(settings: ClusterSettings) -> Result<Self, EmbeddedError> {
        let ClusterSettings { data_dir, options } = settings;
        let user = ServerUser::find()?;
        let (data_dir, temporary) = match data_dir {
            DataDir::Kept(data_dir) => (user.make_directory(&data_dir)?, None),
            DataDir::Temporary => {
                let parent = make_temporary_directory(user, &temporary_directory())?;
                let data_dir = user.make_directory(&parent.path().join("data"))?;
                (data_dir, Some(parent))
            }
        };
        let lock = data_directory::lock(&data_dir)?;
        data_directory::clear_if_unfinished(&data_dir)?;
        let version = data_directory::version(&data_dir);
        let binaries = Binaries::find(version.as_deref())?;
        if version.is_none() {
            data_directory::initdb(&data_dir, &lock, &binaries, user)?;
        }
        let socket_dir = make_temporary_directory(user, &runtime_directory())?;
        let (signal, remove) = match &temporary {
            // A temporary cluster need not stop cleanly, only be gone.
            Some(temporary) => ("QUIT", temporary.path()),
            None => ("INT", Path::new("")),
        };
        let postgres = binaries.program("postgres");
        let mut watchdog = watchdog(&postgres, &data_dir, socket_dir.path(), signal, remove);
        for (parameter, value) in &options {
            watchdog.arg("-c").arg(format!("{parameter}={value}"));
        }
        user.assume(&mut watchdog);
        // Only the program speaks to its service manager; with this variable, the server would as well.
        watchdog.env_remove("NOTIFY_SOCKET");
        let log = user.open_log(&data_dir.join("server.log"))?;
        let log_end = log
            .try_clone()
            .map_err(io_error("open the log in", &data_dir))?;
        let mut watchdog = watchdog
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            // The lock lives as long as a process holds this open: the watchdog does, to its end.
            .stdout(Stdio::from(lock))
            .stderr(Stdio::from(log_end))
            .spawn()
            .map_err(io_error("start a shell to watch over", &data_dir))?;
        // From here on the watchdog removes the temporary directories.
        temporary.map(TempDir::keep);
        let log_begin = log.metadata().map_or(0, |log| log.len());
        let mut cluster = Self {
            log_begin,
            leash: watchdog.stdin.take(),
            watchdog,
            log,
            data_dir,
            socket_dir: socket_dir.keep(),
        };
        cluster.wait_until_ready()?;
        Ok(cluster)
    }

    /// The connection string of the server.
    #[must_use]
    pub fn conninfo(&self) -> String {
        let host = self.socket_dir.display();
        format!("host='{host}' port=5432 user={POSTGRES} dbname={POSTGRES}")
    }

    /// The command line that connects psql to the server.
    #[must_use]
    pub fn psql(&self) -> String {
        let host = self.socket_dir.display();
        format!("psql -h {host} -U {POSTGRES} -d {POSTGRES}")
    }

    /// The directory of its files.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The directory of its socket.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// Stops the server, and waits until it has stopped.
    ///
    /// # Errors
    ///
    /// If it takes too long; the watchdog keeps trying.
    pub fn stop(mut self) -> Result<(), EmbeddedError> {
        self.release()
    }

    /// Why the server has ended by itself, if it has.
    pub fn ended(&mut self) -> Option<EmbeddedError> {
        match self.watchdog.try_wait() {
            Ok(None) => None,
            Ok(Some(_)) | Err(_) => Some(EmbeddedError::Ended {
                data_dir: self.data_dir.clone(),
                log: self.end_of_log(),
            }),
        }
    }

    fn release(&mut self) -> Result<(), EmbeddedError> {
        if self.leash.take().is_none() {
            // It was tried before, and once is enough.
            return Ok(());
        }
        let watchdog = &mut self.watchdog;
        // A child that cannot be waited for no longer exists.
        let stopped = poll(STOP_TIMEOUT, || !matches!(watchdog.try_wait(), Ok(None)));
        if stopped {
            return Ok(());
        }
        Err(EmbeddedError::StopDeadline {
            data_dir: self.data_dir.clone(),
        })
    }

    fn wait_until_ready(&mut self) -> Result<(), EmbeddedError> {
        let mut ended = false;
        let (watchdog, data_dir, socket_dir) =
            (&mut self.watchdog, &self.data_dir, &self.socket_dir);
        let ready = poll(START_TIMEOUT, || {
            ended = matches!(watchdog.try_wait(), Ok(Some(_)) | Err(_));
            // The socket tells this server from an earlier one that left its pid file behind.
            ended || data_directory::is_served(data_dir, Some(socket_dir))
        });
        if ready && !ended {
            return Ok(());
        }
        let data_dir = self.data_dir.clone();
        let log = self.end_of_log();
        Err(if log.contains(LOCK_FILE_EXISTS) {
            EmbeddedError::InUse { data_dir }
        } else if ended {
            EmbeddedError::Ended { data_dir, log }
        } else {
            EmbeddedError::StartDeadline { data_dir, log }
        })
    }

    /// The last lines of this run's log, on one line.
    fn end_of_log(&mut self) -> String {
        const MOST: u64 = 2_000;
        let mut text = Vec::new();
        let begin = self.log_begin;
        let read = self
            .log
            .seek(SeekFrom::End(0))
            .map(|length| length.saturating_sub(MOST).max(begin))
            .and_then(|from| self.log.seek(SeekFrom::Start(from)))
            .and_then(|_| self.log.read_to_end(&mut text));
        if let Err(error) = read {
            return format!("its log could not be read: {error}");
        }
        let text = String::from_utf8_lossy(&text);
        text.lines().map(str::trim).collect::<Vec<_>>().join(" | ")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            tracing::error!("{error}");
        }
    }
}

/// The shell that starts a server, stops it with `signal` when its leash is dropped, and then removes `remove`.
fn watchdog(
    postgres: &Path,
    data_dir: &Path,
    socket_dir: &Path,
    signal: &str,
    remove: &Path,
) -> Command {
    let mut watchdog = Command::new("/bin/sh");
    watchdog
        .args(["-c", WATCHDOG, "bgworker-watchdog"])
        .args([postgres, data_dir, socket_dir])
        .args([signal.as_ref(), remove.as_os_str()]);
    for parameter in ["listen_addresses=", "port=5432", "logging_collector=off"] {
        watchdog.args(["-c", parameter]);
    }
    watchdog
}

/// A directory with a short path, for a socket, in which the server's user may remove its own files.
fn runtime_directory() -> PathBuf {
    let ours = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let socket = "/bgworker-XXXXXX/.s.PGSQL.5432";
    ours.filter(|ours| !server_user::is_root() && ours.is_dir())
        .filter(|ours| ours.as_os_str().len() + socket.len() <= SOCKET_PATH_MAX)
        .unwrap_or_else(|| PathBuf::from("/tmp"))
}

/// A directory for temporary data, which the server's user can reach.
fn temporary_directory() -> PathBuf {
    if server_user::is_root() {
        PathBuf::from("/tmp")
    } else {
        std::env::temp_dir()
    }
}

/// A new directory that only the server's user can enter.
fn make_temporary_directory(user: ServerUser, parent: &Path) -> Result<TempDir, EmbeddedError> {
    let directory = tempfile::Builder::new()
        .prefix("bgworker-")
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir_in(parent)
        .map_err(io_error("make a directory in", parent))?;
    user.own(directory.path())?;
    Ok(directory)
}

/// Checks a condition until it holds or the time is up; returns whether it held.
#[expect(
    clippy::disallowed_methods,
    reason = "neither a process that is not our child nor a file says when it has changed"
)]
fn poll(timeout: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}
