//! Functions: what a worker that bgworker brings along can run, and what they share.
//!
//! A function knows its settings, its statements and its tables, and does one cycle at a time. The [`runner`] naps
//! between cycles, stops them, and decides what follows from an error; a [`session`] is where statements run. Nothing
//! here knows the Postmaster.

mod remedy;
mod runner;
mod session;
pub mod worker_spi;
