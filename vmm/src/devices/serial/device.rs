//! The UART between the guest's ports, the gate's console port and a bounded queue of input.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use understudy_replication::output::ConsolePort;
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::state::{ConsoleState, VERSION};
use crate::devices::{BusDevice, Device, DeviceError, DeviceState, EventSource, Irq, Snapshot};
use crate::output::SpaceEvent;

/// How many ports the UART has.
pub const PORTS: u64 = 8;

/// Input that waits for the guest, in bytes. What comes on top is refused.
const INPUT_BYTES_MAX: usize = 4096;

// Registers of the 16550, and bits in them.
const INTERRUPT_ENABLE: u8 = 1;
const LINE_CONTROL: u8 = 3;
const LINE_STATUS: u8 = 5;
const IER_TRANSMITTER_EMPTY: u8 = 0x02;
const IIR_NONE_PENDING: u8 = 0x01;
const LCR_DIVISOR_LATCH: u8 = 0x80;
const LSR_TRANSMITTER_EMPTY: u8 = 0x60;

/// Numbers of [`Device::event_sources`].
const SOURCE_INPUT: usize = 0;

/// A serial console.
pub struct SerialDevice {
    name: String,
    uart: Serial<Wanted, NoEvents, ConsolePort>,
    port: ConsolePort,
    /// Fires when the port has room again.
    space: SpaceEvent,
    irq: Irq,
    input: SerialInput,
    running: bool,
    lost_bytes: u64,
}

/// Where a console's input comes in, from any thread. Clones are the same queue.
///
/// What the guest has not read yet is not part of its state: after a failover it must be typed again,
/// as with any terminal whose line breaks.
#[derive(Clone)]
pub struct SerialInput {
    queue: Arc<Mutex<VecDeque<u8>>>,
    event: Arc<EventFd>,
}

/// Remembers that the UART wants an interrupt. The device raises it after the access, and does not
/// after a restore, which the UART cannot tell apart.
#[derive(Clone, Default)]
struct Wanted(Arc<AtomicBool>);

impl Wanted {
    fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

impl Trigger for Wanted {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl SerialInput {
    fn new() -> io::Result<Self> {
        Ok(Self {
            queue: Arc::default(),
            event: Arc::new(EventFd::new(EFD_NONBLOCK)?),
        })
    }

    /// Types `bytes` into the console. Returns how many were taken: the queue is bounded.
    #[must_use]
    pub fn push(&self, bytes: &[u8]) -> usize {
        let taken = {
            let mut queue = self.queue.lock();
            let taken = bytes.len().min(INPUT_BYTES_MAX - queue.len());
            queue.extend(&bytes[..taken]);
            taken
        };
        // Fails only if the counter is full: then an event is pending anyhow.
        let _ = self.event.write(1);
        taken
    }
}

impl SerialDevice {
    /// A console on standby that writes to `port`, whose waker is that of `space`.
    ///
    /// # Errors
    /// If the host has no eventfd left.
    pub fn new(
        name: impl Into<String>,
        port: ConsolePort,
        space: SpaceEvent,
        irq: Irq,
    ) -> io::Result<Self> {
        Ok(Self {
            name: name.into(),
            uart: Serial::new(Wanted::default(), port.clone()),
            port,
            space,
            irq,
            input: SerialInput::new()?,
            running: false,
            lost_bytes: 0,
        })
    }

    /// Where input comes in.
    #[must_use]
    pub fn input(&self) -> SerialInput {
        self.input.clone()
    }

    /// The interrupt line, for the machine to register.
    #[must_use]
    pub fn irq(&self) -> &Irq {
        &self.irq
    }

    /// Bytes the guest wrote although the UART told it to wait.
    #[must_use]
    pub fn lost_bytes(&self) -> u64 {
        self.lost_bytes
    }

    fn raise_if_wanted(&self) {
        if self.uart.interrupt_evt().take() {
            self.irq.raise();
        }
    }

