//! Keys whose deltas cannot be added: which keys they are, and when each is tried again. Pure.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use super::halving::{Finding, KnownKey, KnownKeys, Treatment};
use super::judge::Fate;
use crate::backoff::doubled;
use crate::functions::relation::Relation;
use crate::functions::runner::Waiting;

/// Largest number of keys that are remembered. Others are found out again in each cycle, in another order each time.
const KNOWN_MAX: usize = 100_000;

/// The longest wait until a key is tried again, unless the naptime is longer.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// The longest such wait for a key whose total another client holds.
const HELD_MAX: Duration = Duration::from_secs(1);

/// How many keys are tried again in one cycle, unless they can be folded by now.
const RETRIES: usize = 50;

/// The keys that are left out.
#[derive(Debug, Default)]
pub(super) struct Poison {
    known: HashMap<i64, Known>,
    /// The key that is told, and why its deltas wait.
    told: Option<(i64, String)>,
    /// The keys that were tried last could be folded, so all others are tried again as well.
    is_mended: bool,
    /// How many keys were tried again in this cycle.
    retried: usize,
}

/// A key that is left out.
#[derive(Debug)]
struct Known {
    since: Instant,
    attempts: u32,
    again_at: Instant,
    fate: Fate,
    /// It was to be tried again in this cycle, and nothing was found of it so far.
    is_gone: bool,
}

/// What a cycle has moved away.
#[derive(Debug, Default)]
pub(super) struct Moved {
    deltas: u64,
    keys: HashSet<i64>,
    /// The first key, and why its deltas could not be added.
    key: String,
    why: String,
}

// === impl Moved ===

impl Moved {
    /// Counts a delta that was moved away.
    pub(super) fn add(&mut self, finding: &Finding, why: String) {
        if self.deltas == 0 {
            self.key.clone_from(&finding.key);
            self.why = why;
        }
        self.deltas += 1;
        self.keys.insert(finding.hash);
    }

    pub(super) fn deltas(&self) -> u64 {
        self.deltas
    }

    pub(super) fn why(&self) -> &str {
        &self.why
    }

    /// The deltas and their keys; `None` if there are none.
    pub(super) fn tell(&self, queue: &Relation) -> Option<String> {
        let Self { deltas, key, .. } = self;
        let others = match self.keys.len().checked_sub(1)? {
            0 => String::new(),
            1 => " and another key".to_owned(),
            n => format!(" and {n} other keys"),
        };
        Some(format!(
            "{deltas} deltas of {queue} with the key {key}{others}"
        ))
    }
}

// === impl Poison ===

impl Poison {
    /// `true` if no key is left out.
    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// For how long a key is known to fail.
    pub(super) fn since(&self, hash: i64, now: Instant) -> Duration {
        let known = self.known.get(&hash);
        known.map_or(Duration::ZERO, |known| now - known.since)
    }

    /// What becomes of each key in the next fold. Those that are to be tried again count as gone until they are found.
    pub(super) fn treatments(&mut self, now: Instant) -> KnownKeys {
        let mut room = if self.is_mended {
            usize::MAX
        } else {
            RETRIES.saturating_sub(self.retried)
        };
        let each = self.known.iter_mut().map(|(hash, known)| {
            let is_due = (self.is_mended || known.again_at <= now) && room > 0;
            let treatment = match known.fate {
                Fate::Moves(_) => Treatment::Move,
                _ if is_due => Treatment::Retry,
                _ => Treatment::Wait,
            };
            if treatment == Treatment::Retry {
                room -= 1;
                self.retried += 1;
                known.is_gone = true;
            }
            let sqlstate = match &known.fate {
                Fate::Moves(sqlstate) => Some(sqlstate.clone()),
                _ => None,
            };
            KnownKey {
                hash: *hash,
                treatment,
                sqlstate,
            }
        });
        KnownKeys(each.collect())
    }

