//! The exit codes of the program.

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Stopped because it was asked to, or done.
    Clean,
    /// It could not run, or the Postmaster died.
    Failed,
    /// Stopped, but some worker had to be aborted.
    Aborted,
    /// There are mistakes in the configuration.
    Configuration,
}

impl Exit {
    /// What the operating system is told; 78 is `EX_CONFIG`. Wrong usage exits with 2 before.
    pub(crate) fn code(self) -> i32 {
        match self {
            Self::Clean => 0,
            Self::Failed => 1,
            Self::Aborted => 3,
            Self::Configuration => 78,
        }
    }
}
