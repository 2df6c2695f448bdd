//! Frames byte by byte, and what is learned from which.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::*;

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const OTHER: [u8; 6] = [0x52, 0x54, 0, 0, 0, 9];
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const ADDRESS6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0xff, 0xfe12, 0x3456);
const SOLICIT: u8 = 135;
const ADVERTISE: u8 = 136;

fn own() -> Station {
    Station::untagged(MAC)
}

fn tagged(number: u16) -> Station {
    Station {
        vlan: Vlan([(0x8100, number), (0, 0)]),
        ..own()
    }
}

fn padded(head: &[u8]) -> Vec<u8> {
    let mut frame = head.to_vec();
    frame.resize(60, 0);
    frame
}

/// A message of neighbour discovery of `mac`.
fn discovery(mac: [u8; 6], source: Ipv6Addr, kind: u8, rest: &[u8]) -> Vec<u8> {
    let mut frame = [&[0x33, 0x33, 0, 0, 0, 1][..], &mac, &[0x86, 0xdd]].concat();
    frame.extend([0x60, 0, 0, 0, 0, 4 + rest.len() as u8, 58, 255]);
    frame.extend(source.octets());
    frame.extend(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).octets());
    frame.extend([kind, 0, 0, 0]);
    frame.extend(rest);
    frame
}

/// Flags and target of a solicitation or an advertisement.
fn about(flags: u8, target: Ipv6Addr) -> Vec<u8> {
    [&[flags, 0, 0, 0][..], &target.octets()].concat()
}

fn known(addresses: &Addresses) -> Vec<IpAddr> {
    addresses.ip_addresses().collect()
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
    assert_eq!(rarp(own()), golden);
    let tags = [0x88, 0xa8, 0, 7, 0x81, 0, 0x0f, 0xfe];
    let vlan = Vlan([(0x88a8, 7), (0x8100, 0xffe)]);
    let golden = [&golden[..12], &tags, &golden[12..]].concat();
    assert_eq!(rarp(Station { vlan, ..own() }), golden);
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
    assert_eq!(gratuitous_arp(own(), ADDRESS), golden);
}

