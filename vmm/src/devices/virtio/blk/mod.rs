//! virtio-blk (VIRTIO 1.2, section 5.2): a disk of the guest in a raw file or a block device of this host.
//!
//! [`image`] is the host's side, `request` what the guest asks for. The device takes requests from the ring
//! and answers them, `workers` are the threads that call the storage in between, and `flight` knows what is
//! there meanwhile. A thread that has done something has the device answer, if that is free: this saves a guest that does
//! one request after the other a way between threads. Of replication the room knows two things: that a request is left in
//! the ring while the medium has no room, and that a flush which this host has done is answered once the other host has, too.
//! Until then it is in flight; it is no sign of this host's storage hanging.
//!
//! # Storage may hang, a pause may not
//!
//! Storage is called on the disk's own threads. They hold no lock that a pause takes, and never touch guest
//! memory: the data of a write are copied before its thread gets them, those of a read after it has left
//! them. So a pause waits for a bounded piece of copying. It may find requests *in flight*: taken from the
//! ring, and not answered. Their heads are part of the state, because the queue's indices do not have them.
//! The side that goes on reads their chains from the ring again and has them done again; the driver must
//! leave chain and buffers alone until it gets them back. The side that saved the state and goes on itself
//! does nothing: its requests are still under way.
//!
//! # Why what is done twice is done right
//!
//! - *A write* has the same data, and no other result. It may come later than an overlapping one that was
//!   made after it. The driver cannot rely on another order as long as it has no answer. (Linux may change a page
//!   that is being written. Then it is written once more anyhow.)
//! - *A write of a replicated disk* may be on the old host's image, and in the log of the very epoch whose
//!   state has it in flight. An answered one is in that epoch or an earlier one: it is logged before it is
//!   answered.
//! - *A read* has not touched guest memory before it is answered.
//! - *A flush* is done on a thread when the writes that were answered before it are over, so a flush of
//!   the image covers them. Done again, it covers them on the new host: what was answered is on its image.
//! - *A discard, or zeros*, leave zeros whether once or twice.
//! - *A driver that knows no flushes* has each write made safe before it is answered, on the new host too:
//!   its features are part of the state.
//!
//! # What the storage fails
//!
//! A request that the storage fails may be *held* ([`BlkDevice::hold_failed`]) until somebody says what becomes of it: the
//! guest sees an I/O error, or it is done again, here or on the host that takes over. It is in flight until then, and part of
//! the state.
//!
//! # Resets, rings that are broken, states that lie
//!
//! A driver's reset does not wait for storage. Requests of before are *disowned*: what no thread has begun
//! is dropped, and nobody hears of the rest. A write that is under way may still reach the disk, so requests
//! of after the reset wait in the ring until all of them are over. (VIRTIO 1.2, section 2.4, lets a device take its time
//! to reset; others stop the whole machine for it.) The same holds when a queue is taken back, and when the driver has
//! broken its ring: then requests that are done later are not answered. A driver that offers a chain which
//! is in flight already has broken the ring.
//!
//! Heads in a state are numbers that somebody else chose. They are checked to be different ones of a queue;
//! their chains are parsed like any others, and limits hold for them. Requests in flight are bounded by the
//! descriptors of the queue and by 4 MiB and one request of data.

mod counters;
mod device;
mod flight;
mod held;
pub mod image;
mod request;
mod stall;
mod state;
#[cfg(test)]
mod tests;
mod work;
mod workers;

pub use counters::BlkCounters;
pub use device::{ANSWER_EVENT, Alarm, BlkDevice, DiskNews, ID_BYTES_MAX};
pub use held::FailedRequests;
pub use image::{Image, ImageError};
pub use work::Medium;

/// How long a request may wait before the host's storage is said to hang.
pub const STALLED_AFTER: std::time::Duration = stall::PATIENCE;

/// Bytes of a sector: the unit of capacities and positions, whatever the host's disk is made of.
pub const SECTOR_BYTES: u64 = 512;
