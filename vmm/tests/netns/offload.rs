//! Checksum and segmentation offload between two taps on a bridge: a frame of 64 KiB that its guest has neither
//! cut nor summed up goes through gate and failover, and arrives whole, or cut and summed up by the kernel, as
//! the receiving guest's driver wants it.
//!
//! No guest runs: rings and registers are filled by hand.

use std::thread::scope;

use nix::sched::{CloneFlags, setns};
use smoltcp::wire::{EthernetFrame, Ipv4Packet, TcpPacket};
use understudy_replication::ids::EpochId;
use understudy_replication::output::{OutputGate, SealedOutput};
use understudy_vmm::devices::virtio::mmio::MmioTransport;
use understudy_vmm::devices::virtio::net::NetDevice;
use understudy_vmm::devices::virtio::net::backend::{Framing, tap};
use understudy_vmm::devices::{BusDevice, Device, Irq};
use understudy_vmm::memory::GuestRam;
use understudy_vmm::output::SpaceEvent;
use virtio_bindings::virtio_mmio as reg;
use vm_memory::{Bytes, GuestAddress};

use super::namespace::Namespace;
use super::{alone, await_some};

const SENDER: [u8; 6] = [0x52, 0x54, 0, 0, 0, 0xa];
const RECEIVER: [u8; 6] = [0x52, 0x54, 0, 0, 0, 0xb];
const VERSION_1: u64 = 1 << 32;
/// CSUM and HOST_TSO4.
const SENDS: u64 = 1 | 1 << 11;
/// GUEST_CSUM and GUEST_TSO4.
const TAKES: u64 = 1 << 1 | 1 << 7;

const RAM_BYTES: usize = 16 << 20;
const QUEUE_SIZE: u16 = 128;
/// Rings, a page for each of their three parts.
const RINGS: u64 = 0x1000;
const DATA: u64 = 0x10_0000;
/// Behind each other: room for the longest frame and its header.
const BUFFER_BYTES: u32 = 0x1_1000;
const RX: u64 = 0;
const TX: u64 = 1;
/// Behind the kicks of three queues.
const BACKEND: usize = 3;

const HEADER_BYTES: usize = 12;
const PAYLOAD_BYTES: usize = 60_000;
const SEGMENT_BYTES: usize = 1448;
/// Ethernet, IPv4 and TCP without options.
const HEADERS_BYTES: usize = 14 + 20 + 20;

/// A network device with its driver's side of the rings.
struct Guest {
    ram: GuestRam,
    device: MmioTransport<NetDevice>,
    gate: OutputGate,
    taken: u16,
}

