//! Functions: what a worker can run, looked up by name, and what the built-in functions share.
//!
//! A function knows its settings, its statements and its tables, and does one cycle at a time. The [`runner`] naps
//! between cycles, stops them, and decides what follows from an error; a [`session`] is where statements run. Nothing
//! here knows the Postmaster.

mod advisory_lock;
mod beside;
mod faults;
mod folding;
mod function;
mod lookup;
mod outcome;
mod ownership;
mod privileges;
mod quote;
mod refusal;
mod relation;
mod remedy;
pub mod rollup;
mod runner;
mod session;
pub mod sql;
mod table_locks;
pub mod ticked;
pub mod worker_spi;

pub(crate) use self::function::SettingsSender;
pub use self::function::{Claim, Function, FunctionSettings, Mistake, Objects};
pub use self::lookup::Functions;
