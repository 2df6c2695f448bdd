//! Emulated devices: what the guest sees on its buses.
//!
//! This file holds the traits every device implements and the helpers for saving state; the devices
//! are in the rooms beside it. No device logic belongs here.
//!
//! # The one locking rule
//!
//! Devices are shared as `Arc<Mutex<T>>`. A paused machine is one whose vCPUs stand still and whose
//! device mutexes are all held by the pauser. So a device touches guest memory, raises interrupts and
//! sends output *only while its own mutex is locked*, by a vCPU thread, by the event thread, or by a thread of a
//! disk that does not wait for it; and nobody holds two device mutexes at once except the pauser.

use std::os::fd::RawFd;
use std::sync::{Mutex, MutexGuard};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub mod bus;
pub mod button;
pub mod irq;
pub mod pvpanic;
pub mod serial;
pub mod switch;
pub mod virtio;
pub mod watchdog;

pub use bus::{Bus, BusError};
pub use button::{ButtonDevice, PowerButton};
pub use irq::Irq;
pub use pvpanic::PanicDevice;
pub use serial::{SerialDevice, SerialInput};
pub use switch::Switch;
pub use watchdog::WatchdogDevice;

/// A device behind a range of ports or addresses.
pub trait BusDevice: Send {
    /// The guest reads `data.len()` bytes at `offset` within the device's range.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// The guest writes `data` at `offset` within the device's range.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// The saved state of one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// Which device, as [`Snapshot::name`].
    pub name: String,
    /// Version of the body's layout, counted per kind of device.
    pub version: u16,
    /// The state itself, in postcard encoding.
    pub body: Vec<u8>,
}

/// Saving and restoring. There are no default bodies: a device without state says so itself.
pub trait Snapshot {
    /// The device's name, unique within a machine and equal on both hosts.
    fn name(&self) -> &str;

    /// The device's whole state, the machine being paused. Does not write guest memory.
    ///
    /// # Errors
    /// If the state cannot be encoded.
    fn save(&self) -> Result<DeviceState, DeviceError>;

    /// Replaces the device's state. Guest memory has been restored already; interrupts are not raised
    /// here but in [`Device::start`], because the interrupt controller may be restored later.
    ///
    /// # Errors
    /// If the state is another device's, of an unknown version, malformed or impossible. The device
    /// then still has its old state.
    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError>;
}

/// A device as the machine handles it.
///
/// A device begins on *standby*: input from outside is drained and dropped, nothing touches guest
/// memory. [`Device::start`] makes it run, [`Device::stop`] puts it back.
pub trait Device: BusDevice + Snapshot {
    /// The machine starts to run: at first boot, and after every restore.
    ///
    /// Kicks that the guest gave (ioeventfd) and interrupts that the device raised (irqfd) just before
    /// the pause live in kernel objects of the old host and are part of no saved state. So a restored
    /// device looks at all its queues once as if kicked, and raises its interrupt again if it is still
    /// unacknowledged. Both are harmless when nothing was lost.
    fn start(&mut self);

    /// The machine stops to run for good (or until it is restored). A pause does not come here.
    fn stop(&mut self);

    /// The machine is reset: the device is as it was when it was made, but goes on running, and what it has
    /// said to the outside stays said. Nothing touches guest memory.
    fn reset(&mut self);

    /// The file descriptors the event thread watches for this device. Fixed once the device is built;
    /// they stay open as long as the device lives.
    fn event_sources(&self) -> Vec<EventSource>;

    /// Source number `source` of [`Device::event_sources`] is ready.
    fn handle_event(&mut self, source: usize);
}

/// A file descriptor that the event thread watches; see [`Device::event_sources`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventSource {
    /// An eventfd. Reported while it counts more than zero; the handler reads it.
    Counter(RawFd),
    /// Another descriptor, reported when more input *arrives* (edge-triggered): the handler reads until
    /// nothing is left, or remembers that it has not.
    Input(RawFd),
}

/// Why a device's state could not be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The state belongs to another device.
    #[error("device {device}: the state given is that of {found}")]
    WrongDevice {
        /// This device.
        device: String,
        /// The device that saved the state.
        found: String,
    },
    /// The state has a layout this program does not know.
    #[error("device {device}: state version {found}, known is {known}")]
    WrongVersion {
        /// This device.
        device: String,
        /// The state's version.
        found: u16,
        /// The version that can be restored.
        known: u16,
    },
    /// The state cannot be encoded or decoded.
    #[error("device {device}: state of {bytes} bytes is malformed")]
    Malformed {
        /// This device.
        device: String,
        /// Length of the state's body.
        bytes: usize,
        /// What the decoder says.
        #[source]
        source: postcard::Error,
    },
    /// The state is longer than its content.
    #[error("device {device}: {bytes} left-over bytes after the state")]
    LeftOver {
        /// This device.
        device: String,
        /// How many.
        bytes: usize,
    },
    /// The state decodes but cannot be this device's.
    #[error("device {device}: impossible state: {what}")]
    Invalid {
        /// This device.
        device: String,
        /// Which value, and its limit.
        what: String,
    },
}

impl DeviceState {
    /// Encodes `body` as the state of `device`.
    ///
    /// # Errors
    /// [`DeviceError::Malformed`] if it cannot be encoded.
    pub fn encode<T: Serialize>(device: &str, version: u16, body: &T) -> Result<Self, DeviceError> {
        let body = postcard::to_stdvec(body).map_err(|source| DeviceError::Malformed {
            device: device.to_owned(),
            bytes: 0,
            source,
        })?;
        Ok(Self {
            name: device.to_owned(),
            version,
            body,
        })
    }

    /// Checks that this is `device`'s state of version `known` and decodes all of it.
    ///
    /// # Errors
    /// As [`Snapshot::restore`].
    pub fn decode<T: DeserializeOwned>(&self, device: &str, known: u16) -> Result<T, DeviceError> {
        if self.name != device {
            return Err(DeviceError::WrongDevice {
                device: device.to_owned(),
                // The name comes from the peer: bounded before it gets into logs.
                found: self.name.chars().take(64).collect(),
            });
        }
        if self.version != known {
            return Err(DeviceError::WrongVersion {
                device: device.to_owned(),
                found: self.version,
                known,
            });
        }
        let (value, rest) =
            postcard::take_from_bytes(&self.body).map_err(|source| DeviceError::Malformed {
                device: device.to_owned(),
                bytes: self.body.len(),
                source,
            })?;
        if rest.is_empty() {
            Ok(value)
        } else {
            Err(DeviceError::LeftOver {
                device: device.to_owned(),
                bytes: rest.len(),
            })
        }
    }
}

/// Locks a device.
///
/// # Panics
/// If a thread panicked while it held the lock: the device's state is then anybody's guess and must
/// reach neither the guest nor a checkpoint.
pub fn lock<T: ?Sized>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    device
        .lock()
        .expect("no thread panics while it holds a device")
}
