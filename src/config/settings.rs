//! Checked settings: what may be registered and connected to, as it is.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::problem::{Found, Origin, Problem};
use super::schema;
use super::sources::{Layered, Sources};
use crate::background_worker::{
    Access, BackgroundWorker, Backoff, InvalidWorker, RestartLimit, RestartTime, StartTime,
};
use crate::database::{ConnInfo, ConnInfoError, Settings as DatabaseSettings};
use crate::spelling;
use crate::supervision::Limits;
use crate::worker_spi::{self, ConnectionKind, Fold, InvalidTable, Table};

/// Everything that was set, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// Which server.
    pub server: Server,
    /// How long it may take.
    pub database_settings: DatabaseSettings,
    /// What bounds the Postmaster.
    pub limits: Limits,
    /// Where the Postmaster is to be seen over HTTP; nowhere unless set.
    pub http_listen: Option<SocketAddr>,
    /// The workers, in the order in which they are registered.
    pub workers: Vec<WorkerSettings>,
    /// Every setting in force, for people.
    pub shown: Vec<Setting>,
}

/// Which server the workers use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// One that runs somewhere.
    Given {
        /// Where.
        conninfo: Box<ConnInfo>,
        /// Whether a private server was asked for as well, and is not started.
        instead_of_embedded: bool,
    },
    /// A private one, made from the binaries of this machine.
    Embedded {
        /// Where its files lie; a default that depends on who runs it, unless set.
        data_dir: Option<PathBuf>,
    },
}

/// One worker, as it is registered and as it is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerSettings {
    /// What the Postmaster is told.
    pub worker: BackgroundWorker,
    /// What its main is told.
    pub spi: worker_spi::Settings,
}

/// One setting in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its key.
    pub key: String,
    /// Its value, as TOML, without secrets.
    pub value: String,
    /// Where it comes from.
    pub origin: Origin,
}

