//! Tells the network where a guest lives now. After a promotion the switches still send its frames
//! to the dead host. Only a frame from the guest's address through the new port corrects them.
//!
//! Two frames do this. A RARP request, as hypervisors send after a live migration, needs no IP
//! address. An ARP announcement (RFC 5227, section 3) reaches neighbours that also cache the
//! address. This module sends nothing; see [`NetPort::announce`](super::NetPort::announce).

use std::net::Ipv4Addr;

use smoltcp::wire::{
    ArpHardware, ArpOperation, ArpPacket, EthernetAddress, EthernetFrame, EthernetProtocol,
    Ipv4Packet,
};

/// Shortest Ethernet frame without its checksum; shorter ones are padded.
const FRAME_BYTES_MIN: usize = 60;
const ETHERNET_HEADER_BYTES: usize = 14;
/// RFC 903: "reverse request".
const RARP_REQUEST: u16 = 3;
/// RFC 903: the Ethernet type of RARP.
const RARP_TYPE: u16 = 0x8035;

/// A RARP request from and for `mac`.
#[must_use]
pub fn rarp(mac: [u8; 6]) -> Vec<u8> {
    let any = Ipv4Addr::UNSPECIFIED;
    arp_frame(
        EthernetProtocol::Unknown(RARP_TYPE),
        ArpOperation::Unknown(RARP_REQUEST),
        (mac, any),
        (mac, any),
    )
}

/// An ARP announcement: `mac` has `address`.
#[must_use]
pub fn gratuitous_arp(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    arp_frame(
        EthernetProtocol::Arp,
        ArpOperation::Request,
        (mac, address),
        ([0; 6], address),
    )
}

/// The guest's IPv4 address after a frame that the guest `mac` sent; `known` is what earlier frames
/// told. ARP is believed at once. The source of an IPv4 packet is believed only if nothing is
/// known, because a guest may route for others.
#[must_use]
pub fn learn_address(known: Option<Ipv4Addr>, mac: [u8; 6], frame: &[u8]) -> Option<Ipv4Addr> {
    source_address(known.is_none(), mac, frame).or(known)
}

fn source_address(also_ipv4: bool, mac: [u8; 6], frame: &[u8]) -> Option<Ipv4Addr> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    if frame.src_addr().0 != mac {
        return None;
    }
    let address = match frame.ethertype() {
        EthernetProtocol::Arp => {
            let packet = ArpPacket::new_checked(frame.payload()).ok()?;
            let is_ours = packet.hardware_type() == ArpHardware::Ethernet
                && packet.protocol_type() == EthernetProtocol::Ipv4
                && packet.hardware_len() == 6
                && packet.protocol_len() == 4
                && packet.source_hardware_addr() == mac;
            let octets: [u8; 4] = packet.source_protocol_addr().try_into().ok()?;
            is_ours.then(|| Ipv4Addr::from(octets))?
        }
        EthernetProtocol::Ipv4 if also_ipv4 => {
            Ipv4Packet::new_checked(frame.payload()).ok()?.src_addr()
        }
        _ => return None,
    };
    let is_host = !(address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || address.is_broadcast());
    is_host.then_some(address)
}

fn arp_frame(
    protocol: EthernetProtocol,
    operation: ArpOperation,
    source: ([u8; 6], Ipv4Addr),
    target: ([u8; 6], Ipv4Addr),
) -> Vec<u8> {
    let mut bytes = vec![0; FRAME_BYTES_MIN];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    frame.set_dst_addr(EthernetAddress::BROADCAST);
    frame.set_src_addr(EthernetAddress(source.0));
    frame.set_ethertype(protocol);
    let mut packet = ArpPacket::new_unchecked(&mut bytes[ETHERNET_HEADER_BYTES..]);
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

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

    fn padded(head: &[u8]) -> Vec<u8> {
        let mut frame = head.to_vec();
        frame.resize(60, 0);
        frame
    }

    #[test]
    fn rarp_bytes() {
        #[rustfmt::skip]
        let golden = padded(&[
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 0x80, 0x35,
            0, 1, 8, 0, 6, 4, 0, 3,
            0x52, 0x54, 0, 0x12, 0x34, 0x56, 0, 0, 0, 0,
            0x52, 0x54, 0, 0x12, 0x34, 0x56, 0, 0, 0, 0,
        ]);
        assert_eq!(rarp(MAC), golden);
    }

    #[test]
    fn gratuitous_arp_bytes() {
        #[rustfmt::skip]
        let golden = padded(&[
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 0x08, 0x06,
            0, 1, 8, 0, 6, 4, 0, 1,
            0x52, 0x54, 0, 0x12, 0x34, 0x56, 10, 77, 0, 2,
            0, 0, 0, 0, 0, 0, 10, 77, 0, 2,
        ]);
        assert_eq!(gratuitous_arp(MAC, ADDRESS), golden);
    }

    #[test]
    fn the_address_is_learned_from_arp() {
        let frame = gratuitous_arp(MAC, ADDRESS);
        assert_eq!(learn_address(None, MAC, &frame), Some(ADDRESS));
        let old = Some(Ipv4Addr::new(10, 0, 0, 9));
        assert_eq!(learn_address(old, MAC, &frame), Some(ADDRESS));
        // Another one's ARP, an address probe (RFC 5227), a RARP: no news.
        assert_eq!(learn_address(old, [2; 6], &frame), old);
        let probe = gratuitous_arp(MAC, Ipv4Addr::UNSPECIFIED);
        assert_eq!(learn_address(old, MAC, &probe), old);
        assert_eq!(learn_address(None, MAC, &rarp(MAC)), None);
    }

    #[test]
    fn the_address_is_learned_from_ipv4_if_unknown() {
        let mut frame = padded(&gratuitous_arp(MAC, ADDRESS)[..12]);
        frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
        frame[16..18].copy_from_slice(&20_u16.to_be_bytes());
        frame[26..30].copy_from_slice(&ADDRESS.octets());
        assert_eq!(learn_address(None, MAC, &frame), Some(ADDRESS));
        let known = Some(Ipv4Addr::new(10, 0, 0, 9));
        assert_eq!(learn_address(known, MAC, &frame), known);
    }

    proptest::proptest! {
        #[test]
        fn any_frame_is_survived(
            kind in 0..3_usize,
            body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80),
        ) {
            let types = [[8, 0], [8, 6], [0x80, 0x35]];
            let mut frame = [[0xff; 6], MAC].concat();
            frame.extend(types[kind]);
            frame.extend(body);
            for cut in 0..=frame.len() {
                let learned = learn_address(None, MAC, &frame[..cut]);
                proptest::prop_assert!(kind != 2 || learned.is_none());
            }
        }
    }
}
