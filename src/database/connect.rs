//! Turns connection settings into a connection: which host and address, with encryption or without, and what the
//! session is set to, all within one deadline.

use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use tokio_postgres::NoTls;
use tokio_postgres::config::SslNegotiation;
use tokio_postgres::error::SqlState;
use tracing::warn;

use super::connection::{Connection, Terms};
use super::conninfo::ssl::Attempt;
use super::conninfo::{Host, TargetSessionAttrs};
use super::descriptors;
use super::error::DatabaseError;
use super::error::is_handshake;
use super::server::Server;
use super::sqlstate;
use super::timeline::Timeline;
use super::tls::{Connector, TlsError};
use crate::backoff::{doubled, jittered};
use crate::regular_file;

/// How much later than the server bgworker gives up on a statement.
const STATEMENT_SLACK: Duration = Duration::from_secs(1);

/// Longest statement timeout that counts: a longer one would overflow the clock.
const FAR: Duration = Duration::from_secs(86_400_000);

/// A statement that waits for a lock gives up after this time, and is tried again later: no worker queues behind a
/// client that holds a row.
const LOCK_TIMEOUT: Duration = Duration::from_millis(100);

/// Session settings of a job: they free the job if its instance is frozen or cut off.
const JOB_OPTIONS: &str = "-c client_connection_check_interval=5000 -c idle_session_timeout=0 \
    -c tcp_user_timeout=5000 -c tcp_keepalives_idle=5 -c tcp_keepalives_interval=1 -c tcp_keepalives_count=3";

/// How long the files may take to be read that the settings name.
const FILES_TIMEOUT: Duration = Duration::from_secs(5);

/// First wait between two attempts to connect.
const RECONNECT_INITIAL: Duration = Duration::from_millis(100);

/// Longest wait between two attempts to connect.
const RECONNECT_MAX: Duration = Duration::from_secs(1);

/// Why a standby is not a primary, in libpq's words.
pub(super) const IS_STANDBY: &str = "server is in hot standby mode";

/// Why a server that accepts writes is not the primary.
const WAS_REPLACED: &str = "server is on an older timeline than the primary that was found before: another server was promoted \
    in its place (restart bgworker to use it all the same)";

/// Whose a connection is: that decides what its session is set to, and whether it may take one of the last descriptors.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sharing {
    /// That of workers which wait for each other's statements.
    Shared,
    /// A worker's alone: it is opened only while enough descriptors are left.
    Own,
    /// That of a look, a vacuum or a command, or one that a worker in Rust opens by itself. It may take any descriptor.
    Apart,
    /// A job's connection: its statements are not bgworker's. One that is the job's own is opened as a worker's is.
    Job { is_own: bool },
}

/// Whether a session is of the kind that was asked for.
enum Suits {
    Yes,
    /// Only if no session suits better.
    AtNeed,
    No(&'static str),
}

/// What a server reports about itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Standing {
    pub(super) is_standby: bool,
    is_read_only: bool,
}

/// What the files say that the settings name.
struct FromFiles {
    config: tokio_postgres::Config,
    /// What is wrong with the password file.
    warning: Option<String>,
    /// `None` if no attempt uses TLS.
    connector: Option<Result<Connector, TlsError>>,
}

/// Why one attempt to connect failed.
enum AttemptError {
    Tls(TlsError),
    Client(tokio_postgres::Error),
}

/// How long to wait after a failed attempt to connect, if this many in a row failed before it.
pub(super) fn reconnect_wait(attempts: u32) -> Duration {
    let wait = doubled(RECONNECT_INITIAL, attempts, RECONNECT_MAX);
    jittered(wait, fastrand::f64())
}

// === impl Server ===

