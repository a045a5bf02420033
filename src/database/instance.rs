//! This process as other instances know it: its name, and which jobs it has in each database.
//!
//! Holds what the workers of one process share of that; decides when it is to be told again, and runs no statement.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// How soon it is told again that this process is still there: workers look at their jobs once a minute.
const TELL_EVERY: Duration = Duration::from_secs(55);

/// How soon it is told that its jobs have changed: at a start, many change at once.
pub(crate) const TELL_CHANGES_EVERY: Duration = Duration::from_secs(2);

/// This process, and its jobs.
#[derive(Debug)]
pub(crate) struct Instance {
    name: String,
    databases: Mutex<HashMap<Option<String>, Jobs>>,
}

/// The jobs of this process in one database.
#[derive(Debug, Default)]
struct Jobs {
    /// What each is declared to do: those that it has, and those that it had.
    declared: BTreeMap<String, Declared>,
    /// When each thing was last due that one worker of the process does for all.
    last: HashMap<&'static str, Instant>,
    /// They have changed since they were told.
    are_changed: bool,
    /// They are to be told, even if they have not changed since that was tried.
    are_untold: bool,
}

#[derive(Debug)]
struct Declared {
    as_what: String,
    /// The number of workers that have it: a reload may have begun the next one before the last one is gone.
    workers: u32,
}

/// What is to be told of the jobs of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// Its jobs, by name, with what each is declared to do.
    Jobs(BTreeMap<String, String>),
    /// It is still there.
    Alive,
}

// === impl Instance ===

impl Instance {
    pub(super) fn new() -> Self {
        let host = whoami::hostname().unwrap_or_default();
        // In containers many processes have the same number.
        let name = format!("{host} ({}) since {}", std::process::id(), Timestamp::now());
        Self {
            name,
            databases: Mutex::default(),
        }
    }

    /// Its name, which no other process has.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What this process last had a job declared to do, if it has or had the job.
    pub(crate) fn knows(&self, dbname: Option<&str>, job: &str) -> Option<String> {
        let mut databases = self.lock();
        let jobs = jobs(&mut databases, dbname);
        jobs.declared.get(job).map(|job| job.as_what.clone())
    }

    /// A worker of this process has a job, which does this.
    pub(crate) fn has(&self, dbname: Option<&str>, job: &str, as_what: &str) {
        let mut databases = self.lock();
        let jobs = jobs(&mut databases, dbname);
        let declared = jobs.declared.entry(job.to_owned()).or_insert(Declared {
            as_what: String::new(),
            workers: 0,
        });
        as_what.clone_into(&mut declared.as_what);
        declared.workers += 1;
        jobs.are_changed = true;
    }

    /// A worker no longer has the job.
    pub(crate) fn has_no_longer(&self, dbname: Option<&str>, job: &str) {
        let mut databases = self.lock();
        let jobs = jobs(&mut databases, dbname);
        if let Some(declared) = jobs.declared.get_mut(job) {
            declared.workers = declared.workers.saturating_sub(1);
            jobs.are_changed = true;
        }
    }

    /// `true` if its jobs have changed, which is to be told soon.
    pub(crate) fn is_changed(&self, dbname: Option<&str>) -> bool {
        jobs(&mut self.lock(), dbname).are_changed
    }

    /// What to tell of its jobs now, if anything: to one worker of those that ask.
    pub(crate) fn news(&self, dbname: Option<&str>) -> Option<News> {
        let mut databases = self.lock();
        let jobs = jobs(&mut databases, dbname);
        let every = if jobs.are_changed {
            TELL_CHANGES_EVERY
        } else {
            TELL_EVERY
        };
        if !jobs.is_due("news", every) {
            return None;
        }
        let is_untold = std::mem::take(&mut jobs.are_untold);
        if !std::mem::take(&mut jobs.are_changed) && !is_untold {
            return Some(News::Alive);
        }
        let declared = jobs.declared.iter().filter(|(_, job)| job.workers > 0);
        let declared = declared.map(|(name, job)| (name.clone(), job.as_what.clone()));
        Some(News::Jobs(declared.collect()))
    }

    /// What was to be told was not: its jobs are told with the next news.
    pub(crate) fn was_not_told(&self, dbname: Option<&str>) {
        jobs(&mut self.lock(), dbname).are_untold = true;
    }

    /// `true` for one worker of those that ask within this time.
    pub(crate) fn is_due(&self, dbname: Option<&str>, what: &'static str, every: Duration) -> bool {
        jobs(&mut self.lock(), dbname).is_due(what, every)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Option<String>, Jobs>> {
        self.databases
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn jobs<'d>(
    databases: &'d mut HashMap<Option<String>, Jobs>,
    dbname: Option<&str>,
) -> &'d mut Jobs {
    databases.entry(dbname.map(str::to_owned)).or_default()
}

// === impl Jobs ===

impl Jobs {
    fn is_due(&mut self, what: &'static str, every: Duration) -> bool {
        let now = Instant::now();
        let last = self.last.get(what);
        let is_due = last.is_none_or(|last| now.duration_since(*last) >= every);
        if is_due {
            self.last.insert(what, now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of the jobs that are told; `None` if nothing is.
    fn told(instance: &Instance) -> Option<Vec<String>> {
        match instance.news(None)? {
            News::Jobs(jobs) => Some(jobs.into_keys().collect()),
            News::Alive => Some(vec!["alive".to_owned()]),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn jobs_are_told_when_they_have_changed_and_that_it_is_alive_once_a_minute() {
        let instance = Instance::new();
        let named = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect());
        instance.has(None, "a", "1");
        assert_eq!(told(&instance), named(&["a"]));
        // Many more at a start are told together.
        instance.has(None, "b", "1");
        instance.has(None, "c", "1");
        assert_eq!(told(&instance), None);
        tokio::time::advance(TELL_CHANGES_EVERY).await;
        assert_eq!(told(&instance), named(&["a", "b", "c"]));
        tokio::time::advance(TELL_EVERY).await;
        assert_eq!(told(&instance), named(&["alive"]));
        instance.was_not_told(None);
        instance.has_no_longer(None, "b");
        tokio::time::advance(TELL_CHANGES_EVERY).await;
        assert_eq!(told(&instance), named(&["a", "c"]));
        assert_eq!(instance.knows(None, "b").as_deref(), Some("1"));
    }

    #[test]
    fn a_worker_that_a_reload_replaced_takes_its_successors_job_from_no_list() {
        let instance = Instance::new();
        instance.has(None, "a", "1");
        instance.has(None, "a", "2");
        instance.has_no_longer(None, "a");
        assert_eq!(told(&instance), Some(vec!["a".to_owned()]));
        assert_eq!(instance.knows(None, "a").as_deref(), Some("2"));
    }
}
