//! From what was written to settings: completes what is not set, and refuses what will not do.

mod worker;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::problem::{Found, Origin, Problem};
use super::schema;
use super::settings::{Server, Setting, Settings};
use super::sources::{Layered, Sources};
use crate::background_worker::RestartTime;
use crate::database::{ConnInfo, ConnInfoError, Settings as DatabaseSettings};
use crate::spelling;
use crate::supervision::Limits;

/// The longest statement timeout that the server takes: its milliseconds are 31 bits.
const STATEMENT_TIMEOUT_MAX: Duration = Duration::from_millis(i32::MAX as u64);

/// The longest of the other times, so that no clock overflows: as for restart times.
const TIME_MAX: Duration = RestartTime::MAX;

/// What is being checked, and what has been found.
struct Check<'a> {
    layered: &'a Layered,
    found: &'a mut Found,
    shown: Vec<Setting>,
}

/// Checks what is well-formed. `None` only if something was found.
pub(super) fn check(layered: Layered, sources: &Sources, found: &mut Found) -> Option<Settings> {
    let mut check = Check {
        layered: &layered,
        found,
        shown: Vec::new(),
    };
    let server = check.server(sources);
    let database_settings = check.database_settings();
    let limits = check.limits();
    let http_listen = check.http_listen();
    let workers = check.workers(limits.max_workers);
    Some(Settings {
        server: server?,
        database_settings,
        limits,
        http_listen,
        workers,
        shown: check.shown,
    })
}

// === impl Check ===

