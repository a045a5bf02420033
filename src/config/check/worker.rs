//! The workers of a configuration. A mistake in one key hides none in another.

use std::collections::HashMap;

use super::{Check, TIME_MAX, shown_text, shown_time};
use crate::background_worker::{
    Access, BackgroundWorker, Backoff, InvalidWorker, RestartLimit, RestartTime, StartTime,
};
use crate::config::schema;
use crate::config::settings::WorkerSettings;
use crate::database::ConnInfo;
use crate::functions::worker_spi::{self, ConnectionKind, Fold, Table};
use crate::spelling;

/// The functions that a worker can run.
const FUNCTIONS: [&str; 1] = ["worker_spi"];

// === impl Check ===

impl Check<'_> {
    pub(super) fn workers(&mut self, max_workers: usize) -> Vec<WorkerSettings> {
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
        let name = self.required(&key("name"), document.name.as_deref());
        self.function(&key("function"), document.function.as_deref());
        let table = self.table(path, document);
        let unset = worker_spi::Settings::NAPTIME;
        let naptime = self.time(&key("naptime"), document.naptime, unset, TIME_MAX);
        // Without a name it cannot be registered, but the rest can be checked.
        let worker = self.background_worker(path, name.as_deref().unwrap_or(path), document);
        let batch = document.batch.unwrap_or(worker_spi::Settings::BATCH);
        if batch == 0 {
            self.refuse(&key("batch"), "it must be at least 1", None);
        }
        self.show(&key("batch"), batch.to_string());
        let vacuum_after = document.vacuum_after;
        let vacuum_after = vacuum_after.unwrap_or(worker_spi::Settings::VACUUM_AFTER);
        self.show(&key("vacuum_after"), vacuum_after.to_string());
        let (fold, connection) = self.fold(path, document);
        let database = document.database.clone();
        if let Some(database) = &database {
            if ConnInfo::is_instead_of_name(database) {
                let message = "it must be the name of a database, and no connection string";
                self.refuse(&key("database"), message, None);
            } else if database.is_empty() || database.contains('\0') {
                let message = "it must not be empty, or contain NUL";
                self.refuse(&key("database"), message, None);
            }
            self.show(&key("database"), shown_text(database));
        }
        if let Some(total) = document.initial_total {
            self.show(&key("initial_total"), total.to_string());
        }
        name?;
        let spi = worker_spi::Settings {
            table: table?,
            naptime,
            batch,
            fold,
            vacuum_after: Some(vacuum_after).filter(|after| *after > 0),
            database,
            connection,
            initial_total: document.initial_total,
        };
        Some(WorkerSettings { worker, spi })
    }

    /// Its table, if both of its names are there, and good.
    fn table(&mut self, path: &str, document: &schema::Worker) -> Option<Table> {
        let (schema_key, table_key) = (format!("{path}.schema"), format!("{path}.table"));
        let schema = self.required(&schema_key, document.schema.as_deref());
        let table = self.required(&table_key, document.table.as_deref());
        // Each with a good one for the other.
        if let Some(Err(error)) = schema.as_ref().map(|schema| Table::new(schema, "t")) {
            self.refuse(&schema_key, error, None);
        }
        if let Some(Err(error)) = table.as_ref().map(|table| Table::new("s", table)) {
            self.refuse(&table_key, error, None);
        }
        Table::new(schema?, table?).ok()
    }

    /// What the Postmaster is told.
    fn background_worker(
        &mut self,
        path: &str,
        name: &str,
        document: &schema::Worker,
    ) -> BackgroundWorker {
        let key = |key: &str| format!("{path}.{key}");
        let mut worker = BackgroundWorker::new(name)
            .access(Access::Database)
            .start_time(self.start_time(&key("start_time"), document.start_time))
            .restart_time(self.restart_time(&key("restart_time"), document.restart_time));
        worker.restart_limit = self.restart_limit(&key("max_restarts"), document.max_restarts);
        for mistake in worker.mistakes() {
            let wrong = match mistake {
                InvalidWorker::Name { .. } => "name",
                InvalidWorker::DatabaseAtPostmasterStart { .. } => "start_time",
                InvalidWorker::RestartTime { .. } | InvalidWorker::Backoff { .. } => "restart_time",
                InvalidWorker::RestartLimit { .. } => "max_restarts",
            };
            self.refuse(&key(wrong), mistake, None);
        }
        // Refused already if it is to start before there is a database.
        if worker.start_time == StartTime::ConsistentState {
            let message = "worker_spi writes: it can only start at \"recovery_finished\"";
            self.refuse(&key("start_time"), message, None);
        }
        worker
    }

    /// A text that has to be there, and is shown.
    fn required(&mut self, key: &str, value: Option<&str>) -> Option<String> {
        match value {
            Some(value) => self.show(key, shown_text(value)),
            None => {
                let wanted = key.rsplit('.').next().unwrap_or(key);
                let message = format!("the worker has no \"{wanted}\"");
                self.refuse(key, message, Some("it is required".to_owned()));
            }
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
            format!("there is no function{}", spelling::quoted_word(function)),
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
