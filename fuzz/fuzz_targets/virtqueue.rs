//! A guest that does what it likes with the registers, rings and buffers of a disk, a network device and a source
//! of entropy. The devices start with rings that work; the input is a list of steps of 16 bytes.
#![no_main]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use libfuzzer_sys::fuzz_target;
use understudy_replication::disk::{Changed, Storage};
use understudy_replication::output::{FrameSink, OutputGate, SendError};
use understudy_vmm::devices::virtio::blk::{BlkDevice, Medium};
use understudy_vmm::devices::virtio::mmio::MmioTransport;
use understudy_vmm::devices::virtio::net::NetDevice;
use understudy_vmm::devices::virtio::net::backend::{BackendError, FrameSource, Framing, Receives};
use understudy_vmm::devices::virtio::rng::RngDevice;
use understudy_vmm::devices::{Device, Irq};
use understudy_vmm::memory::GuestRam;
use understudy_vmm::output::SpaceEvent;
use vm_memory::{Bytes, GuestAddress};

const RAM_BYTES: usize = 1 << 20;
const SECTORS: u64 = 64;
const RING_SIZE: u32 = 16;
/// Most rings that a device here has.
const RINGS: u64 = 3;
/// Where the rings are: one page each, those of a device side by side.
const FIRST_RING: u64 = 0x1000;

/// A disk in memory.
struct Platter(Mutex<Vec<u8>>);

impl Platter {
    fn range(&self, offset: u64, bytes: u64, with: impl FnOnce(&mut [u8])) -> io::Result<()> {
        let end = (offset + bytes) as usize;
        // The device checks this before it comes here.
        with(&mut self.0.lock().unwrap()[offset as usize..end]);
        Ok(())
    }
}

impl Storage for Platter {
    fn bytes(&self) -> u64 {
        SECTORS * 512
    }
    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.range(offset, data.len() as u64, |from| data.copy_from_slice(from))
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.range(offset, data.len() as u64, |into| into.copy_from_slice(data))
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.range(offset, bytes, |range| range.fill(0))
    }
    fn write_zeroes(&self, offset: u64, bytes: u64, _may_unmap: bool) -> io::Result<()> {
        self.discard(offset, bytes)
    }
    fn lock(&self) -> io::Result<bool> {
        Ok(true)
    }
    fn is_locked_by_other(&self) -> io::Result<bool> {
        Ok(false)
    }
    fn identity(&self) -> io::Result<Option<String>> {
        Ok(None)
    }
    fn changed(&self) -> io::Result<Option<Changed>> {
        Ok(None)
    }
}

/// A network on which a frame arrives whenever there is room for one, and which looks at what is sent.
struct Cable(UnixStream);

