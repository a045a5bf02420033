//! A mistake in the settings: where it is, what it is, and what to do about it.

use std::fmt;
use std::path::PathBuf;

use crate::spelling;

/// Where a setting comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A place in a file, line and column counted from 1.
    File {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
        /// The column.
        column: usize,
    },
    /// An environment variable.
    Environment(String),
    /// A command-line flag.
    Flag(&'static str),
    /// No source set it.
    Default,
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it is.
    pub origin: Origin,
    /// The key, such as `worker[1].naptime`; empty for a mistake without one.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Every mistake that was found. There is at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

/// The mistakes found so far.
#[derive(Debug, Default)]
pub(super) struct Found(Vec<Problem>);

// === impl Origin ===

impl Origin {
    fn line(&self) -> Option<usize> {
        match self {
            Self::File { line, .. } => Some(*line),
            Self::Environment(_) | Self::Flag(_) | Self::Default => None,
        }
    }
}

// === impl Found ===

impl Found {
    /// Adds a mistake, unless it follows from one already found: a line that cannot be read has no
    /// other mistake, and a key whose value cannot be used is not missing.
    pub(super) fn push(&mut self, problem: Problem) {
        let follows = self.0.iter().any(|known| {
            let same_line =
                known.origin.line().is_some() && known.origin.line() == problem.origin.line();
            if known.key.is_empty() {
                same_line
            } else {
                known.key == problem.key
            }
        });
        if !follows {
            self.0.push(problem);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `true` if a mistake concerns a key that begins with `prefix`.
    pub(super) fn concerns(&self, prefix: &str) -> bool {
        self.0.iter().any(|problem| problem.key.starts_with(prefix))
    }

    /// `true` if a key in this table is likely a misspelt form of that one.
    pub(super) fn suggests(&self, path: &str, key: &str) -> bool {
        let hint = spelling::did_you_mean(key);
        self.0.iter().any(|problem| {
            let table = problem.key.rsplit_once('.').map(|(table, _)| table);
            table == Some(path) && problem.hint.as_ref() == Some(&hint)
        })
    }

    pub(super) fn extend(&mut self, problems: impl IntoIterator<Item = Problem>) {
        problems.into_iter().for_each(|problem| self.push(problem));
    }

    /// The settings, if they are complete and nothing is wrong.
    pub(super) fn into_result<T>(mut self, settings: Option<T>) -> Result<T, Problems> {
        match settings {
            Some(settings) if self.0.is_empty() => Ok(settings),
            Some(_) | None => {
                self.0.sort_by_key(|problem| match &problem.origin {
                    Origin::File { line, column, .. } => (0, *line, *column),
                    Origin::Environment(_) => (1, 0, 0),
                    Origin::Flag(_) => (2, 0, 0),
                    Origin::Default => (3, 0, 0),
                });
                Err(Problems(self.0))
            }
        }
    }
}

// === impl Problems ===

impl Problems {
    /// The mistakes: those of the file first, in its order.
    #[must_use]
    pub fn as_slice(&self) -> &[Problem] {
        &self.0
    }
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    /// One line for each mistake.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.origin != Origin::Default {
            write!(f, "{}: ", self.origin)?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Self::Environment(variable) => f.write_str(variable),
            Self::Flag(flag) => f.write_str(flag),
            Self::Default => f.write_str("default"),
        }
    }
}
