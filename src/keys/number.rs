//! Numbers as configuration keys spell them: within bounds, and 0 where it means never.

use serde::de::{Deserialize as _, Deserializer, Error};

/// Reads a number that is at least 1.
pub(crate) fn positive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let number = usize::deserialize(deserializer)?;
    if number == 0 {
        return Err(D::Error::custom("it must be at least 1"));
    }
    Ok(number)
}

/// Reads a number that is at least 1 and at most `MAX`.
pub(crate) fn at_most<'de, const MAX: usize, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<usize, D::Error> {
    let number = usize::deserialize(deserializer)?;
    if !(1..=MAX).contains(&number) {
        let message = format_args!("it must be at least 1 and at most {MAX}");
        return Err(D::Error::custom(message));
    }
    Ok(number)
}

/// A number for which 0 means "never".
pub(crate) mod zero_is_never {
    use serde::{Deserialize as _, Deserializer, Serializer};

    #[expect(clippy::ref_option, reason = "serde passes a field by reference")]
    pub(crate) fn serialize<S: Serializer>(
        number: &Option<u64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(number.unwrap_or(0))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<u64>, D::Error> {
        Ok(Some(u64::deserialize(deserializer)?).filter(|number| *number > 0))
    }
}
