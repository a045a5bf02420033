//! The search for PostgreSQL's binaries on this machine.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use thiserror::Error;

/// A directory with the binaries of one PostgreSQL version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binaries {
    directory: PathBuf,
    /// The major version, such as 15.
    version: u32,
}

/// Why no binaries can be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BinariesError {
    /// None were found anywhere.
    #[error(
        "no PostgreSQL binaries (initdb and postgres, version {} or later) in any of: {}.\n\
         Install them: Debian, Ubuntu: apt-get install -y postgresql; Fedora: dnf install -y \
         postgresql-server; macOS: brew install postgresql. Or point PG_BIN at their directory, or \
         use a server that runs already: give its URL",
        Binaries::VERSION_MIN,
        list(.probed)
    )]
    NotFound {
        /// Every place that was searched.
        probed: Vec<String>,
    },
    /// The cluster was made by a version whose binaries are not on this machine.
    #[error(
        "the data directory was made by PostgreSQL {wanted}, but this machine has only version {}: \
         install PostgreSQL {wanted}, or choose another data_dir",
        list(.found)
    )]
    OtherVersion {
        /// The version of the cluster.
        wanted: String,
        /// The versions that were found.
        found: Vec<String>,
    },
}

// === impl Binaries ===

impl Binaries {
    /// The oldest version that is supported.
    const VERSION_MIN: u32 = 14;

    /// Finds the binaries of a cluster's version or, without a version, the first that are supported.
    ///
    /// The places are, in this order: `$PG_BIN`; the output of `pg_config --bindir`; `$PATH`; and where
    /// Debian, Fedora, Homebrew and Postgres.app put them, the highest version first.
    ///
    /// # Errors
    ///
    /// If there are none, or none of that version.
    pub fn find(version: Option<&str>) -> Result<Self, BinariesError> {
        Self::find_in(&places(), version)
    }

    /// Like [`find`](Self::find), but in these places only.
    ///
    /// # Errors
    ///
    /// If there are none, or none of that version.
    pub fn find_in(places: &[PathBuf], version: Option<&str>) -> Result<Self, BinariesError> {
        let found: Vec<_> = places.iter().filter_map(|place| Self::at(place)).collect();
        let suitable = found.iter().find(|found| match version {
            Some(wanted) => found.version.to_string() == wanted,
            None => found.version >= Self::VERSION_MIN,
        });
        match (suitable, version) {
            (Some(binaries), _) => Ok(binaries.clone()),
            (None, Some(wanted)) if !found.is_empty() => {
                let found: BTreeSet<_> = found.iter().map(|found| found.version).collect();
                Err(BinariesError::OtherVersion {
                    wanted: wanted.to_owned(),
                    found: found.iter().map(ToString::to_string).collect(),
                })
            }
            (None, _) => Err(BinariesError::NotFound {
                probed: places
                    .iter()
                    .map(|place| place.display().to_string())
                    .collect(),
            }),
        }
    }

    /// The path of one of the programs.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The binaries in a directory, if both are there and report their version.
    fn at(directory: &Path) -> Option<Self> {
        // The initdb on the PATH may be a link; the other programs are beside its target.
        let initdb = fs::canonicalize(directory.join("initdb")).ok()?;
        let directory = initdb.parent()?.to_owned();
        let output = Command::new(directory.join("postgres"))
            .arg("--version")
            .output()
            .ok()
            .filter(|output| output.status.success())?;
        let text = String::from_utf8_lossy(&output.stdout);
        // "postgres (PostgreSQL) 15.4 (Debian 15.4-1)", "postgres (PostgreSQL) 19devel"
        let (_, version) = text.split_once("(PostgreSQL) ")?;
        let digits = version
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(version.len());
        let version = version[..digits].parse().ok()?;
        Some(Self { directory, version })
    }
}

fn places() -> Vec<PathBuf> {
    let mut places = Vec::new();
    places.extend(std::env::var_os("PG_BIN").map(PathBuf::from));
    places.extend(pg_config());
    let path = std::env::var_os("PATH").unwrap_or_default();
    places.extend(std::env::split_paths(&path).filter(|place| place.join("initdb").exists()));
    for (parent, prefix, rest) in [
        ("/usr/lib/postgresql", "", "bin"),
        ("/usr", "pgsql-", "bin"),
        ("/opt/homebrew/opt", "postgresql", "bin"),
        ("/usr/local/opt", "postgresql", "bin"),
        ("/Applications/Postgres.app/Contents/Versions", "", "bin"),
    ] {
        places.extend(versions_in(Path::new(parent), prefix, rest));
    }
    places
}

fn pg_config() -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(PathBuf::from(text.trim())).filter(|place| place.is_absolute())
}

/// `parent/prefix*/rest`, the highest version first; if there is none, the pattern itself, so that
/// an error can name it.
fn versions_in(parent: &Path, prefix: &str, rest: &str) -> Vec<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let version = version_after(&name, prefix)?;
            Some((version, entry.path().join(rest)))
        })
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    if found.is_empty() {
        return vec![parent.join(format!("{prefix}*")).join(rest)];
    }
    found.into_iter().map(|(_, place)| place).collect()
}

fn version_after(name: &OsStr, prefix: &str) -> Option<u32> {
    let rest = name.to_str()?.strip_prefix(prefix)?.trim_start_matches('@');
    if rest.is_empty() {
        return Some(0);
    }
    rest.split('.').next()?.parse().ok()
}

fn list(items: &[String]) -> String {
    items.join(", ")
}
