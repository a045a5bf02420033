//! What workers at home want to know again and again, and how several probes are one statement.

use std::error::Error;
use std::sync::Arc;

use tokio_postgres::types::{FromSql, Type, accepts};

/// A probe, and who waits for the answer.
pub(super) struct Asked<W> {
    pub(super) probe: Arc<Probe>,
    pub(super) waiter: W,
}

/// What a worker wants to know again and again: where there is a row of this kind, and of that.
#[derive(Debug)]
pub(super) struct Probe {
    /// Which it is; no other one has it.
    pub(super) number: u64,
    /// Whose it is, as a comment has it.
    pub(super) prober: String,
    /// Scalar expressions of type `tid`.
    pub(super) scalars: Vec<String>,
}

/// What a probe is answered: the value of each of its scalars.
pub(super) type Scalars = Vec<Option<Tid>>;

/// The place of a row in its table (`ItemPointerData`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tid {
    /// Which block, from 0.
    pub(crate) block: u32,
}

/// One statement that asks several probes, each the prober and the scalars: one row of one array of `tid`. It says
/// first whose they are.
pub(crate) fn probe_all<'q>(probes: impl Iterator<Item = (&'q str, &'q [String])>) -> String {
    let (probers, scalars): (Vec<_>, Vec<_>) = probes.unzip();
    let (probers, scalars) = (probers.join(", "), scalars.concat().join(", "));
    format!("/* bgworker: {probers} */ SELECT ARRAY[{scalars}]")
}

// === impl Tid ===

impl<'a> FromSql<'a> for Tid {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        // The number of the block, then that of the row in it.
        let (block, _) = raw.split_first_chunk().ok_or("a tid has six bytes")?;
        let block = u32::from_be_bytes(*block);
        Ok(Self { block })
    }

    accepts!(TID);
}
