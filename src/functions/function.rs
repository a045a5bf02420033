//! What a function has to state so that a worker of a configuration file can run it, and a function with its settings.
//!
//! The rest of the house knows the types of no settings. Reads no file, and runs nothing.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize as _, Serialize};
use tokio::sync::watch;

use super::relation::Relation;
use crate::background_worker::{Access, BackgroundWorker};
use crate::context::{Main, WorkerContext};
use crate::keys;

/// What a worker of a configuration file runs, looked up by its name. Mirrors `bgw_function_name`.
///
/// Its keys stand in `[[worker]]` beside those that every worker has. Each is a field of its settings: the name, the
/// default, the type and the bounds are serde's and stand there alone. A key that is no field is an error; a field that
/// is not serialized, such as a secret, is neither shown nor noticed when it changes.
///
/// The value that implements it may hold what its mains share, such as the address of an actor.
pub trait Function: Send + Sync + 'static {
    /// Its name in a configuration file.
    const NAME: &'static str;

    /// What its workers share with others.
    const ACCESS: Access = Access::Database;

    /// The keys that a reload may change while the worker runs. A change of any other replaces the worker.
    const IN_PLACE: &'static [&'static str] = &[];

    /// What its keys are read into.
    type Settings: DeserializeOwned + Serialize + Clone + Send + Sync + 'static;

    /// Says what no key can know by itself to be wrong, and completes defaults that depend on other keys.
    fn check(&self, settings: &mut Self::Settings, worker: &BackgroundWorker) -> Vec<Mistake> {
        let _ = (settings, worker);
        Vec::new()
    }

    /// What it uses in a database that other workers of the same configuration must not use as well.
    fn claims(&self, settings: &Self::Settings) -> Vec<Claim> {
        let _ = settings;
        Vec::new()
    }

    /// What a worker with these settings makes in its database where it is missing, and what grants a role the right to
    /// use it. `bgworker ddl` prints it for an administrator.
    fn objects(&self, settings: &Self::Settings, role: &str) -> Objects {
        let _ = (settings, role);
        Objects::default()
    }

    /// The main of a worker with these settings. When they change in place, the worker also gets a `Sighup`.
    fn main(&self, settings: watch::Receiver<Self::Settings>) -> impl Main;
}

/// What is wrong with a key of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The key: a field of the function's settings, or `start_time` and its like.
    pub key: &'static str,
    /// What is wrong.
    pub message: String,
    /// What to do about it, if that is not obvious.
    pub hint: Option<String>,
}

/// What a worker uses, by a key of its own: what two workers claim, one of them alone, is a mistake in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The key that names it.
    pub key: &'static str,
    /// What it is, such as a table with its database.
    pub what: String,
    /// Why no other worker may use it as well, as a sentence about that worker goes on; `None` if all that share it may.
    pub alone: Option<&'static str>,
}

/// What a worker makes in its database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// The database, if not the one of the connection settings.
    pub database: Option<String>,
    /// The statements that make them, without semicolons at their ends.
    pub statements: Vec<String>,
}

/// What a worker runs, and how it is set: a function with its settings.
#[derive(Clone)]
pub struct FunctionSettings(Arc<dyn Configured>);

/// A function that was looked up: the type of its settings is not known.
pub(crate) trait Entry: Send + Sync {
    fn access(&self) -> Access;

    fn keys(&self) -> &'static [&'static str];

    /// Reads its settings.
    fn read(
        self: Arc<Self>,
        table: toml::Deserializer<'_>,
    ) -> Result<FunctionSettings, toml::de::Error>;
}

/// A function with its settings, whose type is not known.
trait Configured: Send + Sync {
    fn name(&self) -> &'static str;
    fn in_place(&self) -> &'static [&'static str];
    fn settings(&self) -> &dyn Any;
    fn values(&self) -> Result<toml::Table, toml::ser::Error>;
    fn check(&mut self, worker: &BackgroundWorker) -> Vec<Mistake>;
    fn claims(&self) -> Vec<Claim>;
    fn objects(&self, role: &str) -> Objects;
    fn launch(&self) -> (Box<dyn Main>, SettingsSender);
}

/// A function with its settings.
struct With<F: Function> {
    function: Arc<F>,
    settings: F::Settings,
}

/// Gives a running main other settings.
pub(crate) struct SettingsSender(Box<dyn Fn(&FunctionSettings)>);

// === impl Mistake ===

