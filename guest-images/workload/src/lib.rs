//! What the built-in guest and its clients must agree on: ports, byte patterns, protocols, options.
//!
//! The guest, the VMM's command line, the benchmarks and the tests all use these definitions, so none
//! of them can drift. Everything read from a peer is bounded. What must not be done here: I/O, clocks,
//! or anything that only one side needs.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod counter;
pub mod disk;
pub mod http;
pub mod options;
pub mod pacing;
pub mod pattern;

/// TCP port of the `stream` workload (HTTP/1.1, see [`http`]).
pub const STREAM_PORT: u16 = 8000;
/// TCP port of the `counter` workload (see [`counter`]).
pub const COUNTER_PORT: u16 = 8001;
/// TCP port of the `echo` workload: every byte comes back.
pub const ECHO_PORT: u16 = 8002;

/// Connections the guest serves at the same time on [`STREAM_PORT`].
pub const STREAM_CONNECTIONS_MAX: usize = 32;
/// Connections the guest serves at the same time on [`COUNTER_PORT`].
pub const COUNTER_CONNECTIONS_MAX: usize = 16;
/// Connections the guest serves at the same time on [`ECHO_PORT`].
pub const ECHO_CONNECTIONS_MAX: usize = 8;
