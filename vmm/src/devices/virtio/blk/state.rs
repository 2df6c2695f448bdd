//! The saved state of a disk: what the guest was told about it, and which of its requests are not answered. The
//! content of the disk is not in it. What must not be done here: believe it.

use serde::{Deserialize, Serialize};

use super::request::QUEUE_SIZE;

/// Version of [`BlkState`].
pub(super) const VERSION: u16 = 2;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BlkState {
    pub(super) capacity_sectors: u64,
    pub(super) read_only: bool,
    /// Heads of the chains that were taken from the ring and have not come back, in that order.
    pub(super) in_flight: Vec<u16>,
}

impl BlkState {
    /// Whether the heads can be those of one queue.
    pub(super) fn has_possible_heads(&self) -> bool {
        let mut seen = [false; QUEUE_SIZE as usize];
        self.in_flight.iter().all(|head| {
            let seen = seen.get_mut(usize::from(*head));
            seen.is_some_and(|seen| !std::mem::replace(seen, true))
        })
    }
}
