//! Deciding: which worker starts, stops, is signalled or forgotten, and when to look again.
//!
//! The counterpart of the postmaster's server loop, without the server and without the loop. There is
//! no I/O here, no clock, no task, and no type of a runtime: the caller passes the time in and carries
//! out what is decided. That is why every rule can be tested exactly, in microseconds.
//!
//! # The contract
//!
//! 1. When something has happened, call the input that reports it ([`register`], [`terminate`],
//!    [`reached`], [`worker_ready`], [`worker_exited`], [`sighup`], [`shut_down`]).
//! 2. Then call [`poll_action`] until it returns `None`, and carry out each [`Action`].
//!    Breaking off early is allowed: what is left comes with the next call.
//! 3. Then wait until [`poll_timeout`] and call [`handle_timeout`]. One such call is one *tick*,
//!    a turn of the server loop: only a tick starts workers, and it starts at most
//!    [`Limits::starts_per_tick`]. A deadline in the past means: as soon as everything else has had
//!    its turn.
//!
//! An extra call of any of the last three does no harm.
//!
//! # A worker's life
//!
//! ```text
//!                  register
//!                     │
//!                     ▼
//!                Registered
//!                     │ Start: a tick, and the server has come far enough
//!                     ▼
//!   ┌──────────► Starting ──── worker_ready ────► Running
//!   │                 │                              │
//!   │ Start           └──────── worker_exited ───────┤
//!   │                                                │
//!   │        ┌─────────────────┬─────────────────────┤
//!   │  failed, crashed,  parked, reset,       finished, stopped, or
//!   │  database away     database away        failed for the last time
//!   │  again                   │                     ▼
//!   │        ▼                 │                unregistered
//!   │   BackingOff             │
//!   │        │ time is up      │
//!   │        ▼                 │
//!   └───── Parked ◄────────────┘
//! ```
//!
//! A running worker that was asked to stop is `Stopping`, and counts as stopped however its main then ends.
//! If it was terminated, it is unregistered. If it was *parked*, because the server fell below its level, or
//! stopped for a *reset*, because another worker that shares something crashed, it comes back as soon as it
//! may, one worker per tick by default. `Parked` is every worker that ran before and now waits for its level
//! or its turn.
//!
//! [`register`]: StateMachine::register
//! [`terminate`]: StateMachine::terminate
//! [`reached`]: StateMachine::reached
//! [`worker_ready`]: StateMachine::worker_ready
//! [`worker_exited`]: StateMachine::worker_exited
//! [`sighup`]: StateMachine::sighup
//! [`shut_down`]: StateMachine::shut_down
//! [`poll_action`]: StateMachine::poll_action
//! [`poll_timeout`]: StateMachine::poll_timeout
//! [`handle_timeout`]: StateMachine::handle_timeout

mod action;
mod classes;
mod limits;
mod registry;
mod restart;
mod roster;
mod shutdown;
mod state_machine;
mod status;
mod sweep;

pub use action::{Action, Afterwards, Signal};
pub use limits::Limits;
pub use shutdown::Shutdown;
pub use state_machine::StateMachine;
pub use status::{Counts, RegisterError, WorkerState};
