//! The configuration keys of a job.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::work::Statements;
use crate::background_worker::{BackgroundWorker, RestartTime, StartTime};
use crate::functions::function::Mistake;
use crate::functions::session::ConnectionKind;
use crate::functions::ticked::{Isolation, Job, Missed, Naps, When};
use crate::regular_file;
use crate::schedule::{InvalidSchedule, Schedule};
use crate::spelling;

/// What a job does, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Settings {
    /// Its statements.
    #[serde(default)]
    pub sql: Option<String>,
    /// The file that holds its statements, read with the configuration.
    #[serde(default)]
    pub sql_file: Option<PathBuf>,
    /// The interval of its ticks, aligned to the epoch.
    #[serde(with = "optional", default)]
    #[schemars(with = "Option<crate::keys::schema::Time>")]
    pub every: Option<Duration>,
    /// The schedule of its ticks: cron's five fields, or a nickname such as `@daily`.
    #[serde(default)]
    pub cron: Option<String>,
    /// How long it naps between two runs. Takes the place of a schedule for a worker that starts at a consistent state,
    /// where there may be only standbys; each instance then runs the job for itself.
    #[serde(with = "optional", default)]
    #[schemars(with = "Option<crate::keys::schema::Time>")]
    pub naptime: Option<Duration>,
    /// The time zone of its schedule; `UTC` unless set.
    #[serde(default)]
    pub timezone: Option<String>,
    /// What becomes of ticks that came due while the job ran, or that no instance could begin within a minute.
    #[serde(default)]
    pub missed: Missed,
    /// Number of attempts at a tick before the job goes on with the next one: at least 1.
    #[serde(deserialize_with = "attempts", default = "Settings::unset_attempts")]
    #[schemars(range(min = 1))]
    pub attempts: u32,
    /// Whether its statements run in one transaction, committed together with the tick.
    #[serde(default = "Settings::unset_transaction")]
    pub transaction: bool,
    /// The isolation level of that transaction.
    #[serde(default)]
    pub isolation: Isolation,
    /// How long a run may take, all of its statements together.
    #[serde(
        serialize_with = "crate::keys::duration::serialize",
        deserialize_with = "crate::keys::duration::at_most::<{ i32::MAX as u64 }, _>",
        default = "Settings::unset_timeout"
    )]
    #[schemars(with = "crate::keys::schema::Time")]
    pub timeout: Duration,
    /// How many runs are kept in `bgworker.job_run`.
    #[serde(default = "Settings::unset_history")]
    pub history: u32,
    /// The connection of a run: one of those that jobs share, or one that does not count among them.
    #[serde(default)]
    pub connection: ConnectionKind,
    /// The database it connects to, if not the one of the connection settings.
    #[serde(deserialize_with = "crate::database::dbname::deserialize", default)]
    pub database: Option<String>,
    /// When a failed tick is tried again: the worker's `restart_time`.
    #[serde(skip)]
    pub(super) restart_time: RestartTime,
}

/// An optional duration.
mod optional {
    use std::time::Duration;

    use serde::{Deserializer, Serializer};

    use crate::keys::duration;

    #[expect(clippy::ref_option, reason = "serde passes a field by reference")]
    pub(super) fn serialize<S: Serializer>(
        time: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => duration::serialize(time, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        duration::deserialize(deserializer).map(Some)
    }
}

fn attempts<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let attempts = crate::keys::number::positive(deserializer)?;
    Ok(u32::try_from(attempts).unwrap_or(u32::MAX))
}

// === impl Settings ===

impl Settings {
    fn unset_attempts() -> u32 {
        Job::ATTEMPTS
    }

    fn unset_transaction() -> bool {
        true
    }

    fn unset_timeout() -> Duration {
        Job::TIMEOUT
    }

    fn unset_history() -> u32 {
        Job::HISTORY
    }

    /// The zone of its schedule.
    fn zone(&self) -> &str {
        self.timezone.as_deref().unwrap_or("UTC")
    }

    /// Takes the file of its statements from this directory if its path is relative.
    pub(super) fn look_beside(&mut self, directory: &Path) {
        if let Some(file) = &mut self.sql_file {
            *file = directory.join(&*file);
        }
    }

