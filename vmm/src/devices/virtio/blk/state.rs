//! The saved state of a disk: what the guest was told about it. Its content is not in it.

use serde::{Deserialize, Serialize};

/// Version of [`BlkState`].
pub(super) const VERSION: u16 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BlkState {
    pub(super) capacity_sectors: u64,
    pub(super) read_only: bool,
}
