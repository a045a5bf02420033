//! A snapshot as OpenMetrics text. Counts nothing itself.

use std::collections::BTreeSet;
use std::fmt;
use std::time::SystemTime;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::snapshot::{ServerSnapshot, Snapshot, WorkerSnapshot};
use super::state::State;
use crate::background_worker::StartTime;
use crate::context::Histogram;
use crate::database::ServerState;

/// The content type of the text.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge<f64, std::sync::atomic::AtomicU64>>;
type Counters = Family<Labels, Counter>;

/// How long something took, for the encoder.
#[derive(Debug)]
struct Seconds(Histogram);

/// Renders a snapshot.
pub(super) fn render(snapshot: &Snapshot) -> String {
    let mut registry = Registry::with_prefix("bgworker");
    let version = Info::new([("version", snapshot.version.clone())]);
    registry.register("build", "The version of bgworker", version);
    let one = |value: bool| vec![(Labels::new(), f64::from(u8::from(value)))];
    let help = "Whether every background worker is healthy";
    gauge(&mut registry, "healthy", help, one(snapshot.healthy));
    let help = "Whether the server accepts writes";
    let is_unknown = |server: &ServerSnapshot| server.state == ServerState::Unknown.to_string();
    let is_primary = snapshot.reached == StartTime::RecoveryFinished.to_string()
        && !snapshot.server.as_ref().is_some_and(is_unknown);
    gauge(&mut registry, "recovery_finished", help, one(is_primary));
    server(&mut registry, snapshot);
    workers(&mut registry, snapshot);
    jobs(&mut registry, snapshot);
    figures(&mut registry, snapshot);
    for (name, histogram) in &snapshot.histograms {
        let help = format!("How long it took: {}", name.replace('_', " "));
        registry.register_with_unit(*name, help, Unit::Seconds, Seconds(histogram.clone()));
    }

    let mut text = String::new();
    // Writing to a text cannot fail.
    let _ = encode(&mut text, &registry);
    text
}

/// Registers the state of the workers, and what is counted of each.
fn workers(registry: &mut Registry, snapshot: &Snapshot) {
    let counter = |registry: &mut Registry, name, help, value: fn(&WorkerSnapshot) -> u64| {
        let family = Counters::default();
        for worker in &snapshot.workers {
            family.get_or_create(&of(worker)).inc_by(value(worker));
        }
        registry.register(name, help, family);
    };
    let each = |value: &dyn Fn(&WorkerSnapshot) -> Option<f64>| -> Vec<(Labels, f64)> {
        let workers = snapshot.workers.iter();
        workers
            .filter_map(|worker| Some((of(worker), value(worker)?)))
            .collect()
    };
    let help = "How many background workers are in each state";
    let counts = State::all().map(|state| {
        let workers = snapshot.workers.iter();
        let count = workers.filter(|worker| worker.state == state).count();
        (vec![("state", state.to_string())], count as f64)
    });
    gauge(registry, "workers", help, counts.collect());
    let help = "Whether the background worker is healthy";
    let points = each(&|worker| Some(f64::from(u8::from(worker.healthy))));
    gauge(registry, "worker_healthy", help, points);
    let help = "When a cycle of the background worker last succeeded; of a job, when its last run that was done ended";
    let now = unix_time();
    let points = each(&|worker| Some(now - worker.last_success_seconds?));
    let name = "worker_last_success_timestamp_seconds";
    gauge(registry, name, help, points);
    let help = "Failures of the background worker since its last success";
    let points = each(&|worker| Some(f64::from(worker.consecutive_failures)));
    gauge(registry, "worker_consecutive_failures", help, points);
    let help = "How often the background worker was restarted";
    counter(registry, "worker_restarts", help, |worker| worker.restarts);
    let help = "Cycles of the background worker that succeeded";
    counter(registry, "worker_cycles", help, |worker| worker.cycles);
}

/// Registers the server's state, since when it has that state, and why it cannot be asked.
fn server(registry: &mut Registry, snapshot: &Snapshot) {
    let Some(server) = &snapshot.server else {
        return;
    };
    let help = "What the server was last seen to be: away, standby or primary; or unknown";
    let states = ["away", "standby", "unknown", "primary"].map(|state| {
        let is_it = f64::from(u8::from(server.state == state));
        (vec![("state", state.to_owned())], is_it)
    });
    gauge(registry, "server_state", help, states.to_vec());
    let help = "When the server entered its current state";
    let since = unix_time() - server.state_seconds;
    let name = "server_state_since_timestamp_seconds";
    gauge(registry, name, help, vec![(Labels::new(), since)]);
    let help = "Why the server is away, or cannot be asked";
    let reason = server.reason.iter();
    let reason = reason.map(|reason| (vec![("reason", reason.clone())], 1.0));
    gauge(registry, "server_trouble", help, reason.collect());
}

/// Registers the state of each job.
fn jobs(registry: &mut Registry, snapshot: &Snapshot) {
    let states = snapshot.workers.iter().filter_map(|worker| {
        let state = worker.job.as_ref()?.state.clone();
        let mut labels = of(worker);
        labels.push(("state", state));
        Some((labels, 1.0))
    });
    gauge(
        registry,
        "job_state",
        "The state of the job",
        states.collect(),
    );
}

/// Registers a family of gauges.
fn gauge(registry: &mut Registry, name: &str, help: &str, points: Vec<(Labels, f64)>) {
    let family = Gauges::default();
    for (labels, value) in points {
        family.get_or_create(&labels).set(value);
    }
    registry.register(name, help, family);
}

/// Registers what the workers' functions report, one family for each name.
fn figures(registry: &mut Registry, snapshot: &Snapshot) {
    let workers = &snapshot.workers;
    let names: BTreeSet<_> = workers.iter().flat_map(|one| one.figures.keys()).collect();
    for name in names {
        let (counts, levels) = (Counters::default(), Gauges::default());
        let is_count = workers.iter().any(|one| one.counts.contains(&**name));
        for worker in workers {
            match worker.figures.get(name) {
                Some(value) if is_count => {
                    let count = counts.get_or_create(&of(worker));
                    count.inc_by(value.unsigned_abs());
                }
                Some(value) => {
                    levels.get_or_create(&of(worker)).set(*value as f64);
                }
                None => {}
            }
        }
        // OpenMetrics reserves this ending for counters.
        let metric = if name == "total" { "sum" } else { name };
        let metric = format!("worker_{metric}");
        let help = format!("{name}, as the function of the background worker reports it");
        if is_count {
            registry.register(metric, help, counts);
        } else {
            registry.register(metric, help, levels);
        }
    }
}

/// The time of day, which Prometheus compares with.
fn unix_time() -> f64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "there is no other clock of the time of day"
    )]
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap_or_default().as_secs_f64()
}

fn of(worker: &WorkerSnapshot) -> Labels {
    vec![("worker", worker.name.clone())]
}

// === impl Seconds ===

impl EncodeMetric for Seconds {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let bounds = Histogram::BOUNDS_MS.map(|bound| bound / 1_000.0);
        let bounds = bounds.into_iter().chain([f64::INFINITY]);
        let counts = self.0.counts().iter().copied();
        let buckets: Vec<_> = bounds.zip(counts.clone()).collect();
        let sum = self.0.sum().as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(sum, counts.sum(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}
