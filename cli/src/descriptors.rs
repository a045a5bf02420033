//! How many file descriptors the process may have.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What most systems allow.
const USUAL: u64 = 1024;

/// Raises the limit as far as the system allows without privileges, and returns it.
pub(crate) fn raise_limit() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return USUAL;
    };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    }
}
