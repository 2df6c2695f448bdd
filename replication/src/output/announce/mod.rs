//! Tells the network where a guest lives now. After a promotion the switches still send its frames
//! to the dead host. Only a frame from the guest's address through the new port corrects them.
//!
//! Three kinds of frames do this. A RARP request, as hypervisors send after a live migration, needs
//! no IP address: it is for switches. An ARP announcement (RFC 5227, section 3) and an unsolicited
//! neighbour advertisement (RFC 4861, section 7.2.6) are for neighbours that cache the address.
//!
//! A guest may have several addresses, be in several VLANs, and have stations behind it, for example
//! guests of its own. [`Addresses`] learns all of them from what passes its network device.
//!
//! This module sends nothing; see [`NetPort::announce`](super::NetPort::announce).

mod addresses;
mod frames;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use addresses::{ADDRESSES_MAX, Addresses};
pub use frames::{gratuitous_arp, neighbour_advertisement, rarp};

/// Tags a frame may have and still be understood.
const TAGS_MAX: usize = 2;
/// IEEE 802.1Q: the Ethernet type of a customer's VLAN tag.
const CUSTOMER_TAG: u16 = 0x8100;
/// IEEE 802.1ad: the Ethernet type of a provider's VLAN tag, the outer one of two.
const SERVICE_TAG: u16 = 0x88a8;
/// Bits of a tag that are the VLAN's number. The others are the frame's priority.
const VLAN_BITS: u16 = 0xfff;
/// RFC 903: the Ethernet type of RARP.
const RARP_TYPE: u16 = 0x8035;

/// A sender of frames, as a switch tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Station {
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// The VLAN in which it sends.
    pub vlan: Vlan,
}

/// The tags of a frame, the outer one first: Ethernet type and number of each, 0 for none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vlan([(u16, u16); TAGS_MAX]);

impl Station {
    /// One that sends without tags.
    #[must_use]
    pub fn untagged(mac: [u8; 6]) -> Self {
        Self {
            mac,
            vlan: Vlan::default(),
        }
    }
}

impl Vlan {
    /// The VLAN of frames with these tags (Ethernet type and tag control information), the outer one
    /// first; `None` if there are too many. A tag that has only a priority (number 0) is none.
    fn of(tags: impl Iterator<Item = (u16, u16)>) -> Option<Self> {
        let mut vlan = Self::default();
        let mut free = vlan.0.iter_mut();
        for (kind, control) in tags.filter(|(_, control)| control & VLAN_BITS != 0) {
            *free.next()? = (kind, control & VLAN_BITS);
        }
        Some(vlan)
    }

    fn tags(&self) -> impl Iterator<Item = (u16, u16)> + '_ {
        let tags = self.0.iter().copied();
        tags.take_while(|(_, number)| *number != 0)
    }
}
