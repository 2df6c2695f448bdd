//! How long storage keeps the guest waiting, for whoever is to act on it.
//!
//! What must not be done here: wait, for storage or for a device.

use std::sync::Arc;
use std::time::Duration;

use super::{Blocks, VirtioHandle};
use crate::devices::virtio::blk::{BlkDevice, Waiting};
use crate::devices::{Snapshot, lock};

/// The disks of a machine, watched. Clones are the same. It may outlive the machine.
#[derive(Debug, Clone)]
pub struct StorageWatch(Arc<[(String, Waiting)]>);

impl StorageWatch {
    pub(super) fn of(blocks: &Blocks) -> Self {
        let watch = |block: &VirtioHandle<BlkDevice>| {
            let block = lock(block);
            (block.name().to_owned(), block.device().waiting().clone())
        };
        Self(blocks.iter().map(watch).collect())
    }

    /// The disk whose storage has kept a request waiting for longest, and for how long; `None` if no request is in
    /// flight. More than [`STALLED_AFTER`](crate::devices::virtio::blk::STALLED_AFTER) is an alarm already.
    #[must_use]
    pub fn longest_wait(&self) -> Option<(&str, Duration)> {
        let waits = self.0.iter().filter_map(|(name, waiting)| {
            let wait = waiting.longest()?;
            Some((&**name, wait))
        });
        waits.max_by_key(|(_, wait)| *wait)
    }
}