    /// Reads the statements from their file, and finds the mistakes in these settings.
    pub(super) fn check(&mut self, worker: &BackgroundWorker) -> Vec<Mistake> {
        self.restart_time = worker.restart_time;
        let mut mistakes = Vec::new();
        mistakes.extend(self.read_file());
        mistakes.extend(self.check_statements());
        mistakes.extend(self.check_isolation());
        mistakes.extend(match worker.start_time {
            StartTime::PostmasterStart => {
                let message = "a job uses the server: it can only start at \"recovery_finished\"";
                Some(Mistake::new("start_time", message))
            }
            StartTime::ConsistentState => self.check_naptime(),
            StartTime::RecoveryFinished => self.check_which(),
        });
        if worker.start_time == StartTime::RecoveryFinished {
            mistakes.extend(self.check_schedule());
        }
        mistakes
    }

    /// Reads its statements, if they are in a file.
    fn read_file(&mut self) -> Option<Mistake> {
        let file = self.sql_file.as_ref()?;
        if self.sql.is_some() {
            let mistake = Mistake::new("sql_file", "both \"sql\" and \"sql_file\" are set");
            return Some(mistake.hint("keep only one of them"));
        }
        match regular_file::read_to_string(file) {
            Ok(text) => {
                self.sql = Some(text);
                None
            }
            Err(error) => {
                let message = format!("could not read \"{}\": {error}", file.display());
                Some(Mistake::new("sql_file", message))
            }
        }
    }

    fn check_statements(&self) -> Option<Mistake> {
        let key = if self.sql_file.is_some() {
            "sql_file"
        } else {
            "sql"
        };
        let Some(sql) = &self.sql else {
            let mistake = Mistake::new("sql", "the worker has no \"sql\" and no \"sql_file\"");
            return self
                .sql_file
                .is_none()
                .then(|| mistake.hint("set one of them"));
        };
        let statements = Statements::of(sql, self.transaction);
        statements
            .err()
            .map(|error| Mistake::new(key, error.to_string()))
    }

    fn check_isolation(&self) -> Option<Mistake> {
        let message = match self.isolation {
            Isolation::ReadCommitted => return None,
            _ if !self.transaction => {
                "with \"transaction = false\" each statement is a transaction of its own"
            }
            Isolation::Serializable if self.naptime.is_some() => {
                "a standby has no transactions that are serializable"
            }
            Isolation::RepeatableRead | Isolation::Serializable => return None,
        };
        Some(Mistake::new("isolation", message).hint("leave this out"))
    }

    /// Checks a job that may run on standbys.
    fn check_naptime(&self) -> Option<Mistake> {
        let ticks = "ticks are recorded in the database, which a standby does not allow: at \"consistent_state\" a job naps";
        let instead = "set \"naptime\" instead";
        let (key, message, hint) = if self.every.is_some() {
            ("every", ticks, instead)
        } else if self.cron.is_some() {
            ("cron", ticks, instead)
        } else if self.naptime.is_none() {
            ("start_time", ticks, "set \"naptime\", or leave this out")
        } else if !self.transaction {
            let message = "a job that naps is always one transaction";
            ("transaction", message, "leave this out")
        } else {
            return None;
        };
        Some(Mistake::new(key, message).hint(hint))
    }

    /// Checks which of the keys of a schedule are set.
    fn check_which(&self) -> Option<Mistake> {
        if self.naptime.is_some() {
            let message = "a job has ticks, so that each is run once: it naps only with start_time = \"consistent_state\"";
            return Some(Mistake::new("naptime", message).hint("set \"every\" instead"));
        }
        if self.timezone.is_some() && self.cron.is_none() {
            let mistake = Mistake::new("timezone", "it has no effect without \"cron\"");
            return Some(mistake.hint("set that too, or leave this out"));
        }
        match (&self.every, &self.cron) {
            (Some(_), Some(_)) => {
                let mistake = Mistake::new("cron", "both \"every\" and \"cron\" are set");
                Some(mistake.hint("keep only one of them"))
            }
            (None, None) => {
                let mistake = Mistake::new("every", "the worker has no \"every\" and no \"cron\"");
                Some(mistake.hint("set one of them"))
            }
            _ => None,
        }
    }