impl Server {
    /// Connects within the deadline: tries the hosts in order, and the addresses of each.
    pub(super) async fn connect(
        &self,
        application_name: &str,
        dbname: Option<&str>,
        sharing: Sharing,
    ) -> Result<Connection, DatabaseError> {
        let conninfo = &self.conninfo;
        let share = self.share();
        let wanted = conninfo.target_session_attrs();
        let mut errors = Vec::new();
        let mut second_best = None;
        for host in self.hosts_in_order() {
            let as_whom = (application_name, dbname, sharing);
            for tried in self.connect_to_host(host, as_whom, share, wanted).await {
                let (connection, standing) = match tried {
                    Ok(connected) => connected,
                    Err(error) if error.is_away() || error.is_full() => {
                        errors.push(error);
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                match standing.suits(wanted) {
                    Suits::Yes => {
                        self.was_reached();
                        return Ok(connection);
                    }
                    Suits::AtNeed => second_best = second_best.or(Some(connection)),
                    Suits::No(why) => {
                        let target = conninfo.target_of(&conninfo.hosts()[host], dbname);
                        errors.push(DatabaseError::Unsuitable { target, why });
                    }
                }
            }
        }
        match second_best {
            Some(connection) => Ok(connection),
            None => Err(DatabaseError::of_each(errors)),
        }
    }

    /// Connects as soon as there is room for another connection, and calls `full` once if there is none.
    ///
    /// Workers that wait for room take turns: one at a time asks again, less and less often.
    pub(super) async fn connect_when_there_is_room(
        &self,
        application_name: &str,
        dbname: Option<&str>,
        full: impl FnOnce(&DatabaseError),
    ) -> Result<Connection, DatabaseError> {
        let connect = || self.connect(application_name, dbname, Sharing::Own);
        match connect().await {
            Err(error) if error.is_full() => full(&error),
            done => return done,
        }
        // The semaphore is never closed.
        let _turn = self.room.acquire().await.ok();
        let mut attempts = 0;
        loop {
            tokio::time::sleep(reconnect_wait(attempts)).await;
            match connect().await {
                Err(error) if error.is_full() => attempts += 1,
                done => return done,
            }
        }
    }

    /// Connects to one host: to each of its addresses in turn, until one suits `wanted`, or fails other than by being
    /// away or full. Each address has an equal share of the time. Within it, the server is also asked what it is.
    pub(super) async fn connect_to_host(
        &self,
        number: usize,
        as_whom: (&str, Option<&str>, Sharing),
        share: Duration,
        wanted: TargetSessionAttrs,
    ) -> Vec<Result<(Connection, Standing), DatabaseError>> {
        let conninfo = &self.conninfo;
        let host = &conninfo.hosts()[number];
        let target = conninfo.target_of(host, as_whom.1);
        let after = conninfo
            .connect_timeout()
            .map_or(share, |own| own.min(share));
        let addresses = match tokio::time::timeout(after, host.resolve()).await {
            Ok(Ok(addresses)) => addresses,
            Ok(Err(error)) => return vec![Err(DatabaseError::Lookup { target, error })],
            Err(_) => return vec![Err(DatabaseError::ConnectDeadline { target, after })],
        };
        let many = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
        let after = after / many.max(1);
        let mut tried = Vec::new();
        for address in &addresses {
            let connecting = async {
                let connection = self.connect_to_address(address, as_whom, after).await?;
                let standing = match Standing::of(&connection).await {
                    // Any server suits, also one that does not know the question.
                    Err(DatabaseError::Statement { .. })
                        if wanted == TargetSessionAttrs::Any && !connection.is_closed() =>
                    {
                        Standing::default()
                    }
                    standing => standing?,
                };
                if !standing.is_standby {
                    self.compare_with_primary(&connection, &target).await?;
                }
                Ok((connection, standing))
            };
            let connected = tokio::time::timeout(after, connecting).await;
            self.host_answered(number, connected.is_ok());
            let connected = match connected {
                Ok(connected) => connected,
                Err(_) => {
                    let target = target.clone();
                    Err(DatabaseError::ConnectDeadline { target, after })
                }
            };
            let is_enough = match &connected {
                Ok((_, standing)) => matches!(standing.suits(wanted), Suits::Yes),
                Err(error) => !error.is_away() && !error.is_full(),
            };
            tried.push(connected);
            if is_enough {
                break;
            }
        }
        tried
    }

    /// Compares a server that accepts writes with the one that is known to be the primary. The one that another was promoted in
    /// the place of is refused; one that was itself promoted in the place of the known one is the primary from now on.
    async fn compare_with_primary(
        &self,
        connection: &Connection,
        target: &str,
    ) -> Result<(), DatabaseError> {
        let mut origin = connection.origin();
        let known = self.whereabouts.primary();
        let other = known.filter(|known| origin.is_another_than(known));
        let Some(known) = other.and_then(|other| other.timeline) else {
            return Ok(());
        };
        let Some(own) = timeline(connection).await? else {
            return Ok(());
        };
        if own.was_replaced_by(known) {
            let (target, why) = (target.to_owned(), WAS_REPLACED);
            return Err(DatabaseError::Unsuitable { target, why });
        }
        if known.was_replaced_by(own) {
            origin.timeline = Some(own);
            self.found(origin);
        }
        Ok(())
    }

    /// Connects to one address, trying the ways that `sslmode` allows.
    async fn connect_to_address(
        &self,
        host: &Host,
        (application_name, dbname, sharing): (&str, Option<&str>, Sharing),
        after: Duration,
    ) -> Result<Connection, DatabaseError> {
        let conninfo = &self.conninfo;
        let FromFiles {
            mut config,
            warning,
            connector,
        } = self.read_files(host, application_name, dbname).await?;
        self.say_once(warning);
        config.connect_timeout(after);
        if let Some(options) = self.session_options(sharing) {
            config.options(options);
        }
        if conninfo.tls().is_direct() {
            config.ssl_negotiation(SslNegotiation::Direct);
        }
        // No two attempts use TLS.
        let mut connector = connector;
        let mut errors = Vec::new();
        for attempt in conninfo.tls().attempts(host.is_socket()) {
            config.ssl_mode((*attempt).into());
            let tls = match attempt {
                Attempt::Plain => None,
                Attempt::EncryptedIfOffered | Attempt::Encrypted => connector.take(),
            };
            if matches!(sharing, Sharing::Own | Sharing::Job { is_own: true }) {
                // Right before the socket is made: of workers that connect at once, each counts the sockets of those before it.
                descriptors::leave_room()?;
            }
            match self.attempt(&config, host, tls).await {
                Ok(connection) => return Ok(connection),
                // The other way may not need TLS.
                Err(AttemptError::Tls(error)) => errors.push(DatabaseError::Tls(error)),
                Err(AttemptError::Client(error)) => {
                    let may_go_on = is_about_encryption(&error);
                    let target = conninfo.target_of(host, dbname);
                    errors.push(DatabaseError::of_attempt(target, error));
                    if !may_go_on {
                        break;
                    }
                }
            }
        }
        Err(DatabaseError::of_each(errors))
    }

    /// Reads the files that the settings name, on a thread that may wait for their file system.
    async fn read_files(
        &self,
        host: &Host,
        application_name: &str,
        dbname: Option<&str>,
    ) -> Result<FromFiles, DatabaseError> {
        let (conninfo, last_connector) = (self.conninfo.clone(), self.last_connector.clone());
        let password_file = self.settings.password_file.clone();
        let (host, dbname) = (host.clone(), dbname.map(str::to_owned));
        let application_name = application_name.to_owned();
        let read = move || {
            let dbname = dbname.as_deref();
            let (mut config, warning) = conninfo.client_config(&host, &application_name, dbname);
            if let Some(file) = password_file {
                config.password(read_password(&file)?);
            }
            let attempts = conninfo.tls().attempts(host.is_socket());
            let is_plain = attempts.iter().all(|attempt| *attempt == Attempt::Plain);
            Ok(FromFiles {
                config,
                warning,
                connector: (!is_plain).then(|| last_connector.get(conninfo.tls())),
            })
        };
        let reading = async {
            // One at a time: a file system that does not answer holds up one thread and not all of them.
            let turn = Arc::clone(&self.files).acquire_owned().await;
            let read = tokio::task::spawn_blocking(move || {
                let read = read();
                drop(turn);
                read
            });
            read.await.ok()
        };
        match tokio::time::timeout(FILES_TIMEOUT, reading).await {
            Ok(Some(read)) => read,
            Ok(None) | Err(_) => Err(DatabaseError::FilesDeadline {
                after: FILES_TIMEOUT,
            }),
        }
    }

    async fn attempt(
        &self,
        config: &tokio_postgres::Config,
        host: &Host,
        tls: Option<Result<Connector, TlsError>>,
    ) -> Result<Connection, AttemptError> {
        let tls = tls.transpose()?;
        let terms = Terms {
            host: host.clone(),
            tls: tls.clone(),
            prepare: self.settings.prepare,
            statement_deadline: self.settings.statement_timeout.min(FAR) + STATEMENT_SLACK,
            whereabouts: Arc::clone(&self.whereabouts),
        };
        Ok(match tls {
            Some(tls) => {
                let (client, connection) = config.connect(tls).await?;
                Connection::new(client, connection, terms)
            }
            None => {
                let (client, connection) = config.connect(NoTls).await?;
                Connection::new(client, connection, terms)
            }
        })
    }

    /// The options of a session: those of the connection settings, and bgworker's unless `prepare` is off. bgworker's
    /// come last, so that they win, except for the lock timeout of a connection that is not shared.
    fn session_options(&self, sharing: Sharing) -> Option<String> {
        let theirs = self.conninfo.options().unwrap_or_default();
        if !self.settings.prepare {
            return Some(theirs.to_owned()).filter(|theirs| !theirs.is_empty());
        }
        // The server takes 31 bits of milliseconds, and reads 0 as no timeout.
        let statement_timeout = self.settings.statement_timeout.as_millis();
        let statement_timeout = statement_timeout.clamp(1, i32::MAX as u128);
        let lock_timeout = format!("-c lock_timeout={}", LOCK_TIMEOUT.as_millis());
        let shared = format!("{lock_timeout} -c max_parallel_workers_per_gather=0");
        if matches!(sharing, Sharing::Job { .. }) {
            return Some(format!("{theirs} {JOB_OPTIONS}"));
        }
        let (before, after) = match sharing {
            Sharing::Shared => ("", shared.as_str()),
            _ => (lock_timeout.as_str(), ""),
        };
        Some(format!(
            "{before} {theirs} {after} \
             -c default_transaction_isolation=read\\ committed \
             -c statement_timeout={statement_timeout} \
             -c client_connection_check_interval=5000 \
             -c idle_session_timeout=0 \
             -c synchronize_seqscans=off \
             -c row_security=off \
             -c jit=off"
        ))
    }

    /// Warns about what is wrong with the password file: once, until that changes.
    fn say_once(&self, passfile: Option<String>) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if *said != passfile {
            if let Some(warning) = &passfile {
                warn!("{warning}");
            }
            *said = passfile;
        }
    }
}

/// Asks a primary for its timeline. What is not quite PostgreSQL may not say.
pub(super) async fn timeline(connection: &Connection) -> Result<Option<Timeline>, DatabaseError> {
    let ask = async |sql| match connection.query("ask for the timeline", sql, &[]).await {
        Err(DatabaseError::Statement { .. }) if !connection.is_closed() => Ok(None),
        rows => Ok(rows?.into_iter().next()),
    };
    let Some(file) = ask(Timeline::FILE).await? else {
        return Ok(None);
    };
    let system = ask(Timeline::SYSTEM).await?;
    let system = system.and_then(|row| row.try_get(0).ok());
    Ok(file
        .try_get(0)
        .ok()
        .and_then(|file| Timeline::of(file, system)))
}

/// Reads the password from a file that holds nothing else: all of it, without trailing line endings.
fn read_password(file: &Path) -> Result<Vec<u8>, DatabaseError> {
    let mut password = regular_file::read(file).map_err(|error| DatabaseError::PasswordFile {
        file: file.to_owned(),
        error,
    })?;
    while password.pop_if(|byte| b"\r\n".contains(byte)).is_some() {}
    Ok(password)
}

/// Returns `true` if the same host may be reachable the other way, with or without encryption: the handshake failed, or
/// the server refuses this way.
fn is_about_encryption(error: &tokio_postgres::Error) -> bool {
    let code = error.code().map(SqlState::code);
    code.is_some_and(sqlstate::is_about_encryption) || is_handshake(error)
}

impl From<TlsError> for AttemptError {
    fn from(error: TlsError) -> Self {
        Self::Tls(error)
    }
}

impl From<tokio_postgres::Error> for AttemptError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Client(error)
    }
}

