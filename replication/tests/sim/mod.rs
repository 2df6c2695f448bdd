//! A seeded simulation of whole clusters. The hosts run exactly the library's core; what is
//! simulated is what surrounds it: the runtime's work, the guest, links, disks, the arbiter,
//! strangers, and time.
//!
//! Invariants, checked at every step:
//! - R1: what a primary releases is acked by the backup of that session, or it runs under its own grant;
//! - R1 for disks: what reaches the shared disk is acked, or its writer runs under its own grant, and has the
//!   lock; frames of an epoch do not leave before its writes to the shared disk; no epoch with disk writes is
//!   acked before they are in the journal; the guest is told of a flush only once its backup's epoch would
//!   survive a loss of power; what is said to be durable is on the image;
//! - R2: a committed epoch on a backup is exactly the primary's snapshot: memory, machine state, disks; so
//!   are the disks of a promoted side, and those of a backup that crashes or loses power, after replaying its
//!   journal; nobody is promoted whose disks failed before their copy was whole;
//! - R3: the same comparison, after captures that failed: their pages come with the next epoch;
//! - R4: only the holder of a generation speaks, and no older one says anything new after a newer one
//!   has spoken; nor does it repeat anything, but where a link was closed between living hosts; in the end
//!   only the holder runs the guest;
//! - R9: who calls its guest protected has a backup that has just looked at the arbiter;
//! - R10: nobody copies a stranger's guest or disks; nobody is fenced and no copy is given up unless the arbiter
//!   has granted the guest to another one;
//! - the client hears outputs 1, 2, 3 …, none missing, none with two values;
//! - progress: when the faults are over, the guest runs, protected if there is a second host. Of what has
//!   no deadline yet, and so hangs for ever, this is promised only once somebody has ended the process.

pub mod backup_host;
pub mod checks;
pub mod disk;
pub mod events;
pub mod faults;
pub mod gate;
pub mod guest;
pub mod hangs;
pub mod host_disk;
pub mod liar;
pub mod link;
pub mod network;
pub mod outside;
pub mod primary_host;
pub mod rng;
pub mod seeds;
pub mod starts;
pub mod world;

use std::time::Duration;

pub use world::{Report, Settings, World};

pub const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
