//! A driver for tests: the guest's side of registers and rings.

use virtio_bindings::virtio_mmio as reg;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::{AvailRing, DescriptorTable, UsedRing};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::devices::BusDevice;
use crate::memory::GuestRam;

pub(super) const RAM_BYTES: usize = 0x10_0000;
pub(super) const RING_SIZE: u16 = 16;
pub(super) const VERSION_1: u64 = 1 << 32;
pub(super) const EVENT_IDX: u64 = 1 << 29;
/// Status after a whole initialisation.
pub(super) const READY: u32 = 0xf;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

pub(super) fn ram() -> GuestRam {
    GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).unwrap()
}

pub(super) fn read(device: &mut dyn BusDevice, register: u32) -> u32 {
    let mut data = [0; 4];
    device.read(u64::from(register), &mut data);
    u32::from_le_bytes(data)
}

pub(super) fn write(device: &mut dyn BusDevice, register: u32, value: u32) {
    device.write(u64::from(register), &value.to_le_bytes());
}

/// Goes through the initialisation, and returns the status at its end.
pub(super) fn initialise(device: &mut dyn BusDevice, features: u64, rings: &[&Ring<'_>]) -> u32 {
    write(device, reg::VIRTIO_MMIO_STATUS, 0);
    write(device, reg::VIRTIO_MMIO_STATUS, 1);
    write(device, reg::VIRTIO_MMIO_STATUS, 3);
    for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
        write(device, reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
        write(device, reg::VIRTIO_MMIO_DRIVER_FEATURES, half);
    }
    write(device, reg::VIRTIO_MMIO_STATUS, 0xb);
    for (index, ring) in rings.iter().enumerate() {
        write(device, reg::VIRTIO_MMIO_QUEUE_SEL, index as u32);
        write(device, reg::VIRTIO_MMIO_QUEUE_NUM, u32::from(RING_SIZE));
        for (low, high, address) in [
            (0x80, 0x84, ring.at),
            (0x90, 0x94, ring.avail_address()),
            (0xa0, 0xa4, ring.used_address()),
        ] {
            write(device, low, address as u32);
            write(device, high, (address >> 32) as u32);
        }
        write(device, reg::VIRTIO_MMIO_QUEUE_READY, 1);
    }
    write(device, reg::VIRTIO_MMIO_STATUS, 0xf);
    read(device, reg::VIRTIO_MMIO_STATUS)
}

/// A buffer of the driver: address, length, whether the device writes it.
pub(super) type Buffer = (u64, u32, bool);

/// The driver's side of one ring of [`RING_SIZE`] descriptors, in one page. (`MockSplitQueue` puts the
/// used ring into the available ring's second half.)
pub(super) struct Ring<'a> {
    memory: &'a GuestRam,
    at: u64,
    pub(super) descriptors: DescriptorTable<'a, GuestRam>,
    pub(super) avail: AvailRing<'a, GuestRam>,
    pub(super) used: UsedRing<'a, GuestRam>,
    next_descriptor: u16,
    seen: u16,
}

impl<'a> Ring<'a> {
    pub(super) fn new(memory: &'a GuestRam, at: u64) -> Self {
        Self {
            memory,
            at,
            descriptors: DescriptorTable::new(memory, GuestAddress(at), RING_SIZE),
            avail: AvailRing::new(memory, GuestAddress(at + 0x400), RING_SIZE),
            used: UsedRing::new(memory, GuestAddress(at + 0x800), RING_SIZE),
            next_descriptor: 0,
            seen: 0,
        }
    }

    pub(super) fn avail_address(&self) -> u64 {
        self.at + 0x400
    }

    pub(super) fn used_address(&self) -> u64 {
        self.at + 0x800
    }

    /// Offers a chain of buffers, and returns its head.
    pub(super) fn offer(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.next_descriptor;
        for (index, (address, len, writable)) in buffers.iter().enumerate() {
            let at = self.next_descriptor;
            self.next_descriptor = (at + 1) % RING_SIZE;
            let more = index + 1 < buffers.len();
            let flags = if *writable { WRITE } else { 0 } | if more { NEXT } else { 0 };
            let descriptor = Descriptor::new(*address, *len, flags, self.next_descriptor);
            self.descriptors
                .store(at, RawDescriptor::from(descriptor))
                .unwrap();
        }
        self.offer_head(head);
        head
    }

    pub(super) fn offer_head(&mut self, head: u16) {
        let avail = &self.avail;
        let index = avail.idx().load();
        let place = usize::from(index % RING_SIZE);
        avail.ring().ref_at(place).unwrap().store(head);
        avail.idx().store(index.wrapping_add(1));
    }

    /// Chains returned since the last call: head and bytes written.
    pub(super) fn used(&mut self) -> Vec<(u16, u32)> {
        let index = self.used.idx().load();
        let mut used = Vec::new();
        while self.seen != index {
            let place = u64::from(self.seen % RING_SIZE);
            let at = GuestAddress(self.used_address() + 4 + 8 * place);
            let (id, len): (u32, u32) = (
                self.memory.read_obj(at).unwrap(),
                self.memory.read_obj(GuestAddress(at.0 + 4)).unwrap(),
            );
            used.push((id as u16, len));
            self.seen = self.seen.wrapping_add(1);
        }
        used
    }
}

pub(super) fn bytes_at(memory: &GuestRam, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory
        .read_slice(&mut bytes, GuestAddress(address))
        .unwrap();
    bytes
}

/// Whether the event has been raised since the last time.
pub(super) fn raised(event: &EventFd) -> bool {
    event.read().is_ok()
}
