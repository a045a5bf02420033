//! The configuration keys of a job.

use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::job;
use super::statements::{self, Statement};
use crate::background_worker::{BackgroundWorker, Backoff, RestartTime, StartTime};
use crate::database::{Database, DatabaseError};
use crate::functions::function::Mistake;
use crate::functions::session::{ConnectionKind, Place, Session};
use crate::regular_file;
use crate::schedule::{InvalidSchedule, Schedule, Timestamp};
use crate::spelling;

/// The time after its timeout within which a run releases its row, even if its instance is frozen.
const LET_GO_WITHIN: Duration = Duration::from_secs(15);

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

/// What becomes of missed ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Missed {
    /// All of them are one run, with the newest tick.
    #[default]
    Once,
    /// They are dropped.
    Skip,
    /// Each is run, the oldest first: at most the last 1,000.
    Each,
}

/// The isolation level of a run's transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Isolation {
    /// Each statement finds what was committed before it.
    #[default]
    #[serde(rename = "read committed")]
    ReadCommitted,
    /// All statements find what was committed before the run.
    #[serde(rename = "repeatable read")]
    RepeatableRead,
    /// The run is as if no other transaction ran at the same time.
    #[serde(rename = "serializable")]
    Serializable,
}

/// The job that settings describe.
#[derive(Clone, Debug)]
pub(super) struct Job {
    /// Its name in the database.
    pub(super) name: String,
    pub(super) statements: Vec<Statement>,
    pub(super) schedule: Schedule,
    /// A digest of the schedule, and one of the statements and `transaction`.
    pub(super) declared: String,
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

// === impl Isolation ===

impl Isolation {
    /// The level in SQL.
    pub(super) fn sql(self) -> &'static str {
        match self {
            Self::ReadCommitted => "READ COMMITTED",
            Self::RepeatableRead => "REPEATABLE READ",
            Self::Serializable => "SERIALIZABLE",
        }
    }

    /// `true` if all statements of a transaction find the same snapshot.
    pub(super) fn has_one_snapshot(self) -> bool {
        self != Self::ReadCommitted
    }
}

// === impl Settings ===

impl Settings {
    fn unset_attempts() -> u32 {
        3
    }

    fn unset_transaction() -> bool {
        true
    }

    fn unset_timeout() -> Duration {
        Duration::from_secs(3_600)
    }

    fn unset_history() -> u32 {
        20
    }

    /// Where its looks run; its statements run on another connection.
    pub(super) fn place(&self) -> Place<'_> {
        Place {
            dbname: self.database.as_deref(),
            connection: ConnectionKind::Home,
            in_order: true,
        }
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
        let statements =
            statements::split(sql).and_then(|split| statements::check(&split, self.transaction));
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

    /// The job of a worker that these settings describe. `check` has reported any errors.
    pub(super) fn job(
        &self,
        worker: &str,
        database: Option<&Database>,
    ) -> Result<Job, Box<dyn std::error::Error + Send + Sync>> {
        let sql = self.sql.as_deref().unwrap_or_default();
        let statements = statements::split(sql)?;
        statements::check(&statements, self.transaction)?;
        let when = format!("{:?} {:?} {}", self.every, self.cron, self.zone());
        let namespace = database.and_then(|database| database.settings().namespace.as_deref());
        Ok(Job {
            name: match namespace {
                Some(namespace) => format!("{namespace}/{worker}"),
                None => worker.to_owned(),
            },
            statements,
            schedule: match self.naptime {
                // A job that naps asks for no tick.
                Some(_) => Schedule::every(Schedule::EVERY_MIN)?,
                None => self.schedule()?,
            },
            declared: format!(
                "{}-{}",
                digest(&when),
                digest(&format!("{} {sql}", self.transaction))
            ),
        })
    }

    /// The longest time in which a run ends and releases its row, even if its instance is frozen.
    pub(super) fn longest_run(&self) -> Duration {
        self.timeout.saturating_add(LET_GO_WITHIN)
    }

    /// How long after a failed attempt the next one follows; `None` if it was the last.
    pub(super) fn retry_in(&self, attempt: u32) -> Option<Duration> {
        let wait = match self.restart_time {
            RestartTime::After(interval) => interval,
            RestartTime::Backoff(Backoff { initial, max, .. }) => {
                crate::backoff::doubled(initial, attempt.saturating_sub(1), max)
            }
            RestartTime::Never => return None,
        };
        (attempt < self.attempts).then_some(wait)
    }
}

// === impl Job ===

impl Job {
    /// Declares the job, unless it is already declared that way. A new job begins with its next tick.
    pub(super) async fn declare(
        &self,
        session: &Session,
        seal: &str,
        by: &str,
        now: Timestamp,
    ) -> Result<(), DatabaseError> {
        let newest = self.schedule.newest(now).unwrap_or(now);
        let declaration = (&*self.name, &*self.declared, by);
        job::declare(session, seal, declaration, (newest, now)).await
    }
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

/// Sixteen hexadecimal digits that tell one text from another.
pub(super) fn digest(text: &str) -> String {
    let bytes = Sha256::digest(text.as_bytes());
    bytes
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
