//! Groups of probes: those that arrive at the same moment are sent as one statement.
//!
//! Looking for work costs a server little; being woken for it, and beginning and ending a transaction, costs much more.
//! This module decides which probes make a statement, and keeps the statement as it is as long as they come together,
//! since it is prepared. It is pure: it sends nothing, and knows no waiter.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::probe::{Asked, Probe, probe_all};

/// Largest number of probes in one statement, so that it takes tenths of a millisecond where tables are small, and
/// locks no more tables than it must.
pub(super) const PROBES_MAX: usize = 32;

/// How often in a row fewer than half of a group may show up. The next time, the group is dissolved.
const MISSES_MAX: u8 = 8;

/// Probes to be sent as one statement, which returns one row with one array of `tid`.
pub(super) struct Batch<W> {
    pub(super) sql: Arc<str>,
    group: u64,
    /// `true` if it holds one probe, so that no other probe can make it fail.
    pub(super) is_of_one: bool,
    /// Each probe that was asked, with the place of its first scalar in the array.
    pub(super) asked: Vec<(usize, Asked<W>)>,
}

/// Which probes are asked together.
pub(super) struct Groups {
    max: usize,
    groups: HashMap<u64, Group>,
    group_of: HashMap<u64, u64>,
    /// Probes of groups that have failed. Each is asked alone until it has been answered.
    suspects: HashSet<u64>,
    /// The statements of dissolved groups.
    dissolved: Vec<Arc<str>>,
    next: u64,
}

struct Group {
    sql: Arc<str>,
    probes: Vec<Arc<Probe>>,
    misses: u8,
}

// === impl Groups ===

