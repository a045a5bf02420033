//! What has changed between two snapshots, for a client that knows the first one. Pure: the time comes with the snapshot.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::snapshot::{ServerSnapshot, Snapshot, WorkerSnapshot};

/// How far the time of a worker's last success may be from what the client knows. A worker that cycles more often is
/// mentioned this often, or whenever changes are sent if that is less often.
const BEAT: Duration = Duration::from_secs(5);

/// How far a time may be from what the client reckons from the snapshot before, in seconds.
const TOLERANCE: f64 = 0.5;

/// The workers that a client knows; `None` before it was sent a snapshot.
#[derive(Debug, Default)]
pub(super) struct Known(Option<HashMap<Id, Seen>>);

/// A worker's slot and generation.
type Id = (usize, u64);

#[derive(Debug)]
struct Seen {
    worker: WorkerSnapshot,
    at: Instant,
    last_success: Option<Instant>,
}

/// The changes since the snapshot before.
#[derive(Debug, Serialize)]
pub(super) struct Changes<'s> {
    version: &'s str,
    healthy: bool,
    reached: &'s str,
    server: Option<&'s ServerSnapshot>,
    shutdown: Option<&'s str>,
    /// Workers that are new, or that have changed in more than their last success.
    workers: Vec<&'s WorkerSnapshot>,
    /// Slot, generation, age in seconds of the last success, and cycles of workers that have changed in nothing else.
    beats: Vec<(usize, u64, f64, u64)>,
    /// Slot and generation of workers that are gone.
    gone: Vec<Id>,
}

// === impl Known ===

impl Known {
    /// What the client must be sent to know this snapshot; `None` if it knows nothing, and must be sent the whole. From then
    /// on it knows it.
    pub(super) fn changes<'s>(
        &mut self,
        snapshot: &'s Snapshot,
        now: Instant,
    ) -> Option<Changes<'s>> {
        let Some(known) = &mut self.0 else {
            let workers = snapshot.workers.iter();
            let seen = workers.map(|worker| (id(worker), Seen::new(worker, now)));
            self.0 = Some(seen.collect());
            return None;
        };
        let (mut workers, mut beats) = (Vec::new(), Vec::new());
        for worker in &snapshot.workers {
            match known.get_mut(&id(worker)) {
                Some(seen) if seen.is_still(worker, now) => {
                    if let Some(age) = seen.beat(worker, now) {
                        beats.push((worker.slot, worker.generation, age, worker.cycles));
                    }
                }
                _ => {
                    known.insert(id(worker), Seen::new(worker, now));
                    workers.push(worker);
                }
            }
        }
        let mut gone = Vec::new();
        if known.len() > snapshot.workers.len() {
            let there: HashSet<_> = snapshot.workers.iter().map(id).collect();
            gone.extend(known.keys().filter(|id| !there.contains(*id)));
            known.retain(|id, _| there.contains(id));
        }
        Some(Changes {
            version: &snapshot.version,
            healthy: snapshot.healthy,
            reached: &snapshot.reached,
            server: snapshot.server.as_ref(),
            shutdown: snapshot.shutdown.as_deref(),
            workers,
            beats,
            gone,
        })
    }
}

fn id(worker: &WorkerSnapshot) -> Id {
    (worker.slot, worker.generation)
}

// === impl Seen ===

impl Seen {
    fn new(worker: &WorkerSnapshot, at: Instant) -> Self {
        Self {
            worker: worker.clone(),
            at,
            last_success: success(worker, at),
        }
    }

