//! Tests of the program, in one binary: every test is named after what it proves.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that is surprised fails, and some measure real time and say what they find"
)]

mod beginning;
mod bench;
mod clients;
mod configuration;
mod daemon;
mod documentation;
mod files;
mod job_examples;
mod jobs;
mod ledger;
mod monitoring;
mod program;
mod rollups;
mod schema;
mod service_manager;
mod serving;
#[expect(
    dead_code,
    reason = "the harness is the library's, which needs more of it"
)]
#[path = "../../../tests/it/support/mod.rs"]
mod support;
