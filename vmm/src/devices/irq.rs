//! A device's interrupt line: an eventfd that the machine registers with KVM as an irqfd, for one edge or, on a
//! level-triggered line, until the guest has handled the interrupt. It must not know which interrupt controller or
//! GSI is behind it.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// An interrupt line. Clones are the same line.
#[derive(Debug, Clone)]
pub struct Irq {
    event: Arc<EventFd>,
    handled: Option<Arc<EventFd>>,
}

impl Irq {
    /// An edge-triggered line that is not connected to anything yet.
    ///
    /// # Errors
    /// If the host has no eventfd left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            event: Arc::new(EventFd::new(EFD_NONBLOCK)?),
            handled: None,
        })
    }

    /// The same, level-triggered: raised, it stays so until the guest says that it has handled the interrupt.
    ///
    /// # Errors
    /// If the host has no eventfd left.
    pub fn level() -> io::Result<Self> {
        Ok(Self {
            handled: Some(Arc::new(EventFd::new(EFD_NONBLOCK)?)),
            ..Self::new()?
        })
    }

    /// The eventfd, for the machine to register as irqfd.
    #[must_use]
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// For a level-triggered line: counts how often the guest has handled an interrupt, after which the line is down
    /// and its device raises it again if there is more. The machine registers it with KVM (resample).
    #[must_use]
    pub fn handled(&self) -> Option<&EventFd> {
        self.handled.as_deref()
    }

    /// Raises the line, or one edge. Only to be called with the device's mutex locked.
    pub fn raise(&self) {
        // The only error of a non-blocking eventfd is a full counter: then an edge is pending anyhow.
        let _ = self.event.write(1);
    }
}
