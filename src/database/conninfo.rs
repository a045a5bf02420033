//! libpq's connection settings: a URL or a `key=value` string, completed from `PG*` variables.
//!
//! What is read here is never printed: an error names the keyword, not the value, and the password
//! has no way to be shown.

mod text;

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use thiserror::Error;

use super::tls::SslMode;
use crate::spelling;

/// Where a server is, and who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnInfo {
    hosts: Vec<String>,
    hostaddrs: Vec<IpAddr>,
    ports: Vec<u16>,
    dbname: Option<String>,
    user: Option<String>,
    password: Option<Password>,
    application_name: Option<String>,
    options: Option<String>,
    sslmode: SslMode,
}

/// A password. Nothing shows it.
#[derive(Clone, PartialEq, Eq)]
struct Password(String);

/// Why connection settings were refused. No variant holds a value that may be secret.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConnInfoError {
    /// The text is neither a URL nor a `key=value` string.
    #[error("invalid connection string: {0}")]
    Syntax(&'static str),
    /// A keyword is not known.
    #[error("invalid connection option \"{keyword}\"{}", hint(.nearest.as_deref()))]
    UnknownKeyword {
        /// The keyword.
        keyword: String,
        /// A known keyword that may be meant.
        nearest: Option<String>,
    },
    /// A value is not what its keyword takes.
    #[error("invalid value for connection option \"{keyword}\": {expected}")]
    InvalidValue {
        /// The keyword.
        keyword: &'static str,
        /// What it takes.
        expected: String,
    },
}