impl Guest {
    fn new(interface: &str, mac: [u8; 6], features: u64) -> Self {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).unwrap();
        let backend = tap::open(interface, Framing::Headers).unwrap();
        let (gate, space) = (OutputGate::default(), SpaceEvent::new().unwrap());
        let port = gate.add_network(backend.sink, space.waker());
        let net = NetDevice::new("net0", mac, backend.source, port, space).unwrap();
        let mut device = MmioTransport::new(net, ram.clone(), Irq::new().unwrap()).unwrap();
        device.start();
        let mut guest = Self {
            ram,
            device,
            gate,
            taken: 0,
        };
        guest.initialise(VERSION_1 | features);
        guest
    }

    fn write(&mut self, register: u32, value: u32) {
        let bytes = value.to_le_bytes();
        self.device.write(u64::from(register), &bytes);
    }

    fn initialise(&mut self, features: u64) {
        for status in [0, 1, 3] {
            self.write(reg::VIRTIO_MMIO_STATUS, status);
        }
        for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, half);
        }
        self.write(reg::VIRTIO_MMIO_STATUS, 0xb);
        for queue in [RX, TX] {
            self.write(reg::VIRTIO_MMIO_QUEUE_SEL, queue as u32);
            self.write(reg::VIRTIO_MMIO_QUEUE_NUM, u32::from(QUEUE_SIZE));
            for (part, register) in [
                reg::VIRTIO_MMIO_QUEUE_DESC_LOW,
                reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW,
                reg::VIRTIO_MMIO_QUEUE_USED_LOW,
            ]
            .into_iter()
            .enumerate()
            {
                self.write(register, ring(queue, part as u64) as u32);
            }
            self.write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
        }
        self.write(reg::VIRTIO_MMIO_STATUS, 0xf);
        let mut status = [0; 4];
        self.device
            .read(u64::from(reg::VIRTIO_MMIO_STATUS), &mut status);
        assert_eq!(u32::from_le_bytes(status), 0xf);
    }

    /// Offers descriptors 0 to `count` of a queue, each with a buffer of its own.
    fn offer(&self, queue: u64, count: u16, bytes: u32, writable: bool) {
        let put = |bytes: &[u8], at: u64| self.ram.write_slice(bytes, GuestAddress(at)).unwrap();
        for number in 0..count {
            let at = ring(queue, 0) + 16 * u64::from(number);
            put(&buffer(number).to_le_bytes(), at);
            put(&bytes.to_le_bytes(), at + 8);
            put(&(u16::from(writable) * 2).to_le_bytes(), at + 12);
            put(
                &number.to_le_bytes(),
                ring(queue, 1) + 4 + 2 * u64::from(number),
            );
        }
        put(&count.to_le_bytes(), ring(queue, 1) + 2);
    }

    fn send(&mut self, packet: &[u8]) {
        self.ram.write_slice(packet, GuestAddress(DATA)).unwrap();
        self.offer(TX, 1, packet.len() as u32, false);
        self.device.handle_event(TX as usize);
        assert_eq!(self.device.device().counters().tx_frames, 1);
    }

    /// Frames that have arrived from the sender since the last time, behind their headers.
    fn receive(&mut self) -> Vec<Vec<u8>> {
        self.device.handle_event(BACKEND);
        let used = ring(RX, 2);
        let until: u16 = self.ram.read_obj(GuestAddress(used + 2)).unwrap();
        let mut packets = Vec::new();
        while self.taken != until {
            let at = used + 4 + 8 * u64::from(self.taken);
            let entry: [u32; 2] = self.ram.read_obj(GuestAddress(at)).unwrap();
            let mut packet = vec![0; entry[1] as usize];
            let from = buffer(entry[0] as u16);
            self.ram
                .read_slice(&mut packet, GuestAddress(from))
                .unwrap();
            packets.push(packet);
            self.taken += 1;
        }
        // The kernels at both ends of the bridge say things too.
        packets.retain(|packet| packet[HEADER_BYTES + 6..HEADER_BYTES + 12] == SENDER);
        packets
    }
}

fn ring(queue: u64, part: u64) -> u64 {
    RINGS + queue * 0x8000 + part * 0x1000
}

fn buffer(number: u16) -> u64 {
    DATA + u64::from(number) * u64::from(BUFFER_BYTES)
}

/// A TCP segment far too long for any wire, its checksum begun only, behind the header that says so.
fn unsegmented() -> Vec<u8> {
    let total = HEADERS_BYTES + PAYLOAD_BYTES;
    let mut packet = vec![1, 1];
    for word in [HEADERS_BYTES, SEGMENT_BYTES, 34, 16, 0] {
        packet.extend_from_slice(&(word as u16).to_le_bytes());
    }
    let mut frame = vec![0; total];
    frame[..6].copy_from_slice(&RECEIVER);
    frame[6..12].copy_from_slice(&SENDER);
    frame[12..14].copy_from_slice(&[8, 0]);
    let mut ip = Ipv4Packet::new_unchecked(&mut frame[14..]);
    ip.set_version(4);
    ip.set_header_len(20);
    ip.set_total_len((total - 14) as u16);
    ip.set_hop_limit(64);
    ip.set_dont_frag(true);
    ip.set_next_header(smoltcp::wire::IpProtocol::Tcp);
    ip.set_src_addr([10, 0, 0, 1].into());
    ip.set_dst_addr([10, 0, 0, 2].into());
    ip.fill_checksum();
    let mut tcp = TcpPacket::new_unchecked(&mut frame[34..]);
    tcp.set_src_port(1);
    tcp.set_dst_port(2);
    tcp.set_seq_number(smoltcp::wire::TcpSeqNumber(1000));
    tcp.set_header_len(20);
    tcp.set_ack(true);
    tcp.set_window_len(1000);
    for (number, byte) in tcp.payload_mut().iter_mut().enumerate() {
        *byte = (number / 7) as u8;
    }
    // The sum of the pseudo-header, as drivers leave it.
    let pseudo = [0x0a00, 1, 0x0a00, 2, 6, (total - 34) as u32];
    let sum = pseudo.iter().sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    tcp.set_checksum(sum as u16);
    packet.extend_from_slice(&frame);
    packet
}