    /// Input queue to the UART's FIFO, as much as fits.
    fn feed(&mut self) {
        let mut queue = self.input.queue.lock();
        let len = queue.len().min(self.uart.fifo_capacity());
        let bytes: Vec<u8> = queue.iter().copied().take(len).collect();
        // In loopback mode it takes none; a full FIFO was ruled out.
        let taken = self.uart.enqueue_raw_bytes(&bytes).unwrap_or(0);
        queue.drain(..taken);
    }

    /// The console takes output again: tells a driver that waits for the transmitter's interrupt.
    fn announce_space(&mut self) {
        let state = self.uart.state();
        if state.interrupt_enable & IER_TRANSMITTER_EMPTY == 0 || !self.port.has_room() {
            return;
        }
        // Enabling the interrupt anew raises it, because the transmitter is empty. While the divisor
        // latch is open, that register is another one. None of these writes can fail.
        let _ = self
            .uart
            .write(LINE_CONTROL, state.line_control & !LCR_DIVISOR_LATCH);
        let _ = self.uart.write(INTERRUPT_ENABLE, state.interrupt_enable);
        let _ = self.uart.write(LINE_CONTROL, state.line_control);
        self.irq.raise();
    }
}

impl BusDevice for SerialDevice {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let ([first, ..], Ok(register)) = (data, u8::try_from(offset)) else {
            return;
        };
        *first = self.uart.read(register);
        // A full gate looks like a slow line: the driver waits, nothing is lost.
        if register == LINE_STATUS && !self.port.has_room() {
            *first &= !LSR_TRANSMITTER_EMPTY;
        }
        if self.running {
            self.feed();
        }
        self.raise_if_wanted();
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let ([first, ..], Ok(register)) = (data, u8::try_from(offset)) else {
            return;
        };
        if self.uart.write(register, *first).is_err() {
            // The driver did not ask the line status: a real line would overrun as well.
            self.lost_bytes += 1;
        }
        self.raise_if_wanted();
    }
}

impl Snapshot for SerialDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn save(&self) -> Result<DeviceState, DeviceError> {
        let state = ConsoleState::new(self.uart.state(), self.port.position());
        DeviceState::encode(&self.name, VERSION, &state)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        let state: ConsoleState = state.decode(&self.name, VERSION)?;
        let position = state.position;
        let wanted = Wanted::default();
        let port = self.port.clone();
        self.uart =
            Serial::from_state(&state.into_uart(), wanted, NoEvents, port).map_err(|error| {
                DeviceError::Invalid {
                    device: self.name.clone(),
                    what: format!("input buffer: {error}"),
                }
            })?;
        // Restoring makes the UART want interrupts again: `start` raises what is pending.
        self.uart.interrupt_evt().take();
        self.port.set_position(position);
        Ok(())
    }
}

impl Device for SerialDevice {
    fn start(&mut self) {
        self.running = true;
        self.feed();
        self.uart.interrupt_evt().take();
        if self.uart.state().interrupt_identification & IIR_NONE_PENDING == 0 {
            self.irq.raise();
        }
        // The old host's gate may have been full when the driver looked.
        self.announce_space();
    }

    fn stop(&mut self) {
        self.running = false;
    }

    /// What waits at the gate stays there, and the console's position is where it was.
    fn reset(&mut self) {
        self.uart = Serial::new(Wanted::default(), self.port.clone());
        self.input.queue.lock().clear();
    }

    fn event_sources(&self) -> Vec<EventSource> {
        vec![
            EventSource::Counter(self.input.event.as_raw_fd()),
            EventSource::Counter(self.space.as_raw_fd()),
        ]
    }

    fn handle_event(&mut self, source: usize) {
        if source == SOURCE_INPUT {
            // Fails only if there is nothing to read: then the work has been done already.
            let _ = self.input.event.read();
        } else {
            self.space.clear();
        }
        if !self.running {
            self.input.queue.lock().clear();
        } else if source == SOURCE_INPUT {
            self.feed();
        } else {
            self.announce_space();
        }
        self.raise_if_wanted();
    }
}
