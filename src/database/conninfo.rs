//! libpq's connection settings: a URL or a `key=value` string, completed from a service file, from `PG*`
//! variables and from libpq's defaults.
//!
//! No secret is ever printed: an error names the keyword, not the value, and the password cannot be shown. No file is
//! read except those that the settings and the given environment lead to.

mod keyword;
mod passfile;
mod service;
pub(super) mod ssl;
mod text;
mod values;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, io};

use thiserror::Error;

use self::keyword::{KEYWORDS, Support, of_another_tool};
pub use self::service::ServiceError;
use self::ssl::TlsSettings;
use self::values::Values;
use crate::spelling;

/// Where a server is, and how and as which user to connect to it.
#[derive(Clone, PartialEq, Eq)]
pub struct ConnInfo {
    hosts: Vec<Host>,
    dbname: Option<String>,
    user: Option<String>,
    password: Option<Password>,
    passfile: Option<PathBuf>,
    application_name: Option<String>,
    /// The application name if neither the settings nor bgworker gives one.
    fallback_application_name: Option<String>,
    options: Option<String>,
    /// How long one host may take; no limit of its own unless set.
    connect_timeout: Option<Duration>,
    keepalives: Keepalives,
    tls: TlsSettings,
    channel_binding: tokio_postgres::config::ChannelBinding,
    target_session_attrs: TargetSessionAttrs,
    /// `true` if hosts are tried in random order.
    load_balance_hosts: bool,
}

/// One of the servers to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host {
    /// Its name, or the directory of its socket.
    name: Option<String>,
    /// Its address; if given, the name is not looked up.
    address: Option<IpAddr>,
    port: u16,
}

/// Keepalive settings: when a silent peer counts as gone.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Keepalives {
    enabled: bool,
    /// `None`, here and below, is the system's value. With the system's values, a dead peer would be noticed after two
    /// hours.
    idle: Option<Duration>,
    interval: Option<Duration>,
    count: Option<u32>,
    /// How long sent data may stay unacknowledged.
    user_timeout: Option<Duration>,
}

/// Which servers are acceptable. Mirrors libpq's `target_session_attrs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum TargetSessionAttrs {
    /// Any.
    #[default]
    Any,
    /// One whose sessions can write.
    ReadWrite,
    /// One whose sessions cannot write.
    ReadOnly,
    /// One that is not in recovery.
    Primary,
    /// One that is in recovery.
    Standby,
    /// One that is in recovery, or else any.
    PreferStandby,
}

/// A password. Nothing shows it.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Password(pub(super) String);