/// What a guest without offload got: the payload, if all segments are sound.
fn reassemble(packets: &[Vec<u8>]) -> Vec<u8> {
    let mut payload = Vec::new();
    for packet in packets {
        assert_eq!(packet[..10], [0; 10], "nothing is left to do");
        let frame = EthernetFrame::new_checked(&packet[HEADER_BYTES..]).unwrap();
        assert!(frame.payload().len() <= 1500);
        let ip = Ipv4Packet::new_checked(frame.payload()).unwrap();
        assert!(ip.verify_checksum());
        let tcp = TcpPacket::new_checked(ip.payload()).unwrap();
        assert!(tcp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into()));
        assert_eq!(tcp.seq_number().0 as usize, 1000 + payload.len());
        payload.extend_from_slice(tcp.payload());
    }
    payload
}

/// The first host's guest sends into a gate that holds; its host dies before the release.
fn sealed_output() -> SealedOutput {
    let mut first = Guest::new("first", SENDER, SENDS);
    first.gate.hold();
    first.send(&unsegmented());
    first.gate.seal(EpochId(1))
}

#[test]
fn a_large_frame_survives_a_failover_whole_or_cut_by_the_kernel() {
    let _alone = alone();
    let namespace = Namespace::new("offload");
    namespace.ip("link add bridge type bridge");
    namespace.ip("link set bridge up");
    for interface in ["first", "second"] {
        namespace.ip(&format!("tuntap add dev {interface} mode tap"));
        namespace.ip(&format!("link set {interface} up master bridge"));
    }
    let file = std::fs::File::open(namespace.path()).unwrap();
    // A thread of its own, which ends in the other namespace.
    scope(|scope| {
        let work = scope.spawn(|| {
            setns(&file, CloneFlags::CLONE_NEWNET).unwrap();
            for takes in [TAKES, 0] {
                let sealed = sealed_output();
                assert!(sealed.frames[0].bytes == unsegmented());
                let mut receiver = Guest::new("second", RECEIVER, takes);
                receiver.offer(RX, QUEUE_SIZE, BUFFER_BYTES, true);
                let second = Guest::new("first", SENDER, 0);
                for interface in ["first", "second"] {
                    await_some("the bridge forwards", || {
                        let link = namespace.tool("bridge", &format!("link show dev {interface}"));
                        link.contains("state forwarding").then_some(())
                    });
                }
                second.gate.repeat(&sealed);
                let count = match takes {
                    TAKES => 1,
                    _ => PAYLOAD_BYTES.div_ceil(SEGMENT_BYTES),
                };
                let mut packets = Vec::new();
                await_some("the frame arrives", || {
                    packets.extend(receiver.receive());
                    (packets.len() >= count).then_some(())
                });
                assert_eq!(packets.len(), count);
                if takes == TAKES {
                    let mut expected = unsegmented();
                    expected[10] = 1;
                    assert!(packets[0] == expected, "header {:?}", &packets[0][..12]);
                } else {
                    assert!(reassemble(&packets) == unsegmented()[HEADER_BYTES + HEADERS_BYTES..]);
                }
            }
        });
        work.join().unwrap();
    });
}
