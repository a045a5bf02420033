//! Functions: what a worker can run, looked up by name, and what the built-in functions share.
//!
//! A function knows its settings, its statements and its tables, and does one cycle at a time. The [`runner`] naps
//! between cycles, stops them, and decides what follows from an error; a [`session`] is where statements run. Nothing
//! here knows the Postmaster.

mod beside;
mod faults;
mod folding;
#[cfg(feature = "config")]
mod function;
#[cfg(feature = "config")]
mod lookup;
mod outcome;
#[cfg(feature = "config")]
mod ownership;
mod privileges;
mod quote;
mod relation;
mod remedy;
#[cfg(feature = "config")]
pub mod rollup;
mod runner;
mod session;
#[cfg(feature = "config")]
pub mod sql;
mod table_locks;
pub mod worker_spi;

#[cfg(feature = "config")]
pub(crate) use self::function::SettingsSender;
#[cfg(feature = "config")]
pub use self::function::{Claim, Function, FunctionSettings, Mistake, Objects};
#[cfg(feature = "config")]
pub use self::lookup::Functions;
