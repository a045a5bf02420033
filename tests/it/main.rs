//! The specification, as one test binary: every test is named after what it proves.

mod aggregation;
mod idle;
mod initialization;
mod postmaster;
mod supervision;
mod supervision_properties;
mod support;
