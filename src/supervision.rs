//! Deciding: which worker starts, stops, is signalled or forgotten, and when to look again.
//!
//! The counterpart of the postmaster's server loop without the server and the loop. There is no
//! I/O here, no clock, no task, and no type of a runtime: who calls passes the time and carries
//! out what is decided. That is why every rule can be tested exactly, in microseconds.
//!
//! # The contract
//!
//! 1. When something happened, call the input that says so ([`register`], [`terminate`],
//!    [`reached`], [`worker_ready`], [`worker_exited`], [`sighup`], [`shut_down`]).
//! 2. Then call [`poll_action`] until it returns `None`, and carry out each [`Action`].
//!    Breaking off early is allowed: what is left comes with the next call.
//! 3. Then wait until [`poll_timeout`] and call [`handle_timeout`]. One such call is one *tick*,
//!    a turn of the server loop: only a tick starts workers, and it starts at most
//!    [`Limits::starts_per_tick`]. A deadline that has passed already means: as soon as everything
//!    else had its turn.
//!
//! An extra call of any of the last three does no harm.
//!
//! # A worker's life
//!
//! ```text
//!             register                 Start                   worker_ready
//!  (nothing) ──────────► Registered ──────────► Starting ─────────────────────► Running
//!                                                 ▲ │  worker_exited                │
//!                                           Start │ ├───────────────────────────────┘
//!                         Parked ─────────────────┘ │
//!                           ▲ ▲                     │
//!    the time has come ─────┘ └── database away ────┤
//!                       BackingOff ◄────────────────┤ failed, crashed
//!                                                   │
//!                                                   └──► unregistered: finished, stopped, or
//!                                                        failed for the last time
//! ```
//!
//! A running worker that was asked to stop is `Stopping`; whatever it then says, it was stopped. If
//! that was for its own sake, it is unregistered. If it was *parked*, since the server fell below
//! its level, or stopped for a *reset*, since another worker that shares something crashed, it comes
//! back, one per tick, as soon as it may.
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
