//! The virtio-mmio register file, version 2 (VIRTIO 1.2, section 4.2), in front of any
//! [`VirtioDevice`].
//!
//! It negotiates, keeps the driver to the order of initialisation, and calls the device. It must not
//! know what a device does. Whatever the guest writes here is either meant by the specification, or
//! ignored, or makes the device need a reset; it never disturbs the VMM.

use std::io;
use std::os::fd::AsRawFd;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio as reg;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::state::{MmioState, Registers, SavedQueue, VERSION, restore_queues};
use super::{Interrupt, Progress, RingFault, Rings, VirtioDevice};
use crate::devices::{BusDevice, Device, DeviceError, DeviceState, EventSource, Irq, Snapshot};
use crate::memory::GuestRam;

/// Bytes of guest address space of one device.
pub const MMIO_BYTES: u64 = 0x1000;
/// Where in it the guest writes a queue's number to kick the queue. The machine registers
/// [`MmioTransport::queue_events`] there, each matching its number, 4 bytes wide.
pub const NOTIFY_OFFSET: u64 = reg::VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
const MMIO_VERSION: u32 = 2;
/// "usdy": the vendor that drivers see, and ignore.
const VENDOR: u32 = 0x7964_7375;
/// What the transport itself offers.
const TRANSPORT_FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX;
/// Status bits in the order in which a driver sets them; each needs the ones before.
const STATUS_ORDER: [u32; 4] = [
    VIRTIO_CONFIG_S_ACKNOWLEDGE,
    VIRTIO_CONFIG_S_DRIVER,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_DRIVER_OK,
];

/// A virtio device with its registers.
pub struct MmioTransport<D> {
    device: D,
    memory: GuestRam,
    registers: Registers,
    queues: Vec<Queue>,
    queue_events: Vec<EventFd>,
    interrupt: Interrupt,
    /// Between `start` and `stop`: the guest may be reached.
    running: bool,
    faults: u64,
}

