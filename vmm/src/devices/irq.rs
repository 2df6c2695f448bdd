//! A device's interrupt line: an eventfd that the machine registers with KVM as an edge-triggered
//! irqfd. It must not know which interrupt controller or GSI is behind it.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// An edge-triggered interrupt line. Clones are the same line.
#[derive(Debug, Clone)]
pub struct Irq {
    event: Arc<EventFd>,
}

impl Irq {
    /// A line that is not connected to anything yet.
    ///
    /// # Errors
    /// If the host has no eventfd left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            event: Arc::new(EventFd::new(EFD_NONBLOCK)?),
        })
    }

    /// The eventfd, for the machine to register as irqfd.
    #[must_use]
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Raises one edge. Only to be called with the device's mutex locked.
    pub fn raise(&self) {
        // The only error of a non-blocking eventfd is a full counter: then an edge is pending anyhow.
        let _ = self.event.write(1);
    }
}
