//! A disk's image on this host and the files beside it. Both sides use them.
//!
//! What must not be done here: knowing which side this host is.

mod bits;
mod drive;
pub(super) mod header;
pub(super) mod map;
mod sectors;
pub(super) mod stamp;
mod storage;
mod thrift;

pub(super) use bits::BitSet;
pub(super) use drive::{Drive, Drives, all_turns, shared};
pub use storage::{Changed, DiskMode, Storage};
