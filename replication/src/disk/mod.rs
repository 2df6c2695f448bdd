//! The disks of a guest, on both sides: what a device calls, and what replication does with it.
//!
//! A [`DiskSet`] has the writable disks of one machine. Its owner opens it, a device gets its [`Disk`] from
//! it, and replication uses it as [`Disks`](crate::ports::Disks). *Replicated* disks have an image on each
//! host. A write goes to the local image at once and into the log, which travels with the epoch. The backup
//! writes it to a journal and from there to its image. *Shared* disks have one image that both hosts reach.
//! Their writes are held in memory until their epoch is released. `docs/design/disks.md` gives the reasons.
//!
//! Modules: `image` (an image, its map and its storage, used on both sides), `primary` (devices, log, held
//! writes), `backup` (journal, destage). `primary` and `backup` do not know each other.
//!
//! What must not be done here: deciding who runs the guest, or waiting for the network in a call of
//! [`Disk`].

mod backup;
mod digest;
mod epoch_writes;
mod image;
mod place;
mod primary;
mod set;
#[cfg(test)]
mod tests;
mod thread;
mod verify;

pub use image::{Changed, DiskMode, Storage};
pub use primary::{Disk, GuestFlush};
pub use set::{DiskSet, history};
pub use verify::{Differing, VERIFY_RANGES_MAX, Verified, VerifyOptions};

use std::path::PathBuf;
use std::time::Duration;

pub use crate::ports::DiskError;

/// A disk to put into a set.
pub struct DiskSpec {
    /// Its name, equal on both hosts.
    pub name: String,
    /// Its image. A shared image is not locked yet.
    pub storage: Box<dyn Storage>,
    /// Where its image is.
    pub mode: DiskMode,
    /// The file of its dirty-block map. Not used for shared disks.
    pub map_path: PathBuf,
}

/// Limits of a set (R5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskLimits {
    /// Bytes of logged and held writes in memory at which devices must stop taking requests.
    pub log_bytes_max: u64,
    /// Size of both files of the journal together.
    pub journal_bytes_max: u64,
    /// The journal is applied to the images at least this often.
    pub destage_interval: Duration,
    /// The journal is applied to the images when it reaches this size.
    pub destage_bytes: u64,
    /// Marks of written blocks are kept at least this long, so that a block in steady use is not
    /// marked again and again.
    pub marks_kept: Duration,
    /// The most that one step of a synchronisation copies.
    pub sync_slice_bytes: u64,
}

impl Default for DiskLimits {
    fn default() -> Self {
        Self {
            log_bytes_max: 32 << 20,
            journal_bytes_max: 1 << 30,
            destage_interval: Duration::from_millis(500),
            destage_bytes: 16 << 20,
            marks_kept: Duration::from_secs(1),
            sync_slice_bytes: 8 << 20,
        }
    }
}
