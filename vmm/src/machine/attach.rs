//! Wiring devices into a machine: addresses, interrupts, doorbells.
//!
//! What must not be done here: know a device's kind.

use std::sync::{Arc, Mutex};

use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::devices::virtio::mmio::{MMIO_BYTES, NOTIFY_OFFSET};
use crate::devices::{Bus, BusDevice, BusError, Device, Irq};
use crate::kvm::KvmError;

/// Where virtio devices begin.
const VIRTIO_MMIO_START: u64 = 0xd000_0000;
/// Interrupt of the first of them.
const VIRTIO_GSI_START: u32 = 5;
/// Interrupt lines of the IOAPIC.
const GSI_COUNT: u32 = 24;

/// Where a device is found by the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// At I/O ports.
    Ports {
        /// First port.
        base: u16,
        /// How many.
        count: u16,
        /// Its interrupt, if it has one.
        gsi: Option<u32>,
    },
    /// In the next free slot for virtio-mmio devices. Command line or ACPI tables tell the guest.
    VirtioMmio,
}

/// A device to attach to a machine.
pub struct Attachment<D> {
    /// The device.
    pub device: Arc<Mutex<D>>,
    /// Where.
    pub place: Place,
    /// Its interrupt line; for a device with an interrupt.
    pub irq: Option<Irq>,
    /// Doorbells of its queues, by queue number; only for virtio-mmio devices.
    pub doorbells: Vec<EventFd>,
    /// What must be equal on both hosts, as keys (below `device.NAME.`) and values.
    pub description: Vec<(String, String)>,
    /// Asked after each event that comes from outside.
    pub health: Option<Health>,
}

/// Says in plain words what a device has lost on this host, if anything.
pub type Health = Box<dyn Fn() -> Option<String> + Send>;

/// Why a device cannot be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Its addresses are taken.
    #[error("device {device} has no place on its bus")]
    Bus {
        /// The device's name.
        device: String,
        /// Why.
        #[source]
        source: BusError,
    },
    /// No interrupt is left.
    #[error("device {device} would need interrupt {gsi}, there are {GSI_COUNT}: too many devices")]
    Interrupt {
        /// The device's name.
        device: String,
        /// The one it would get.
        gsi: u32,
    },
    /// KVM refuses.
    #[error("device {device}")]
    Kvm {
        /// The device's name.
        device: String,
        /// Why.
        #[source]
        source: KvmError,
    },
    /// The host has no descriptors left, or a similar problem.
    #[error("cannot create device {device}")]
    Create {
        /// The device's name.
        device: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// An attached device.
pub(super) struct Attached {
    pub(super) name: String,
    pub(super) device: Arc<Mutex<dyn Device>>,
    pub(super) description: Vec<(String, String)>,
    /// Where it is, for the fingerprint and for telling the guest.
    pub(super) base: u64,
    pub(super) gsi: Option<u32>,
    pub(super) is_virtio_mmio: bool,
    /// For the event thread to take.
    pub(super) health: Option<Health>,
    /// Keep the interrupt line and the doorbells open.
    _irq: Option<Irq>,
    _doorbells: Vec<EventFd>,
}

impl Attached {
    /// The command line's word that tells the guest about a device it could not find on its own.
    pub(super) fn cmdline(&self) -> Option<String> {
        let gsi = self.gsi.filter(|_| self.is_virtio_mmio)?;
        let kib = MMIO_BYTES / 1024;
        Some(format!("virtio_mmio.device={kib}K@{:#x}:{gsi}", self.base))
    }
}

/// The buses of a machine being built.
pub(super) struct Wiring<'a> {
    pub(super) vm: &'a VmFd,
    pub(super) ports: Bus,
    pub(super) mmio: Bus,
    pub(super) virtio_slots: u32,
}

impl Wiring<'_> {
    pub(super) fn attach<D: Device + 'static>(
        &mut self,
        attachment: Attachment<D>,
    ) -> Result<Attached, AttachError> {
        let Attachment {
            device,
            place,
            irq,
            doorbells,
            description,
            health,
        } = attachment;
        let name = crate::devices::lock(&device).name().to_owned();
        let on_bus: Arc<Mutex<dyn BusDevice>> = device.clone();
        let (bus, base, bytes, gsi) = match place {
            Place::Ports { base, count, gsi } => {
                (&mut self.ports, u64::from(base), u64::from(count), gsi)
            }
            Place::VirtioMmio => {
                let slot = self.virtio_slots;
                self.virtio_slots += 1;
                let base = VIRTIO_MMIO_START + u64::from(slot) * MMIO_BYTES;
                (
                    &mut self.mmio,
                    base,
                    MMIO_BYTES,
                    Some(VIRTIO_GSI_START + slot),
                )
            }
        };
        if let Some(gsi) = gsi.filter(|gsi| *gsi >= GSI_COUNT) {
            return Err(AttachError::Interrupt { device: name, gsi });
        }
        bus.insert(base, bytes, on_bus)
            .map_err(|source| AttachError::Bus {
                device: name.clone(),
                source,
            })?;
        let is_virtio_mmio = place == Place::VirtioMmio;
        self.connect(irq.as_ref().zip(gsi), &doorbells, base)
            .map_err(|source| AttachError::Kvm {
                device: name.clone(),
                source,
            })?;
        Ok(Attached {
            name,
            device,
            description,
            base,
            gsi,
            is_virtio_mmio,
            health,
            _irq: irq,
            _doorbells: doorbells,
        })
    }

    fn connect(
        &self,
        interrupt: Option<(&Irq, u32)>,
        doorbells: &[EventFd],
        base: u64,
    ) -> Result<(), KvmError> {
        if let Some((irq, gsi)) = interrupt {
            match irq.handled() {
                Some(handled) => (self.vm).register_irqfd_with_resample(irq.event(), handled, gsi),
                None => self.vm.register_irqfd(irq.event(), gsi),
            }
            .map_err(KvmError::call(format!("connect interrupt {gsi} (irqfd)")))?;
        }
        for (queue, doorbell) in doorbells.iter().enumerate() {
            let address = base + NOTIFY_OFFSET;
            self.vm
                .register_ioevent(doorbell, &IoEventAddress::Mmio(address), queue as u32)
                .map_err(KvmError::call(format!(
                    "connect the doorbell of queue {queue} at {address:#x} (ioeventfd)"
                )))?;
        }
        Ok(())
    }
}
