//! What is behind a guest's network device, as far as its frames tell.
//!
//! A guest says which addresses are its own in ARP and in neighbour discovery. The sources of IP
//! packets are no such word, because a guest may route for others, and whoever announced those
//! would take them from their owners. For the same reason an address is forgotten as soon as somebody
//! else claims it, and so is a station that is heard on the other side.
//!
//! What must not be done here: keep more than a guest can be allowed to make us keep (R5).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use smoltcp::wire::{
    ArpHardware, ArpPacket, EthernetProtocol, Icmpv6Message, Icmpv6Packet, IpProtocol, Ipv6Packet,
    NdiscNeighborFlags,
};

use super::frames::{NOT_FORWARDED, gratuitous_arp, neighbour_advertisement, rarp};
use super::{CUSTOMER_TAG, SERVICE_TAG, Station, TAGS_MAX, Vlan};

/// Most stations, and most addresses, that are kept of a device. The one of which nothing was heard for
/// longest makes room.
pub const ADDRESSES_MAX: usize = 64;
/// RFC 4861, section 4.6.1: the option with the target's link-layer address.
const TARGET_STATION: u8 = 2;

/// The stations behind a guest's network device, and their addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// The guest's own Ethernet address, which is announced whether it was heard or not.
    own: [u8; 6],
    /// The one heard last is the last one.
    stations: Vec<Known>,
    addresses: Vec<Address>,
}

/// A station that was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    station: Station,
    /// It has said so in neighbour discovery.
    is_router: bool,
}

/// An address, and whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Address {
    ip: IpAddr,
    station: Station,
}

/// What a frame says about an address of its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Claim {
    ip: Option<IpAddr>,
    is_router: Option<bool>,
}

impl Addresses {
    /// Nothing is known but the guest's own Ethernet address.
    #[must_use]
    pub fn of(own: [u8; 6]) -> Self {
        Self {
            own,
            stations: Vec::new(),
            addresses: Vec::new(),
        }
    }

    /// The guest's own Ethernet address.
    #[must_use]
    pub fn own(&self) -> [u8; 6] {
        self.own
    }

    /// Whether another host may have sent this: it is within the limits.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        self.stations.len() <= ADDRESSES_MAX && self.addresses.len() <= ADDRESSES_MAX
    }

    /// All IP addresses that are known, the one heard last is the last one.
    pub fn ip_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.iter().map(|known| known.ip)
    }

    /// Learns from a frame that the guest has sent.
    pub fn sent(&mut self, frame: &[u8]) {
        let Some((station, protocol, payload)) = open(frame) else {
            return;
        };
        let claim = claim(station.mac, protocol, payload);
        self.learn_station(station, claim.and_then(|claim| claim.is_router));
        if let Some(ip) = claim.and_then(|claim| claim.ip) {
            let vlan = station.vlan;
            let is_it = |known: &Address| known.ip == ip && known.station.vlan == vlan;
            renew(&mut self.addresses, is_it, Address { ip, station });
        }
    }

    /// Whether a frame that the guest is given comes from what is behind its own device, as a switch returns it
    /// to where the guest was before.
    #[must_use]
    pub fn is_own(&self, frame: &[u8]) -> bool {
        open(frame).is_some_and(|(station, ..)| {
            station.mac == self.own || self.stations.iter().any(|known| known.station == station)
        })
    }

    /// Forgets what a frame that the guest has received says to be elsewhere.
    pub fn received(&mut self, frame: &[u8]) {
        let Some((station, protocol, payload)) = open(frame) else {
            return;
        };
        if station.mac != self.own {
            let is_it = |other: Station| other == station;
            self.stations.retain(|known| !is_it(known.station));
            self.addresses.retain(|known| !is_it(known.station));
        }
        // Also from somebody who only asks whether it is free: if the guest still has it, its answer has it learned again.
        let claim = claim(station.mac, protocol, payload);
        if let Some(ip) = claim.and_then(|claim| claim.ip) {
            self.addresses.retain(|known| {
                let is_it = known.ip == ip && known.station.vlan == station.vlan;
                !is_it || known.station == station
            });
        }
    }

    /// The frames that announce all of it: first for switches, then for neighbours.
    #[must_use]
    pub fn announcements(&self) -> Vec<Vec<u8>> {
        let own = Station::untagged(self.own);
        let others = self.stations.iter().map(|known| known.station);
        let others = others.filter(|station| *station != own);
        let stations = std::iter::once(own).chain(others).map(rarp);
        let addresses = self.addresses.iter().map(|known| match known.ip {
            IpAddr::V4(address) => gratuitous_arp(known.station, address),
            IpAddr::V6(address) => {
                let is_router = self.is_router(known.station);
                neighbour_advertisement(known.station, address, is_router)
            }
        });
        stations.chain(addresses).collect()
    }

    fn is_router(&self, station: Station) -> bool {
        let mut known = self.stations.iter();
        known.any(|known| known.station == station && known.is_router)
    }

    fn learn_station(&mut self, station: Station, is_router: Option<bool>) {
        // Nearly every frame ends here.
        if let Some(last) = self.stations.last_mut()
            && last.station == station
        {
            last.is_router = is_router.unwrap_or(last.is_router);
            return;
        }
        let is_router = is_router.unwrap_or_else(|| self.is_router(station));
        let is_it = |known: &Known| known.station == station;
        renew(&mut self.stations, is_it, Known { station, is_router });
    }
}

