//! The service file: named sets of connection settings. Mirrors libpq's `parseServiceInfo`.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::{ConnInfoError, check_keyword};
use crate::{regular_file, spelling};

/// Why a service has no settings. The sentences are libpq's where it has one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// No service file defines it.
    #[error("definition of service{} not found", spelling::quoted_word(.service))]
    NotFound {
        /// Its name. It may hold anything, and is shown only if it looks like a word.
        service: String,
    },
    /// The file that `PGSERVICEFILE` names does not exist.
    #[error("service file \"{}\" not found", .file.display())]
    NoFile {
        /// The service file.
        file: PathBuf,
    },
    /// A file could not be read.
    #[error("could not read service file \"{}\": {cause}", .file.display())]
    Unreadable {
        /// The service file.
        file: PathBuf,
        /// What the system says.
        cause: String,
    },
    /// A line is invalid.
    #[error("syntax error in service file \"{}\", line {line}: {cause}", .file.display())]
    Syntax {
        /// The service file.
        file: PathBuf,
        /// The number of the line, from 1.
        line: usize,
        /// What is wrong.
        cause: String,
    },
}

/// The settings of a service: from the user's file, or else from the system's.
pub(super) fn find(
    service: &str,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<(String, String)>, ServiceError> {
    let variable = |name| environment(name).filter(|value| !value.is_empty());
    let named = variable("PGSERVICEFILE").map(PathBuf::from);
    if let Some(file) = named.as_ref().filter(|file| !file.exists()) {
        let file = file.clone();
        return Err(ServiceError::NoFile { file });
    }
    let users = named.or_else(|| Some(Path::new(&variable("HOME")?).join(".pg_service.conf")));
    let systems = variable("PGSYSCONFDIR").map(|path| Path::new(&path).join("pg_service.conf"));
    for file in [users, systems].into_iter().flatten() {
        if let Some(settings) = read(service, &file)? {
            return Ok(settings);
        }
    }
    Err(ServiceError::NotFound {
        service: service.to_owned(),
    })
}

/// The settings of a service in a file, if the file defines it.
fn read(service: &str, file: &Path) -> Result<Option<Vec<(String, String)>>, ServiceError> {
    let text = match regular_file::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(ServiceError::Unreadable {
                file: file.to_owned(),
                cause: error.to_string(),
            });
        }
    };
    let mut settings = None;
    for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let wrong = |cause: String| ServiceError::Syntax {
            file: file.to_owned(),
            line: number + 1,
            cause,
        };
        let line = match str::from_utf8(line) {
            Ok(line) => line.trim(),
            Err(_) if settings.is_some() => return Err(wrong("it is not UTF-8".to_owned())),
            // Another service's settings may have any encoding.
            Err(_) => continue,
        };
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            if settings.is_some() {
                // The next service begins.
                break;
            }
            if name.strip_suffix(']') == Some(service) {
                settings = Some(Vec::new());
            }
        } else if let Some(settings) = &mut settings {
            let Some((keyword, value)) = line.split_once('=') else {
                return Err(wrong("a keyword lacks its \"=\"".to_owned()));
            };
            if keyword == "service" {
                let cause = "nested service specifications not supported";
                return Err(wrong(cause.to_owned()));
            }
            let checked = check_keyword(keyword);
            checked.map_err(|error: ConnInfoError| wrong(error.to_string()))?;
            settings.push((keyword.to_owned(), value.to_owned()));
        }
    }
    Ok(settings)
}