    /// Records that a key has failed. Tells the latest reason, unless it differs from the one before in numbers only, as one
    /// that counts deltas does: the report does not change with each attempt.
    pub(super) fn add(
        &mut self,
        finding: &Finding,
        fate: Fate,
        why: String,
        naptime: Duration,
        now: Instant,
    ) {
        self.is_mended = false;
        let max = match fate {
            Fate::Held => HELD_MAX,
            _ => RETRY_MAX.max(naptime),
        };
        self.tells(finding, &fate, &why);
        let is_full = self.known.len() >= KNOWN_MAX;
        match self.known.get_mut(&finding.hash) {
            Some(known) => {
                known.attempts = known.attempts.saturating_add(1);
                known.again_at = now + doubled(naptime.min(max), known.attempts, max);
                known.fate = fate;
                known.is_gone = false;
            }
            None if is_full => {}
            None => {
                let known = Known {
                    since: now,
                    attempts: 0,
                    again_at: now + naptime.min(max),
                    fate,
                    is_gone: false,
                };
                self.known.insert(finding.hash, known);
            }
        }
    }

    /// Takes a failure in for the report, unless that tells another key.
    fn tells(&mut self, finding: &Finding, fate: &Fate, why: &str) {
        let before = match &self.told {
            Some((told, _)) if *told != finding.hash => return,
            told => told.as_ref().map(|(_, before)| before),
        };
        match fate {
            Fate::Waits if !finding.key.is_empty() => {
                let key = &finding.key;
                let told = format!("with the key {key} cannot be added and are waiting: {why}");
                if before.is_none_or(|before| !words(before).eq(words(&told))) {
                    self.told = Some((finding.hash, told));
                }
            }
            // What kept it before no longer does.
            Fate::Held => self.told = None,
            _ => {}
        }
    }

    /// Forgets a key, because it was folded, or because what cannot be added of it was moved away.
    pub(super) fn forget(&mut self, hash: i64) {
        self.known.remove(&hash);
        if self.told.as_ref().is_some_and(|(told, _)| *told == hash) {
            self.told = None;
        }
    }

    /// Forgets a key that could be folded after all. What kept it may have kept others too: all of them are tried again.
    pub(super) fn is_folded(&mut self, hash: i64) {
        let known = self.known.get(&hash);
        self.is_mended |= known.is_some_and(|known| known.fate != Fate::Held);
        self.forget(hash);
    }

    /// `true` if deltas of some keys are to be moved away.
    pub(super) fn moves(&self) -> bool {
        let mut known = self.known.values();
        known.any(|known| matches!(known.fate, Fate::Moves(_)))
    }

    /// Records that a cycle has ended.
    pub(super) fn ends_cycle(&mut self) {
        self.retried = 0;
    }

    /// The keys that were to be tried again in this cycle, and of which nothing was found.
    pub(super) fn gone(&self) -> Vec<i64> {
        let gone = self.known.iter().filter(|(_, known)| known.is_gone);
        gone.map(|(hash, _)| *hash).collect()
    }