impl<D: VirtioDevice> MmioTransport<D> {
    /// Puts `device` behind registers, on standby.
    ///
    /// # Errors
    /// If the host has no eventfds left.
    ///
    /// # Panics
    /// If the device has a queue whose size is no power of two up to 32,768.
    pub fn new(device: D, memory: GuestRam, irq: Irq) -> io::Result<Self> {
        let new_queue = |size: &u16| Queue::new(*size).expect("queue sizes are powers of two");
        let queues: Vec<_> = device.queue_sizes().iter().map(new_queue).collect();
        let queue_events = queues
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK))
            .collect::<io::Result<_>>()?;
        Ok(Self {
            device,
            memory,
            registers: Registers::default(),
            queues,
            queue_events,
            interrupt: Interrupt::new(irq),
            running: false,
            faults: 0,
        })
    }

    /// One event per queue, for the machine to register at [`NOTIFY_OFFSET`].
    #[must_use]
    pub fn queue_events(&self) -> &[EventFd] {
        &self.queue_events
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The same, to be changed.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// The device's interrupt line, for the machine to register.
    #[must_use]
    pub fn irq(&self) -> &Irq {
        &self.interrupt.irq
    }

    /// How often the driver broke a ring.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.faults
    }

    fn offered_features(&self) -> u64 {
        self.device.features() | TRANSPORT_FEATURES
    }

    /// Whether the driver has finished initialisation and nothing is broken.
    fn driver_is_ready(&self) -> bool {
        let bad = VIRTIO_CONFIG_S_NEEDS_RESET | VIRTIO_CONFIG_S_FAILED;
        self.registers.status & (VIRTIO_CONFIG_S_DRIVER_OK | bad) == VIRTIO_CONFIG_S_DRIVER_OK
    }

    /// Whether the driver may set up queues now.
    fn queues_are_open(&self) -> bool {
        let done = VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_FAILED | VIRTIO_CONFIG_S_NEEDS_RESET;
        self.registers.status & (VIRTIO_CONFIG_S_FEATURES_OK | done) == VIRTIO_CONFIG_S_FEATURES_OK
    }

    /// Calls the device, with the guest's side if it may be reached, and does what follows from it.
    fn call(
        &mut self,
        what: impl FnOnce(&mut D, Option<&mut Rings<'_>>) -> Result<Progress, RingFault>,
    ) {
        let live = self.running && self.driver_is_ready();
        let mut rings = Rings {
            memory: &self.memory,
            queues: &mut self.queues,
            interrupt: &mut self.interrupt,
            pushed: 0,
        };
        let result = what(&mut self.device, live.then_some(&mut rings));
        let signalled = rings.signal_used();
        match result.and_then(|progress| signalled.map(|()| progress)) {
            Ok(Progress::Done) => {}
            Ok(Progress::More(queue)) => {
                // Fails only if the counter is full: then a kick is pending anyhow.
                let _ = self.queue_events[queue].write(1);
            }
            Err(fault) => self.needs_reset(&fault.to_string()),
        }
    }

    fn process_queue(&mut self, queue: usize) {
        self.call(|device, rings| match rings {
            Some(rings) => device.process_queue(queue, rings),
            None => Ok(Progress::Done),
        });
    }

    /// Stops the device until the driver resets it.
    fn needs_reset(&mut self, why: &str) {
        self.faults += 1;
        if self.faults.is_power_of_two() {
            let (device, faults) = (self.device.name(), self.faults);
            tracing::warn!(device, faults, why, "the guest's driver broke a ring");
        }
        self.registers.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
        if self.registers.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.interrupt.raise_config();
        }
    }

    fn reset(&mut self) {
        self.device.reset();
        self.registers = Registers::default();
        self.queues.iter_mut().for_each(Queue::reset);
        self.interrupt.status = 0;
    }

    fn read_register(&self, offset: u32) -> u32 {
        let queue = usize::try_from(self.registers.queue_select)
            .ok()
            .and_then(|index| self.queues.get(index));
        match offset {
            reg::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            reg::VIRTIO_MMIO_VERSION => MMIO_VERSION,
            reg::VIRTIO_MMIO_DEVICE_ID => self.device.device_type(),
            reg::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            reg::VIRTIO_MMIO_DEVICE_FEATURES => half(
                self.offered_features(),
                self.registers.device_features_select,
            ),
            reg::VIRTIO_MMIO_QUEUE_NUM_MAX => queue.map_or(0, |q| u32::from(q.max_size())),
            reg::VIRTIO_MMIO_QUEUE_READY => queue.map_or(0, |q| u32::from(q.ready())),
            reg::VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status,
            reg::VIRTIO_MMIO_STATUS => self.registers.status,
            // There is no shared memory region: its length reads as -1 (section 4.2.2).
            reg::VIRTIO_MMIO_SHM_LEN_LOW
            | reg::VIRTIO_MMIO_SHM_LEN_HIGH
            | reg::VIRTIO_MMIO_SHM_BASE_LOW
            | reg::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            reg::VIRTIO_MMIO_CONFIG_GENERATION => self.interrupt.config_generation,
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u32, value: u32) {
        match offset {
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.registers.device_features_select = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.registers.driver_features_select = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES => self.write_driver_features(value),
            reg::VIRTIO_MMIO_QUEUE_SEL => self.registers.queue_select = value,
            // Kicks arrive through the events; this is for a host without them.
            reg::VIRTIO_MMIO_QUEUE_NOTIFY => {
                if let Some(queue) = usize::try_from(value)
                    .ok()
                    .filter(|q| *q < self.queues.len())
                {
                    self.process_queue(queue);
                }
            }
            reg::VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.status &= !value,
            reg::VIRTIO_MMIO_STATUS => self.write_status(value),
            _ => self.write_queue_register(offset, value),
        }
    }

    fn write_driver_features(&mut self, value: u32) {
        let negotiable = VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK;
        if self.registers.status & negotiable != VIRTIO_CONFIG_S_DRIVER {
            return;
        }
        let features = &mut self.registers.driver_features;
        match self.registers.driver_features_select {
            0 => *features = *features & !u64::from(u32::MAX) | u64::from(value),
            1 => *features = *features & u64::from(u32::MAX) | u64::from(value) << 32,
            // Features beyond 63 do not exist here: accepting one is an error that shows at
            // FEATURES_OK only if it were remembered; it is ignored as if not written.
            _ => {}
        }
    }

    fn write_queue_register(&mut self, offset: u32, value: u32) {
        let open = self.queues_are_open();
        let event_idx = self.registers.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let Some(queue) = usize::try_from(self.registers.queue_select)
            .ok()
            .and_then(|index| self.queues.get_mut(index))
        else {
            return;
        };
        if offset == reg::VIRTIO_MMIO_QUEUE_READY && value == 0 {
            queue.set_ready(false);
            return;
        }
        // A queue in use stays where it is (section 4.2.2.2).
        if !open || queue.ready() {
            return;
        }
        match offset {
            reg::VIRTIO_MMIO_QUEUE_NUM => {
                // Anything that is no possible size leaves the old one; the driver reads none back.
                if let Ok(size) = u16::try_from(value) {
                    let _ = queue.try_set_size(size);
                }
            }
            reg::VIRTIO_MMIO_QUEUE_READY => {
                queue.set_event_idx(event_idx);
                queue.set_ready(value == 1);
            }
            _ => write_ring_address(queue, offset, value),
        }
    }

    /// The driver adds status bits one after the other; only a reset takes them away.
    fn write_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        let status = self.registers.status;
        if value & VIRTIO_CONFIG_S_FAILED != 0 {
            self.registers.status |= VIRTIO_CONFIG_S_FAILED;
            return;
        }
        for bit in STATUS_ORDER {
            if status & bit != 0 {
                continue;
            }
            if value & bit == 0 || !self.may_set(bit) {
                return;
            }
            self.registers.status |= bit;
            if bit == VIRTIO_CONFIG_S_DRIVER_OK {
                self.driver_ok();
            }
        }
    }

    fn may_set(&self, bit: u32) -> bool {
        let features = self.registers.driver_features;
        bit != VIRTIO_CONFIG_S_FEATURES_OK
            || (features & !self.offered_features() == 0 && features & 1 << VIRTIO_F_VERSION_1 != 0)
    }

    fn driver_ok(&mut self) {
        let is_bad = |q: &Queue| q.ready() && !q.is_valid(&self.memory);
        if let Some(queue) = self.queues.iter().position(is_bad) {
            self.needs_reset(&format!("queue {queue} is not in guest memory"));
            return;
        }
        self.device.activate(self.registers.driver_features);
    }

    fn check_registers(&self, registers: &Registers) -> Result<(), DeviceError> {
        let invalid = |what: String| {
            Err(DeviceError::Invalid {
                device: self.device.name().to_owned(),
                what,
            })
        };
        let status = registers.status;
        let known =
            STATUS_ORDER.iter().sum::<u32>() | VIRTIO_CONFIG_S_NEEDS_RESET | VIRTIO_CONFIG_S_FAILED;
        let set = STATUS_ORDER.map(|bit| status & bit != 0);
        if status & !known != 0 || !set.is_sorted_by(|earlier, later| earlier >= later) {
            return invalid(format!("status {status:#x}"));
        }
        let (features, offered) = (registers.driver_features, self.offered_features());
        if status & VIRTIO_CONFIG_S_FEATURES_OK != 0
            && (features & !offered != 0 || features & 1 << VIRTIO_F_VERSION_1 == 0)
        {
            return invalid(format!("features {features:#x}, offered are {offered:#x}"));
        }
        Ok(())
    }
}