/// Puts `new` at the end of `list`, instead of the one that `is_it` or, if there is no room, of the first.
fn renew<T>(list: &mut Vec<T>, is_it: impl Fn(&T) -> bool, new: T) {
    match list.iter().position(is_it) {
        Some(at) => _ = list.remove(at),
        None if list.len() >= ADDRESSES_MAX => _ = list.remove(0),
        None => {}
    }
    list.push(new);
}

/// Who has sent a frame, the Ethernet type behind its tags, and what follows.
fn open(frame: &[u8]) -> Option<(Station, EthernetProtocol, &[u8])> {
    let (_, rest) = frame.split_first_chunk::<6>()?;
    let (mac, mut rest) = rest.split_first_chunk::<6>()?;
    let is_group = mac[0] & 1 != 0;
    if is_group || *mac == [0; 6] {
        return None;
    }
    let mut tags = Vec::new();
    loop {
        let (kind, after) = rest.split_first_chunk::<2>()?;
        let kind = u16::from_be_bytes(*kind);
        if kind != CUSTOMER_TAG && kind != SERVICE_TAG {
            let vlan = Vlan::of(tags.into_iter())?;
            return Some((Station { mac: *mac, vlan }, kind.into(), after));
        }
        let (control, after) = after.split_first_chunk::<2>()?;
        // One of them may have nothing but a priority.
        if tags.len() > TAGS_MAX {
            return None;
        }
        tags.push((kind, u16::from_be_bytes(*control)));
        rest = after;
    }
}

/// What a frame of `mac` says about its sender.
fn claim(mac: [u8; 6], protocol: EthernetProtocol, payload: &[u8]) -> Option<Claim> {
    match protocol {
        EthernetProtocol::Arp => {
            let address = arp_sender(mac, payload)?;
            Some(Claim {
                ip: is_host(address).then_some(address.into()),
                is_router: None,
            })
        }
        EthernetProtocol::Ipv6 => neighbour_discovery(payload),
        _ => None,
    }
}

fn arp_sender(mac: [u8; 6], payload: &[u8]) -> Option<Ipv4Addr> {
    let packet = ArpPacket::new_checked(payload).ok()?;
    let is_its_own = packet.hardware_type() == ArpHardware::Ethernet
        && packet.protocol_type() == EthernetProtocol::Ipv4
        && packet.hardware_len() == 6
        && packet.protocol_len() == 4
        && packet.source_hardware_addr() == mac;
    let octets: [u8; 4] = packet.source_protocol_addr().try_into().ok()?;
    is_its_own.then_some(octets.into())
}

/// Unspecified is a probe (RFC 5227): the sender has no address yet.
fn is_host(address: Ipv4Addr) -> bool {
    !(address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || address.is_broadcast())
}

/// What a message of neighbour discovery says about its sender (RFC 4861, sections 4 and 7.2).
fn neighbour_discovery(payload: &[u8]) -> Option<Claim> {
    let header = Ipv6Packet::new_checked(payload).ok()?;
    if header.next_header() != IpProtocol::Icmpv6 || header.hop_limit() != NOT_FORWARDED {
        return None;
    }
    let message = Icmpv6Packet::new_checked(header.payload()).ok()?;
    // Without a source it asks whether its new address is free (RFC 4862). If nobody answers it never says
    // that it has it; an answer makes it forgotten.
    let is_probe = header.src_addr().is_unspecified();
    let (address, is_router) = match message.msg_type() {
        Icmpv6Message::NeighborSolicit if is_probe => (message.target_addr(), None),
        Icmpv6Message::NeighborSolicit | Icmpv6Message::RouterSolicit => (header.src_addr(), None),
        Icmpv6Message::RouterAdvert => (header.src_addr(), Some(true)),
        Icmpv6Message::NeighborAdvert => {
            let flags = message.neighbor_flags();
            let is_router = flags.contains(NdiscNeighborFlags::ROUTER);
            // An address that several stations have, or that another one has, comes with the
            // station's address but does not override.
            let has_option = message.payload().first() == Some(&TARGET_STATION);
            let is_its_own = flags.contains(NdiscNeighborFlags::OVERRIDE) || !has_option;
            let address = message.target_addr();
            let address = if is_its_own {
                address
            } else {
                Ipv6Addr::UNSPECIFIED
            };
            (address, Some(is_router))
        }
        _ => return None,
    };
    let is_host = !(address.is_unspecified() || address.is_loopback() || address.is_multicast());
    Some(Claim {
        ip: is_host.then_some(address.into()),
        is_router,
    })
}
