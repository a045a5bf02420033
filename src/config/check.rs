//! From what was read to settings: refuses keys that are wrong together, though each is right by itself.

mod worker;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::problem::{Found, Origin, Problem};
use super::sections::{DATABASE, HTTP, POSTMASTER, Target};
use super::settings::{Server, Setting, Settings};
use super::sources::{Layered, Sources};
use crate::database::{ConnInfo, ConnInfoError, Settings as DatabaseSettings};
use crate::functions::FunctionSettings;
use crate::keys;
use crate::supervision::Limits;

/// A check under way: what is checked, and what has been found.
struct Check<'a> {
    layered: &'a Layered,
    found: &'a mut Found,
    shown: Vec<Setting>,
    /// `false` if it is no mistake to give no server.
    needs_server: bool,
    /// Whether the connection settings lead to servers of one kind only.
    asks_for_primary: Option<bool>,
    /// A session lasts longer than a transaction: no pooler hands out another one.
    keeps_sessions: bool,
}

/// Checks what is well-formed. `None` only if a mistake was found.
pub(super) fn check(
    mut layered: Layered,
    sources: &Sources,
    found: &mut Found,
    needs_server: bool,
) -> Option<Settings> {
    let workers = std::mem::take(&mut layered.workers);
    let mut check = Check {
        layered: &layered,
        found,
        shown: Vec::new(),
        needs_server,
        asks_for_primary: None,
        keeps_sessions: true,
    };
    let server = check.server(sources);
    let database_settings: DatabaseSettings = check.section(DATABASE);
    check.keeps_sessions = database_settings.prepare;
    let limits: Limits = check.section(POSTMASTER);
    let http = check.section(HTTP);
    let workers = check.workers(workers, limits.max_workers);
    Some(Settings {
        server: server?,
        database_settings,
        limits,
        http,
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

    /// Decides which server to use: the one that the source with the highest precedence names.
    fn server(&mut self, sources: &Sources) -> Option<Server> {
        let Target {
            url,
            embedded,
            data_dir,
        } = self.layered.section(DATABASE, self.found);
        if data_dir.is_some() && embedded.is_none() {
            let message = "it has no effect without \"embedded = true\"";
            let hint = "set that too, or leave this out".to_owned();
            self.refuse("database.data_dir", message, Some(hint));
        }
        let embedded = embedded.unwrap_or(false);
        let url_origin = self.layered.origin("database.url");
        if embedded && matches!(url_origin, Origin::File { .. }) {
            let message = "both \"url\" and \"embedded = true\" are set";
            let hint = "keep only one of them".to_owned();
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
                let data_dir_shown = data_dir.as_ref().map(|path| path.to_string_lossy());
                let shown = [
                    Some(("embedded".to_owned(), true.into())),
                    data_dir_shown.map(|path| ("data_dir".to_owned(), (*path).into())),
                ];
                self.show((DATABASE, None), Ok(shown.into_iter().flatten().collect()));
                return Some(Server::Embedded { data_dir });
            }
            None if ConnInfo::is_in_environment(variable) => {
                (String::new(), Origin::Environment("PG*".to_owned()))
            }
            // A value that is set but cannot be used has been reported already.
            None if self.found.concerns("database.") => return None,
            None if !self.needs_server => return Some(Server::NotGiven),
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

    /// Reads the connection string of a server that runs already.
    fn given(
        &mut self,
        url: &str,
        origin: Origin,
        sources: &Sources,
        instead_of_embedded: bool,
    ) -> Option<Server> {
        match ConnInfo::parse(url, |name| sources.variable(name)) {
            Ok(conninfo) => {
                self.asks_for_primary = conninfo.asks_for_primary();
                self.shown.push(Setting {
                    key: "database.url".to_owned(),
                    worker: None,
                    is_hidden: false,
                    value: toml::Value::from(conninfo.target(None)).to_string(),
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

    /// Reads a section, and shows the values in force. The keys that name the server have been shown before.
    fn section<T: Serialize + DeserializeOwned + Default>(&mut self, name: &str) -> T {
        let section = self.layered.section(name, self.found);
        self.show((name, None), keys::values(&section));
        section
    }

    /// Shows the value of each key of a section, or of a worker by its place, with its function.
    fn show(
        &mut self,
        (path, of): (&str, Option<(usize, &FunctionSettings)>),
        values: Result<toml::Table, toml::ser::Error>,
    ) {
        match values {
            Ok(values) => self.shown.extend(values.into_iter().map(|(name, value)| {
                let key = format!("{path}.{name}");
                Setting {
                    origin: self.layered.origin(&key),
                    value: value.to_string(),
                    worker: of.map(|(worker, _)| worker),
                    is_hidden: of.is_some_and(|(_, function)| function.hides(&name)),
                    key,
                }
            })),
            Err(error) => {
                let message = format!("its settings cannot be shown as TOML: {error}");
                self.refuse(path, message, None);
            }
        }
    }
}
