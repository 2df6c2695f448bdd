//! The saved state of a virtio-mmio device: registers, queues, and the device's own part. Plain data and
//! its checks; nothing here touches a live device.

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueState, QueueT};

use crate::devices::{DeviceError, DeviceState};
use crate::memory::GuestRam;

/// Version of [`MmioState`].
pub(super) const VERSION: u16 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MmioState {
    pub(super) registers: Registers,
    pub(super) interrupt_status: u32,
    pub(super) config_generation: u32,
    pub(super) queues: Vec<SavedQueue>,
    pub(super) device: DeviceState,
}

/// The registers that the driver writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Registers {
    pub(super) device_features_select: u32,
    pub(super) driver_features_select: u32,
    pub(super) driver_features: u64,
    pub(super) queue_select: u32,
    pub(super) status: u32,
}

/// [`QueueState`], serializable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedQueue {
    max_size: u16,
    next_avail: u16,
    next_used: u16,
    event_idx_enabled: bool,
    size: u16,
    ready: bool,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
}

impl From<&Queue> for SavedQueue {
    fn from(queue: &Queue) -> Self {
        let state = queue.state();
        Self {
            max_size: state.max_size,
            next_avail: state.next_avail,
            next_used: state.next_used,
            event_idx_enabled: state.event_idx_enabled,
            size: state.size,
            ready: state.ready,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
        }
    }
}

impl From<SavedQueue> for QueueState {
    fn from(saved: SavedQueue) -> Self {
        Self {
            max_size: saved.max_size,
            next_avail: saved.next_avail,
            next_used: saved.next_used,
            event_idx_enabled: saved.event_idx_enabled,
            size: saved.size,
            ready: saved.ready,
            desc_table: saved.desc_table,
            avail_ring: saved.avail_ring,
            used_ring: saved.used_ring,
        }
    }
}

/// Rebuilds the queues of `device`, whose largest sizes are `sizes`. Queues in use (`live`) must lie in
/// guest RAM.
pub(super) fn restore_queues(
    device: &str,
    sizes: &[u16],
    saved: &[SavedQueue],
    live: bool,
    memory: &GuestRam,
) -> Result<Vec<Queue>, DeviceError> {
    let invalid = |what: String| DeviceError::Invalid {
        device: device.to_owned(),
        what,
    };
    if saved.len() != sizes.len() {
        return Err(invalid(format!(
            "{} queues, the device has {}",
            saved.len(),
            sizes.len()
        )));
    }
    let restore_one = |(index, (saved, size)): (usize, (&SavedQueue, &u16))| {
        if saved.max_size != *size {
            return Err(invalid(format!(
                "queue {index} of at most {} descriptors, the device has {size}",
                saved.max_size
            )));
        }
        let queue = Queue::try_from(QueueState::from(*saved))
            .map_err(|error| invalid(format!("queue {index}: {error}")))?;
        if live && queue.ready() && !queue.is_valid(memory) {
            return Err(invalid(format!("queue {index} is not in guest memory")));
        }
        Ok(queue)
    };
    saved
        .iter()
        .zip(sizes)
        .enumerate()
        .map(restore_one)
        .collect()
}