impl Mistake {
    /// A mistake in a key.
    pub fn new(key: &'static str, message: impl Into<String>) -> Self {
        Self {
            key,
            message: message.into(),
            hint: None,
        }
    }

    /// Says what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

// === impl Claim ===

impl Claim {
    /// A table of a database, `None` being that of the connection settings, which workers may share.
    pub(super) fn table(key: &'static str, database: Option<&str>, table: &Relation) -> Self {
        let database = database.unwrap_or_default();
        Self {
            key,
            what: format!("{database} {table}"),
            alone: None,
        }
    }

    /// No other worker may use it as well, for this reason.
    pub(super) fn alone(mut self, why: &'static str) -> Self {
        self.alone = Some(why);
        self
    }
}

// === impl Entry ===

impl<F: Function> Entry for F {
    fn access(&self) -> Access {
        F::ACCESS
    }

    fn keys(&self) -> &'static [&'static str] {
        keys::of::<F::Settings>()
    }

    fn read(
        self: Arc<Self>,
        table: toml::Deserializer<'_>,
    ) -> Result<FunctionSettings, toml::de::Error> {
        let settings = F::Settings::deserialize(table)?;
        let function = self;
        Ok(FunctionSettings(Arc::new(With { function, settings })))
    }
}

// === impl With ===

impl<F: Function> Configured for With<F> {
    fn name(&self) -> &'static str {
        F::NAME
    }

    fn in_place(&self) -> &'static [&'static str] {
        F::IN_PLACE
    }

    fn settings(&self) -> &dyn Any {
        &self.settings
    }

    fn values(&self) -> Result<toml::Table, toml::ser::Error> {
        keys::values(&self.settings)
    }

    fn check(&mut self, worker: &BackgroundWorker) -> Vec<Mistake> {
        self.function.check(&mut self.settings, worker)
    }

    fn claims(&self) -> Vec<Claim> {
        self.function.claims(&self.settings)
    }

    fn objects(&self, role: &str) -> Objects {
        self.function.objects(&self.settings, role)
    }

    fn launch(&self) -> (Box<dyn Main>, SettingsSender) {
        let (sender, receiver) = watch::channel(self.settings.clone());
        let send = move |changed: &FunctionSettings| {
            if let Some(settings) = changed.settings::<F::Settings>() {
                sender.send_replace(settings.clone());
            }
        };
        let main = self.function.main(receiver);
        (Box::new(main), SettingsSender(Box::new(send)))
    }
}

// === impl FunctionSettings ===

impl FunctionSettings {
    /// The function's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.0.name()
    }

    /// The settings, if they are of this type.
    #[must_use]
    pub fn settings<S: 'static>(&self) -> Option<&S> {
        self.0.settings().downcast_ref()
    }

    /// What its worker makes in its database, and lets this role use.
    #[must_use]
    pub fn objects(&self, role: &str) -> Objects {
        self.0.objects(role)
    }

    /// What each of its keys holds.
    pub(crate) fn values(&self) -> Result<toml::Table, toml::ser::Error> {
        self.0.values()
    }

    /// Whether a reload may change a key of it while the worker runs.
    pub(crate) fn is_in_place(&self, key: &str) -> bool {
        self.0.in_place().contains(&key)
    }

    /// Checks it with its worker, before anything shares it.
    pub(crate) fn check(&mut self, worker: &BackgroundWorker) -> Vec<Mistake> {
        Arc::get_mut(&mut self.0).map_or_else(Vec::new, |with| with.check(worker))
    }

    /// What it claims.
    pub(crate) fn claims(&self) -> Vec<Claim> {
        self.0.claims()
    }

    /// A main that runs it, and the way by which other settings reach that.
    pub(crate) fn launch(&self) -> (impl Main, SettingsSender) {
        let (main, sender) = self.0.launch();
        (move |context: WorkerContext| main.call(context), sender)
    }
}

impl PartialEq for FunctionSettings {
    /// Whether it is the same function, and its keys hold the same.
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name() && self.values().ok() == other.values().ok()
    }
}

impl fmt::Debug for FunctionSettings {
    /// Shows what is serialized: the rest may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = self.values().unwrap_or_default();
        f.debug_tuple(self.name()).field(&values).finish()
    }
}

// === impl SettingsSender ===

impl SettingsSender {
    /// Sends what holds from now on. It is of the same function.
    pub(crate) fn send(&self, changed: &FunctionSettings) {
        (self.0)(changed);
    }
}

impl fmt::Debug for SettingsSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SettingsSender").finish_non_exhaustive()
    }
}
