//! The sans-IO cores: they decide what the primary and the backup do. No sockets, threads, clocks
//! or KVM here. Time comes in as a [`Duration`](std::time::Duration) since an arbitrary origin. The
//! simulator in `replication/tests` runs exactly this code.

pub mod backup;
pub mod codec;
pub mod disk;
pub mod epoch;
pub mod heartbeats;
pub mod message;
pub mod policy;
pub mod primary;
mod promise;
pub mod start;
pub mod throttle;
mod timers;
pub mod violation;

#[cfg(test)]
mod model;
#[cfg(test)]
mod testing;
