//! What a function must declare so that a worker in a configuration file can run it, and a function with its
//! settings.
//!
//! The rest of the crate does not know the types of settings. Reads no file, and runs nothing.

use std::any::Any;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize as _, Serialize};
use tokio::sync::watch;

use super::relation::Relation;
use super::ticked::When;
use crate::background_worker::{Access, BackgroundWorker};
use crate::context::{Main, WorkerContext};
use crate::keys;

/// What a worker in a configuration file runs, looked up by its name. Mirrors `bgw_function_name`.
///
/// Its keys stand in `[[worker]]` beside those that every worker has. Each key is a field of its settings, and only
/// that field, through serde, defines its name, default, type and bounds. A key without a field is an error. A field
/// that is not serialized, such as a secret, is not shown, and a change to it is not noticed.
///
/// The value that implements it may hold what its mains share, such as the address of an actor.
pub trait Function: Send + Sync + 'static {
    /// Its name in a configuration file.
    const NAME: &'static str;

    /// What its workers share with other workers.
    const ACCESS: Access = Access::Database;

    /// The keys that a reload may change while the worker runs. A change to any other key replaces the worker.
    const IN_PLACE: &'static [&'static str] = &[];

    /// The keys whose values are not shown to other people, since they may hold anything.
    const HIDDEN: &'static [&'static str] = &[];

    /// The type that its keys are read into.
    type Settings: DeserializeOwned + Serialize + Clone + Send + Sync + 'static;

    /// Makes the paths in its settings that are relative begin at this directory, which is that of the configuration file.
    fn look_beside(&self, settings: &mut Self::Settings, directory: &Path) {
        let _ = (settings, directory);
    }

    /// Returns mistakes that no key shows by itself, and completes defaults that depend on other keys.
    fn check(&self, settings: &mut Self::Settings, worker: &BackgroundWorker) -> Vec<Mistake> {
        let _ = (settings, worker);
        Vec::new()
    }

    /// What it uses in a database, to refuse other workers of the same configuration that must not use it as well.
    fn claims(&self, settings: &Self::Settings) -> Vec<Claim> {
        let _ = settings;
        Vec::new()
    }

    /// The statements that create what a worker with these settings makes in its database if it is missing, and that
    /// grant a role the right to use it. `bgworker ddl` prints them for an administrator.
    fn objects(&self, settings: &Self::Settings, role: &str) -> Objects {
        let _ = (settings, role);
        Objects::default()
    }

    /// The key that asks for a session which lasts longer than a transaction. A pooler that hands out another one for each
    /// transaction (`prepare = false`) cannot give it: together they are a mistake.
    fn needs_session(&self, settings: &Self::Settings) -> Option<&'static str> {
        let _ = settings;
        None
    }

    /// When its work is done, if it is a job or work that naps: `bgworker next` shows its ticks, and `bgworker once` does the
    /// work beside them.
    fn when(&self, settings: &Self::Settings) -> Option<When> {
        let _ = settings;
        None
    }

    /// The JSON Schema of its settings, for [`config::schema`](crate::config::schema): an object with its `properties`, such as
    /// the crate `schemars` derives. Unless given, editors accept any key.
    fn schema() -> serde_json::Value {
        serde_json::Value::Bool(true)
    }

    /// The main of a worker with these settings. When they change in place, the worker also gets a `Sighup`.
    fn main(&self, settings: watch::Receiver<Self::Settings>) -> impl Main;
}

/// What is wrong with one key of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The key: a field of the function's settings, or a key of every worker, such as `start_time`.
    pub key: &'static str,
    /// What is wrong.
    pub message: String,
    /// What to do about it, if that is not obvious.
    pub hint: Option<String>,
}

/// Something that a worker uses, named by one of its keys. If two workers claim the same thing and one of them claims
/// it alone, the configuration is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The key that names it.
    pub key: &'static str,
    /// What it is, such as a table with its database.
    pub what: String,
    /// Why no other worker may use it as well, as a clause about that other worker; `None` if workers may share it.
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

/// What a worker runs: a function with its settings.
#[derive(Clone)]
pub struct FunctionSettings(Arc<dyn Configured>);

/// A function that was looked up, with the type of its settings erased.
pub(crate) trait Entry: Send + Sync {
    fn access(&self) -> Access;

