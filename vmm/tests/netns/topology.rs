//! Who is connected to whom.
//!
//! ```text
//!                 namespace client: bridge lan, 10.77.0.1
//!                     port-a │              │ port-b
//!   ─────────────────────────┼──────────────┼────────────────────────────
//!                     uplink │              │ uplink
//!   namespace a: bridge guests              bridge guests :namespace b
//!                       tap0 │              │ tap0
//!                  vmm primary              vmm standby     guest 10.77.0.2
//!                  10.78.0.1 ├── channel ───┤ 10.78.0.2     TCP
//!                  10.79.0.1 └──── beat ────┘ 10.79.0.2     UDP
//! ```

use super::namespace::Namespace;

/// The guest's address.
pub(crate) const GUEST: &str = "10.77.0.2";
/// The guest's MAC address.
pub(crate) const GUEST_MAC: &str = "52:54:00:75:73:01";
/// The same.
pub(crate) const GUEST_MAC_BYTES: [u8; 6] = [0x52, 0x54, 0x00, 0x75, 0x73, 0x01];

/// One of the two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    A,
    B,
}

impl Side {
    pub(crate) const BOTH: [Self; 2] = [Self::A, Self::B];

    pub(crate) fn letter(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }

    /// Its port of the clients' bridge.
    pub(crate) fn port(self) -> &'static str {
        match self {
            Self::A => "port-a",
            Self::B => "port-b",
        }
    }

    /// The last byte of its addresses.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::A => 1,
            Self::B => 2,
        }
    }
}

/// A way between the hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// The logging channel.
    Channel,
    /// Heartbeats.
    Beat,
}

impl Way {
    fn interface(self) -> &'static str {
        match self {
            Self::Channel => "channel",
            Self::Beat => "beat",
        }
    }

    fn network(self) -> &'static str {
        match self {
            Self::Channel => "10.78.0",
            Self::Beat => "10.79.0",
        }
    }

    /// The address of a host on this way.
    pub(crate) fn address(self, side: Side) -> String {
        format!("{}.{}", self.network(), side.number())
    }
}

/// The three namespaces.
pub(crate) struct Topology {
    pub(crate) client: Namespace,
    a: Namespace,
    b: Namespace,
}

impl Topology {
    pub(crate) fn new() -> Self {
        let topology = Self {
            client: Namespace::new("client"),
            a: Namespace::new("a"),
            b: Namespace::new("b"),
        };
        let client = &topology.client;
        // Else it has a port's address, and another one when that port leaves it.
        client.ip("link add lan address 52:54:00:75:73:02 type bridge");
        client.ip("addr add 10.77.0.1/24 dev lan");
        client.ip("link set lan up");
        for side in Side::BOTH {
            let (host, port) = (topology.host(side), side.port());
            let peer = client.name();
            host.ip(&format!(
                "link add uplink type veth peer name {port} netns {peer}"
            ));
            client.ip(&format!("link set {port} master lan up"));
            host.ip("link add guests type bridge");
            host.ip("link set guests up");
            host.ip("tuntap add dev tap0 mode tap");
            for interface in ["uplink", "tap0"] {
                host.ip(&format!("link set {interface} master guests up"));
            }
        }
        for way in [Way::Channel, Way::Beat] {
            let (interface, peer) = (way.interface(), topology.b.name());
            topology.a.ip(&format!(
                "link add {interface} type veth peer name {interface} netns {peer}"
            ));
            for side in Side::BOTH {
                let (host, address) = (topology.host(side), way.address(side));
                host.ip(&format!("addr add {address}/24 dev {interface}"));
                host.ip(&format!("link set {interface} up"));
            }
        }
        topology
    }

    pub(crate) fn host(&self, side: Side) -> &Namespace {
        match side {
            Side::A => &self.a,
            Side::B => &self.b,
        }
    }

    /// From now on nothing that `from` sends this way arrives; the sender is not told.
    pub(crate) fn cut(&self, way: Way, from: Side) {
        let interface = way.interface();
        self.host(from).tool(
            "tc",
            &format!("qdisc replace dev {interface} root blackhole"),
        );
    }

    /// From now on this way ships at most so much, in each direction.
    pub(crate) fn slow_down(&self, way: Way, mbit_per_s: u32) {
        for side in Side::BOTH {
            let interface = way.interface();
            let tbf = format!("tbf rate {mbit_per_s}mbit burst 64kb latency 50ms");
            self.host(side)
                .tool("tc", &format!("qdisc replace dev {interface} root {tbf}"));
        }
    }

    /// Undoes `cut`.
    pub(crate) fn heal(&self, way: Way, from: Side) {
        let interface = way.interface();
        self.host(from)
            .tool("tc", &format!("qdisc del dev {interface} root"));
    }

    /// To which port the clients' bridge sends the guest's frames.
    pub(crate) fn guest_port(&self) -> Option<Side> {
        let entries = self.client.tool("bridge", "fdb show br lan");
        let entry = entries.lines().find(|line| line.starts_with(GUEST_MAC))?;
        Side::BOTH
            .into_iter()
            .find(|side| entry.contains(&format!("dev {} ", side.port())))
    }

    /// The client's neighbour entry for the guest.
    pub(crate) fn neighbour(&self) -> String {
        self.client.ip(&format!("neigh show {GUEST} dev lan"))
    }
}
