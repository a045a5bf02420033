//! Keys whose deltas cannot be added: which keys they are, and when each is tried again. Pure.

use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::doubled;
use crate::functions::relation::Relation;

/// Largest number of keys that are left out; with more, it is not the keys that are at fault.
pub(super) const POISON_MAX: usize = 100;

/// The longest wait until a key is tried again, unless the naptime is longer.
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
    /// It no longer has deltas where this cycle has looked.
    is_gone: bool,
}

// === impl Poison ===

impl Poison {
    /// The keys, as texts.
    pub(super) fn keys(&self) -> Vec<String> {
        self.0.iter().map(|one| one.key.clone()).collect()
    }

    /// `true` if there is no room for another key.
    pub(super) fn is_full(&self) -> bool {
        self.0.len() >= POISON_MAX
    }

    /// Records that a key failed. Keeps the first reason, so that the report does not change with each attempt.
    pub(super) fn add(&mut self, key: String, why: String, naptime: Duration, now: Instant) {
        match self.0.iter_mut().find(|one| one.key == key) {
            Some(one) => {
                one.attempts = one.attempts.saturating_add(1);
                one.again_at = now + doubled(naptime, one.attempts, RETRY_MAX.max(naptime));
                one.is_gone = false;
            }
            None => self.0.push(Poisoned {
                key,
                why,
                attempts: 0,
                again_at: now + naptime,
                is_gone: false,
            }),
        }
    }

    /// The keys that are to be tried again now.
    pub(super) fn due(&self, now: Instant) -> Vec<String> {
        let due = self.0.iter().filter(|one| one.again_at <= now);
        due.map(|one| one.key.clone()).collect()
    }

    /// Forgets a key, once it could be folded.
    pub(super) fn forget(&mut self, key: &str) {
        self.0.retain(|one| one.key != key);
    }

    /// Records that a key that was tried again has no deltas in some blocks. It may have some in others.
    pub(super) fn found_none(&mut self, key: &str) {
        let known = self.0.iter_mut().filter(|one| one.key == key);
        known.for_each(|one| one.is_gone = true);
    }

    /// Forgets, at the end of a cycle, the keys that were found to have no deltas and have not failed since.
    pub(super) fn forget_gone(&mut self) {
        self.0.retain(|one| !one.is_gone);
    }

    /// Forgets the keys that are due, when nothing was found to fold: they no longer have deltas.
    pub(super) fn forget_due(&mut self, now: Instant) {
        self.0.retain(|one| one.again_at > now);
    }

    /// The report: the first key, why its deltas wait, and the number of other keys.
    pub(super) fn tell(&self, queue: &Relation) -> Option<String> {
        let (first, others) = self.0.split_first()?;
        let Poisoned { key, why, .. } = first;
        let others = match others.len() {
            0 => String::new(),
            1 => "; so do those of another key".to_owned(),
            n => format!("; so do those of {n} other keys"),
        };
        Some(format!(
            "the deltas of {queue} with the key {key} cannot be added and are waiting: {why}{others}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAPTIME: Duration = Duration::from_secs(1);

    #[test]
    fn a_key_is_tried_again_ever_less_often_and_what_is_told_stays_the_same() {
        let (mut poison, mut now) = (Poison::default(), Instant::now());
        let mut waits = Vec::new();
        let queue: Relation = "s.q".parse().unwrap();
        for attempt in 0..9 {
            poison.add("(1)".to_owned(), format!("no {attempt}"), NAPTIME, now);
            let told = "the deltas of s.q with the key (1) cannot be added and are waiting: no 0";
            assert_eq!(poison.tell(&queue).as_deref(), Some(told));
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

    #[test]
    fn a_key_of_which_nothing_is_found_is_forgotten_at_the_end_of_the_cycle() {
        let (mut poison, now) = (Poison::default(), Instant::now());
        for key in ["(1)", "(2)"] {
            poison.add(key.to_owned(), "no".to_owned(), NAPTIME, now);
            poison.found_none(key);
        }
        // It was found in later blocks.
        poison.add("(2)".to_owned(), "no".to_owned(), NAPTIME, now);
        poison.forget_gone();
        assert_eq!(poison.keys(), ["(2)"]);
    }
}