impl Check<'_> {
    fn refuse(&mut self, key: &str, message: impl ToString, hint: Option<String>) {
        let origin = match self.layered.origin(key) {
            Origin::Default => self.layered.place(key),
            set => set,
        };
        self.found.push(Problem {
            origin,
            key: key.to_owned(),
            message: message.to_string(),
            hint,
        });
    }

    fn show(&mut self, key: &str, value: String) {
        self.shown.push(Setting {
            key: key.to_owned(),
            value,
            origin: self.layered.origin(key),
        });
    }

    /// Decides which server it is, by who says it most urgently.
    fn server(&mut self, sources: &Sources) -> Option<Server> {
        let schema::Database {
            url,
            embedded,
            data_dir,
            ..
        } = self.layered.document.database.clone();
        if data_dir.is_some() && embedded.is_none() {
            let message = "it has no effect without \"embedded = true\"";
            let hint = "set that too, or leave this out".to_owned();
            self.refuse("database.data_dir", message, Some(hint));
        }
        let embedded = embedded.unwrap_or(false);
        let url_origin = self.layered.origin("database.url");
        if embedded && matches!(url_origin, Origin::File { .. }) {
            let message = "both \"url\" and \"embedded = true\" are set";
            let hint = "keep the one that is meant".to_owned();
            self.refuse("database.url", message, Some(hint));
            return None;
        }
        let database_url = || {
            sources
                .variable("DATABASE_URL")
                .filter(|url| !url.is_empty())
        };
        let (url, origin) = match url {
            Some(url) => (Some(url), url_origin),
            None => (
                database_url(),
                Origin::Environment("DATABASE_URL".to_owned()),
            ),
        };
        let variable = |name: &str| sources.variable(name);
        let (url, origin) = match url {
            Some(url) => (url, origin),
            None if embedded => {
                self.show("database.embedded", "true".to_owned());
                if let Some(data_dir) = &data_dir {
                    self.show("database.data_dir", shown_text(&data_dir.to_string_lossy()));
                }
                return Some(Server::Embedded { data_dir });
            }
            None if ConnInfo::is_in_environment(variable) => {
                (String::new(), Origin::Environment("PG*".to_owned()))
            }
            // What is set and of no use is reported already.
            None if self.found.concerns("database.") => return None,
            None => {
                let message = "no database is given";
                let hint = "set \"url\" here, or DATABASE_URL, or pass --database URL; or set \
                            \"embedded = true\" for a private server on this machine";
                self.refuse("database", message, Some(hint.to_owned()));
                return None;
            }
        };
        self.given(&url, origin, sources, embedded)
    }

    /// A server that runs somewhere.
    fn given(
        &mut self,
        url: &str,
        origin: Origin,
        sources: &Sources,
        instead_of_embedded: bool,
    ) -> Option<Server> {
        match ConnInfo::parse(url, |name| sources.variable(name)) {
            Ok(conninfo) => {
                self.shown.push(Setting {
                    key: "database.url".to_owned(),
                    value: shown_text(&conninfo.target(None)),
                    origin,
                });
                Some(Server::Given {
                    conninfo: Box::new(conninfo),
                    instead_of_embedded,
                })
            }
            Err(error) => {
                self.refuse_url(origin, &error);
                None
            }
        }
    }

    fn refuse_url(&mut self, origin: Origin, error: &ConnInfoError) {
        self.found.push(Problem {
            origin,
            key: "database.url".to_owned(),
            message: error.to_string(),
            hint: None,
        });
    }

    fn database_settings(&mut self) -> DatabaseSettings {
        let set = self.layered.document.database.clone();
        let unset = DatabaseSettings::default();
        let key = "database.connect_timeout";
        let connect_timeout = self.time(key, set.connect_timeout, unset.connect_timeout, TIME_MAX);
        let key = "database.statement_timeout";
        let statement_timeout = self.time(
            key,
            set.statement_timeout,
            unset.statement_timeout,
            STATEMENT_TIMEOUT_MAX,
        );
        let connections = set.connections.unwrap_or(unset.connections);
        if connections == 0 {
            self.refuse("database.connections", "it must be at least 1", None);
        }
        let prepare = set.prepare.unwrap_or(unset.prepare);
        if let Some(file) = &set.password_file {
            self.show(
                "database.password_file",
                shown_text(&file.to_string_lossy()),
            );
        }
        self.show("database.connections", connections.to_string());
        self.show("database.prepare", prepare.to_string());
        DatabaseSettings {
            connect_timeout,
            statement_timeout,
            password_file: set.password_file,
            connections,
            prepare,
        }
    }

    fn limits(&mut self) -> Limits {
        let set = self.layered.document.postmaster.clone();
        let unset = Limits::default();
        let mut limits = Limits {
            max_workers: set.max_workers.unwrap_or(unset.max_workers),
            starts_per_tick: set.starts_per_tick.unwrap_or(unset.starts_per_tick),
            ..unset
        };
        self.show("postmaster.max_workers", limits.max_workers.to_string());
        self.show(
            "postmaster.starts_per_tick",
            limits.starts_per_tick.to_string(),
        );
        let most = Limits::STARTS_PER_TICK_MAX;
        if !(1..=most).contains(&limits.starts_per_tick) {
            let message = format!("it must be at least 1 and at most {most}");
            self.refuse("postmaster.starts_per_tick", message, None);
        }
        let key = "postmaster.shutdown_timeout";
        limits.shutdown_timeout =
            self.time(key, set.shutdown_timeout, limits.shutdown_timeout, TIME_MAX);
        limits
    }

    /// An address with a port; a port alone is one of this machine that nobody else reaches.
    fn http_listen(&mut self) -> Option<SocketAddr> {
        let listen = self.layered.document.http.listen.clone()?;
        let port = listen.parse().ok().filter(|port| *port > 0);
        let listen = match port {
            Some(port) => SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            None => match listen.parse() {
                Ok(listen) => listen,
                Err(_) => {
                    // Colons and brackets are an address's; anything else may be a secret.
                    let shown = listen.replace([':', '[', ']'], "");
                    let shown = match spelling::quoted_word(&shown) {
                        word if word.is_empty() => "it".to_owned(),
                        _ => format!("\"{listen}\""),
                    };
                    let message = format!("{shown} is not an address with a port");
                    let hint = "such as \"127.0.0.1:9187\" or \"[::1]:9187\"; a port alone, \"9187\", \
                                is one of 127.0.0.1";
                    self.refuse("http.listen", message, Some(hint.to_owned()));
                    return None;
                }
            },
        };
        self.show("http.listen", shown_text(&listen.to_string()));
        Some(listen)
    }

    /// A time that is more than zero and at most `max`, and its default.
    fn time(
        &mut self,
        key: &str,
        set: Option<schema::Span>,
        unset: Duration,
        max: Duration,
    ) -> Duration {
        let time = set.map_or(unset, |schema::Span(time)| time);
        if time.is_zero() || time > max {
            let max = humantime::format_duration(max);
            self.refuse(
                key,
                format!("it must be more than 0 and at most {max}"),
                None,
            );
        }
        self.show(key, shown_time(time));
        time
    }
}

fn shown_text(text: &str) -> String {
    toml::Value::from(text).to_string()
}

fn shown_time(time: Duration) -> String {
    shown_text(&humantime::format_duration(time).to_string())
}