impl<D: VirtioDevice> BusDevice for MmioTransport<D> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(u64::from(reg::VIRTIO_MMIO_CONFIG)) {
            self.device.read_config(offset, data);
            return;
        }
        data.fill(0);
        // Registers are 32 bits wide and take no other access (section 4.2.2.2).
        if let (Ok(data), Some(offset)) = (<&mut [u8; 4]>::try_from(data), register(offset)) {
            *data = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(u64::from(reg::VIRTIO_MMIO_CONFIG)) {
            self.device.write_config(offset, data);
            return;
        }
        if let (Ok(data), Some(offset)) = (<[u8; 4]>::try_from(data), register(offset)) {
            self.write_register(offset, u32::from_le_bytes(data));
        }
    }
}

impl<D: VirtioDevice> Snapshot for MmioTransport<D> {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn save(&self) -> Result<DeviceState, DeviceError> {
        let state = MmioState {
            registers: self.registers,
            interrupt_status: self.interrupt.status,
            config_generation: self.interrupt.config_generation,
            queues: self.queues.iter().map(SavedQueue::from).collect(),
            device: self.device.save()?,
        };
        DeviceState::encode(self.device.name(), VERSION, &state)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        let name = self.device.name().to_owned();
        let state: MmioState = state.decode(&name, VERSION)?;
        self.check_registers(&state.registers)?;
        let status_bits = Interrupt::USED | Interrupt::CONFIG;
        if state.interrupt_status & !status_bits != 0 {
            return Err(DeviceError::Invalid {
                device: name,
                what: format!("interrupt status {:#x}", state.interrupt_status),
            });
        }
        let bad = VIRTIO_CONFIG_S_NEEDS_RESET | VIRTIO_CONFIG_S_FAILED;
        let driver_ok = state.registers.status & VIRTIO_CONFIG_S_DRIVER_OK != 0;
        let live = driver_ok && state.registers.status & bad == 0;
        let sizes = self.device.queue_sizes();
        let queues = restore_queues(&name, sizes, &state.queues, live, &self.memory)?;
        // The last step that can fail: from here on everything is replaced.
        self.device.restore(&state.device)?;
        self.queues = queues;
        self.registers = state.registers;
        self.interrupt.status = state.interrupt_status;
        self.interrupt.config_generation = state.config_generation;
        if driver_ok {
            self.device.activate(self.registers.driver_features);
        }
        Ok(())
    }
}

