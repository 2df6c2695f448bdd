//! What a machine tells its owner on its own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::past::Past;

/// Something happened to the machine that its owner should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest asked for a reset. It stands still until it gets one.
    GuestReset,
    /// The guest crashed in the way that resets a PC. It stands still until it is reset.
    GuestCrashed {
        /// In plain words.
        what: String,
    },
    /// The guest did not feed its watchdog. It stands still if an action is to follow.
    WatchdogFired,
    /// The guest's kernel reported a panic. The guest stands still if an action is to follow.
    GuestPanicked {
        /// Whether a crash kernel continues in the guest.
        crash_kernel: bool,
    },
    /// The guest could not be reset, and is stopped for good.
    ResetFailed {
        /// In plain words.
        what: String,
    },
    /// The guest powered itself off, and stands still.
    GuestPoweredOff,
    /// The guest shut down in a way from which it cannot continue.
    GuestShutdown {
        /// In plain words.
        what: String,
    },
    /// Something of this host failed: the machine has *broken*. It can neither go on nor be paused, saved or reset any
    /// more, and stands still. Told once.
    MachineBroke {
        /// In plain words.
        what: String,
    },
    /// A call that belongs to a capture hangs. Told every few seconds for as long as that lasts. If somebody else can
    /// go on with the guest, the machine may be [broken](super::Breaker) for it.
    CaptureHangs {
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
    /// The host's disk failed a request of the guest, which is held, as may be further ones, until somebody says what
    /// becomes of them: see [`Machine::failed_requests`](super::Machine::failed_requests).
    DiskHolds {
        /// The disk's name.
        device: String,
        /// In plain words.
        what: String,
        /// Without a standby they are to wait; else the guest sees an error then.
        waits: bool,
    },
    /// For a short time, nothing has moved of what the guest wants of the host's disk.
    DiskStalls {
        /// The disk's name.
        device: String,
        /// In plain words.
        what: String,
    },
    /// After that, something moves again.
    DiskMoves {
        /// The disk's name.
        device: String,
    },
    /// The host's disk does not answer a request of the guest.
    DiskHangs {
        /// The disk's name.
        device: String,
        /// In plain words.
        what: String,
    },
    /// The host's disk answers again.
    DiskAnswers {
        /// The disk's name.
        device: String,
        /// In plain words.
        what: String,
    },
    /// The state that was loaded says that a machine broke under this guest before.
    BrokeBefore {
        /// How long ago.
        ago: Duration,
    },
    /// A device lost what it is connected to on this host.
    BackendLost {
        /// The device's name.
        device: String,
        /// In plain words.
        what: String,
    },
}

/// Called for an event on the thread where it happens.
type OnEvent = Box<dyn Fn(&MachineEvent) + Send>;

/// Where events go to all who listen.
#[derive(Default)]
pub(super) struct Events {
    listeners: Mutex<Vec<OnEvent>>,
    /// Set when the guest wants a reset or wants to end: vCPUs stop when it is set.
    pub(super) halted: Arc<AtomicBool>,
    broken: AtomicBool,
    pub(super) past: Past,
}

/// Has a machine count as broken, while replication owns it.
#[derive(Clone)]
pub struct Breaker(pub(super) Arc<Events>);

impl Breaker {
    /// The machine stands still from now on, and cannot be captured any more. [`MachineEvent::MachineBroke`] follows, once.
    pub fn break_machine(&self, what: String) {
        self.0.break_machine(what);
    }

    /// The machine that the guest comes from broke just now. From now on the guest's state says so.
    pub fn another_broke(&self) {
        self.0.past.machine_broke(Duration::ZERO);
    }
}

/// Tells that the machine has broken if the thread that holds this panics.
pub(super) struct BreaksOnPanic<'a> {
    pub(super) events: &'a Events,
    /// Whose thread it is.
    pub(super) whose: &'a str,
}

impl Drop for BreaksOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let whose = self.whose;
            (self.events).break_machine(format!("{whose} panicked, which is a bug in this VMM"));
        }
    }
}

impl Events {
    pub(super) fn listen(&self, listener: OnEvent) {
        self.listeners
            .lock()
            .expect("no thread panics while it tells of events")
            .push(listener);
    }

    pub(super) fn tell(&self, event: &MachineEvent) {
        self.listeners
            .lock()
            .expect("no thread panics while it tells of events")
            .iter()
            .for_each(|listener| listener(event));
    }

    /// The guest stops here, because of `why`; only the first reason is reported.
    pub(super) fn halt(&self, why: &MachineEvent) {
        if !self.halted.swap(true, Ordering::AcqRel) {
            self.tell(why);
        }
    }

    /// Something of this host failed: `what`. Only the first time is reported.
    pub(super) fn break_machine(&self, what: String) {
        if !self.broken.swap(true, Ordering::AcqRel) {
            self.halted.store(true, Ordering::Release);
            self.tell(&MachineEvent::MachineBroke { what });
        }
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Whether it stands still.
    #[cfg(test)]
    pub(super) fn is_halted(&self) -> bool {
        self.halted.load(Ordering::Acquire)
    }

    /// The guest has been reset and may run again. All vCPUs are parked.
    pub(super) fn unhalt(&self) {
        self.halted.store(false, Ordering::Release);
    }
}
