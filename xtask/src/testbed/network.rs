//! Who is connected to whom, inside the testbed's network namespace.
//!
//! ```text
//!   network      bridge on this side   host A      host B
//!   service      10.77.0.1             10.77.0.11  10.77.0.12   guest 10.77.0.100, clients, heartbeats
//!   channel      10.78.0.1             10.78.0.11  10.78.0.12   epochs and acknowledgements
//!   storage      10.79.0.1             10.79.0.11  10.79.0.12   NFS: the arbiter, shared disks
//!   management   10.80.0.1             10.80.0.11  10.80.0.12   the tester's commands; never cut
//! ```

use anyhow::Result;

use super::sandbox::ip;

/// The guest's address.
pub(super) const GUEST: &str = "10.77.0.100";

/// One of the two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    A,
    B,
}

impl Side {
    pub(super) const BOTH: [Self; 2] = [Self::A, Self::B];

    pub(super) fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// Its name, as in file names and messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::A => "host-a",
            Self::B => "host-b",
        }
    }

    /// The last byte of its addresses.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::A => 11,
            Self::B => 12,
        }
    }
}

/// A network that both hosts are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Network {
    Service,
    Channel,
    Storage,
    Management,
}

impl Network {
    /// In the order of the hosts' interfaces, `eth0` first.
    pub(super) const ALL: [Self; 4] = [
        Self::Service,
        Self::Channel,
        Self::Storage,
        Self::Management,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Channel => "channel",
            Self::Storage => "storage",
            Self::Management => "mgmt",
        }
    }

    fn number(self) -> u8 {
        77 + self as u8
    }

    pub(super) fn address(self, side: Side) -> String {
        format!("10.{}.0.{}", self.number(), side.number())
    }

    /// The tap device behind a host's interface.
    pub(super) fn tap(self, side: Side) -> String {
        format!("{}-{}", self.name(), side.number())
    }

    /// The MAC address of a host's interface.
    pub(super) fn mac(self, side: Side) -> String {
        format!("52:54:00:77:{:02x}:{:02x}", self.number(), side.number())
    }
}

/// Makes the bridges and the hosts' taps.
pub(super) fn make() -> Result<()> {
    ip("link set lo up")?;
    for network in Network::ALL {
        let name = network.name();
        ip(&format!("link add {name} type bridge mcast_snooping 0"))?;
        ip(&format!(
            "addr add 10.{}.0.1/24 dev {name}",
            network.number()
        ))?;
        ip(&format!("link set {name} up"))?;
        for side in Side::BOTH {
            let tap = network.tap(side);
            ip(&format!("tuntap add dev {tap} mode tap"))?;
            ip(&format!("link set {tap} master {name} up"))?;
        }
    }
    Ok(())
}

/// From now on nothing gets from this host to this network or back. The host is not told, as with a switch
/// that fails.
pub(super) fn cut(network: Network, side: Side) -> Result<()> {
    ip(&format!("link set {} nomaster", network.tap(side)))
}

/// Undoes [`cut`].
pub(super) fn heal(network: Network, side: Side) -> Result<()> {
    ip(&format!(
        "link set {} master {}",
        network.tap(side),
        network.name()
    ))
}
