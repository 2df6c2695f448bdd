//! Machines on real KVM, with tiny guests in machine code and one device that only tests have.

mod conformance;
mod copies;
mod cpus;
mod discovery;
mod pvh;
mod resets;
mod running;
mod slowing;
mod states;
mod time;
mod trials;

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use understudy_replication::ids::Page;
use understudy_replication::ports::{Machine as _, PageMemory, PausedMachine};
use understudy_replication::{PAGE_BYTES, PageIndex, PageSet};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::devices::{
    BusDevice, Device, DeviceError, DeviceState, EventSource, Irq, Snapshot, lock,
};

/// How long a test waits for what must come. Only a broken machine makes it wait that long.
const DEADLINE: Duration = Duration::from_secs(60);

/// A device that takes 32-bit numbers, 4 bytes at a time, and counts them.
pub(crate) struct Numbers {
    name: &'static str,
    count: u64,
    out: Sender<u32>,
    fail_save: bool,
    /// Has it handle an event.
    pub(crate) event: EventFd,
    /// It panics at the next one.
    pub(crate) panics_at_events: bool,
    /// Called in the middle of each read.
    in_read: Option<Box<dyn FnMut() + Send>>,
}

impl BusDevice for Numbers {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        self.count += 1;
        if let Some(in_read) = &mut self.in_read {
            in_read();
        }
        data.copy_from_slice(&(self.count as u32).to_le_bytes());
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        let number = u32::from_le_bytes(data.try_into().unwrap());
        // The test may be over already.
        let _ = self.out.send(number);
    }
}

impl Snapshot for Numbers {
    fn name(&self) -> &str {
        self.name
    }

    fn save(&self) -> Result<DeviceState, DeviceError> {
        if self.fail_save {
            return Err(DeviceError::Invalid {
                device: self.name.into(),
                what: "as ordered".into(),
            });
        }
        DeviceState::encode(self.name, 1, &self.count)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        self.count = state.decode(self.name, 1)?;
        Ok(())
    }
}

impl Device for Numbers {
    fn start(&mut self) {}

    fn stop(&mut self) {}

    fn reset(&mut self) {
        self.count = 0;
    }

    fn event_sources(&self) -> Vec<EventSource> {
        vec![EventSource::Counter(self.event.as_raw_fd())]
    }

    fn handle_event(&mut self, _source: usize) {
        self.event.read().unwrap();
        assert!(!self.panics_at_events, "ordered by the test");
    }
}

/// An ELF file with `code` at 1 MiB, which is also its entry point.
fn elf(code: &[u8]) -> Vec<u8> {
    let start = boot::KERNEL_START.to_le_bytes();
    let mut image = vec![0; 0x1000];
    image[..4].copy_from_slice(b"\x7fELF");
    (image[4], image[5], image[18]) = (2, 1, 62);
    image[24..32].copy_from_slice(&start);
    (image[32], image[54], image[56], image[64]) = (64, 56, 1, 1);
    image[72..80].copy_from_slice(&0x1000u64.to_le_bytes());
    image[80..88].copy_from_slice(&start);
    image[88..96].copy_from_slice(&start);
    for at in [96, 104] {
        image[at..at + 8].copy_from_slice(&(code.len() as u64).to_le_bytes());
    }
    image.extend_from_slice(code);
    image
}

/// Counts in memory at 0x101000 and says each number.
pub(crate) const COUNTING: &[u8] = &[
    0xba, 0xe8, 0x02, 0x00, 0x00, // mov edx, 0x2e8
    0x48, 0xc7, 0xc7, 0x00, 0x10, 0x10, 0x00, // mov rdi, 0x101000
    0xff, 0x07, // again: inc dword [rdi]
    0x8b, 0x07, // mov eax, [rdi]
    0xef, // out dx, eax
    0xb9, 0x40, 0x00, 0x00, 0x00, // mov ecx, 64
    0xff, 0xc9, // spin: dec ecx
    0x75, 0xfc, // jnz spin
    0xeb, 0xf0, // jmp again
];

/// Writes 0xfe to port 0x64, then does nothing for ever.
const RESETTING: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe];

/// Writes "soft off" to port 0x604, 16 bits, then does nothing for ever.
const POWERING_OFF: &[u8] = &[
    0x66, 0xb8, 0x00, 0x34, // mov ax, 0x3400
    0x66, 0xba, 0x04, 0x06, // mov dx, 0x604
    0x66, 0xef, // out dx, ax
    0xeb, 0xfe, // jmp $
];

/// Writes a value to a port, then does nothing for ever.
const fn telling(port: u16, value: u8) -> [u8; 9] {
    let [low, high] = port.to_le_bytes();
    [0xb0, value, 0x66, 0xba, low, high, 0xee, 0xeb, 0xfe]
}

/// Loads an empty IDT and divides by zero.
const CRASHING: &[u8] = &[
    0x31, 0xc0, // xor eax, eax
    0x50, 0x50, // push rax, twice
    0x0f, 0x01, 0x1c, 0x24, // lidt [rsp]
    0x0f, 0x0b, // ud2
];

