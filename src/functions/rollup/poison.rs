//! Keys whose deltas cannot be added: which they are, and when they are tried again. Pure.

use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::doubled;

/// How many keys are left out; with more of them it is not they that are at fault.
pub(super) const POISON_MAX: usize = 100;

/// The longest wait until a key is tried again.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// The keys that are left out.
#[derive(Debug, Default)]
pub(super) struct Poison(Vec<Poisoned>);

/// A key that is left out.
#[derive(Debug)]
struct Poisoned {
    key: String,
    why: String,
    attempts: u32,
    again_at: Instant,
}

// === impl Poison ===

impl Poison {
    /// The keys, as texts.
    pub(super) fn keys(&self) -> Vec<String> {
        self.0.iter().map(|one| one.key.clone()).collect()
    }

    /// Whether there is room for no other.
    pub(super) fn is_full(&self) -> bool {
        self.0.len() >= POISON_MAX
    }

    /// A key failed, for this reason. Says whether it is new.
    pub(super) fn add(
        &mut self,
        key: String,
        why: String,
        naptime: Duration,
        now: Instant,
    ) -> bool {
        let known = self.0.iter_mut().find(|one| one.key == key);
        match known {
            Some(one) => {
                one.attempts = one.attempts.saturating_add(1);
                one.again_at = now + doubled(naptime, one.attempts, RETRY_MAX.max(naptime));
                one.why = why;
                false
            }
            None => {
                self.0.push(Poisoned {
                    key,
                    why,
                    attempts: 0,
                    again_at: now + naptime,
                });
                true
            }
        }
    }

    /// Those that are to be tried again now.
    pub(super) fn due(&self, now: Instant) -> Vec<String> {
        let due = self.0.iter().filter(|one| one.again_at <= now);
        due.map(|one| one.key.clone()).collect()
    }

    /// A key could be folded, or has no deltas any more.
    pub(super) fn forget(&mut self, key: &str) {
        self.0.retain(|one| one.key != key);
    }

    /// Nothing was found to fold: those that are due have no deltas any more.
    pub(super) fn forget_due(&mut self, now: Instant) {
        self.0.retain(|one| one.again_at > now);
    }

    /// The first of them, and why.
    pub(super) fn first(&self) -> Option<(&str, &str)> {
        self.0.first().map(|one| (&*one.key, &*one.why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAPTIME: Duration = Duration::from_secs(1);

    #[test]
    fn a_key_is_tried_again_ever_less_often_and_is_new_once() {
        let (mut poison, mut now) = (Poison::default(), Instant::now());
        let mut waits = Vec::new();
        for attempt in 0..9 {
            assert_eq!(
                poison.add("(1)".to_owned(), "no".to_owned(), NAPTIME, now),
                attempt == 0
            );
            let begin = now;
            while poison.due(now).is_empty() {
                now += NAPTIME;
            }
            waits.push((now - begin).as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        poison.forget("(1)");
        assert_eq!(poison.keys(), Vec::<String>::new());
    }
}