impl FrameSource for Cable {
    fn framing(&self) -> Framing {
        Framing::Headers
    }
    fn set_receives(&mut self, _receives: Receives) -> Result<(), BackendError> {
        Ok(())
    }
    fn recv(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, BackendError> {
        buffer[..100].fill(0);
        Ok(Some(60))
    }
    fn probe(&mut self) -> Result<(), BackendError> {
        Ok(())
    }
    fn mtu_bytes(&self) -> Option<u16> {
        Some(1500)
    }
    fn carries(&self) -> bool {
        true
    }
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

struct Wire;

impl FrameSink for Wire {
    fn send(&self, frame: &[u8]) -> Result<(), SendError> {
        assert!(
            (26..=65_566).contains(&frame.len()),
            "{} bytes",
            frame.len()
        );
        Ok(())
    }
}

fn devices(memory: &GuestRam) -> [Box<dyn Device>; 3] {
    let irq = || Irq::new().unwrap();
    let platter = Platter(Mutex::new(vec![7; (SECTORS * 512) as usize]));
    let medium = Medium::Plain(Box::new(platter));
    let disk = BlkDevice::new("disk", medium, SECTORS, false, Box::new(drop)).unwrap();
    let space = SpaceEvent::new().unwrap();
    let port = OutputGate::default().add_network(Arc::new(Wire), space.waker());
    let cable = Box::new(Cable(UnixStream::pair().unwrap().0));
    let net = NetDevice::new("net", [2, 0, 0, 0, 0, 1], cable, port, space).unwrap();
    let mut net = MmioTransport::new(net, memory.clone(), irq()).unwrap();
    // As on a host that took over: the guest is asked to announce itself.
    net.device_mut().announce().unwrap();
    let rng = RngDevice::new("rng");
    [
        Box::new(MmioTransport::new(disk, memory.clone(), irq()).unwrap()),
        Box::new(net),
        Box::new(MmioTransport::new(rng, memory.clone(), irq()).unwrap()),
    ]
}

fn set(device: &mut dyn Device, register: u64, value: u32) {
    device.write(register, &value.to_le_bytes());
}

/// What a driver does, up to `DRIVER_OK`.
fn initialise(device: &mut dyn Device, first_ring: u64) {
    for status in [0, 1, 3] {
        set(device, 0x70, status);
    }
    for (half, features) in [(0, u32::MAX), (1, 1)] {
        // All that is offered of the lower half; of the upper one, version 1.
        set(device, 0x14, half);
        let mut offered = [0; 4];
        device.read(0x10, &mut offered);
        set(device, 0x24, half);
        set(device, 0x20, u32::from_le_bytes(offered) & features);
    }
    set(device, 0x70, 0xb);
    for ring in 0..RINGS {
        let at = first_ring + ring * 0x1000;
        set(device, 0x30, ring as u32);
        set(device, 0x38, RING_SIZE);
        for (register, part) in [(0x80, 0), (0x90, 0x400), (0xa0, 0x800)] {
            set(device, register, (at + part) as u32);
        }
        set(device, 0x44, 1);
    }
    set(device, 0x70, 0xf);
}

fn number<const BYTES: usize>(step: &[u8; 16], at: usize) -> [u8; BYTES] {
    step[at..at + BYTES].try_into().unwrap()
}

fuzz_target!(|input: &[u8]| {
    let memory = GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).unwrap();
    let mut devices = devices(&memory);
    for (number, device) in devices.iter_mut().enumerate() {
        initialise(&mut **device, FIRST_RING + number as u64 * RINGS * 0x1000);
        device.start();
    }
    let (steps, _) = input.as_chunks::<16>();
    for step in steps {
        let which = usize::from(step[1]) % devices.len();
        let device = &mut devices[which];
        let ring = u64::from(step[2]) % RINGS;
        let ring = FIRST_RING + (which as u64 * RINGS + ring) * 0x1000;
        let entry = u64::from(step[3]) % u64::from(RING_SIZE);
        match step[0] % 7 {
            0 => {
                let register = u64::from(step[2]) * 4;
                let len = usize::from(step[3]) % 9;
                device.write(register, &step[4..4 + len]);
            }
            1 => {
                let address = u32::from_le_bytes(number(step, 4)) as usize % (RAM_BYTES - 8);
                let bytes = &step[8..16];
                memory
                    .write_slice(bytes, GuestAddress(address as u64))
                    .unwrap();
            }
            // A descriptor, of which the address is mostly in memory.
            2 => {
                let mut descriptor = [0; 16];
                descriptor[..3].copy_from_slice(&step[4..7]);
                descriptor[8..].copy_from_slice(&step[8..]);
                let at = GuestAddress(ring + entry * 16);
                memory.write_slice(&descriptor, at).unwrap();
            }
            // A chain is offered.
            3 => {
                let at = GuestAddress(ring + 0x400 + 4 + entry * 2);
                memory.write_slice(&step[4..6], at).unwrap();
                memory
                    .write_slice(&step[6..8], GuestAddress(ring + 0x402))
                    .unwrap();
            }
            4 => device.handle_event(usize::from(step[2]) % 6),
            5 => {
                let state = device.save().unwrap();
                device.restore(&state).unwrap();
                assert_eq!(device.save().unwrap(), state);
                device.start();
            }
            // A state with one byte changed is restored or refused.
            _ => {
                let mut state = device.save().unwrap();
                let len = state.body.len().max(1);
                let at = usize::from(u16::from_le_bytes(number(step, 4))) % len;
                if let Some(byte) = state.body.get_mut(at) {
                    *byte = step[6];
                }
                if device.restore(&state).is_ok() {
                    device.start();
                }
            }
        }
    }
});
