//! Probes that are asked together: whose come at the same moment travel as one statement.
//!
//! To look whether there is anything to do costs a server little; to be woken for it, to begin and to end a
//! transaction costs much more. Decides which probes make a statement, and keeps that as it is for as long as they
//! come together, since it is prepared. Pure: sends nothing, and knows nobody who waits.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::probe::{Asked, Probe, probe_all};

/// How many probes one statement has at most: so that it takes tenths of a millisecond where tables are small, and
/// locks no more tables than it must.
pub(super) const PROBES_MAX: usize = 32;

/// So many times in a row most of a group may be missing; the next time it is a group no more.
const MISSES_MAX: u8 = 8;

/// What is to be sent as one statement: one row of one array of `tid`.
pub(super) struct Batch<W> {
    pub(super) sql: Arc<str>,
    group: u64,
    /// It holds one probe, so no other probe can make it fail.
    pub(super) is_of_one: bool,
    /// Each with the place of its first scalar in the array.
    pub(super) asked: Vec<(usize, Asked<W>)>,
}

/// Which probes are asked together.
pub(super) struct Groups {
    max: usize,
    groups: HashMap<u64, Group>,
    group_of: HashMap<u64, u64>,
    /// Probes of groups that have failed. Each is asked alone until it has been answered.
    suspects: HashSet<u64>,
    /// The statements of groups that are no more.
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
    /// Of so many probes at most.
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

    /// Makes statements of probes that were asked at one moment.
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

    /// Sees to it that each of these has a group, and that groups which come together become fewer if they can.
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

    /// Whether a group, some of which are present, may be put together with others: if all of it is. One whose
    /// probes no longer come together is dissolved.
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

    /// Whether a batch may be sent again as it is.
    pub(super) fn has<W>(&self, batch: &Batch<W>) -> bool {
        self.groups.contains_key(&batch.group)
    }

    /// A batch was answered with values: its probes are as good as any.
    pub(super) fn succeeded<W>(&mut self, batch: &Batch<W>) {
        if !self.suspects.is_empty() {
            for (_, asked) in &batch.asked {
                self.suspects.remove(&asked.probe.number);
            }
        }
    }

    /// A batch of several has failed, and whose probe it was is to be found out: until it has been answered,
    /// each of them is asked alone.
    pub(super) fn failed<W>(&mut self, batch: Batch<W>) -> Vec<Asked<W>> {
        if let Some(group) = self.groups.get(&batch.group) {
            let numbers = group.probes.iter().map(|probe| probe.number);
            self.suspects.extend(numbers);
        }
        self.dissolve(batch.group);
        let asked: Vec<_> = batch.asked.into_iter().map(|(_, asked)| asked).collect();
        // It may have been a group no more when it failed, and they are in others by now.
        for asked in &asked {
            let number = asked.probe.number;
            self.suspects.insert(number);
            if let Some(group) = self.group_of.get(&number) {
                self.dissolve(*group);
            }
        }
        asked
    }

    /// A batch took too long: from now on groups are half as large.
    pub(super) fn shrink(&mut self) {
        self.max = (self.max / 2).max(1);
    }

    /// Nobody asks this any more.
    pub(super) fn forget(&mut self, probe: u64) {
        self.suspects.remove(&probe);
        if let Some(group) = self.group_of.get(&probe) {
            self.dissolve(*group);
        }
    }

    /// The statements that nobody will send any more.
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
