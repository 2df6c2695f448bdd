//! The frames that say where an address is.

use std::net::{Ipv4Addr, Ipv6Addr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpHardware, ArpOperation, ArpPacket, EthernetAddress, EthernetProtocol, Icmpv6Packet,
    Icmpv6Repr, IpProtocol, Ipv6Packet, Ipv6Repr, NdiscNeighborFlags, NdiscRepr,
};

use super::{RARP_TYPE, Station};

/// Shortest Ethernet frame without its checksum and tags; shorter ones are padded.
const FRAME_BYTES_MIN: usize = 60;
/// Two addresses, without tags and type.
const ADDRESSES_BYTES: usize = 12;
/// RFC 903: "reverse request".
const RARP_REQUEST: u16 = 3;
const ARP_BYTES: usize = 28;
/// All nodes on the link, and the Ethernet address for that (RFC 2464, section 7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
/// Neighbours believe only what no router has forwarded (RFC 4861, section 7.1.2).
pub(super) const NOT_FORWARDED: u8 = 255;

/// A RARP request from and for `station`.
#[must_use]
pub fn rarp(station: Station) -> Vec<u8> {
    let any = Ipv4Addr::UNSPECIFIED;
    let packet = arp_packet(
        ArpOperation::Unknown(RARP_REQUEST),
        (station.mac, any),
        (station.mac, any),
    );
    ethernet(
        station,
        EthernetAddress::BROADCAST.0,
        RARP_TYPE.into(),
        &packet,
    )
}

/// An ARP announcement: `station` has `address`.
#[must_use]
pub fn gratuitous_arp(station: Station, address: Ipv4Addr) -> Vec<u8> {
    let packet = arp_packet(
        ArpOperation::Request,
        (station.mac, address),
        ([0; 6], address),
    );
    ethernet(
        station,
        EthernetAddress::BROADCAST.0,
        EthernetProtocol::Arp,
        &packet,
    )
}

/// An unsolicited neighbour advertisement: `station` has `address`, whatever neighbours knew before.
/// A router must say that it is one, or hosts stop using it as their router.
#[must_use]
pub fn neighbour_advertisement(station: Station, address: Ipv6Addr, is_router: bool) -> Vec<u8> {
    let mut flags = NdiscNeighborFlags::OVERRIDE;
    flags.set(NdiscNeighborFlags::ROUTER, is_router);
    let said = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
        flags,
        target_addr: address,
        lladdr: Some(EthernetAddress(station.mac).into()),
    });
    let header = Ipv6Repr {
        src_addr: address,
        dst_addr: ALL_NODES,
        next_header: IpProtocol::Icmpv6,
        payload_len: said.buffer_len(),
        hop_limit: NOT_FORWARDED,
    };
    let mut bytes = vec![0; header.buffer_len() + said.buffer_len()];
    let mut packet = Ipv6Packet::new_unchecked(&mut bytes[..]);
    header.emit(&mut packet);
    said.emit(
        &address,
        &ALL_NODES,
        &mut Icmpv6Packet::new_unchecked(packet.payload_mut()),
        &ChecksumCapabilities::default(),
    );
    ethernet(station, ALL_NODES_MAC, EthernetProtocol::Ipv6, &bytes)
}

fn arp_packet(
    operation: ArpOperation,
    source: ([u8; 6], Ipv4Addr),
    target: ([u8; 6], Ipv4Addr),
) -> [u8; ARP_BYTES] {
    let mut bytes = [0; ARP_BYTES];
    let mut packet = ArpPacket::new_unchecked(&mut bytes[..]);
    packet.set_hardware_type(ArpHardware::Ethernet);
    packet.set_protocol_type(EthernetProtocol::Ipv4);
    packet.set_hardware_len(6);
    packet.set_protocol_len(4);
    packet.set_operation(operation);
    packet.set_source_hardware_addr(&source.0);
    packet.set_source_protocol_addr(&source.1.octets());
    packet.set_target_hardware_addr(&target.0);
    packet.set_target_protocol_addr(&target.1.octets());
    bytes
}

/// A frame of `station`, in its VLAN.
fn ethernet(
    station: Station,
    destination: [u8; 6],
    protocol: EthernetProtocol,
    payload: &[u8],
) -> Vec<u8> {
    let mut frame = Vec::with_capacity(FRAME_BYTES_MIN + payload.len());
    frame.extend(destination);
    frame.extend(station.mac);
    for (kind, number) in station.vlan.tags() {
        frame.extend(kind.to_be_bytes());
        frame.extend(number.to_be_bytes());
    }
    let tags = frame.len() - ADDRESSES_BYTES;
    frame.extend(u16::from(protocol).to_be_bytes());
    frame.extend(payload);
    frame.resize(frame.len().max(FRAME_BYTES_MIN + tags), 0);
    frame
}
