//! The disks of a guest, on both sides: what a device calls, and what replication does with it.
//!
//! A [`DiskSet`] has the writable disks of one machine. Its owner opens it; a device gets its [`Disk`] from
//! it, and replication the handle of its role: [`PrimaryDisks`] or [`BackupDisks`]. *Replicated* disks have an image on each host: a
//! write goes to the local image at once and into the log, which travels with the epoch; the backup
//! writes it to a journal and from there to its image. *Shared* disks have one image that both hosts
//! reach: writes are held in memory until their epoch is released. Why it is like that:
//! `docs/design/disks.md`.
//!
//! Rooms: `image` (an image, its map and its storage: what both sides have), `primary` (devices, log, held
//! writes), `backup` (journal, destage). `primary` and `backup` do not know each other.
//!
//! What must not be done here: deciding who runs the guest, or waiting for the network in a call of
//! [`Disk`].

mod backup;
mod epoch_writes;
mod error;
mod image;
mod primary;
mod set;
#[cfg(test)]
mod tests;
mod thread;

pub use backup::BackupDisks;
pub use error::DiskError;
pub use image::{DiskMode, Storage};
pub use primary::{Disk, PrimaryDisks};
pub use set::DiskSet;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::core::disk::{DiskSyncPlan, DiskWrite};
use crate::ids::EpochId;

/// Is told that something may go on. It is called from threads of the disks, and must not call them.
pub type Callback = Arc<dyn Fn() + Send + Sync>;
/// Is told how something ended, once, possibly before the call that got it returns.
pub type Completion = Box<dyn FnOnce(Result<(), DiskError>) + Send>;

/// A disk to be put into a set.
pub struct DiskSpec {
    /// Its name, equal on both hosts.
    pub name: String,
    /// Its image. A shared one is not locked yet.
    pub storage: Box<dyn Storage>,
    /// Where its image is.
    pub mode: DiskMode,
    /// The file of its dirty-block map; not used for shared disks.
    pub map_path: PathBuf,
}

/// Limits of a set (R5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskLimits {
    /// Writes that are in memory, logged or held, at which devices must stop taking requests.
    pub log_bytes_max: u64,
    /// Both files of the journal together.
    pub journal_bytes_max: u64,
    /// The journal is brought to the images at least so often.
    pub destage_interval: Duration,
    /// The journal is brought to the images when it has so many bytes.
    pub destage_bytes: u64,
    /// Marks of written blocks are kept at least so long: a block in steady use is not marked anew again
    /// and again.
    pub marks_kept: Duration,
    /// What one [`PrimaryDisks::sync_some`] copies at most.
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

/// What a synchronisation will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncPlan {
    /// For each disk of the set, in order.
    pub disks: Vec<DiskSyncPlan>,
    /// How much will be copied, beside what the guest writes meanwhile.
    pub bytes: u64,
}

/// A piece of a synchronisation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SyncStep {
    /// To be sent, in order.
    pub writes: Vec<DiskWrite>,
    /// What is left after them.
    pub bytes_left: u64,
}

/// The disk writes of an epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SealedDisks {
    /// In the order in which the guest did them.
    pub writes: Vec<DiskWrite>,
    /// The guest flushed: the backup may acknowledge the epoch only once it has it durably.
    pub flush: bool,
    /// Shared images durably have the writes of all epochs up to this one: the backup may forget them.
    pub written_through: EpochId,
}

/// What the disks of a set keep for the other side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskCounts {
    /// Writes in memory on the side that runs the guest, in bytes.
    pub log_bytes: u64,
    /// What the synchronisation has still to copy, in bytes.
    pub copy_bytes_left: u64,
    /// What the backup's journal holds, in bytes.
    pub journal_bytes: u64,
    /// Writes of shared disks in the backup's memory, in bytes.
    pub backup_held_bytes: u64,
    /// Blocks that are marked in the maps, in bytes.
    pub marked_bytes: u64,
}
