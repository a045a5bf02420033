//! The values of keywords, from every source, and the types that they are read as.

use std::path::{Path, PathBuf};

use tokio_postgres::config::ChannelBinding;

use super::keyword::{KEYWORDS, Support};
use super::{ConnInfoError, Host, service};

/// What each keyword is set to.
pub(super) struct Values<'e> {
    /// Values from the text; a later one overrides an earlier one.
    given: Vec<(String, String)>,
    /// Values from the service.
    service: Vec<(String, String)>,
    environment: &'e dyn Fn(&str) -> Option<String>,
}

const DEFAULT_PORT: u16 = 5432;

/// Where libpq looks for a socket when no host is given.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

// === impl Values ===

impl<'e> Values<'e> {
    /// Completes the given values: first from the service that they or the environment name, then from the environment.
    pub(super) fn new(
        given: Vec<(String, String)>,
        environment: &'e dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConnInfoError> {
        let mut values = Self {
            given,
            service: Vec::new(),
            environment,
        };
        if let Some(name) = values.get("service") {
            values.service = service::find(&name, environment)?;
        }
        // Values from the environment are as binding as those from the text.
        for keyword in KEYWORDS.iter().filter(|known| known.support == Support::No) {
            if values.get(keyword.name).is_some() {
                return Err(ConnInfoError::Unsupported {
                    keyword: keyword.name,
                });
            }
        }
        Ok(values)
    }

    /// The value of a keyword, if it has one that is not empty.
    pub(super) fn get(&self, keyword: &str) -> Option<String> {
        let is_it = |(set, _): &&(String, String)| set == keyword;
        let value = |(_, value): &(String, String)| value.clone();
        let known = KEYWORDS.iter().find(|known| known.name == keyword)?;
        // In the text the last one counts, in a service file the first.
        (self.given.iter().rev().find(is_it).map(value))
            .or_else(|| self.service.iter().find(is_it).map(value))
            .or_else(|| (self.environment)(known.variable?))
            .filter(|value| !value.is_empty())
    }

    /// A file: the one that `keyword` names, or else `in_home` in the home directory.
    pub(super) fn file(&self, keyword: &str, in_home: &str) -> Option<PathBuf> {
        let home = || (self.environment)("HOME").filter(|home| !home.is_empty());
        let named = self.get(keyword).map(PathBuf::from);
        named.or_else(|| Some(Path::new(&home()?).join(in_home)))
    }

    /// A number that is not negative. As in libpq, a negative one counts as none.
    pub(super) fn number(&self, keyword: &'static str) -> Result<Option<u64>, ConnInfoError> {
        let Some(value) = self.get(keyword) else {
            return Ok(None);
        };
        match value.trim().parse::<i32>() {
            Ok(number) => Ok(u64::try_from(number).ok()),
            Err(_) => Err(ConnInfoError::InvalidValue {
                keyword,
                expected: "it must be a whole number".to_owned(),
            }),
        }
    }

    /// The meaning of a value that must be one of several words.
    pub(super) fn one_of<T: Copy>(
        &self,
        keyword: &'static str,
        words: &[(&'static str, T)],
    ) -> Result<Option<T>, ConnInfoError> {
        let Some(value) = self.get(keyword) else {
            return Ok(None);
        };
        match words.iter().find(|(word, _)| *word == value) {
            Some((_, meaning)) => Ok(Some(*meaning)),
            None => {
                let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
                Err(ConnInfoError::InvalidValue {
                    keyword,
                    expected: format!("it must be one of {}", words.join(", ")),
                })
            }
        }
    }

    pub(super) fn channel_binding(&self) -> Result<ChannelBinding, ConnInfoError> {
        let words = [
            ("disable", ChannelBinding::Disable),
            ("prefer", ChannelBinding::Prefer),
            ("require", ChannelBinding::Require),
        ];
        Ok(self
            .one_of("channel_binding", &words)?
            .unwrap_or(ChannelBinding::Prefer))
    }

    /// The servers to try, in the order in which they are given.
    pub(super) fn hosts(&self) -> Result<Vec<Host>, ConnInfoError> {
        let list = |keyword| {
            let value = self.get(keyword).unwrap_or_default();
            let items: Vec<_> = value
                .split(',')
                .map(|item| item.trim().to_owned())
                .collect();
            if items.iter().all(String::is_empty) {
                Vec::new()
            } else {
                items
            }
        };
        let ports = parse_each(&list("port"), "port", "a number from 1 to 65535", |port| {
            *port != 0_u16
        })?;
        let addresses = parse_each(&list("hostaddr"), "hostaddr", "an IP address", |_| true)?;
        let names = list("host");
        let is_name = |name: &String| {
            let name = name.strip_prefix('@').unwrap_or(name);
            name.starts_with('/') || !name.contains([';', '=', '@'])
        };
        if !names.iter().all(is_name) {
            // The text may be a misplaced password, and hosts are shown.
            return Err(ConnInfoError::InvalidValue {
                keyword: "host",
                expected:
                    "a name must not hold \";\", \"=\" or \"@\"; settings are separated by spaces"
                        .to_owned(),
            });
        }
        let servers = names.len().max(addresses.len()).max(1);
        if ports.len() > 1 && ports.len() != servers {
            return Err(ConnInfoError::InvalidValue {
                keyword: "port",
                expected: format!("{} ports do not match {servers} hosts", ports.len()),
            });
        }
        if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
            return Err(ConnInfoError::InvalidValue {
                keyword: "hostaddr",
                expected: format!("{} addresses do not match {servers} hosts", addresses.len()),
            });
        }
        let hosts = (0..servers).map(|index| {
            let port = ports.get(index).or_else(|| ports.first());
            let port = port.copied().flatten().unwrap_or(DEFAULT_PORT);
            let address = addresses.get(index).copied().flatten();
            let name = names.get(index).filter(|name| !name.is_empty()).cloned();
            let name = match (name, address) {
                (None, None) => Some(default_host(port)),
                (name, _) => name,
            };
            Host {
                name,
                address,
                port,
            }
        });
        Ok(hosts.collect())
    }
}

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

/// Reads each item of a list. An empty item stands for the default.
fn parse_each<T: std::str::FromStr>(
    items: &[String],
    keyword: &'static str,
    expected: &str,
    valid: impl Fn(&T) -> bool,
) -> Result<Vec<Option<T>>, ConnInfoError> {
    items
        .iter()
        .map(|item| {
            if item.is_empty() {
                return Ok(None);
            }
            let parsed = item.parse().ok().filter(&valid);
            parsed.map(Some).ok_or_else(|| ConnInfoError::InvalidValue {
                keyword,
                expected: format!("it must be {expected}"),
            })
        })
        .collect()
}
