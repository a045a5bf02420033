//! The name of a database, as a key has it: a name, and no connection string.

use serde::de::{Deserialize as _, Deserializer, Error as _};

use super::conninfo::ConnInfo;

/// Reads one.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    let dbname = String::deserialize(deserializer)?;
    if ConnInfo::is_instead_of_name(&dbname) {
        let message = "it must be the name of a database, and no connection string";
        return Err(D::Error::custom(message));
    }
    if dbname.is_empty() || dbname.contains('\0') {
        let message = "it must not be empty, or contain NUL";
        return Err(D::Error::custom(message));
    }
    Ok(Some(dbname))
}
