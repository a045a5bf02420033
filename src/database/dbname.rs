//! A database name as a configuration key takes it: a name, not a connection string.

use serde::de::{Deserialize as _, Deserializer, Error as _};

use super::conninfo::ConnInfo;

/// Reads a database name.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    let dbname = String::deserialize(deserializer)?;
    if ConnInfo::is_instead_of_name(&dbname) {
        let message = "it must be a database name, not a connection string";
        return Err(D::Error::custom(message));
    }
    if dbname.is_empty() || dbname.contains('\0') {
        let message = "it must not be empty, or contain NUL";
        return Err(D::Error::custom(message));
    }
    Ok(Some(dbname))
}
