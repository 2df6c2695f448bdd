//! The network device between a driver, a backend and a gate.

mod announcements;
mod offload;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use understudy_replication::Fingerprint;
use understudy_replication::ids::EpochId;
use understudy_replication::output::announce::{Station, gratuitous_arp, rarp};
use understudy_replication::output::{
    FRAME_OVERHEAD_BYTES, FrameSink, GateLimits, NetworkFrame, OutputGate, SendError,
};
use virtio_bindings::virtio_mmio as reg;
use vm_memory::{Bytes, GuestAddress};

use super::NetDevice;
use super::backend::{BackendError, FrameSource, Framing, Receives};
use crate::devices::virtio::mmio::MmioTransport;
use crate::devices::virtio::testing::*;
use crate::devices::{BusDevice, Device, DeviceError, Irq, Snapshot};
use crate::memory::GuestRam;
use crate::output::SpaceEvent;

const RX_RING: u64 = 0x1000;
const TX_RING: u64 = 0x2000;
const CONTROL_RING: u64 = 0x3000;
const RX_DATA: u64 = 0x1_0000;
const TX_DATA: u64 = 0x4_0000;
const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const LINK_UP: u8 = 1;
/// Numbers of the device's event sources.
const RX_KICK: usize = 0;
const TX_KICK: usize = 1;
const CONTROL_KICK: usize = 2;
const BACKEND: usize = 3;
const SPACE: usize = 4;
const TIMER: usize = 5;

/// A backend in memory; clones are the same one.
#[derive(Clone)]
struct Cable {
    arriving: Arc<Mutex<VecDeque<Vec<u8>>>>,
    sent: Arc<Mutex<Vec<Vec<u8>>>>,
    cut: Arc<Mutex<bool>>,
    framing: Framing,
    receives: Arc<Mutex<Receives>>,
    mtu_bytes: Option<u16>,
    /// Something to watch; it never becomes ready.
    file: Arc<UnixStream>,
}

impl Cable {
    fn new() -> Self {
        Self {
            arriving: Arc::default(),
            sent: Arc::default(),
            cut: Arc::default(),
            framing: Framing::Bare,
            receives: Arc::default(),
            mtu_bytes: None,
            file: Arc::new(UnixStream::pair().unwrap().0),
        }
    }

    fn arrive(&self, frame: &[u8]) {
        self.arriving.lock().unwrap().push_back(frame.to_vec());
    }

    fn arriving(&self) -> usize {
        self.arriving.lock().unwrap().len()
    }

    fn sent(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.sent.lock().unwrap())
    }
}

impl FrameSource for Cable {
    fn framing(&self) -> Framing {
        self.framing
    }

    fn set_receives(&mut self, receives: Receives) -> Result<(), BackendError> {
        *self.receives.lock().unwrap() = receives;
        Ok(())
    }

