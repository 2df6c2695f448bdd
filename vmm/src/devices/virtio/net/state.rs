//! The saved state of a network device. What the backend is like (its link, its queues) belongs to the
//! host and is not in it.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Version of [`NetState`].
pub(super) const VERSION: u16 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NetState {
    pub(super) mac: [u8; 6],
    /// Whether frames come with headers: it says what the frames of an epoch look like.
    pub(super) headers: bool,
    /// The link as the guest was told.
    pub(super) link_up: bool,
    /// The guest's address, for the announcement after a promotion.
    pub(super) address: Option<Ipv4Addr>,
}
