//! The specification, as one test binary: the name of each test says what it proves.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test that is surprised fails, and some measure real time and say what they find"
)]

mod broadcast;
mod claims;
mod configuration;
mod connection;
mod conninfo;
mod declarations;
mod documentation;
mod dynamic;
mod early_blocks;
mod embedded;
mod embedding;
mod events;
mod exactly_once;
mod examples;
mod failover;
mod faults;
mod fold;
mod functions;
mod held_snapshot;
mod home;
mod http;
mod idle;
mod initialization;
mod isolation;
mod job_health;
mod job_history;
mod job_identity;
mod job_in_rust;
mod job_looks;
mod job_sessions;
mod job_trouble;
mod jobs;
mod layout;
mod libpq;
mod lost_runs;
mod mistakes;
mod names;
mod one_snapshot;
mod ownership;
mod page;
mod pooler;
mod postmaster;
mod remedies;
mod rollup;
mod rollup_chaos;
mod rollup_poison;
mod rollup_ranges;
mod rollup_refusals;
mod rollup_trouble;
mod rollup_view;
mod room;
mod schedule;
mod search_path;
mod server_state;
mod server_version;
mod sessions;
mod sighup;
mod statement_errors;
mod stopping;
mod suggestions;
mod supervision;
mod supervision_model;
mod supervision_properties;
mod support;
mod three_functions;
mod tidy;
mod tls;
mod triggers;
mod truncation;
mod vacuum;