    /// Checks each key of a schedule by itself, so that a mistake in one hides none in another.
    fn check_schedule(&self) -> Vec<Mistake> {
        let every = self.every.and_then(|every| Schedule::every(every).err());
        let every = every.map(|error| Mistake::new("every", error.to_string()));
        let cron = self.cron.as_deref().and_then(|cron| {
            let mistake = Mistake::new("cron", Schedule::cron(cron, "UTC").err()?.to_string());
            Some(match Schedule::meant(cron) {
                Some(hint) => mistake.hint(hint),
                None => mistake,
            })
        });
        let zone = self.timezone.as_deref().and_then(|zone| {
            let error = Schedule::cron("@daily", zone).err()?;
            let mistake = Mistake::new("timezone", error.to_string());
            Some(match zone_like(zone) {
                Some(known) => mistake.hint(spelling::did_you_mean(&known)),
                None => mistake,
            })
        });
        [every, cron, zone].into_iter().flatten().collect()
    }

    /// The schedule of its ticks.
    ///
    /// # Errors
    ///
    /// If the keys do not name a recurring time. The keys of a configuration that was read do, unless the job naps.
    pub fn schedule(&self) -> Result<Schedule, InvalidSchedule> {
        match (self.every, &self.cron) {
            (Some(every), _) => Schedule::every(every),
            (None, cron) => Schedule::cron(cron.as_deref().unwrap_or_default(), self.zone()),
        }
    }

    /// When its statements are run, and by which rules. `check` has reported any errors.
    pub(super) fn when(&self) -> Result<When, Arc<str>> {
        match self.naptime {
            None => self.job().map(When::Ticks),
            Some(_) => self.naps().map(When::Naps),
        }
    }

    /// The job that they are, unless they nap.
    pub(super) fn job(&self) -> Result<Job, Arc<str>> {
        let schedule = self.schedule().map_err(why)?;
        Ok(self.job_at(schedule, self.statements()?))
    }

    /// What is done after each nap, if they nap.
    pub(super) fn naps(&self) -> Result<Naps, Arc<str>> {
        // No tick of it is asked for.
        let schedule = Schedule::every(Schedule::EVERY_MIN).map_err(why)?;
        let job = self.job_at(schedule, self.statements()?);
        Ok(Naps::between(self.naptime.unwrap_or_default(), job))
    }

    fn statements(&self) -> Result<Statements, Arc<str>> {
        let sql = self.sql.as_deref().unwrap_or_default();
        Statements::of(sql, self.transaction).map_err(why)
    }

    fn job_at(&self, schedule: Schedule, statements: Statements) -> Job {
        let (sql, has_windows) = (
            self.sql.as_deref().unwrap_or_default(),
            statements.have_windows(),
        );
        let job = if self.transaction {
            Job::in_transaction(schedule, self.isolation, sql, statements)
        } else {
            Job::outside(schedule, sql, statements)
        };
        job.of_statements(has_windows)
            .missed(self.missed)
            .attempts(self.attempts, self.restart_time)
            .timeout(self.timeout)
            .history(self.history)
            .on(self.connection, self.database.clone())
    }
}

/// What is wrong, to be shared.
fn why(error: impl std::error::Error) -> Arc<str> {
    error.to_string().into()
}

/// The time zone that is likely meant: one whose name ends in this word, or else the nearest.
fn zone_like(word: &str) -> Option<String> {
    let word = word.trim().replace(' ', "_");
    let zones: Vec<_> = Schedule::zones().collect();
    let last = |zone: &str| {
        zone.rsplit_once('/')
            .is_some_and(|(_, city)| city.eq_ignore_ascii_case(&word))
    };
    let city = zones
        .iter()
        .find(|zone| last(zone.as_str()))
        .map(String::as_str);
    let near = || spelling::nearest(&word, zones.iter().map(String::as_str));
    city.or_else(near).map(str::to_owned)
}
