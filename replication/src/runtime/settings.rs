//! What both sides are told.

use std::net::SocketAddr;

use crate::core::policy::Policy;

/// Where UDP heartbeats come from and go to: a path of its own beside the logging channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeartbeatPath {
    /// Local address to bind.
    pub listen: SocketAddr,
    /// The other side's address.
    pub peer: SocketAddr,
}

/// Limits of the runtime's buffers (R5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Captured pages not encoded yet. An epoch that dirties more is encoded while the guest is paused.
    /// Default 32,768 (128 MiB).
    pub capture_pages_max: usize,
    /// Last shipped versions of pages kept for delta encoding. Default 32,768 (128 MiB).
    pub cache_pages_max: usize,
    /// Bytes handed to the link and not written yet. Default 16 MiB.
    pub send_bytes_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            capture_pages_max: 32_768,
            cache_pages_max: 32_768,
            send_bytes_max: 16 << 20,
        }
    }
}

/// What both sides need to know.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) vm: String,
    pub(super) node: String,
    pub(super) heartbeat: Option<HeartbeatPath>,
    pub(super) policy: Policy,
    pub(super) limits: Limits,
}
