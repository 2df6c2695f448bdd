//! The settings that both sides have.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::core::policy::Policy;

/// The addresses of the UDP heartbeats: a path of its own beside the logging channel.
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
    /// Captured pages that are not encoded yet. If an epoch dirties more, the rest is encoded while
    /// the guest is paused. Default 32,768 (128 MiB).
    pub capture_pages_max: usize,
    /// Pages whose last shipped version is kept for delta encoding. Default 32,768 (128 MiB).
    pub cache_pages_max: usize,
    /// Bytes handed to the link but not written yet. Default 16 MiB.
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

/// What is called on a thread before it begins its work.
pub type ThreadSetup = Arc<dyn Fn() + Send + Sync>;

/// The settings that both sides have.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) vm: String,
    pub(super) node: String,
    /// What tells this host from others whose names are the same.
    pub(super) host: Option<String>,
    pub(super) heartbeat: Option<HeartbeatPath>,
    pub(super) policy: Policy,
    pub(super) limits: Limits,
    pub(super) driver_setup: Option<ThreadSetup>,
}

impl Settings {
    /// On the driver's thread, before anything else.
    pub(super) fn set_driver_up(&self) {
        if let Some(setup) = &self.driver_setup {
            setup();
        }
    }
}
