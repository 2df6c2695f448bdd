//! The saved state of a network device. What the backend is like (its link, its queues) belongs to the
//! host and is not in it.

use serde::{Deserialize, Serialize};
use understudy_replication::output::announce::Addresses;

/// Version of [`NetState`].
pub(super) const VERSION: u16 = 3;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NetState {
    /// Whether frames come with headers: it says what the frames of an epoch look like.
    pub(super) headers: bool,
    /// What the guest was told of the largest packets.
    pub(super) mtu_bytes: Option<u16>,
    /// The link as the guest was told.
    pub(super) link_up: bool,
    /// The guest was asked to announce itself, and has not answered.
    pub(super) guest_is_asked: bool,
    /// The device's own address and what is behind it, for the announcement after a promotion.
    pub(super) addresses: Addresses,
}
