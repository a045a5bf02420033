//! File descriptors: workers' own connections leave some of them free.
//!
//! A fleet of such workers would otherwise take every one: no endpoint would answer, and no shared connection could be opened
//! again.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;

use super::error::DatabaseError;

/// The largest number of descriptors that own connections leave free; of a low limit, they leave a quarter.
const KEPT_MAX: u64 = 64;

/// Returns an error if another connection of a worker's own would take a descriptor that is kept for the rest of the process.
pub(super) fn leave_room() -> Result<(), DatabaseError> {
    // A new descriptor is the lowest that is free.
    let Some((next, limit)) = next().zip(limit()) else {
        return Ok(());
    };
    let kept = KEPT_MAX.min(limit / 4);
    if next + kept < limit {
        return Ok(());
    }
    Err(DatabaseError::NoDescriptors { limit, kept })
}

fn next() -> Option<u64> {
    let file = File::open("/dev/null").ok()?;
    file.as_raw_fd().try_into().ok()
}

/// The soft limit; `None` if there is none, or the system does not say.
fn limit() -> Option<u64> {
    limit_in(&fs::read_to_string("/proc/self/limits").ok()?)
}

fn limit_in(limits: &str) -> Option<u64> {
    let limit = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    limit?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_the_first_number() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max processes             7                    7                    processes \n\
                      Max open files            1024                 524288               files     \n";
        assert_eq!(limit_in(limits), Some(1024));
        assert_eq!(
            limit_in("Max open files  unlimited  unlimited  files"),
            None
        );
        assert_eq!(limit_in(""), None);
    }
}
