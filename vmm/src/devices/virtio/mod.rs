//! Virtio devices (VIRTIO 1.2). [`mmio`] is the register file that all of them share, the other rooms
//! are the devices behind it.
//!
//! The transport owns queues, interrupt and guest memory and lends them as [`Rings`] for one call: a
//! device can reach the guest only while it is being called with its mutex locked.

use vm_memory::{Bytes, GuestAddress};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};

use super::{DeviceError, DeviceState, EventSource, Irq};
use crate::memory::GuestRam;

pub mod blk;
pub mod mmio;
pub mod net;
pub mod rng;
mod state;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

/// What differs between virtio devices. Queue and feature numbers are those of the specification.
pub trait VirtioDevice: Send {
    /// The device's name, unique within the machine.
    fn name(&self) -> &str;

    /// Virtio device type.
    fn device_type(&self) -> u32;

    /// Features offered, besides those of the transport.
    fn features(&self) -> u64;

    /// Largest size of each queue, in descriptors: powers of two.
    fn queue_sizes(&self) -> &[u16];

    /// The guest reads `data.len()` bytes of configuration space. Beyond its end there are zeros.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// The guest writes to configuration space.
    fn write_config(&mut self, offset: u64, data: &[u8]);

    /// The driver is ready (or such a state was restored) and has accepted `features`.
    fn activate(&mut self, features: u64);

    /// The driver resets the device.
    fn reset(&mut self);

    /// The machine starts to run; see [`super::Device::start`]. The queues are processed after this.
    fn start(&mut self, rings: Option<&mut Rings<'_>>);

    /// The guest has kicked queue number `queue`.
    ///
    /// # Errors
    /// If the driver broke the ring. It must reset the device then.
    fn process_queue(&mut self, queue: usize, rings: &mut Rings<'_>)
    -> Result<Progress, RingFault>;

    /// What the event thread watches for the device, besides its queues.
    fn event_sources(&self) -> Vec<EventSource>;

    /// Source number `source` of [`VirtioDevice::event_sources`] is ready. Without `rings` the guest
    /// cannot be reached (standby, or no driver): input is drained and dropped.
    ///
    /// # Errors
    /// As [`VirtioDevice::process_queue`].
    fn process_event(
        &mut self,
        source: usize,
        rings: Option<&mut Rings<'_>>,
    ) -> Result<Progress, RingFault>;

    /// The device's own state, without transport and queues.
    ///
    /// # Errors
    /// As [`super::Snapshot::save`].
    fn save(&self) -> Result<DeviceState, DeviceError>;

    /// Replaces the device's own state.
    ///
    /// # Errors
    /// As [`super::Snapshot::restore`].
    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError>;
}

/// Whether a device has done all it could.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// Nothing is left, or what is left waits for somebody else.
    Done,
    /// The device has done its share of one call; this queue must be processed again soon. In between
    /// the mutex is free, so that no guest can keep the machine from pausing.
    More(usize),
}

/// A ring that the driver has broken.
#[derive(Debug, thiserror::Error)]
#[error("queue {queue}: {source}")]
pub struct RingFault {
    /// Number of the queue.
    pub queue: usize,
    /// What is wrong with it.
    #[source]
    pub source: virtio_queue::Error,
}

/// The guest's side of a device, lent for one call.
pub struct Rings<'a> {
    /// Guest RAM. Writes through it are tracked.
    pub memory: &'a GuestRam,
    /// The queues, as many as [`VirtioDevice::queue_sizes`].
    pub queues: &'a mut [Queue],
    /// The device's interrupt.
    pub interrupt: &'a mut Interrupt,
    /// Queues that got used chains in this call, one bit each.
    pushed: u64,
}

/// The interrupt registers of a device and the line behind them.
#[derive(Debug)]
pub struct Interrupt {
    status: u32,
    config_generation: u32,
    irq: Irq,
}

/// A chain of descriptors that the driver offers.
pub type Chain<'a> = virtio_queue::DescriptorChain<&'a GuestRam>;