#[test]
fn neighbour_advertisement_bytes() {
    #[rustfmt::skip]
    let golden = |flags, checksum: [u8; 2]| [
        &[0x33, 0x33, 0, 0, 0, 1, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 0x86, 0xdd][..],
        &[0x60, 0, 0, 0, 0, 32, 58, 255],
        &ADDRESS6.octets(),
        &[0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        &[136, 0, checksum[0], checksum[1], flags, 0, 0, 0],
        &ADDRESS6.octets(),
        &[2, 1, 0x52, 0x54, 0, 0x12, 0x34, 0x56],
    ].concat();
    let frame = neighbour_advertisement(own(), ADDRESS6, false);
    assert_eq!(frame, golden(0x20, [0xcb, 0x68]));
    let frame = neighbour_advertisement(own(), ADDRESS6, true);
    assert_eq!(frame, golden(0xa0, [0x4b, 0x68]));
}

#[test]
fn addresses_are_learned_from_arp() {
    let mut addresses = Addresses::of(MAC);
    assert_eq!(addresses.announcements(), [rarp(own())]);
    let second = Ipv4Addr::new(10, 77, 0, 3);
    addresses.sent(&gratuitous_arp(own(), ADDRESS));
    addresses.sent(&gratuitous_arp(own(), second));
    addresses.sent(&gratuitous_arp(own(), ADDRESS));
    assert_eq!(known(&addresses), [IpAddr::from(second), ADDRESS.into()]);
    // A probe (RFC 5227), a RARP, an ARP packet for another station: no news.
    let before = addresses.clone();
    addresses.sent(&gratuitous_arp(own(), Ipv4Addr::UNSPECIFIED));
    addresses.sent(&rarp(own()));
    let mut forged = gratuitous_arp(Station::untagged(OTHER), Ipv4Addr::new(10, 0, 0, 9));
    forged[6..12].copy_from_slice(&MAC);
    addresses.sent(&forged);
    // What no single host can have as its address.
    for octets in [[127, 0, 0, 1], [224, 0, 0, 1], [255; 4]] {
        addresses.sent(&gratuitous_arp(own(), octets.into()));
    }
    // Nor whom an IPv4 packet is from: the guest may route.
    let mut packet = padded(&gratuitous_arp(own(), ADDRESS)[..12]);
    packet[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
    packet[26..30].copy_from_slice(&[192, 0, 2, 7]);
    addresses.sent(&packet);
    assert_eq!(addresses, before);
}

#[test]
fn addresses_are_learned_from_neighbour_discovery() {
    let of = |last| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last);
    let mut addresses = Addresses::of(MAC);
    let unspecified = Ipv6Addr::UNSPECIFIED;
    addresses.sent(&discovery(MAC, of(1), SOLICIT, &about(0, of(100))));
    addresses.sent(&discovery(MAC, unspecified, SOLICIT, &about(0, of(2))));
    addresses.sent(&discovery(MAC, of(1), ADVERTISE, &about(0x20, of(3))));
    addresses.sent(&discovery(MAC, of(1), ADVERTISE, &about(0x40, of(4))));
    addresses.sent(&discovery(MAC, ADDRESS6, 133, &[0; 4]));
    let learned = [of(1), of(2), of(3), of(4), ADDRESS6].map(IpAddr::from);
    assert_eq!(known(&addresses), learned);
    // It comes from elsewhere; it is one of several stations' or another one's; it is no neighbour
    // discovery.
    let before = addresses.clone();
    let mut forwarded = discovery(MAC, of(5), SOLICIT, &about(0, of(100)));
    forwarded[14 + 7] = 254;
    addresses.sent(&forwarded);
    let option = [&about(0, of(6))[..], &[2, 1], &MAC].concat();
    addresses.sent(&discovery(MAC, of(1), ADVERTISE, &option));
    addresses.sent(&discovery(MAC, of(7), 128, &[0; 4]));
    addresses.sent(&discovery(MAC, unspecified, 133, &[0; 4]));
    for none in [
        Ipv6Addr::LOCALHOST,
        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
    ] {
        addresses.sent(&discovery(MAC, of(1), ADVERTISE, &about(0x20, none)));
    }
    assert_eq!(addresses, before);
}

#[test]
fn a_router_stays_one() {
    let mut addresses = Addresses::of(MAC);
    addresses.sent(&discovery(MAC, ADDRESS6, SOLICIT, &about(0, ADDRESS6)));
    let announced = |addresses: &Addresses| addresses.announcements()[1].clone();
    let as_router = |is| neighbour_advertisement(own(), ADDRESS6, is);
    assert_eq!(announced(&addresses), as_router(false));
    addresses.sent(&discovery(MAC, ADDRESS6, 134, &[0; 12]));
    // What others send in between does not change it.
    addresses.sent(&rarp(Station::untagged(OTHER)));
    addresses.sent(&discovery(MAC, ADDRESS6, SOLICIT, &about(0, ADDRESS6)));
    assert_eq!(announced(&addresses), rarp(Station::untagged(OTHER)));
    assert_eq!(addresses.announcements()[2], as_router(true));
    let no_longer = about(0x20, ADDRESS6);
    addresses.sent(&discovery(MAC, ADDRESS6, ADVERTISE, &no_longer));
    assert_eq!(addresses.announcements()[2], as_router(false));
}

#[test]
fn each_station_and_each_vlan_is_announced_with_its_tags() {
    let mut addresses = Addresses::of(MAC);
    let nested = Station {
        vlan: Vlan([(0x88a8, 7), (0x8100, 8)]),
        mac: OTHER,
    };
    addresses.sent(&gratuitous_arp(tagged(5), ADDRESS));
    addresses.sent(&gratuitous_arp(nested, ADDRESS));
    // Only a priority: that is no VLAN.
    let untagged = gratuitous_arp(own(), ADDRESS);
    let priority = [&untagged[..12], &[0x81, 0, 0xe0, 0], &untagged[12..]].concat();
    addresses.sent(&priority);
    assert_eq!(
        addresses.announcements(),
        [
            rarp(own()),
            rarp(tagged(5)),
            rarp(nested),
            gratuitous_arp(tagged(5), ADDRESS),
            gratuitous_arp(nested, ADDRESS),
            untagged.clone(),
        ]
    );
    // One with a priority outside of both.
    let before = addresses.clone();
    let frame = gratuitous_arp(nested, ADDRESS);
    addresses.sent(&[&frame[..12], &[0x88, 0xa8, 0xe0, 0], &frame[12..]].concat());
    assert_ne!(addresses, before, "it is the one that was heard last");
    // More tags than are understood, and a group as sender.
    let before = addresses.clone();
    let tag = [0x81, 0, 0, 9];
    addresses.sent(&[&untagged[..12], &tag, &tag, &tag, &untagged[12..]].concat());
    addresses.sent(&gratuitous_arp(Station::untagged([0xff; 6]), ADDRESS));
    assert_eq!(addresses, before);
}

#[test]
fn what_has_moved_elsewhere_is_not_announced() {
    let mut addresses = Addresses::of(MAC);
    let behind = Station::untagged(OTHER);
    let claim = gratuitous_arp(Station::untagged([2; 6]), ADDRESS);
    let learn = |addresses: &mut Addresses| {
        addresses.sent(&gratuitous_arp(own(), ADDRESS));
        addresses.sent(&discovery(MAC, ADDRESS6, SOLICIT, &about(0, ADDRESS6)));
        addresses.sent(&gratuitous_arp(behind, Ipv4Addr::new(10, 77, 0, 9)));
    };
    learn(&mut addresses);
    let all = addresses.clone();
    // Its own frames that come back, and the same address in another VLAN.
    addresses.received(&gratuitous_arp(own(), ADDRESS));
    let elsewhere = Station {
        mac: [2; 6],
        ..tagged(5)
    };
    addresses.received(&gratuitous_arp(elsewhere, ADDRESS));
    assert_eq!(addresses, all);
    // Somebody asks whether it is free. If the guest has it still, it says so.
    let probe = discovery([2; 6], Ipv6Addr::UNSPECIFIED, SOLICIT, &about(0, ADDRESS6));
    addresses.received(&probe);
    assert!(!known(&addresses).contains(&ADDRESS6.into()));
    addresses.sent(&discovery(MAC, ADDRESS6, ADVERTISE, &about(0x20, ADDRESS6)));
    assert!(known(&addresses).contains(&ADDRESS6.into()));
    addresses.received(&claim);
    let still = known(&addresses);
    assert!(!still.contains(&ADDRESS.into()) && still.contains(&ADDRESS6.into()));
    addresses.received(&discovery(
        [2; 6],
        ADDRESS6,
        ADVERTISE,
        &about(0x20, ADDRESS6),
    ));
    // A station of the guest that is heard on the other side has moved there, with its addresses.
    addresses.received(&rarp(behind));
    assert_eq!(addresses.announcements(), [rarp(own())]);
    learn(&mut addresses);
    assert_eq!(known(&addresses).len(), 3, "and back");
}

#[test]
fn a_guest_cannot_have_more_kept_than_there_is_room_for() {
    let mut addresses = Addresses::of(MAC);
    for number in 0..1000_u16 {
        let [high, low] = number.to_be_bytes();
        let station = Station::untagged([2, 0, 0, 0, high, low]);
        addresses.sent(&gratuitous_arp(station, Ipv4Addr::new(10, 0, high, low)));
        addresses.sent(&gratuitous_arp(own(), ADDRESS));
        assert!(addresses.is_possible());
    }
    let bytes = postcard::to_stdvec(&addresses).unwrap();
    assert!(bytes.len() < 3000, "{}", bytes.len());
    assert_eq!(known(&addresses).len(), ADDRESSES_MAX);
    // Who says most does not push out who says something now and then.
    assert_eq!(known(&addresses).last(), Some(&ADDRESS.into()));
    assert!(addresses.announcements().len() <= 2 * ADDRESSES_MAX + 1);
    let arrived: Addresses = postcard::from_bytes(&bytes).unwrap();
    assert_eq!(arrived, addresses);
}

proptest::proptest! {
    #[test]
    fn any_frame_is_survived(
        kind in 0..5_usize,
        body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80),
    ) {
        let types = [&[8, 0][..], &[8, 6], &[0x80, 0x35], &[0x86, 0xdd], &[0x81, 0, 0, 1, 0x86, 0xdd]];
        let mut frame = [[0xff; 6], MAC].concat();
        frame.extend(types[kind]);
        if kind >= 3 {
            frame.extend([0x60, 0, 0, 0, 0, body.len() as u8, 58, 255]);
            frame.extend([9; 32]);
        }
        frame.extend(body);
        for cut in 0..=frame.len() {
            let mut addresses = Addresses::of(MAC);
            addresses.sent(&frame[..cut]);
            addresses.received(&frame[..cut]);
            proptest::prop_assert!(![0, 2].contains(&kind) || known(&addresses).is_empty());
        }
    }
}

