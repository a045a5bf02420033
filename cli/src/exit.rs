//! The exit codes of the program.

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