/// Adds 1 to one word of each of 256 pages from 2 MiB on, round and round, in steps of 7 pages.
const DIRTYING: &[u8] = &[
    0xbf, 0x00, 0x00, 0x20, 0x00, // mov edi, 0x200000
    0x31, 0xc9, // xor ecx, ecx
    0x89, 0xc8, // again: mov eax, ecx
    0xc1, 0xe0, 0x0c, // shl eax, 12
    0xff, 0x04, 0x07, // inc dword [rdi + rax]
    0x83, 0xc1, 0x07, // add ecx, 7
    0x81, 0xe1, 0xff, 0x00, 0x00, 0x00, // and ecx, 255
    0xeb, 0xed, // jmp again
];

/// Reads numbers from port 0x2e8 and says them.
const READING_PORTS: &[u8] = &[
    0xba, 0xe8, 0x02, 0x00, 0x00, // mov edx, 0x2e8
    0xed, // again: in eax, dx
    0xef, // out dx, eax
    0xeb, 0xfc, // jmp again
];

/// Reads numbers from address 0xd0000000 and says them.
const READING_MMIO: &[u8] = &[
    0xba, 0xe8, 0x02, 0x00, 0x00, // mov edx, 0x2e8
    0xbb, 0x00, 0x00, 0x00, 0xd0, // mov ebx, 0xd0000000
    0x8b, 0x03, // again: mov eax, [rbx]
    0xef, // out dx, eax
    0xeb, 0xfb, // jmp again
];

pub(crate) struct Rig {
    pub(crate) machine: Machine,
    pub(crate) numbers: Receiver<u32>,
    pub(crate) read_from: Arc<Mutex<Numbers>>,
}

fn rig_with(config: MachineConfig, names: &[&'static str]) -> Rig {
    let mut builder = MachineBuilder::new(config).expect("these tests need a usable /dev/kvm");
    let (out, numbers) = channel();
    let mut first = None;
    for (number, name) in names.iter().enumerate() {
        let device = Arc::new(Mutex::new(Numbers {
            name,
            count: 0,
            out: out.clone(),
            fail_save: false,
            event: EventFd::new(libc::EFD_NONBLOCK).unwrap(),
            panics_at_events: false,
            in_read: None,
        }));
        first.get_or_insert(device.clone());
        let place = Place::Ports {
            base: 0x2e8 - 0x10 * number as u16,
            count: 8,
            gsi: Some(3),
        };
        builder.attach(attachment(&device, place)).unwrap();
    }
    Rig {
        machine: builder.build().unwrap(),
        numbers,
        read_from: first.unwrap(),
    }
}

/// Two devices, one at ports and one in memory; `code` says which of both is read from.
fn rig_at(config: MachineConfig, code: &[u8]) -> Rig {
    let mut builder = MachineBuilder::new(config).expect("these tests need a usable /dev/kvm");
    let (out, numbers) = channel();
    let device = |name| {
        Arc::new(Mutex::new(Numbers {
            name,
            count: 0,
            out: out.clone(),
            fail_save: false,
            event: EventFd::new(libc::EFD_NONBLOCK).unwrap(),
            panics_at_events: false,
            in_read: None,
        }))
    };
    let (at_ports, in_memory) = (device("ports"), device("memory"));
    let ports = Place::Ports {
        base: 0x2e8,
        count: 8,
        gsi: Some(3),
    };
    for (device, place) in [(&at_ports, ports), (&in_memory, Place::VirtioMmio)] {
        builder.attach(attachment(device, place)).unwrap();
    }
    let read_from = if code == READING_MMIO {
        in_memory
    } else {
        at_ports
    };
    Rig {
        machine: builder.build().unwrap(),
        numbers,
        read_from,
    }
}

fn attachment(device: &Arc<Mutex<Numbers>>, place: Place) -> Attachment<Numbers> {
    Attachment {
        device: device.clone(),
        place,
        irq: Some(Irq::new().unwrap()),
        doorbells: Vec::new(),
        description: vec![("type".into(), "numbers".into())],
        health: None,
    }
}

fn config(code: &[u8]) -> MachineConfig {
    MachineConfig {
        memory_mib: 16,
        kernel: Some(Kernel::Bytes(elf(code))),
        ..Default::default()
    }
}

/// The machine's events from now on.
fn events_of(machine: &Machine) -> Receiver<MachineEvent> {
    let (sender, events) = channel();
    machine.on_event(move |event| {
        // The test may have seen enough.
        let _ = sender.send(event.clone());
    });
    events
}

pub(crate) fn rig(code: &[u8]) -> Rig {
    rig_with(config(code), &["numbers"])
}

pub(crate) fn standby() -> Rig {
    let config = MachineConfig {
        kernel: None,
        ..config(COUNTING)
    };
    rig_with(config, &["numbers"])
}

impl Rig {
    fn next(&self) -> u32 {
        self.numbers
            .recv_timeout(DEADLINE)
            .expect("the guest goes on")
    }

    /// What has been said until now and not yet been heard.
    fn heard(&self) -> Vec<u32> {
        self.numbers.try_iter().collect()
    }

    fn await_number(&self, at_least: u32) {
        while self.next() < at_least {}
    }
}

fn copy_memory(from: &Memory, to: &Memory) {
    let mut page: Page = [0; PAGE_BYTES];
    for index in PageSet::full(from.layout()).iter() {
        from.pages().read_page(index, &mut page).unwrap();
        to.pages().write_page(index, &page).unwrap();
    }
}
