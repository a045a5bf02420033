//! The check of a configuration's workers. A mistake in one key hides none in another.

use std::collections::HashMap;

use super::Check;
use crate::background_worker::{BackgroundWorker, InvalidWorker, StartTime};
use crate::config::settings::WorkerSettings;
use crate::config::worker::{WORKER, Worker};
use crate::functions::{Claim, FunctionSettings, Mistake};
use crate::keys;

// === impl Check ===

impl Check<'_> {
    pub(super) fn workers(
        &mut self,
        workers: Vec<Worker>,
        max_workers: usize,
    ) -> Vec<WorkerSettings> {
        if workers.len() > max_workers {
            let message = format!(
                "too many background workers: up to {max_workers} can be registered with the \
                 current settings, and here are {}",
                workers.len()
            );
            let hint = "consider increasing \"max_workers\" in [postmaster]".to_owned();
            self.refuse(&format!("{WORKER}[{max_workers}]"), message, Some(hint));
        }
        let mut names = HashMap::new();
        let mut claimed: HashMap<String, Vec<(usize, Option<&'static str>)>> = HashMap::new();
        let workers = workers.into_iter().enumerate();
        let checked = workers.filter_map(|(index, worker)| {
            let Worker {
                path,
                worker,
                function,
            } = worker;
            let mut worker = worker?;
            if self.found.concerns(&format!("{path}.name")) {
                // A worker without a usable name is checked under its path.
                worker.name = path.as_str().into();
            } else if let Some(first) = names.insert(worker.name.clone(), index) {
                let name = &worker.name;
                let message = format!(
                    "background worker \"{name}\" is already registered as {WORKER}[{first}]"
                );
                self.refuse(&format!("{path}.name"), message, None);
            }
            if let Some(function) = &function {
                for Claim { key, what, alone } in function.claims() {
                    let others = claimed.entry(what).or_default();
                    let conflict = others
                        .iter()
                        .filter(|(first, _)| *first != index)
                        .find_map(|(first, theirs)| Some((*first, alone.or(*theirs)?)));
                    if let Some((first, why)) = conflict {
                        let message = format!("{WORKER}[{first}] names it as well: {why}");
                        self.refuse(&format!("{path}.{key}"), message, None);
                    }
                    others.push((index, alone));
                }
            }
            self.worker((index, path.as_str()), worker, function)
        });
        checked.collect()
    }

    /// Refuses a worker that starts at a state of the server to which the connection settings never lead.
    fn check_reach(&mut self, path: &str, worker: &BackgroundWorker) {
        let (message, hint) = match (worker.start_time, self.asks_for_primary) {
            (StartTime::ConsistentState, Some(true)) => (
                "at \"consistent_state\" a worker runs on standbys too, and \"target_session_attrs\" of the connection \
                 settings excludes them",
                "leave this out, or set target_session_attrs=any",
            ),
            (StartTime::RecoveryFinished, Some(false)) => (
                "\"target_session_attrs\" of the connection settings asks for a standby, where recovery never \
                 finishes: the worker would never start",
                "set \"consistent_state\" for a worker that only reads, or leave target_session_attrs out",
            ),
            _ => return,
        };
        self.refuse(
            &format!("{path}.start_time"),
            message,
            Some(hint.to_owned()),
        );
    }

    /// Refuses a worker that could never have the session that it needs.
    fn check_session(&mut self, path: &str, function: &FunctionSettings) {
        if let Some(key) = function.needs_session().filter(|_| !self.keeps_sessions) {
            let message = "it takes a session that lasts longer than a transaction, which cannot be had behind a pooler that \
                           hands out another one for each transaction (\"prepare = false\" in [database]): the worker would \
                           never run";
            let hint = "leave this out, or connect to the server itself or to sessions of the pooler, and leave \
                        \"prepare = false\" out";
            self.refuse(&format!("{path}.{key}"), message, Some(hint.to_owned()));
        }
    }

    /// Checks a worker's registration and its function's settings, and shows both.
    fn worker(
        &mut self,
        (index, path): (usize, &str),
        worker: BackgroundWorker,
        function: Option<FunctionSettings>,
    ) -> Option<WorkerSettings> {
        for mistake in worker.mistakes() {
            let key = match mistake {
                InvalidWorker::Name { .. } => "name",
                InvalidWorker::DatabaseAtPostmasterStart { .. } => "start_time",
                InvalidWorker::RestartTime { .. } | InvalidWorker::Backoff { .. } => "restart_time",
                InvalidWorker::RestartLimit { .. } => "max_restarts",
            };
            self.refuse(&format!("{path}.{key}"), mistake, None);
        }
        self.check_reach(path, &worker);
        let mut function = function?;
        function.look_beside(self.layered.directory());
        for Mistake { key, message, hint } in function.check(&worker) {
            // A key that is misspelt is not missing.
            if self.found.suggests(path, key) {
                continue;
            }
            self.refuse(&format!("{path}.{key}"), message, hint);
        }
        self.check_session(path, &function);
        let at = (path, Some((index, &function)));
        self.show(at, keys::values(&worker));
        let which = ("function".to_owned(), function.name().into());
        self.show(at, Ok(toml::Table::from_iter([which])));
        self.show(at, function.values());
        Some(WorkerSettings { worker, function })
    }
}