/// The functions that a worker can run.
const FUNCTIONS: [&str; 1] = ["worker_spi"];

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
        match ConnInfo::parse(&url, variable) {
            Ok(conninfo) => {
                self.shown.push(Setting {
                    key: "database.url".to_owned(),
                    value: shown_text(&conninfo.target(None)),
                    origin,
                });
                Some(Server::Given {
                    conninfo: Box::new(conninfo),
                    instead_of_embedded: embedded,
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
                    let message = format!("\"{listen}\" is not an address with a port");
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

    fn workers(&mut self, max_workers: usize) -> Vec<WorkerSettings> {
        let documents = &self.layered.document.worker;
        let mut names: HashMap<&str, usize> = HashMap::new();
        for (index, document) in documents.iter().enumerate() {
            let Some(name) = document.name.as_deref() else {
                continue;
            };
            if let Some(first) = names.insert(name, index) {
                let message = format!(
                    "background worker \"{name}\" is already registered as worker[{first}]"
                );
                self.refuse(&format!("worker[{index}].name"), message, None);
            }
        }
        if documents.len() > max_workers {
            let message = format!(
                "too many background workers: up to {max_workers} can be registered with the \
                 current settings, and here are {}",
                documents.len()
            );
            let hint = "consider increasing \"max_workers\" in [postmaster]".to_owned();
            self.refuse(&format!("worker[{max_workers}]"), message, Some(hint));
        }
        let workers = documents.iter().enumerate();
        workers
            .filter_map(|(index, document)| self.worker(&format!("worker[{index}]"), document))
            .collect()
    }

    fn worker(&mut self, path: &str, document: &schema::Worker) -> Option<WorkerSettings> {
        let key = |key: &str| format!("{path}.{key}");
        let name = self.required(path, "name", document.name.as_deref());
        self.function(&key("function"), document.function.as_deref());
        let schema = self.required(path, "schema", document.schema.as_deref());
        let table = self.required(path, "table", document.table.as_deref());
        for (key, value) in [("name", &name), ("schema", &schema), ("table", &table)] {
            if let Some(value) = value {
                self.show(&format!("{path}.{key}"), shown_text(value));
            }
        }
        let unset = worker_spi::Settings::NAPTIME;
        let naptime = self.time(&key("naptime"), document.naptime, unset, TIME_MAX);
        let (name, schema, table) = (name?, schema?, table?);
        let table = match Table::new(schema, table) {
            Ok(table) => table,
            Err(error) => {
                let (InvalidTable::Empty { what }
                | InvalidTable::Nul { what, .. }
                | InvalidTable::TooLong { what, .. }) = &error;
                self.refuse(&key(what), &error, None);
                return None;
            }
        };
        let mut worker = BackgroundWorker::new(name)
            .access(Access::Database)
            .start_time(self.start_time(&key("start_time"), document.start_time))
            .restart_time(self.restart_time(&key("restart_time"), document.restart_time));
        worker.restart_limit = self.restart_limit(&key("max_restarts"), document.max_restarts);
        if let Err(error) = worker.check() {
            let wrong = match error {
                InvalidWorker::Name { .. } => "name",
                InvalidWorker::DatabaseAtPostmasterStart { .. } => "start_time",
                InvalidWorker::RestartTime { .. } | InvalidWorker::Backoff { .. } => "restart_time",
                InvalidWorker::RestartLimit { .. } => "max_restarts",
            };
            self.refuse(&key(wrong), error, None);
        } else if worker.start_time != StartTime::RecoveryFinished {
            let message = "worker_spi writes: it can only start at \"recovery_finished\"";
            self.refuse(&key("start_time"), message, None);
        }
        let mut spi = worker_spi::Settings::new(table);
        spi.naptime = naptime;
        spi.batch = document.batch.unwrap_or(spi.batch);
        if spi.batch == 0 {
            self.refuse(&key("batch"), "it must be at least 1", None);
        }
        self.show(&key("batch"), spi.batch.to_string());
        if let Some(after) = document.vacuum_after {
            spi.vacuum_after = Some(after).filter(|after| *after > 0);
        }
        let after = spi.vacuum_after.unwrap_or(0);
        self.show(&key("vacuum_after"), after.to_string());
        spi.database.clone_from(&document.database);
        spi.initial_total = document.initial_total;
        (spi.fold, spi.connection) = self.fold(path, document);
        if let Some(database) = &spi.database {
            if database.is_empty() || database.contains('\0') {
                self.refuse(
                    &key("database"),
                    "it must not be empty, or contain NUL",
                    None,
                );
            }
            self.show(&key("database"), shown_text(database));
        }
        if let Some(total) = spi.initial_total {
            self.show(&key("initial_total"), total.to_string());
        }
        Some(WorkerSettings { worker, spi })
    }

    fn required(&mut self, path: &str, key: &str, value: Option<&str>) -> Option<String> {
        if value.is_none() {
            let message = format!("the worker has no \"{key}\"");
            self.refuse(
                &format!("{path}.{key}"),
                message,
                Some("it is required".to_owned()),
            );
        }
        value.map(str::to_owned)
    }

    fn function(&mut self, key: &str, function: Option<&str>) {
        let Some(function) = function.filter(|function| !FUNCTIONS.contains(function)) else {
            return;
        };
        let hint = match spelling::nearest(function, FUNCTIONS) {
            Some(nearest) => format!("did you mean \"{nearest}\"?"),
            None => format!("the functions are {}", FUNCTIONS.join(", ")),
        };
        self.refuse(
            key,
            format!("there is no function \"{function}\""),
            Some(hint),
        );
    }

    /// How it folds, and on which connection: to truncate takes one of its own.
    fn fold(&mut self, path: &str, document: &schema::Worker) -> (Fold, ConnectionKind) {
        let (fold, word) = match document.fold {
            None | Some(schema::Fold::Delete) => (Fold::Delete, "delete"),
            Some(schema::Fold::Truncate) => (Fold::Truncate, "truncate"),
        };
        let fold_key = format!("{path}.fold");
        self.show(&fold_key, shown_text(word));
        let connection = match (document.connection, fold) {
            (Some(schema::ConnectionKind::Home), Fold::Truncate) => {
                let message = "to truncate takes a connection of the worker's own";
                let hint = "leave \"connection\" out, or set it to \"own\"".to_owned();
                self.refuse(&fold_key, message, Some(hint));
                ConnectionKind::Own
            }
            (Some(schema::ConnectionKind::Own), _) | (_, Fold::Truncate) => ConnectionKind::Own,
            (Some(schema::ConnectionKind::Home) | None, Fold::Delete) => ConnectionKind::Home,
        };
        let word = match connection {
            ConnectionKind::Home => "home",
            ConnectionKind::Own => "own",
        };
        self.show(&format!("{path}.connection"), shown_text(word));
        (fold, connection)
    }

    fn start_time(&mut self, key: &str, set: Option<schema::StartTime>) -> StartTime {
        let (start_time, word) = match set {
            Some(schema::StartTime::PostmasterStart) => {
                (StartTime::PostmasterStart, "postmaster_start")
            }
            Some(schema::StartTime::ConsistentState) => {
                (StartTime::ConsistentState, "consistent_state")
            }
            Some(schema::StartTime::RecoveryFinished) | None => {
                (StartTime::RecoveryFinished, "recovery_finished")
            }
        };
        self.show(key, shown_text(word));
        start_time
    }

    fn restart_time(&mut self, key: &str, set: Option<schema::RestartTime>) -> RestartTime {
        let restart_time = match set {
            Some(schema::RestartTime::After(interval)) => RestartTime::After(interval),
            Some(schema::RestartTime::Backoff(schema::Backoff {
                initial: schema::Span(initial),
                max: schema::Span(max),
                healthy_after: schema::Span(healthy_after),
            })) => RestartTime::Backoff(Backoff {
                initial,
                max,
                healthy_after,
            }),
            Some(schema::RestartTime::Never) => RestartTime::Never,
            None => RestartTime::DEFAULT,
        };
        let value = match restart_time {
            RestartTime::After(interval) => shown_time(interval),
            RestartTime::Backoff(Backoff {
                initial,
                max,
                healthy_after,
            }) => format!(
                "{{ initial = {}, max = {}, healthy_after = {} }}",
                shown_time(initial),
                shown_time(max),
                shown_time(healthy_after)
            ),
            RestartTime::Never => shown_text("never"),
        };
        self.show(key, value);
        restart_time
    }

    fn restart_limit(
        &mut self,
        key: &str,
        set: Option<schema::MaxRestarts>,
    ) -> Option<RestartLimit> {
        let schema::MaxRestarts { restarts, within } = set?;
        let schema::Span(within) = within;
        let value = shown_time(within);
        self.show(
            key,
            format!("{{ restarts = {restarts}, within = {value} }}"),
        );
        Some(RestartLimit { restarts, within })
    }
}

fn shown_text(text: &str) -> String {
    toml::Value::from(text).to_string()
}

fn shown_time(time: Duration) -> String {
    shown_text(&humantime::format_duration(time).to_string())
}