    /// Records that a key that seemed to be gone still has deltas in the queue.
    pub(super) fn is_there(&mut self, hash: i64) {
        if let Some(known) = self.known.get_mut(&hash) {
            known.is_gone = false;
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// `true` if other clients hold the totals of some keys.
    pub(super) fn has_held(&self) -> bool {
        self.known.values().any(|known| known.fate == Fate::Held)
    }

    /// The report: the first key and why its deltas wait; and the number of other keys.
    pub(super) fn tell(&self, queue: &Relation) -> Option<Waiting> {
        let waiting = self.known.values();
        let waiting = waiting.filter(|known| known.fate != Fate::Held).count();
        let Some((_, told)) = &self.told else {
            let why = format!("deltas of {queue} cannot be added and are waiting");
            let more = format!(": those of {waiting} keys");
            return (waiting > 0).then_some(Waiting { why, more });
        };
        let more = match waiting.saturating_sub(1) {
            0 => String::new(),
            1 => "; so do those of another key".to_owned(),
            n => format!("; so do those of {n} other keys"),
        };
        let why = format!("the deltas of {queue} {told}");
        Some(Waiting { why, more })
    }
}

/// The words of a reason that are no numbers.
fn words(reason: &str) -> impl Iterator<Item = &str> {
    let words = reason.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.filter(|word| !word.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::functions::rollup::halving::{PartFailure, What};

    const NAPTIME: Duration = Duration::from_secs(1);

    fn finding(hash: i64) -> Finding {
        Finding {
            hash,
            what: What::Failed,
            key: format!("({hash})"),
            failure: PartFailure::default(),
        }
    }

    fn fails(poison: &mut Poison, hash: i64, now: Instant) {
        poison.add(&finding(hash), Fate::Waits, "no".to_owned(), NAPTIME, now);
    }

    fn treatment(poison: &mut Poison, now: Instant) -> Option<Treatment> {
        let known = poison.treatments(now).0;
        known.first().map(|one| one.treatment)
    }

    #[test]
    fn a_key_is_tried_again_ever_less_often_and_the_latest_reason_is_told() {
        let (mut poison, mut now) = (Poison::default(), Instant::now());
        let mut waits = Vec::new();
        let queue: Relation = "s.q".parse().unwrap();
        for attempt in 0..9 {
            // A number that grows is no other reason.
            let (why, told) = if attempt < 5 {
                (format!("no {attempt}"), "no 0")
            } else {
                (format!("no v{attempt}"), &*format!("no v{attempt}"))
            };
            poison.add(&finding(1), Fate::Waits, why, NAPTIME, now);
            fails(&mut poison, 2, now);
            let told = format!(
                "the deltas of s.q with the key (1) cannot be added and are waiting: {told}"
            );
            assert_eq!(poison.tell(&queue).unwrap().why, told);
            poison.forget(2);
            let begin = now;
            while treatment(&mut poison, now) != Some(Treatment::Retry) {
                now += NAPTIME;
            }
            waits.push((now - begin).as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        poison.add(&finding(1), Fate::Held, String::new(), NAPTIME, now);
        assert_eq!(poison.tell(&queue), None, "another client holds its total");
        poison.forget(1);
        assert!(poison.is_empty());
    }

    #[test]
    fn a_key_of_which_nothing_is_found_is_gone_until_it_is_found() {
        let (mut poison, now) = (Poison::default(), Instant::now());
        for hash in [1, 2] {
            fails(&mut poison, hash, now);
        }
        assert_eq!(poison.gone(), Vec::<i64>::new());
        poison.treatments(now + NAPTIME);
        fails(&mut poison, 2, now);
        assert_eq!(poison.gone(), [1]);
        poison.is_there(1);
        assert_eq!(poison.gone(), Vec::<i64>::new());
    }

    #[test]
    fn after_one_key_was_folded_all_others_are_tried_again_at_once() {
        let (mut poison, now) = (Poison::default(), Instant::now());
        for hash in 0..1_000 {
            fails(&mut poison, hash, now);
        }
        let retries = |poison: &mut Poison, now| {
            let known = poison.treatments(now).0;
            let retried = known.iter().filter(|one| one.treatment == Treatment::Retry);
            retried.count()
        };
        assert_eq!(retries(&mut poison, now), 0);
        assert_eq!(retries(&mut poison, now + NAPTIME), RETRIES);
        assert_eq!(retries(&mut poison, now + NAPTIME), 0);
        poison.ends_cycle();
        assert_eq!(retries(&mut poison, now + NAPTIME), RETRIES);
        poison.is_folded(7);
        assert_eq!(retries(&mut poison, now), 999);
        fails(&mut poison, 8, now);
        assert_eq!(retries(&mut poison, now), 0);
    }
}