/// Every keyword that is understood, and the variable that stands in for it.
const KEYWORDS: [(&str, &str); 9] = [
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("port", "PGPORT"),
    ("dbname", "PGDATABASE"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("application_name", "PGAPPNAME"),
    ("options", "PGOPTIONS"),
    ("sslmode", "PGSSLMODE"),
];

/// Where libpq looks for a socket when no host is given.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

// === impl ConnInfo ===

impl ConnInfo {
    /// Reads a URL (`postgresql://…`) or a `key=value` string.
    ///
    /// What it leaves out comes from `environment`, which looks up a `PG*` variable, and then from
    /// libpq's defaults. Pass `|_| None` for no environment at all.
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
            if !KEYWORDS.iter().any(|(known, _)| known == keyword) {
                let known = KEYWORDS.iter().map(|(known, _)| *known);
                return Err(ConnInfoError::UnknownKeyword {
                    nearest: spelling::nearest(keyword, known).map(str::to_owned),
                    keyword: keyword.clone(),
                });
            }
        }
        let value = |keyword: &str| {
            let given = given.iter().rev().find(|(given, _)| given == keyword);
            let (_, variable) = KEYWORDS.iter().find(|(known, _)| *known == keyword)?;
            given
                .map(|(_, value)| value.clone())
                .or_else(|| environment(variable))
                .filter(|value| !value.is_empty())
        };
        Self::from_values(value)
    }

    /// Whether any `PG*` variable says where a server is.
    pub(crate) fn is_in_environment(environment: impl Fn(&str) -> Option<String>) -> bool {
        ["PGHOST", "PGHOSTADDR", "PGDATABASE"]
            .into_iter()
            .any(|variable| environment(variable).is_some_and(|value| !value.is_empty()))
    }

    fn from_values(value: impl Fn(&str) -> Option<String>) -> Result<Self, ConnInfoError> {
        let list = |keyword| {
            let value = value(keyword).unwrap_or_default();
            let items = value.split(',').map(str::trim).map(str::to_owned);
            items.filter(|item| !item.is_empty()).collect::<Vec<_>>()
        };
        let ports = list("port");
        let ports = parse_each(&ports, "port", "a number from 1 to 65535", |port: &u16| {
            *port != 0
        })?;
        let hostaddrs = parse_each(&list("hostaddr"), "hostaddr", "an IP address", |_| true)?;
        let mut hosts = list("host");
        if hosts.is_empty() && hostaddrs.is_empty() {
            hosts.push(default_host(ports.first().copied().unwrap_or(DEFAULT_PORT)));
        }
        let servers = hosts.len().max(hostaddrs.len());
        if ports.len() > 1 && ports.len() != servers {
            return Err(ConnInfoError::InvalidValue {
                keyword: "port",
                expected: format!("{} ports do not match {servers} hosts", ports.len()),
            });
        }
        if !hosts.is_empty() && !hostaddrs.is_empty() && hosts.len() != hostaddrs.len() {
            return Err(ConnInfoError::InvalidValue {
                keyword: "hostaddr",
                expected: format!("{} addresses do not match {servers} hosts", hostaddrs.len()),
            });
        }
        let sslmode = match value("sslmode") {
            None => SslMode::default(),
            Some(word) => SslMode::from_word(&word).ok_or_else(|| ConnInfoError::InvalidValue {
                keyword: "sslmode",
                expected: format!("it must be one of {}", SslMode::WORDS.join(", ")),
            })?,
        };
        Ok(Self {
            hosts,
            hostaddrs,
            ports,
            dbname: value("dbname"),
            user: value("user"),
            password: value("password").map(Password),
            application_name: value("application_name"),
            options: value("options"),
            sslmode,
        })
    }

    /// The server options that the settings ask for.
    pub(super) fn options(&self) -> Option<&str> {
        self.options.as_deref()
    }

    /// Where connections go, for people: host, port and database, nothing secret.
    #[must_use]
    pub fn target(&self, dbname: Option<&str>) -> String {
        let mut servers: Vec<_> = self.hosts.clone();
        if servers.is_empty() {
            servers.extend(self.hostaddrs.iter().map(ToString::to_string));
        }
        for (index, server) in servers.iter_mut().enumerate() {
            *server = format!("{server}:{}", self.port(index));
        }
        let servers = servers.join(",");
        match dbname.or(self.dbname.as_deref()) {
            Some(dbname) => format!("database \"{dbname}\" at {servers}"),
            None => format!("the server at {servers}"),
        }
    }

    /// The settings as the client library takes them, and what to call the server: host by host.
    pub(super) fn client_configs(
        &self,
        application_name: &str,
        dbname: Option<&str>,
    ) -> Vec<(String, tokio_postgres::Config)> {
        let hosts = self.hosts.len().max(self.hostaddrs.len());
        let configs = (0..hosts).map(|index| {
            let one = Self {
                hosts: self.hosts.get(index).cloned().into_iter().collect(),
                hostaddrs: self.hostaddrs.get(index).copied().into_iter().collect(),
                ports: vec![self.port(index)],
                ..self.clone()
            };
            (
                one.target(dbname),
                one.client_config(application_name, dbname),
            )
        });
        configs.collect()
    }

    fn port(&self, index: usize) -> u16 {
        let port = self.ports.get(index).or_else(|| self.ports.first());
        *port.unwrap_or(&DEFAULT_PORT)
    }

    fn client_config(
        &self,
        application_name: &str,
        dbname: Option<&str>,
    ) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        for host in &self.hosts {
            config.host(host);
        }
        for hostaddr in &self.hostaddrs {
            if self.hosts.is_empty() {
                // TLS asks for a name, if only to send it.
                config.host(hostaddr.to_string());
            }
            config.hostaddr(*hostaddr);
        }
        for port in &self.ports {
            config.port(*port);
        }
        if let Some(dbname) = dbname.or(self.dbname.as_deref()) {
            config.dbname(dbname);
        }
        if let Some(user) = &self.user {
            config.user(user);
        }
        if let Some(Password(password)) = &self.password {
            config.password(password);
        }
        config.application_name(self.application_name.as_deref().unwrap_or(application_name));
        // The client library has no name to hand to TLS on a Unix socket; libpq ignores the mode
        // there too.
        let is_socket = self.hosts.iter().any(|host| host.starts_with('/'));
        let sslmode = if is_socket {
            SslMode::Disable
        } else {
            self.sslmode
        };
        config.ssl_mode(sslmode.into());
        config.keepalives_idle(Duration::from_secs(30));
        config.keepalives_interval(Duration::from_secs(10));
        config.keepalives_retries(3);
        config.tcp_user_timeout(Duration::from_secs(60));
        config
    }
}

const DEFAULT_PORT: u16 = 5432;

fn default_host(port: u16) -> String {
    SOCKET_DIRECTORIES
        .into_iter()
        .find(|directory| {
            Path::new(directory)
                .join(format!(".s.PGSQL.{port}"))
                .exists()
        })
        .unwrap_or("localhost")
        .to_owned()
}

fn parse_each<T: std::str::FromStr>(
    items: &[String],
    keyword: &'static str,
    expected: &str,
    valid: impl Fn(&T) -> bool,
) -> Result<Vec<T>, ConnInfoError> {
    items
        .iter()
        .map(|item| {
            let parsed = item.parse().ok().filter(&valid);
            parsed.ok_or_else(|| ConnInfoError::InvalidValue {
                keyword,
                expected: format!("it must be {expected}"),
            })
        })
        .collect()
}

fn hint(nearest: Option<&str>) -> String {
    match nearest {
        Some(nearest) => format!(": did you mean \"{nearest}\"?"),
        None => {
            let known: Vec<_> = KEYWORDS.iter().map(|(known, _)| *known).collect();
            format!(": the options are {}", known.join(", "))
        }
    }
}

// === impl Password ===

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("********")
    }
}
