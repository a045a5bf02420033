//! How the program ends: its exit codes, and what it does not wait for.

use std::future::Future;

use actix::System;

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Stopped on request, or finished.
    Clean,
    /// Could not run, or the Postmaster died.
    Failed,
    /// Stopped, but some worker had to be aborted.
    Aborted,
    /// The configuration has mistakes, or cannot be read.
    Configuration,
}

impl Exit {
    /// The exit code; 78 is `EX_CONFIG`. Wrong usage exits with 2 before this is reached.
    pub(crate) fn code(self) -> i32 {
        match self {
            Self::Clean => 0,
            Self::Failed => 1,
            Self::Aborted => 3,
            Self::Configuration => 78,
        }
    }
}

/// Runs a future in an actix system. Afterwards it does not wait for threads that are still at work, such as one whose name
/// lookup hangs: the process is about to exit.
pub(crate) fn in_system<T>(future: impl Future<Output = T>) -> T {
    let system = System::new();
    let result = system.block_on(future);
    // Dropping it would wait for its threads.
    std::mem::forget(system);
    result
}
