//! Wakes the event thread when a device that the gate refused may try again.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Counts up when a port of the gate that was full has room again. Clones are the same event.
#[derive(Debug, Clone)]
pub struct SpaceEvent {
    event: Arc<EventFd>,
}

impl SpaceEvent {
    /// An event that has not fired.
    ///
    /// # Errors
    /// If the host has no eventfd left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            event: Arc::new(EventFd::new(EFD_NONBLOCK)?),
        })
    }

    /// What the gate calls; see [`OutputGate::add_network`](understudy_replication::output::OutputGate::add_network).
    pub fn waker(&self) -> impl Fn() + Send + Sync + 'static {
        let event = Arc::clone(&self.event);
        move || {
            // Fails only if the counter is full: then the event is pending anyhow.
            let _ = event.write(1);
        }
    }

    /// Makes the event quiet until it fires again.
    pub fn clear(&self) {
        // Fails only if it has not fired.
        let _ = self.event.read();
    }
}

impl AsRawFd for SpaceEvent {
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}