impl<'a> Rings<'a> {
    /// Takes the next chain from a queue, if there is one.
    ///
    /// # Errors
    /// If the ring is broken.
    pub fn pop(&mut self, queue: usize) -> Result<Option<Chain<'a>>, RingFault> {
        use virtio_queue::QueueOwnedT;
        let ring = &mut self.queues[queue];
        if !ring.ready() {
            return Ok(None);
        }
        match ring.iter(self.memory) {
            Ok(mut chains) => Ok(chains.next()),
            Err(source) => Err(RingFault { queue, source }),
        }
    }

    /// Whether the driver has the queue in use.
    #[must_use]
    pub fn is_ready(&self, queue: usize) -> bool {
        self.queues[queue].ready()
    }

    /// The descriptors of the chain that begins at `head`, however long ago it was taken.
    #[must_use]
    pub fn descriptors(&self, queue: usize, head: u16) -> Descriptors<'a> {
        let ring = &self.queues[queue];
        Descriptors {
            memory: self.memory,
            table: ring.desc_table(),
            size: ring.size(),
            next: Some(head),
            left: ring.size(),
        }
    }

    /// The driver has broken a queue by offering `head`, which it may not.
    #[must_use]
    pub fn bad_head(&self, queue: usize) -> RingFault {
        let source = virtio_queue::Error::InvalidDescriptorIndex;
        RingFault { queue, source }
    }

    /// Puts back the chain taken last.
    pub fn undo_pop(&mut self, queue: usize) {
        use virtio_queue::QueueOwnedT;
        self.queues[queue].go_to_previous_position();
    }

    /// Returns a chain to the driver, `written` bytes of it having been filled. The transport interrupts
    /// the driver after the call.
    ///
    /// # Errors
    /// If the ring is broken.
    pub fn push_used(&mut self, queue: usize, head: u16, written: u32) -> Result<(), RingFault> {
        self.pushed |= 1 << queue;
        self.queues[queue]
            .add_used(self.memory, head, written)
            .map_err(|source| RingFault { queue, source })
    }

    /// Asks the driver for a kick when it offers more. True if it has done so meanwhile.
    ///
    /// # Errors
    /// If the ring is broken.
    pub fn await_kick(&mut self, queue: usize) -> Result<bool, RingFault> {
        let ring = &mut self.queues[queue];
        if !ring.ready() {
            return Ok(false);
        }
        ring.enable_notification(self.memory)
            .map_err(|source| RingFault { queue, source })
    }

    /// Interrupts the driver because of chains used in this call, if it wants that. It happens before
    /// the device's mutex is unlocked, because what is not signalled yet is not part of a queue's
    /// saved state.
    fn signal_used(&mut self) -> Result<(), RingFault> {
        for (queue, ring) in self.queues.iter_mut().enumerate() {
            if self.pushed & 1 << queue == 0 {
                continue;
            }
            let wanted = ring
                .needs_notification(self.memory)
                .map_err(|source| RingFault { queue, source })?;
            if wanted && (ring.event_idx_enabled() || !interrupts_unwanted(ring, self.memory)) {
                self.interrupt.raise_used();
            }
        }
        Ok(())
    }
}

/// The descriptors of a chain, of which only the head is known. [`Chain`] is only for one that was just taken.
/// Ends after as many as the queue has, even in a circle, and where the chain leads out of the table or, since that
/// is not offered, to a further table.
pub struct Descriptors<'a> {
    memory: &'a GuestRam,
    table: u64,
    size: u16,
    next: Option<u16>,
    left: u16,
}

impl Iterator for Descriptors<'_> {
    type Item = Descriptor;

    fn next(&mut self) -> Option<Descriptor> {
        let index = self.next.take().filter(|index| *index < self.size)?;
        self.left = self.left.checked_sub(1)?;
        let at = u64::from(index) * size_of::<Descriptor>() as u64;
        let at = GuestAddress(self.table.checked_add(at)?);
        let descriptor: Descriptor = self.memory.read_obj(at).ok()?;
        if descriptor.refers_to_indirect_table() {
            return None;
        }
        self.next = descriptor.has_next().then(|| descriptor.next());
        Some(descriptor)
    }
}

/// Whether the driver polls, told by the available ring's flags.
fn interrupts_unwanted(ring: &Queue, memory: &GuestRam) -> bool {
    memory
        .read_obj::<u16>(GuestAddress(ring.avail_ring()))
        .is_ok_and(|flags| u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT != 0)
}

impl Interrupt {
    /// Interrupt status: used buffers.
    const USED: u32 = virtio_bindings::virtio_mmio::VIRTIO_MMIO_INT_VRING;
    /// Interrupt status: the configuration, or the need of a reset, has changed.
    const CONFIG: u32 = virtio_bindings::virtio_mmio::VIRTIO_MMIO_INT_CONFIG;

    fn new(irq: Irq) -> Self {
        Self {
            status: 0,
            config_generation: 0,
            irq,
        }
    }

    fn raise_used(&mut self) {
        self.status |= Self::USED;
        self.irq.raise();
    }

    /// Tells the driver that configuration space has changed.
    pub fn raise_config(&mut self) {
        self.config_generation = self.config_generation.wrapping_add(1);
        self.status |= Self::CONFIG;
        self.irq.raise();
    }
}

/// Reads from a configuration space that is all in `space`.
fn read_space(space: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let from = usize::try_from(offset).map_or(space.len(), |o| o.min(space.len()));
    let present = &space[from..];
    let len = present.len().min(data.len());
    data[..len].copy_from_slice(&present[..len]);
}