/// Why connection settings were refused. No variant holds a value that may be secret.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConnInfoError {
    /// The text is neither a URL nor a `key=value` string.
    #[error("invalid connection string: {0}")]
    Syntax(&'static str),
    /// A keyword is not known.
    #[error("invalid connection option{}{}", spelling::quoted_word(.keyword), hint(.keyword, .nearest.as_deref()))]
    UnknownKeyword {
        /// The keyword. It may hold anything, and is shown only if it looks like a word.
        keyword: String,
        /// A known keyword that may be meant.
        nearest: Option<String>,
    },
    /// A keyword is libpq's, but has no effect here.
    #[error("connection option \"{keyword}\" is not supported: leave it out{}", variable(.keyword))]
    Unsupported {
        /// The keyword.
        keyword: &'static str,
    },
    /// A value is not what its keyword takes.
    #[error("invalid value for connection option \"{keyword}\": {expected}")]
    InvalidValue {
        /// The keyword.
        keyword: &'static str,
        /// What it takes.
        expected: String,
    },
    /// Two settings contradict each other.
    #[error("{0}")]
    Contradiction(String),
    /// No role is named, and the user of this process has no name. The sentence is libpq's.
    #[error("local user{} does not exist: name the role, with user= or PGUSER", with_id(*.id))]
    NoUser {
        /// The user's number, where the system says it.
        id: Option<u32>,
    },
    /// The service could not be looked up.
    #[error(transparent)]
    Service(#[from] ServiceError),
}

/// The idle time of most systems, which the client library cannot leave to them.
const SYSTEMS_IDLE: Duration = Duration::from_secs(7200);

// === impl ConnInfo ===

impl ConnInfo {
    /// Reads a URL (`postgresql://…`) or a `key=value` string.
    ///
    /// What it leaves out comes from the service file, if a service is named, then from `environment`,
    /// which looks up a `PG*` variable, and then from libpq's defaults, some of which are files below
    /// `HOME`. Pass `|_| None` for no environment at all.
    ///
    /// # Errors
    ///
    /// If it is malformed, or a keyword or value is not understood.
    pub fn parse(
        text: &str,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConnInfoError> {
        let given = text::parse(text)?;
        for (keyword, _) in &given {
            check_keyword(keyword)?;
        }
        let values = Values::new(given, &environment)?;
        Self::from_values(&values)
    }

    /// Returns `true` if a `PG*` variable says where a server is.
    pub(crate) fn is_in_environment(environment: impl Fn(&str) -> Option<String>) -> bool {
        ["PGHOST", "PGHOSTADDR", "PGDATABASE", "PGSERVICE"]
            .into_iter()
            .any(|variable| environment(variable).is_some_and(|value| !value.is_empty()))
    }

    /// Returns `true` if a whole connection string is given where a name belongs. Names are shown, and a connection
    /// string may hold a password.
    pub(crate) fn is_instead_of_name(name: &str) -> bool {
        name.contains("://") || name.contains("password=")
    }

    fn from_values(values: &Values<'_>) -> Result<Self, ConnInfoError> {
        let connect_timeout = match values.number("connect_timeout")? {
            None | Some(0) => None,
            // libpq rounds one second up: looking up a name may take that long alone.
            Some(seconds) => Some(Duration::from_secs(seconds.max(2))),
        };
        // If not set, bgworker's value; if set to 0 or less, the system's.
        let or_systems = |keyword, ours| {
            let said = values.number(keyword)?;
            let unset = values.get(keyword).is_none().then_some(ours);
            Ok::<_, ConnInfoError>(said.filter(|number| *number > 0).or(unset))
        };
        let keepalives = Keepalives {
            enabled: values.number("keepalives")? != Some(0),
            idle: or_systems("keepalives_idle", 30)?.map(Duration::from_secs),
            interval: or_systems("keepalives_interval", 10)?.map(Duration::from_secs),
            count: or_systems("keepalives_count", 3)?
                .map(|count| u32::try_from(count).unwrap_or(u32::MAX)),
            user_timeout: or_systems("tcp_user_timeout", 60_000)?.map(Duration::from_millis),
        };
        let load_balance_hosts = values.one_of(
            "load_balance_hosts",
            &[("disable", false), ("random", true)],
        )?;
        values.one_of("gssencmode", &[("disable", ()), ("prefer", ())])?;
        values.one_of(
            "client_encoding",
            &[("auto", ()), ("UTF8", ()), ("utf8", ())],
        )?;
        let dbname = values.get("dbname");
        if dbname.as_deref().is_some_and(Self::is_instead_of_name) {
            return Err(ConnInfoError::InvalidValue {
                keyword: "dbname",
                expected: "it must be a database name, not a connection string".to_owned(),
            });
        }
        Ok(Self {
            hosts: values.hosts()?,
            dbname,
            user: values.get("user").map_or_else(process_user, Ok).map(Some)?,
            password: values.get("password").map(Password),
            passfile: values.file("passfile", ".pgpass"),
            application_name: values.get("application_name"),
            fallback_application_name: values.get("fallback_application_name"),
            options: values.get("options"),
            connect_timeout,
            keepalives,
            tls: TlsSettings::from_values(values)?,
            channel_binding: values.channel_binding()?,
            target_session_attrs: values
                .one_of("target_session_attrs", &TargetSessionAttrs::WORDS)?
                .unwrap_or_default(),
            load_balance_hosts: load_balance_hosts.unwrap_or(false),
        })
    }

    /// Describes where connections go, for people: host, port and database, nothing secret.
    #[must_use]
    pub fn target(&self, dbname: Option<&str>) -> String {
        let servers: Vec<_> = self.hosts.iter().map(ToString::to_string).collect();
        self.target_at(&servers.join(","), dbname)
    }

    /// Describes the target at one host.
    pub(super) fn target_of(&self, host: &Host, dbname: Option<&str>) -> String {
        self.target_at(&host.to_string(), dbname)
    }

    fn target_at(&self, server: &str, dbname: Option<&str>) -> String {
        match dbname.or(self.dbname.as_deref()) {
            Some(dbname) => format!("database \"{dbname}\" at {server}"),
            None => format!("the server at {server}"),
        }
    }

    /// The role that connects; the user of this process if none is named.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// `true` if the settings have a password, which may also be in a file that they do not name.
    #[must_use]
    pub fn has_password(&self) -> bool {
        self.password.is_some()
    }

    pub(super) fn dbname(&self) -> Option<&str> {
        self.dbname.as_deref()
    }

    pub(super) fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    pub(crate) fn options(&self) -> Option<&str> {
        self.options.as_deref()
    }

    pub(super) fn connect_timeout(&self) -> Option<Duration> {
        self.connect_timeout
    }

    pub(super) fn tls(&self) -> &TlsSettings {
        &self.tls
    }

    /// Whether it asks for servers of one kind: `Some(true)` for those that can write, `Some(false)` for standbys.
    pub(crate) fn asks_for_primary(&self) -> Option<bool> {
        match self.target_session_attrs {
            TargetSessionAttrs::ReadWrite | TargetSessionAttrs::Primary => Some(true),
            TargetSessionAttrs::Standby => Some(false),
            TargetSessionAttrs::Any
            | TargetSessionAttrs::ReadOnly
            | TargetSessionAttrs::PreferStandby => None,
        }
    }

    pub(super) fn target_session_attrs(&self) -> TargetSessionAttrs {
        self.target_session_attrs
    }

    pub(super) fn load_balance_hosts(&self) -> bool {
        self.load_balance_hosts
    }

    /// The settings for one host in the client library's form, and a warning if the password file is there but not
    /// used. How the connection is encrypted is left to the caller.
    ///
    /// Reads the password file, if there is one and no password is given: blocks while its file system does.
    pub(super) fn client_config(
        &self,
        host: &Host,
        application_name: &str,
        dbname: Option<&str>,
    ) -> (tokio_postgres::Config, Option<String>) {
        let mut config = tokio_postgres::Config::new();
        match (&host.name, host.address) {
            // An abstract socket: where libpq has "@", the kernel has NUL.
            (Some(name), None) if name.starts_with('@') => {
                config.host_path(format!("\0{}", &name[1..]))
            }
            (Some(name), _) => config.host(name),
            // TLS needs a name.
            (None, Some(address)) => config.host(address.to_string()),
            (None, None) => &mut config,
        };
        if let Some(address) = host.address {
            config.hostaddr(address);
        }
        config.port(host.port);
        let dbname = dbname.or(self.dbname.as_deref());
        if let Some(dbname) = dbname {
            config.dbname(dbname);
        }
        if let Some(user) = &self.user {
            config.user(user);
        }
        let user = self.user.as_deref().unwrap_or_default();
        let mut warning = None;
        let from_file = || {
            let file = self.passfile.as_deref()?;
            let found = passfile::find(file, host, dbname.unwrap_or(user), user);
            found.unwrap_or_else(|not_used| {
                warning = Some(not_used);
                None
            })
        };
        let given = |Password(password): &Password| password.clone().into_bytes();
        if let Some(password) = self.password.as_ref().map(given).or_else(from_file) {
            config.password(password);
        }
        let theirs = self.application_name.as_deref();
        let fallback = self.fallback_application_name.as_deref();
        let name = Some(application_name).filter(|name| !name.is_empty());
        if let Some(name) = theirs.or(name).or(fallback) {
            config.application_name(name);
        }
        config.channel_binding(self.channel_binding);
        self.keep_alive(&mut config);
        (config, warning)
    }

    /// Sets what keeps a connection alive, or ends it when the other side is silent.
    fn keep_alive(&self, config: &mut tokio_postgres::Config) {
        config.keepalives(self.keepalives.enabled);
        config.keepalives_idle(self.keepalives.idle.unwrap_or(SYSTEMS_IDLE));
        if let Some(interval) = self.keepalives.interval {
            config.keepalives_interval(interval);
        }
        if let Some(count) = self.keepalives.count {
            config.keepalives_retries(count);
        }
        if let Some(user_timeout) = self.keepalives.user_timeout {
            config.tcp_user_timeout(user_timeout);
        }
    }
}

fn check_keyword(keyword: &str) -> Result<(), ConnInfoError> {
    match KEYWORDS.iter().find(|known| known.name == keyword) {
        Some(known) if known.support == Support::No => Err(ConnInfoError::Unsupported {
            keyword: known.name,
        }),
        Some(_) => Ok(()),
        None => {
            let known = KEYWORDS.iter().map(|known| known.name);
            Err(ConnInfoError::UnknownKeyword {
                nearest: spelling::nearest(keyword, known).map(str::to_owned),
                keyword: keyword.to_owned(),
            })
        }
    }
}

/// The user of this process, whose name is also that of a role, unless another one is named.
fn process_user() -> Result<String, ConnInfoError> {
    whoami::username().map_err(|_| ConnInfoError::NoUser { id: user_id() })
}

#[cfg(target_os = "linux")]
fn user_id() -> Option<u32> {
    let process = std::fs::metadata("/proc/self").ok()?;
    Some(std::os::unix::fs::MetadataExt::uid(&process))
}

#[cfg(not(target_os = "linux"))]
fn user_id() -> Option<u32> {
    None
}

fn with_id(id: Option<u32>) -> String {
    id.map_or_else(String::new, |id| format!(" with ID {id}"))
}

fn hint(keyword: &str, nearest: Option<&str>) -> String {
    if let Some(tool) = of_another_tool(keyword) {
        return format!(": it is one of {tool}, not of libpq: leave it out");
    }
    match nearest {
        Some(nearest) => format!(": {}", spelling::did_you_mean(nearest)),
        None => {
            let supported = KEYWORDS
                .iter()
                .filter(|known| known.support == Support::Yes);
            let supported: Vec<_> = supported.map(|known| known.name).collect();
            format!(": the options are {}", supported.join(", "))
        }
    }
}

fn variable(keyword: &str) -> String {
    let known = KEYWORDS.iter().find(|known| known.name == keyword);
    match known.and_then(|known| known.variable) {
        Some(variable) => format!(", and unset {variable}"),
        None => String::new(),
    }
}

impl fmt::Debug for ConnInfo {
    /// Shows only the target: `options` and other settings may hold anything.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnInfo")
            .field("target", &self.target(None))
            .finish_non_exhaustive()
    }
}

// === impl Host ===

impl Host {
    /// Returns the host once for each of its addresses, or as it is if there is nothing to look up.
    pub(super) async fn resolve(&self) -> io::Result<Vec<Self>> {
        let name = match &self.name {
            Some(name) if self.address.is_none() && !self.is_socket() => name,
            Some(_) | None => return Ok(vec![self.clone()]),
        };
        let addresses = tokio::net::lookup_host((name.as_str(), self.port)).await?;
        let mut hosts: Vec<Self> = Vec::new();
        for address in addresses {
            let host = Self {
                address: Some(address.ip()),
                ..self.clone()
            };
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        Ok(hosts)
    }

    /// The path of its Unix socket, if it has one. An abstract socket begins with NUL, where libpq has "@".
    pub(super) fn socket_path(&self) -> Option<PathBuf> {
        let name = self.name.as_ref().filter(|_| self.is_socket())?;
        let directory = match name.strip_prefix('@') {
            Some(name) => format!("\0{name}"),
            None => name.clone(),
        };
        Some(Path::new(&directory).join(format!(".s.PGSQL.{}", self.port)))
    }

    /// Its address and port, once it is resolved.
    pub(super) fn socket_address(&self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.address?, self.port))
    }

    /// The name that its certificate is compared with.
    pub(super) fn tls_name(&self) -> String {
        let address = || self.address.map(|address| address.to_string());
        self.name.clone().or_else(address).unwrap_or_default()
    }

    /// Returns `true` if the host is the directory of a Unix socket, or an abstract socket.
    pub(super) fn is_socket(&self) -> bool {
        self.address.is_none()
            && self
                .name
                .as_ref()
                .is_some_and(|name| name.starts_with(['/', '@']))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, self.address) {
            (Some(name), _) => write!(f, "{name}:{}", self.port),
            (None, Some(address)) => write!(f, "{address}:{}", self.port),
            (None, None) => write!(f, "port {}", self.port),
        }
    }
}

// === impl TargetSessionAttrs ===

impl TargetSessionAttrs {
    const WORDS: [(&'static str, Self); 6] = [
        ("any", Self::Any),
        ("read-write", Self::ReadWrite),
        ("read-only", Self::ReadOnly),
        ("primary", Self::Primary),
        ("standby", Self::Standby),
        ("prefer-standby", Self::PreferStandby),
    ];
}

// === impl Password ===

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("********")
    }
}