// === impl Standing ===

impl Standing {
    /// Asks a server what it is, and tells the connection when the server began.
    async fn of(connection: &Connection) -> Result<Self, DatabaseError> {
        let doing = "ask what the session can do";
        let sql = "SELECT pg_catalog.pg_is_in_recovery(), \
                   pg_catalog.current_setting('default_transaction_read_only')::pg_catalog.bool, \
                   pg_catalog.pg_postmaster_start_time()";
        let rows = connection.query(doing, sql, &[]).await?;
        let begun = rows.first().and_then(|row| row.try_get(2).ok());
        begun
            .into_iter()
            .for_each(|begun: SystemTime| connection.server_began(begun));
        let is_standby = rows.first().is_some_and(|row| row.get(0));
        let is_read_only = is_standby || rows.first().is_some_and(|row| row.get(1));
        Ok(Self {
            is_standby,
            is_read_only,
        })
    }

    /// Whether the session is one that `target_session_attrs` asks for. The sentences are libpq's.
    fn suits(self, wanted: TargetSessionAttrs) -> Suits {
        let (suits, why) = match wanted {
            TargetSessionAttrs::Any => (true, ""),
            TargetSessionAttrs::ReadWrite => (!self.is_read_only, self.read_only()),
            TargetSessionAttrs::ReadOnly => (self.is_read_only, "session is not read-only"),
            TargetSessionAttrs::Primary => (!self.is_standby, IS_STANDBY),
            TargetSessionAttrs::Standby => (self.is_standby, "server is not in hot standby mode"),
            TargetSessionAttrs::PreferStandby if self.is_standby => (true, ""),
            TargetSessionAttrs::PreferStandby => return Suits::AtNeed,
        };
        if suits { Suits::Yes } else { Suits::No(why) }
    }

    /// libpq's sentence about a session that can only read; and why it is that on a server that is no standby.
    fn read_only(self) -> &'static str {
        if self.is_standby {
            "session is read-only"
        } else {
            "session is read-only, since default_transaction_read_only is on for this server, database or role"
        }
    }
}