impl<D: VirtioDevice> Device for MmioTransport<D> {
    fn start(&mut self) {
        self.running = true;
        self.call(|device, rings| {
            device.start(rings);
            Ok(Progress::Done)
        });
        for queue in 0..self.queues.len() {
            self.process_queue(queue);
        }
        if self.interrupt.status != 0 {
            self.interrupt.irq.raise();
        }
    }

    fn stop(&mut self) {
        self.running = false;
    }

    fn reset(&mut self) {
        MmioTransport::reset(self);
    }

    fn event_sources(&self) -> Vec<EventSource> {
        let queues = self.queue_events.iter();
        let mut sources: Vec<_> = queues
            .map(|event| EventSource::Counter(event.as_raw_fd()))
            .collect();
        sources.extend(self.device.event_sources());
        sources
    }

    fn handle_event(&mut self, source: usize) {
        if let Some(event) = self.queue_events.get(source) {
            // Nothing to read means another call was quicker; processing again is harmless.
            let _ = event.read();
            self.process_queue(source);
        } else {
            let source = source - self.queue_events.len();
            self.call(|device, rings| device.process_event(source, rings));
        }
    }
}

/// Sets half of a ring's address. A misaligned address leaves the old one.
fn write_ring_address(queue: &mut Queue, offset: u32, value: u32) {
    let low = |old: u64| GuestAddress(old & !u64::from(u32::MAX) | u64::from(value));
    let high = |old: u64| GuestAddress(old & u64::from(u32::MAX) | u64::from(value) << 32);
    let (desc, avail, used) = (queue.desc_table(), queue.avail_ring(), queue.used_ring());
    let _ = match offset {
        reg::VIRTIO_MMIO_QUEUE_DESC_LOW => queue.try_set_desc_table_address(low(desc)),
        reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.try_set_desc_table_address(high(desc)),
        reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.try_set_avail_ring_address(low(avail)),
        reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.try_set_avail_ring_address(high(avail)),
        reg::VIRTIO_MMIO_QUEUE_USED_LOW => queue.try_set_used_ring_address(low(used)),
        reg::VIRTIO_MMIO_QUEUE_USED_HIGH => queue.try_set_used_ring_address(high(used)),
        _ => Ok(()),
    };
}

/// The 32 bits of `features` that `select` selects.
fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

/// The register at `offset`, if one can be there.
fn register(offset: u64) -> Option<u32> {
    u32::try_from(offset).ok().filter(|o| o.is_multiple_of(4))
}