    /// `true` if the client can reckon everything but the last success.
    fn is_still(&self, worker: &WorkerSnapshot, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        let known = &self.worker;
        let is_near = |expected: f64, found: f64| (expected - found).abs() <= TOLERANCE;
        let starts = match (known.next_start_seconds, worker.next_start_seconds) {
            (Some(then), Some(wait)) => is_near((then - elapsed).max(0.0), wait),
            (then, wait) => then.is_none() && wait.is_none(),
        };
        let job = match (&known.job, &worker.job) {
            (Some(then), Some(job)) => {
                then.state == job.state
                    && then.why == job.why
                    && is_near(then.state_seconds + elapsed, job.state_seconds)
            }
            (then, job) => then.is_none() && job.is_none(),
        };
        known.state == worker.state
            && known.healthy == worker.healthy
            && known.restarts == worker.restarts
            && known.consecutive_failures == worker.consecutive_failures
            && known.last_error == worker.last_error
            && known.figures == worker.figures
            && job
            && known.last_success_seconds.is_some() == worker.last_success_seconds.is_some()
            && is_near(known.state_seconds + elapsed, worker.state_seconds)
            && starts
    }

    /// The age of the last success, if the client takes it for much older than it is.
    fn beat(&mut self, worker: &WorkerSnapshot, now: Instant) -> Option<f64> {
        let success = success(worker, now)?;
        let known = self.last_success?;
        if success.saturating_duration_since(known) < BEAT {
            return None;
        }
        self.last_success = Some(success);
        worker.last_success_seconds
    }
}

fn success(worker: &WorkerSnapshot, now: Instant) -> Option<Instant> {
    let age = Duration::try_from_secs_f64(worker.last_success_seconds?).ok()?;
    now.checked_sub(age)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::State;

    fn worker(slot: usize, state: State, age: f64) -> WorkerSnapshot {
        let json = serde_json::json!({
            "name": format!("w{slot}"), "slot": slot, "generation": 1, "state": state, "state_seconds": 0.0,
            "healthy": true, "has_been_ready": true, "restarts": 0, "cycles": 1, "consecutive_failures": 0,
            "last_error": null, "last_success_seconds": age, "figures": {}, "next_start_seconds": null,
        });
        serde_json::from_value(json).unwrap()
    }

    fn snapshot(workers: Vec<WorkerSnapshot>) -> Snapshot {
        let json = serde_json::json!({
            "version": "1", "healthy": true, "reached": "recovery finished", "server": null, "shutdown": null, "workers": [],
        });
        let mut snapshot: Snapshot = serde_json::from_value(json).unwrap();
        snapshot.workers = workers;
        snapshot
    }

    /// How many workers changed, how many only had a success, how many are gone.
    fn counts(changes: &Changes<'_>) -> (usize, usize, usize) {
        (
            changes.workers.len(),
            changes.beats.len(),
            changes.gone.len(),
        )
    }

    #[test]
    fn an_idle_fleet_is_a_beat_each_in_five_seconds_and_nothing_between() {
        let begin = Instant::now();
        let mut known = Known::default();
        let fleet = |state_seconds: f64| {
            let mut workers: Vec<_> = (0..100)
                .map(|slot| worker(slot, State::Napping, 0.5))
                .collect();
            for worker in &mut workers {
                worker.state_seconds = state_seconds;
            }
            snapshot(workers)
        };
        assert!(known.changes(&fleet(0.0), begin).is_none());
        for second in 1..=12_u8 {
            let now = begin + Duration::from_secs(second.into());
            let beats = if second % 5 == 0 { 100 } else { 0 };
            let found = fleet(second.into());
            assert_eq!(
                counts(&known.changes(&found, now).unwrap()),
                (0, beats, 0),
                "{second}"
            );
        }
    }

    #[test]
    fn what_changed_is_sent_once_and_what_is_gone_is_said_once() {
        let now = Instant::now();
        let mut known = Known::default();
        let first = snapshot(vec![
            worker(0, State::Napping, 0.0),
            worker(1, State::Napping, 0.0),
        ]);
        assert!(known.changes(&first, now).is_none());
        let later = snapshot(vec![
            worker(0, State::Running, 0.0),
            worker(2, State::Starting, 0.0),
        ]);
        assert_eq!(counts(&known.changes(&later, now).unwrap()), (2, 0, 1));
        assert_eq!(counts(&known.changes(&later, now).unwrap()), (0, 0, 0));
    }
}