#[test]
fn whoever_sends_more_than_may_be_kept_is_not_believed() {
    let of = |stations: usize, addresses: usize| {
        let known = |_| (own(), false);
        let address = |_| (IpAddr::from(ADDRESS), own());
        let stations: Vec<_> = (0..stations).map(known).collect();
        let addresses: Vec<_> = (0..addresses).map(address).collect();
        let bytes = postcard::to_stdvec(&(MAC, stations, addresses)).unwrap();
        postcard::from_bytes::<Addresses>(&bytes).unwrap()
    };
    let full = of(ADDRESSES_MAX, ADDRESSES_MAX);
    assert!(full.is_possible());
    assert_eq!(full.own(), MAC);
    assert!(!of(ADDRESSES_MAX + 1, 0).is_possible());
    assert!(!of(0, ADDRESSES_MAX + 1).is_possible());
}

#[test]
fn a_frame_is_a_guests_own_if_a_station_of_it_has_sent_it() {
    let mut addresses = Addresses::of(MAC);
    let behind = Station::untagged(OTHER);
    assert!(addresses.is_own(&gratuitous_arp(own(), ADDRESS)));
    assert!(!addresses.is_own(&rarp(behind)));
    addresses.sent(&rarp(behind));
    assert!(addresses.is_own(&rarp(behind)), "it was heard");
    assert!(!addresses.is_own(&rarp(Station::untagged([2; 6]))));
}
