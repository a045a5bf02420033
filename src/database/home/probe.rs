//! Probes, the recurring questions of workers at home, and how several of them become one statement.

use std::error::Error;
use std::sync::Arc;

use tokio_postgres::types::{FromSql, Type, accepts};

/// A probe, and the waiter for its answer.
pub(super) struct Asked<W> {
    pub(super) probe: Arc<Probe>,
    pub(super) waiter: W,
}

/// A recurring question of a worker: for each of some kinds of row, where there is one.
#[derive(Debug)]
pub(super) struct Probe {
    /// Its number, which no other probe has.
    pub(super) number: u64,
    /// The name of its worker, fit for a comment.
    pub(super) prober: String,
    /// Scalar expressions of type `tid`.
    pub(super) scalars: Vec<String>,
}

/// The answer to a probe: the value of each of its scalars.
pub(super) type Scalars = Vec<Option<Tid>>;

/// The place of a row in its table (`ItemPointerData`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tid {
    /// The number of the block, from 0.
    pub(crate) block: u32,
}

/// Returns one statement that asks several probes, each given as its prober and scalars. It returns one row with one
/// array of `tid`, and begins with a comment that names the probers.
pub(crate) fn probe_all<'q>(probes: impl Iterator<Item = (&'q str, &'q [String])>) -> String {
    let (probers, scalars): (Vec<_>, Vec<_>) = probes.unzip();
    let (probers, scalars) = (probers.join(", "), scalars.concat().join(", "));
    format!("/* bgworker: {probers} */ SELECT ARRAY[{scalars}]")
}

// === impl Tid ===

impl<'a> FromSql<'a> for Tid {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        // The number of the block, then the number of the row in the block.
        let (block, _) = raw.split_first_chunk().ok_or("a tid has six bytes")?;
        let block = u32::from_be_bytes(*block);
        Ok(Self { block })
    }

    accepts!(TID);
}
