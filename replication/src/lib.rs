//! Checkpoint replication of a running virtual machine.
//!
//! The crate has four rooms:
//!
//! - [`core`]: decides. Two cores without sockets, threads, clocks or KVM; input in, effects out.
//! - [`ports`]: the traits an embedding VMM implements, and [`arbiter`]: who may run alone.
//! - [`disk`]: the disks' files on both sides: log, journal, dirty-block map.
//! - [`runtime`]: obeys. Drives the core with real threads, links and clocks.
#![forbid(unsafe_code)]

pub mod arbiter;
pub mod core;
pub mod disk;
mod epoch_queue;
pub mod fingerprint;
pub mod ids;
pub mod page_set;
pub mod ports;
pub mod runtime;

pub use fingerprint::Fingerprint;
pub use ids::{EpochId, Generation, PAGE_BYTES, PageIndex};
pub use page_set::{MemoryLayout, PageSet, Region};
