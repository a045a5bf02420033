//! What is measured, scenario by scenario.

mod backlog;
mod fleet;
mod idle;
mod jobs;
mod latency;
mod rollup;
mod stream;

use std::time::Duration;

pub(super) use self::backlog::{BACKLOG_STEPS, backlog};
pub(super) use self::fleet::{fleet, steps as fleet_steps};
pub(super) use self::idle::{idle, steps as idle_steps};
pub(super) use self::jobs::jobs;
pub(super) use self::latency::latency;
pub(super) use self::rollup::{COUNTERS_STEPS, ROLLUP_STEPS, counters, rollup};
pub(super) use self::stream::{held, stream};
use super::report::Better;

const SECOND: Duration = Duration::from_secs(1);

const PER_SECOND: (&str, Better) = ("/s", Better::Higher);
const SECONDS: (&str, Better) = ("s", Better::Lower);
const MILLISECONDS: (&str, Better) = ("ms", Better::Lower);
const MICROSECONDS: (&str, Better) = ("µs", Better::Lower);
const BYTES: (&str, Better) = ("B", Better::Lower);
const MEGABYTES: (&str, Better) = ("MB", Better::Lower);
const ROWS: (&str, Better) = ("rows", Better::Lower);

/// The value that `percent` percent of the values do not exceed; 0 if there are none. Sorts the values.
fn percentile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let index = (values.len() * percent).div_ceil(100).saturating_sub(1);
    values.get(index).copied().unwrap_or(0.0)
}
