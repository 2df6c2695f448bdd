//! What a machine tells its owner unasked.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};

/// Events that a receiver may leave unread; what comes after is dropped. Each kind comes at most a few
/// times in a machine's life.
const UNREAD_MAX: usize = 64;

/// Something happened to the machine that its owner should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest asked for a reset. It is not started again: it has ended.
    GuestReset,
    /// The guest powered itself off.
    GuestPoweredOff,
    /// The guest shut down, or crashed beyond repair.
    GuestShutdown {
        /// In plain words.
        what: String,
    },
    /// A vCPU cannot go on.
    VcpuFailed {
        /// Which.
        vcpu: u8,
        /// In plain words.
        what: String,
    },
    /// The host's disk failed a request of the guest, which lives on with an I/O error.
    DiskFailed {
        /// The disk's name.
        device: String,
        /// In plain words.
        what: String,
    },
    /// A device lost what it is connected to on this host.
    BackendLost {
        /// The device's name.
        device: String,
        /// In plain words.
        what: String,
    },
}

/// Where events go to all who listen.
#[derive(Debug, Default)]
pub(super) struct Events {
    listeners: Mutex<Vec<SyncSender<MachineEvent>>>,
    /// Set when the guest has asked to end: vCPUs stop at it.
    pub(super) ended: Arc<AtomicBool>,
}

impl Events {
    pub(super) fn subscribe(&self) -> Receiver<MachineEvent> {
        let (sender, receiver) = sync_channel(UNREAD_MAX);
        self.listeners
            .lock()
            .expect("no thread panics while it tells of events")
            .push(sender);
        receiver
    }

    pub(super) fn tell(&self, event: &MachineEvent) {
        self.listeners
            .lock()
            .expect("no thread panics while it tells of events")
            .retain(|listener| {
                !matches!(
                    listener.try_send(event.clone()),
                    Err(TrySendError::Disconnected(_))
                )
            });
    }

    /// The guest ends itself, by `how`; told once.
    pub(super) fn guest_ends(&self, how: &MachineEvent) {
        if !self.ended.swap(true, Ordering::AcqRel) {
            self.tell(how);
        }
    }
}