    fn keys(&self) -> &'static [&'static str];

    fn schema(&self) -> serde_json::Value;

    /// Reads its settings.
    fn read(
        self: Arc<Self>,
        table: toml::Deserializer<'_>,
    ) -> Result<FunctionSettings, toml::de::Error>;
}

/// A function with its settings, whose type is erased.
trait Configured: Send + Sync {
    fn name(&self) -> &'static str;
    fn in_place(&self) -> &'static [&'static str];
    fn settings(&self) -> &dyn Any;
    fn values(&self) -> Result<toml::Table, toml::ser::Error>;
    fn look_beside(&mut self, directory: &Path);
    fn check(&mut self, worker: &BackgroundWorker) -> Vec<Mistake>;
    fn claims(&self) -> Vec<Claim>;
    fn objects(&self, role: &str) -> Objects;
    fn needs_session(&self) -> Option<&'static str>;
    fn hidden(&self) -> &'static [&'static str];
    fn when(&self) -> Option<When>;
    fn launch(&self) -> (Box<dyn Main>, SettingsSender);
}

/// A function with its settings.
struct With<F: Function> {
    function: Arc<F>,
    settings: F::Settings,
}

/// Sends new settings to a running main.
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

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

// === impl Claim ===

impl Claim {
    /// A claim on a table that workers may share. `None` is the database of the connection settings.
    pub(super) fn table(key: &'static str, database: Option<&str>, table: &Relation) -> Self {
        let database = database.unwrap_or_default();
        Self {
            key,
            what: format!("{database} {table}"),
            alone: None,
        }
    }

    /// Claims it alone, for this reason.
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

    fn schema(&self) -> serde_json::Value {
        F::schema()
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

    fn look_beside(&mut self, directory: &Path) {
        self.function.look_beside(&mut self.settings, directory);
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

    fn needs_session(&self) -> Option<&'static str> {
        self.function.needs_session(&self.settings)
    }

    fn hidden(&self) -> &'static [&'static str] {
        F::HIDDEN
    }

    fn when(&self) -> Option<When> {
        self.function.when(&self.settings)
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

    /// What its worker makes in its database, and the grants that let this role use it.
    #[must_use]
    pub fn objects(&self, role: &str) -> Objects {
        self.0.objects(role)
    }

    /// When its work is done, if it is a job or work that naps.
    #[must_use]
    pub fn when(&self) -> Option<When> {
        self.0.when()
    }

    /// `true` if the value of this key is not shown, since it may hold anything.
    #[must_use]
    pub fn hides(&self, key: &str) -> bool {
        self.0.hidden().contains(&key)
    }

    /// The value of each of its keys.
    pub(crate) fn values(&self) -> Result<toml::Table, toml::ser::Error> {
        self.0.values()
    }

    /// `true` if a reload may change this key while the worker runs.
    pub(crate) fn is_in_place(&self, key: &str) -> bool {
        self.0.in_place().contains(&key)
    }

    /// Makes relative paths begin at a directory, before anything shares the settings.
    pub(crate) fn look_beside(&mut self, directory: &Path) {
        if let Some(with) = Arc::get_mut(&mut self.0) {
            with.look_beside(directory);
        }
    }

    /// Checks the settings together with their worker, before anything shares them.
    pub(crate) fn check(&mut self, worker: &BackgroundWorker) -> Vec<Mistake> {
        Arc::get_mut(&mut self.0).map_or_else(Vec::new, |with| with.check(worker))
    }

    /// What its worker claims.
    pub(crate) fn claims(&self) -> Vec<Claim> {
        self.0.claims()
    }

    /// The key that asks for a session which lasts longer than a transaction.
    pub(crate) fn needs_session(&self) -> Option<&'static str> {
        self.0.needs_session()
    }

    /// A main that runs the function, and the sender of new settings for it.
    pub(crate) fn launch(&self) -> (impl Main, SettingsSender) {
        let (main, sender) = self.0.launch();
        (move |context: WorkerContext| main.call(context), sender)
    }
}

impl PartialEq for FunctionSettings {
    /// `true` if the function is the same and its keys hold the same values.
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
    /// Sends the settings that hold from now on. They must be of the same function.
    pub(crate) fn send(&self, changed: &FunctionSettings) {
        (self.0)(changed);
    }
}

impl fmt::Debug for SettingsSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SettingsSender").finish_non_exhaustive()
    }
}