    fn recv(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, BackendError> {
        if *self.cut.lock().unwrap() {
            return Err(BackendError::Closed);
        }
        Ok(self.arriving.lock().unwrap().pop_front().map(|frame| {
            buffer[..frame.len()].copy_from_slice(&frame);
            frame.len()
        }))
    }

    fn probe(&mut self) -> Result<(), BackendError> {
        if *self.cut.lock().unwrap() {
            return Err(BackendError::Closed);
        }
        Ok(())
    }

    fn mtu_bytes(&self) -> Option<u16> {
        self.mtu_bytes
    }

    fn carries(&self) -> bool {
        !*self.cut.lock().unwrap()
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl FrameSink for Cable {
    fn send(&self, frame: &[u8]) -> Result<(), SendError> {
        self.sent.lock().unwrap().push(frame.to_vec());
        Ok(())
    }
}

type NetTransport = MmioTransport<NetDevice>;

fn attach(gate: &OutputGate, memory: &GuestRam, cable: &Cable, mac: [u8; 6]) -> NetTransport {
    let space = SpaceEvent::new().unwrap();
    let port = gate.add_network(Arc::new(cable.clone()), space.waker());
    let net = NetDevice::new("net0", mac, Box::new(cable.clone()), port, space).unwrap();
    MmioTransport::new(net, memory.clone(), Irq::new().unwrap()).unwrap()
}

/// This process was never stalled.
fn far() -> impl Fn() -> bool {
    || true
}

fn device_with(memory: &GuestRam, cable: &Cable, limits: GateLimits) -> (NetTransport, OutputGate) {
    let gate = OutputGate::new(limits);
    (attach(&gate, memory, cable, MAC), gate)
}

fn device(memory: &GuestRam, cable: &Cable) -> (NetTransport, OutputGate) {
    device_with(memory, cable, GateLimits::default())
}

/// A running device whose driver is ready, with its rings.
fn running<'a>(
    memory: &'a GuestRam,
    cable: &Cable,
) -> (NetTransport, OutputGate, Ring<'a>, Ring<'a>) {
    let (mut device, gate) = device(memory, cable);
    device.start();
    let (rx, tx) = (Ring::new(memory, RX_RING), Ring::new(memory, TX_RING));
    let features = VERSION_1 | 1 << 5 | 1 << 16;
    assert_eq!(initialise(&mut device, features, &[&rx, &tx]), READY);
    (device, gate, rx, tx)
}

fn frame(number: u8) -> Vec<u8> {
    let mut frame = [&[0xff; 6][..], &MAC, &[0x88, 0xb5]].concat();
    frame.resize(60, number);
    frame
}

/// A client's.
fn clients_frame(number: u8) -> Vec<u8> {
    let mut frame = frame(number);
    frame[6..12].copy_from_slice(&[0x52, 0x54, 0, 9, 9, 9]);
    frame
}

/// The guest says that it has `10.77.0.LAST`.
fn arp(last: u8) -> Vec<u8> {
    gratuitous_arp(Station::untagged(MAC), Ipv4Addr::new(10, 77, 0, last))
}

/// Puts a frame behind its header into memory, in two buffers.
fn offer_frame(memory: &GuestRam, tx: &mut Ring<'_>, at: u64, frame: &[u8]) -> u16 {
    let packet = [&[0; 12][..], frame].concat();
    memory.write_slice(&packet, GuestAddress(at)).unwrap();
    tx.offer(&[(at, 20, false), (at + 20, packet.len() as u32 - 20, false)])
}

fn link_status(device: &mut NetTransport) -> u8 {
    let mut space = [0xff; 10];
    device.read(u64::from(reg::VIRTIO_MMIO_CONFIG), &mut space);
    assert_eq!((&space[..6], &space[7..]), (&MAC[..], &[0, 0, 0][..]));
    space[6]
}

#[test]
fn frames_reach_the_guest_in_order() {
    let (memory, cable) = (ram(), Cable::new());
    let (mut device, _gate, mut rx, _tx) = running(&memory, &cable);
    // The second buffer comes in pieces, one of them ends within the header.
    let first = rx.offer(&[(RX_DATA, 2048, true)]);
    let second = rx.offer(&[(RX_DATA + 2048, 8, true), (RX_DATA + 4096, 64, true)]);
    cable.arrive(&frame(1));
    cable.arrive(&frame(2));
    device.handle_event(BACKEND);
    assert_eq!(rx.used(), [(first, 72), (second, 72)]);
    let mut header = [0; 12];
    header[10] = 1;
    assert_eq!(
        bytes_at(&memory, RX_DATA, 72),
        [&header[..], &frame(1)].concat()
    );
    assert_eq!(bytes_at(&memory, RX_DATA + 2048, 8), [0; 8]);
    let rest = [&header[8..], &frame(2)].concat();
    assert_eq!(bytes_at(&memory, RX_DATA + 4096, 64), rest);
    assert!(raised(device.irq().event()));
    // Nothing more to do: no interrupt.
    device.handle_event(BACKEND);
    assert!(!raised(device.irq().event()));
    assert_eq!(device.device().counters().rx_frames, 2);
}

#[test]
fn buffers_may_end_where_memory_ends() {
    let (memory, cable) = (ram(), Cable::new());
    let (mut device, _gate, mut rx, mut tx) = running(&memory, &cable);
    let end = RAM_BYTES as u64;
    let received = rx.offer(&[(end - 12, 12, true), (end, 0, true), (end - 100, 60, true)]);
    cable.arrive(&frame(1));
    device.handle_event(BACKEND);
    assert_eq!(rx.used(), [(received, 72)]);
    memory
        .write_slice(&frame(2), GuestAddress(end - 60))
        .unwrap();
    tx.offer(&[(TX_DATA, 12, false), (end, 0, false), (end - 60, 60, false)]);
    device.handle_event(TX_KICK);
    assert_eq!(cable.sent(), [frame(2)]);
}

#[test]
fn frames_without_a_buffer_wait_in_the_backend() {
    let (memory, cable) = (ram(), Cable::new());
    let (mut device, _gate, mut rx, _tx) = running(&memory, &cable);
    for number in 0..3 {
        cable.arrive(&frame(number));
    }
    device.handle_event(BACKEND);
    assert_eq!(cable.arriving(), 3);
    rx.offer(&[(RX_DATA, 2048, true)]);
    rx.offer(&[(RX_DATA, 2048, true)]);
    device.handle_event(RX_KICK);
    assert_eq!(rx.used().len(), 2);
    assert_eq!(cable.arriving(), 1);
}

#[test]
fn what_the_guest_was_given_elsewhere_comes_first() {
    let (memory, cable) = (ram(), Cable::new());
    let (mut there, gate, mut rx, _tx) = running(&memory, &cable);
    gate.follow_arrivals();
    for _ in 0..3 {
        rx.offer(&[(RX_DATA, 2048, true)]);
    }
    cable.arrive(&clients_frame(1));
    // The next host says where the guest is now.
    cable.arrive(&rarp(Station::untagged(MAC)));
    cable.arrive(&clients_frame(2));
    there.handle_event(BACKEND);
    assert_eq!(rx.used().len(), 3);
    let mut arrivals = gate.take_arrivals();
    let too_long = vec![0; super::backend::FRAME_BYTES_MAX + 1];
    for bytes in [vec![0; 13], too_long] {
        let (device, bytes) = (0, bytes.into());
        arrivals.insert(1, NetworkFrame { device, bytes });
    }
    let (memory, cable) = (ram(), Cable::new());
    let (mut here, gate, mut rx, _tx) = running(&memory, &cable);
    gate.deliver(&arrivals);
    cable.arrive(&clients_frame(3));
    let heads: Vec<u16> = (0..4)
        .map(|number| rx.offer(&[(RX_DATA + 2048 * number, 2048, true)]))
        .collect();
    here.handle_event(RX_KICK);
    assert_eq!(rx.used(), [(heads[0], 72), (heads[1], 72), (heads[2], 72)]);
    for number in 0..3 {
        let got = bytes_at(&memory, RX_DATA + 2048 * number + 12, 60);
        assert_eq!(got, clients_frame(number as u8 + 1));
    }
}

#[test]
fn what_comes_in_once_the_network_knows_of_the_guest_waits_until_it_runs() {
    let (memory, cable) = (ram(), Cable::new());
    let (there, _gate, mut rx, _tx) = running(&memory, &cable);
    rx.offer(&[(RX_DATA, 2048, true)]);
    rx.offer(&[(RX_DATA + 2048, 2048, true)]);
    for has_driver in [true, false] {
        let (mut here, gate) = device(&memory, &cable);
        if has_driver {
            here.restore(&there.save().unwrap()).unwrap();
        }
        cable.arrive(&clients_frame(1));
        here.handle_event(BACKEND);
        here.device_mut().announce().unwrap();
        cable.arrive(&clients_frame(2));
        here.handle_event(BACKEND);
        gate.deliver(&[NetworkFrame {
            device: 0,
            bytes: clients_frame(3).into(),
        }]);
        here.start();
        let counts = here.device().counters();
        if has_driver {
            assert_eq!((counts.rx_dropped, counts.rx_frames), (1, 2));
            assert_eq!(bytes_at(&memory, RX_DATA + 12, 60), clients_frame(3));
            assert_eq!(bytes_at(&memory, RX_DATA + 2048 + 12, 60), clients_frame(2));
        } else {
            assert_eq!((counts.rx_dropped, counts.rx_frames), (3, 0));
        }
    }
}

#[test]
fn on_standby_and_without_a_driver_frames_are_dropped() {
    let (memory, cable) = (ram(), Cable::new());
    let (mut running, _gate, mut rx, _tx) = running(&memory, &cable);
    rx.offer(&[(RX_DATA, 2048, true)]);
    let (mut standby, _gate) = device(&memory, &cable);
    standby.restore(&running.save().unwrap()).unwrap();
    cable.arrive(&frame(1));
    standby.handle_event(BACKEND);
    assert_eq!((cable.arriving(), rx.used().len()), (0, 0));
    assert_eq!(standby.device().counters().rx_dropped, 1);
    standby.start();
    cable.arrive(&frame(2));
    standby.handle_event(BACKEND);
    assert_eq!((cable.arriving(), rx.used().len()), (0, 1));

    write(&mut running, reg::VIRTIO_MMIO_STATUS, 0);
    cable.arrive(&frame(3));
    running.handle_event(BACKEND);
    assert_eq!((cable.arriving(), rx.used().len()), (0, 0));
}

#[test]
fn buffers_that_cannot_hold_a_frame_cost_the_frame() {
    let (memory, cable) = (ram(), Cable::new());
    let (mut device, _gate, mut rx, _tx) = running(&memory, &cable);
    let short = rx.offer(&[(RX_DATA, 71, true)]);
    let readable = rx.offer(&[(RX_DATA, 2048, false)]);
    let outside = rx.offer(&[(RAM_BYTES as u64 - 16, 2048, true)]);
    let far = rx.offer(&[(u64::MAX - 16, 2048, true)]);
    let good = rx.offer(&[(RX_DATA, 72, true)]);
    for number in 0..5 {
        cable.arrive(&frame(number));
    }
    device.handle_event(BACKEND);
    let bad = [short, readable, outside, far].map(|head| (head, 0));
    assert_eq!(rx.used(), [&bad[..], &[(good, 72)]].concat());
    assert_eq!(bytes_at(&memory, RX_DATA + 12, 60), frame(4));
    assert_eq!(device.device().counters().malformed_chains, 4);
}

#[test]
fn frames_go_to_the_gate_and_nowhere_else() {
    let (memory, cable) = (ram(), Cable::new());
    let (mut device, gate, _rx, mut tx) = running(&memory, &cable);
    gate.hold();
    let heads = [1, 2].map(|n| {
        let at = TX_DATA + u64::from(n) * 0x1000;
        (offer_frame(&memory, &mut tx, at, &frame(n)), 0)
    });
    device.handle_event(TX_KICK);
    assert_eq!(tx.used(), heads);
    assert!(raised(device.irq().event()));
    // R1: held until the epoch is released.
    assert!(cable.sent().is_empty());
    let sealed = gate.seal(EpochId(1));
    assert_eq!(sealed.frames.len(), 2);
    assert!(cable.sent().is_empty());
    gate.release(EpochId(1), far());
    assert_eq!(cable.sent(), [frame(1), frame(2)]);
}

#[test]
fn malformed_frames_are_skipped() {
    let (memory, cable) = (ram(), Cable::new());
    let (mut device, _gate, _rx, mut tx) = running(&memory, &cable);
    tx.offer(&[(TX_DATA, 12, false)]);
    tx.offer(&[(TX_DATA, 25, false)]);
    tx.offer(&[(TX_DATA, u32::MAX, false)]);
    tx.offer(&[
        (TX_DATA, 0x8000, false),
        (TX_DATA, 0x8000, false),
        (TX_DATA, 0x8000, false),
    ]);
    tx.offer(&[(TX_DATA, 40, false), (TX_DATA, 40, true)]);
    tx.offer(&[(RAM_BYTES as u64 - 8, 60, false)]);
    tx.offer_head(RING_SIZE);
    offer_frame(&memory, &mut tx, TX_DATA, &frame(9));
    device.handle_event(TX_KICK);
    assert_eq!(cable.sent(), [] as [Vec<u8>; 0]);
    // A head beyond the table cannot even be returned: the ring is broken.
    assert_ne!(read(&mut device, reg::VIRTIO_MMIO_STATUS), READY);
    assert_eq!(device.device().counters().malformed_chains, 7);
    assert_eq!(tx.used().len(), 6);
}

#[test]
fn a_full_gate_stops_the_ring_and_loses_nothing() {
    let (memory, cable) = (ram(), Cable::new());
    let limits = GateLimits {
        held_bytes_max: 2 * (FRAME_OVERHEAD_BYTES + 60),
        ..GateLimits::default()
    };
    let (mut device, gate) = device_with(&memory, &cable, limits);
    device.start();
    let (rx, mut tx) = (Ring::new(&memory, RX_RING), Ring::new(&memory, TX_RING));
    initialise(&mut device, VERSION_1, &[&rx, &tx]);
    gate.hold();
    for number in 0..5_u8 {
        let at = TX_DATA + u64::from(number) * 0x1000;
        offer_frame(&memory, &mut tx, at, &frame(number));
    }
    device.handle_event(TX_KICK);
    assert_eq!(tx.used().len(), 2);
    let mut sent = Vec::new();
    for (epoch, used) in [(1, 2), (2, 1)] {
        gate.seal(EpochId(epoch));
        gate.release(EpochId(epoch), far());
        sent.extend(cable.sent());
        device.handle_event(SPACE);
        assert_eq!(tx.used().len(), used);
    }
    gate.open();
    sent.extend(cable.sent());
    assert_eq!(sent, (0..5).map(frame).collect::<Vec<_>>());
    assert_eq!(device.device().counters().tx_waits, 2);
}

#[test]
fn a_lost_backend_takes_the_link_down() {
    let (memory, cable) = (ram(), Cable::new());
    let (mut device, _gate, mut rx, _tx) = running(&memory, &cable);
    assert_eq!(link_status(&mut device), LINK_UP);
    rx.offer(&[(RX_DATA, 2048, true)]);
    *cable.cut.lock().unwrap() = true;
    device.handle_event(BACKEND);
    assert!(!device.device().backend_is_up());
    assert_eq!(link_status(&mut device), 0);
    assert_eq!(read(&mut device, reg::VIRTIO_MMIO_INTERRUPT_STATUS), 2);
    assert_eq!(read(&mut device, reg::VIRTIO_MMIO_CONFIG_GENERATION), 1);
    assert!(raised(device.irq().event()));

    // On a host whose backend works, the guest is told that the link is back.
    let (mut other, _gate) = self::device(&memory, &Cable::new());
    other.restore(&device.save().unwrap()).unwrap();
    assert_eq!(link_status(&mut other), 0);
    other.start();
    assert_eq!(link_status(&mut other), LINK_UP);
    assert_eq!(read(&mut other, reg::VIRTIO_MMIO_CONFIG_GENERATION), 2);
}

#[test]
fn the_link_goes_down_even_without_a_buffer() {
    let (memory, cable) = (ram(), Cable::new());
    let (mut device, _gate, _rx, _tx) = running(&memory, &cable);
    *cable.cut.lock().unwrap() = true;
    device.handle_event(BACKEND);
    assert_eq!(link_status(&mut device), 0);
}

#[test]
fn snapshot_mutate_restore_compare() {
    let (memory, cable) = (ram(), Cable::new());
    let (mut device, _gate, mut rx, mut tx) = running(&memory, &cable);
    offer_frame(&memory, &mut tx, TX_DATA, &arp(2));
    device.handle_event(TX_KICK);
    let saved = device.save().unwrap();

    offer_frame(&memory, &mut tx, TX_DATA, &arp(3));
    device.handle_event(TX_KICK);
    rx.offer(&[(RX_DATA, 2048, true)]);
    *cable.cut.lock().unwrap() = true;
    device.handle_event(BACKEND);
    assert_ne!(device.save().unwrap(), saved);
    device.restore(&saved).unwrap();
    assert_eq!(device.save().unwrap(), saved);

    let (mut other, _gate) = self::device(&memory, &Cable::new());
    other.restore(&saved).unwrap();
    assert_eq!(other.save().unwrap(), saved);
    let learned: Vec<IpAddr> = other.device().addresses().ip_addresses().collect();
    assert_eq!(learned, [IpAddr::from([10, 77, 0, 2])]);
}

#[test]
fn another_guests_state_is_refused() {
    let (memory, cable) = (ram(), Cable::new());
    let (device, _gate) = device(&memory, &cable);
    let mut other = attach(&OutputGate::default(), &memory, &cable, [2; 6]);
    let error = other.restore(&device.save().unwrap()).unwrap_err();
    assert!(matches!(error, DeviceError::Invalid { .. }), "{error}");
}

#[test]
fn the_guest_is_told_the_mtu_of_its_first_host() {
    let memory = ram();
    let with = |mtu_bytes| Cable {
        mtu_bytes: Some(mtu_bytes),
        ..Cable::new()
    };
    let told = |device: &mut NetTransport| {
        let mut mtu = [0; 2];
        device.read(u64::from(reg::VIRTIO_MMIO_CONFIG) + 10, &mut mtu);
        u16::from_le_bytes(mtu)
    };
    let print = |device: &NetTransport| {
        let mut print = Fingerprint::new();
        device.device().describe(&mut print);
        print
    };
    let (mut first, _gate) = device(&memory, &with(1400));
    write(&mut first, reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
    assert_ne!(
        read(&mut first, reg::VIRTIO_MMIO_DEVICE_FEATURES) & 1 << 3,
        0
    );
    assert_eq!(told(&mut first), 1400);
    let (mut second, _gate) = device(&memory, &with(9000));
    assert_eq!(print(&first).differences(&print(&second)), []);
    let differences = print(&second).differences(&print(&first));
    assert_eq!(
        differences[0].to_string(),
        "device.net0.mtu: primary has 9000, backup has at most 1400"
    );
    // And the host to which it came may have the first one as its standby.
    second.restore(&first.save().unwrap()).unwrap();
    assert_eq!(told(&mut second), 1400);
    assert_eq!(print(&second).differences(&print(&first)), []);

    let (mut unknown, _gate) = device(&memory, &Cable::new());
    write(&mut unknown, reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
    assert_eq!(
        read(&mut unknown, reg::VIRTIO_MMIO_DEVICE_FEATURES) & 1 << 3,
        0
    );
    assert_eq!(told(&mut unknown), 0);
    let error = unknown.restore(&first.save().unwrap()).unwrap_err();
    assert!(error.to_string().contains("MTU Some(1400)"), "{error}");
}

proptest! {
    #[test]
    fn any_ring_is_survived(
        descriptors in proptest::collection::vec(
            (0..RAM_BYTES as u64 * 5 / 4, 0..100_000_u32, 0..8_u16, 0..RING_SIZE + 2),
            RING_SIZE as usize,
        ),
        heads in proptest::collection::vec(0..RING_SIZE + 1, RING_SIZE as usize),
        avail in 0..RING_SIZE + 2,
        kick in 0..6_usize,
    ) {
        use virtio_queue::desc::{RawDescriptor, split::Descriptor};
        let (memory, cable) = (ram(), Cable::new());
        let (mut device, _gate, rx, tx) = running(&memory, &cable);
        let control = Ring::new(&memory, CONTROL_RING);
        initialise(&mut device, announcements::FEATURES, &[&rx, &tx, &control]);
        device.device_mut().announce().unwrap();
        cable.sent();
        for ring in [&rx, &tx, &control] {
            for (index, (address, len, flags, next)) in descriptors.iter().enumerate() {
                let descriptor = Descriptor::new(*address, *len, *flags, *next);
                let raw = RawDescriptor::from(descriptor);
                ring.descriptors.store(index as u16, raw).unwrap();
                ring.avail.ring().ref_at(index).unwrap().store(heads[index]);
            }
            ring.avail.idx().store(avail);
        }
        for number in 0..20 {
            cable.arrive(&frame(number));
        }
        device.handle_event(kick);
        device.start();
        // What was sent was in memory and of a possible length; and a reset cures everything.
        prop_assert!(cable.sent().iter().all(|f| (14..=65_554).contains(&f.len())));
        let (rx, mut tx) = (Ring::new(&memory, RX_RING), Ring::new(&memory, TX_RING));
        prop_assert_eq!(initialise(&mut device, VERSION_1, &[&rx, &tx]), READY);
        offer_frame(&memory, &mut tx, TX_DATA, &frame(7));
        device.handle_event(TX_KICK);
        prop_assert_eq!(cable.sent(), [frame(7)]);
    }
}
