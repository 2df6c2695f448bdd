//! virtio-blk (VIRTIO 1.2, section 5.2): a disk of the guest in a raw file or a block device of this host.
//!
//! [`image`] is the host's side, `request` what the guest asks for, and the device between them does one
//! request at a time, on the spot. Of replication it knows one thing: that a request is left in the ring while the
//! medium has no room.
//!
//! # Why one request a call
//!
//! A request is done, to its status byte and its place in the used ring, within one call under the device's
//! lock, and a call does one request. So a pause, which takes that lock, waits for one request at most; and
//! while it lasts no request is in flight: each is either not yet taken from the ring, or done, and the
//! queue's indices say all there is to save.

mod device;
pub mod image;
mod request;
mod state;
#[cfg(test)]
mod tests;

pub use device::{Alarm, BlkCounters, BlkDevice, ID_BYTES_MAX, Medium};
pub use image::{Image, ImageError};

/// Bytes of a sector: the unit of capacities and positions, whatever the host's disk is made of.
pub const SECTOR_BYTES: u64 = 512;