impl Groups {
    /// Creates groups of `max` probes at most.
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            groups: HashMap::new(),
            group_of: HashMap::new(),
            suspects: HashSet::new(),
            dissolved: Vec::new(),
            next: 0,
        }
    }

    /// Makes statements of probes that were asked at the same moment.
    pub(super) fn gather<W>(&mut self, asked: Vec<Asked<W>>) -> Vec<Batch<W>> {
        self.regroup(&asked);
        let mut batches: Vec<Batch<W>> = Vec::new();
        for asked in asked {
            let number = asked.probe.number;
            let group = self.group_of[&number];
            let Group { sql, probes, .. } = &self.groups[&group];
            let before = probes.iter().take_while(|one| one.number != number);
            let place = before.map(|one| one.scalars.len()).sum();
            match batches.iter_mut().find(|batch| batch.group == group) {
                Some(batch) => batch.asked.push((place, asked)),
                None => batches.push(Batch {
                    sql: Arc::clone(sql),
                    group,
                    is_of_one: probes.len() == 1,
                    asked: vec![(place, asked)],
                }),
            }
        }
        batches
    }

    /// Gives each of these a group, and merges groups that come together if that makes them fewer.
    fn regroup<W>(&mut self, asked: &[Asked<W>]) {
        let present: HashMap<_, _> = asked
            .iter()
            .map(|asked| (asked.probe.number, &asked.probe))
            .collect();
        let groups: HashSet<_> = present
            .keys()
            .filter_map(|probe| self.group_of.get(probe).copied())
            .collect();
        let growing: Vec<_> = groups
            .into_iter()
            .filter(|group| self.may_grow(*group, &present))
            .collect();
        let is_loose = |groups: &Self, probe| !groups.group_of.contains_key(probe);
        let loose = present.keys().filter(|one| is_loose(self, one));
        let loose = loose.filter(|one| !self.suspects.contains(one)).count();
        let grown = growing.iter().map(|group| self.groups[group].probes.len());
        let all = loose + grown.sum::<usize>();
        if all.div_ceil(self.max) < growing.len() + loose.div_ceil(self.max) {
            for group in growing {
                self.dissolve(group);
            }
        }
        let loose = present.iter().filter(|(number, _)| is_loose(self, number));
        let mut loose: Vec<_> = loose.map(|(_, probe)| Arc::clone(probe)).collect();
        loose.sort_by_key(|probe| probe.number);
        let is_suspect = |probe: &Arc<Probe>| self.suspects.contains(&probe.number);
        let (suspects, others): (Vec<_>, Vec<_>) = loose.into_iter().partition(is_suspect);
        for probe in suspects {
            self.group(vec![probe]);
        }
        for probes in others.chunks(self.max) {
            self.group(probes.to_vec());
        }
    }

    /// Returns `true` if a group with probes present may be merged with others: if all of it is present, it is not
    /// full, and none of its probes is a suspect. Dissolves a group whose probes no longer come together.
    fn may_grow(&mut self, number: u64, present: &HashMap<u64, &Arc<Probe>>) -> bool {
        let Some(group) = self.groups.get_mut(&number) else {
            return false;
        };
        let probes = &group.probes;
        let here = probes
            .iter()
            .filter(|one| present.contains_key(&one.number));
        let here = here.count();
        if 2 * here >= probes.len() {
            group.misses = 0;
        } else if group.misses == MISSES_MAX {
            self.dissolve(number);
            return false;
        } else {
            group.misses += 1;
        }
        let is_suspect = |one: &Arc<Probe>| self.suspects.contains(&one.number);
        let is_whole = here == probes.len();
        is_whole && here < self.max && !probes.iter().any(is_suspect)
    }

    /// Returns `true` if the group of a batch still exists, so that the batch may be sent again as it is.
    pub(super) fn has<W>(&self, batch: &Batch<W>) -> bool {
        self.groups.contains_key(&batch.group)
    }

    /// Records that a batch was answered with values: its probes are no longer suspects.
    pub(super) fn succeeded<W>(&mut self, batch: &Batch<W>) {
        if !self.suspects.is_empty() {
            for (_, asked) in &batch.asked {
                self.suspects.remove(&asked.probe.number);
            }
        }
    }

    /// Records that a batch of several probes failed. To find the probe at fault, each is asked alone until it has been
    /// answered. Returns the probes that must be asked again.
    pub(super) fn failed<W>(&mut self, batch: Batch<W>) -> Vec<Asked<W>> {
        if let Some(group) = self.groups.get(&batch.group) {
            let numbers = group.probes.iter().map(|probe| probe.number);
            self.suspects.extend(numbers);
        }
        self.dissolve(batch.group);
        let asked: Vec<_> = batch.asked.into_iter().map(|(_, asked)| asked).collect();
        // The group may have been dissolved before the batch failed: then its probes are in other groups by now.
        for asked in &asked {
            let number = asked.probe.number;
            self.suspects.insert(number);
            if let Some(group) = self.group_of.get(&number) {
                self.dissolve(*group);
            }
        }
        asked
    }

    /// Records that a batch took too long: from now on, new groups are half as large.
    pub(super) fn shrink(&mut self) {
        self.max = (self.max / 2).max(1);
    }

    /// Forgets a probe that is no longer asked.
    pub(super) fn forget(&mut self, probe: u64) {
        self.suspects.remove(&probe);
        if let Some(group) = self.group_of.get(&probe) {
            self.dissolve(*group);
        }
    }

    /// Takes the statements that will not be sent again.
    pub(super) fn take_dissolved(&mut self) -> Vec<Arc<str>> {
        std::mem::take(&mut self.dissolved)
    }

    fn group(&mut self, probes: Vec<Arc<Probe>>) {
        self.next += 1;
        for probe in &probes {
            self.group_of.insert(probe.number, self.next);
        }
        let texts = probes
            .iter()
            .map(|one| (one.prober.as_str(), one.scalars.as_slice()));
        let group = Group {
            sql: probe_all(texts).into(),
            probes,
            misses: 0,
        };
        self.groups.insert(self.next, group);
    }

    fn dissolve(&mut self, number: u64) {
        if let Some(group) = self.groups.remove(&number) {
            for probe in &group.probes {
                self.group_of.remove(&probe.number);
            }
            self.dissolved.push(group.sql);
        }
    }
}

#[cfg(test)]
mod tests;
