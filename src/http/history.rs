//! What each worker's figures were in the last hour, a value a minute. Kept in memory while a Postmaster is served.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior};

use crate::background_worker::WorkerId;
use crate::context::{Figure, Report};
use crate::postmaster::{PostmasterHandle, WorkerStatus};

/// How far apart two values are.
const MINUTE: Duration = Duration::from_secs(60);

/// How many values are kept of each figure: an hour, and the value that it began with.
const KEPT: usize = 61;

/// The figures that every worker has.
const CYCLES: &str = "cycles";
const FAILURES: &str = "failures in a row";

/// The values of one worker's figures, oldest first.
#[derive(Default)]
struct Kept(BTreeMap<&'static str, (Kind, VecDeque<i64>)>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Count,
    Level,
}

/// The history of the workers of one Postmaster. Clones share it.
#[derive(Clone, Default)]
pub(super) struct History(Arc<Mutex<Shared>>);

#[derive(Default)]
struct Shared {
    is_sampled: bool,
    workers: BTreeMap<WorkerId, Kept>,
}

/// One figure over the last hour.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Series {
    pub(super) name: &'static str,
    /// `true` if the values are what was added in each minute.
    per_minute: bool,
    /// Oldest first. The last one of a level is of this moment, that of a count of the last minute that is over.
    values: Vec<i64>,
}

// === impl Kept ===

impl Kept {
    fn push(&mut self, report: &Report) {
        let is_known = !self.0.is_empty();
        for (name, kind, value) in figures(report) {
            // A count that is new to a worker that is known was 0 before.
            let begin = if kind == Kind::Count && is_known {
                vec![0]
            } else {
                Vec::new()
            };
            let (_, values) = self.0.entry(name).or_insert_with(|| (kind, begin.into()));
            if values.len() == KEPT {
                values.pop_front();
            }
            values.push_back(value);
        }
    }
}

/// The figures of a worker at one moment.
fn figures(report: &Report) -> impl Iterator<Item = (&'static str, Kind, i64)> {
    let whole = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let cycles = (CYCLES, Kind::Count, whole(report.cycles));
    let failures = i64::from(report.consecutive_failures);
    let failures = (FAILURES, Kind::Level, failures);
    let own = report
        .figures
        .iter()
        .map(move |(name, figure)| match figure {
            Figure::Count(count) => (*name, Kind::Count, whole(*count)),
            Figure::Level(level) | Figure::Coming { seconds: level, .. } => {
                (*name, Kind::Level, *level)
            }
        });
    [cycles, failures].into_iter().chain(own)
}

/// What was added to a count in each minute that is over; in the first one, up to now.
fn minutes(earlier: Vec<i64>, now: i64) -> Vec<i64> {
    match &earlier[..] {
        [] => vec![now],
        [first] => vec![now - first],
        _ => earlier.windows(2).map(|pair| pair[1] - pair[0]).collect(),
    }
}

// === impl History ===

impl History {
    /// Samples once a minute from now on, until the Postmaster is gone. Must be called within an actix system.
    pub(super) fn sample(&self, postmaster: PostmasterHandle) {
        if std::mem::replace(&mut self.shared().is_sampled, true) {
            return;
        }
        let history = self.clone();
        actix_web::rt::spawn(async move {
            let mut minutes = tokio::time::interval_at(Instant::now(), MINUTE);
            minutes.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = minutes.tick() => {}
                    _ = postmaster.exited() => return,
                }
                let Ok(workers) = postmaster.workers().await else {
                    return;
                };
                history.push(&workers.registered);
            }
        });
    }

    fn push(&self, workers: &[WorkerStatus]) {
        let known = &mut self.shared().workers;
        // They are in the order of their handles.
        known.retain(|id, _| workers.binary_search_by_key(id, |one| one.id).is_ok());
        for worker in workers {
            known.entry(worker.id).or_default().push(&worker.report);
        }
    }

    /// The figures of a worker over the last hour, up to this report.
    pub(super) fn of(&self, id: WorkerId, report: &Report) -> Vec<Series> {
        let shared = self.shared();
        let kept = shared.workers.get(&id);
        let series = figures(report).map(|(name, kind, now)| {
            let earlier = kept.and_then(|kept| kept.0.get(name));
            let earlier = earlier.map(|(_, values)| values.iter().copied().collect());
            Series {
                name,
                per_minute: kind == Kind::Count,
                values: match kind {
                    Kind::Count => minutes(earlier.unwrap_or_default(), now),
                    Kind::Level => earlier.into_iter().flatten().chain([now]).collect(),
                },
            }
        });
        series.collect()
    }

    fn shared(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Progress;

    #[test]
    fn a_count_is_shown_by_the_minute_and_a_level_as_it_is_for_an_hour() {
        let (history, id) = (History::default(), WorkerId::new(0, 1));
        let progress = Progress::default();
        let series = |name: &str| {
            let found = history.of(id, &progress.report());
            let found = found.into_iter().find(|one| one.name == name);
            found.map(|series| series.values)
        };
        let minute_is_over = || {
            let report = progress.report();
            history
                .shared()
                .workers
                .entry(id)
                .or_default()
                .push(&report);
        };
        progress.count("rows", 7);
        assert_eq!(series("rows"), Some(vec![7]));
        for minute in 0..100 {
            progress.count("rows", minute);
            progress.level("queue", i64::try_from(minute).unwrap());
            minute_is_over();
        }
        let hour: Vec<_> = (40..100).collect();
        assert_eq!(series("rows"), Some(hour));
        let levels: Vec<_> = (39..100).chain([99]).collect();
        assert_eq!(series("queue"), Some(levels));
        assert_eq!(series("cycles"), Some(vec![0; 60]));
        progress.count("late", 3);
        minute_is_over();
        assert_eq!(series("late"), Some(vec![3]));
    }
}
