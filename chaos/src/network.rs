//! Network namespaces without names: whoever holds the file of one keeps it alive, and nothing is left behind.
//!
//! ```text
//!           namespace of the clients: bridge lan, 10.77.0.1
//!                port-a │              │ port-b
//!   ────────────────────┼──────────────┼──────────────────────
//!                uplink │              │ uplink
//!        a: bridge guests              bridge guests :b
//!                  tap0 │              │ tap0
//!                   vmm ├── channel ───┤ vmm                10.78.0.1 and .2, TCP
//!                       └──── beat ────┘                    10.79.0.1 and .2, UDP
//! ```

use std::fs::File;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};

use crate::programs::{run, run_with_input};

/// The guest's address.
pub(crate) const GUEST: &str = "10.77.0.2";
/// The guest's MAC address.
pub(crate) const GUEST_MAC: &str = "52:54:00:75:73:01";
/// The same.
pub(crate) const GUEST_MAC_BYTES: [u8; 6] = [0x52, 0x54, 0x00, 0x75, 0x73, 0x01];

/// One of the two hosts. A runs the guest first.
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

    pub(crate) fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// Its port of the clients' bridge.
    pub(crate) fn port(self) -> String {
        format!("port-{}", self.letter())
    }

    /// The last byte of its addresses.
    fn number(self) -> u8 {
        self as u8 + 1
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

    /// Where a host is reached on this way.
    pub(crate) fn endpoint(self, side: Side) -> String {
        match self {
            Self::Channel => format!("10.78.0.{}:7000", side.number()),
            Self::Beat => format!("10.79.0.{}:7001", side.number()),
        }
    }

    fn address(self, side: Side) -> String {
        let endpoint = self.endpoint(side);
        endpoint.split(':').next().unwrap_or_default().to_owned()
    }
}

/// See the [module documentation](self).
#[derive(Debug)]
pub(crate) struct Namespace(File);

impl Namespace {
    fn new() -> Result<Self> {
        // A thread of its own: it alone changes over.
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
            File::open("/proc/thread-self/ns/net").context("cannot open a network namespace")
        });
        let file = made.join().map_err(|_| anyhow!("a thread panicked"))??;
        let namespace = Self(file);
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// A file that stands for it, for as long as this lives.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// The calling thread is in here from now on.
    pub(crate) fn enter(&self) -> Result<()> {
        setns(&self.0, CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")
    }

    /// `ip`, with a command a line.
    pub(crate) fn ip(&self, commands: &str) -> Result<()> {
        let net = format!("--net={}", self.path());
        run_with_input("nsenter", &[&net, "ip", "-batch", "-"], commands)
    }

    fn tc(&self, command: &str) -> Result<()> {
        let net = format!("--net={}", self.path());
        let words = [
            &[net.as_str(), "tc"][..],
            &command.split(' ').collect::<Vec<_>>(),
        ]
        .concat();
        run("nsenter", &words)
    }
}

/// The three namespaces.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) clients: Namespace,
    hosts: [Namespace; 2],
}

impl Network {
    pub(crate) fn new() -> Result<Self> {
        let network = Self {
            clients: Namespace::new()?,
            hosts: [Namespace::new()?, Namespace::new()?],
        };
        network
            .clients
            .ip("link add lan type bridge\naddr add 10.77.0.1/24 dev lan\nlink set lan up")?;
        for side in Side::BOTH {
            let (host, port) = (network.host(side), side.port());
            host.ip(&format!(
                "link add uplink type veth peer name {port} netns {}\n\
                 link add guests type bridge\n\
                 link set guests up\n\
                 tuntap add dev tap0 mode tap\n\
                 link set uplink master guests up\n\
                 link set tap0 master guests up",
                network.clients.path()
            ))?;
            network
                .clients
                .ip(&format!("link set {port} master lan up"))?;
        }
        for way in [Way::Channel, Way::Beat] {
            let interface = way.interface();
            network.host(Side::A).ip(&format!(
                "link add {interface} type veth peer name {interface} netns {}",
                network.host(Side::B).path()
            ))?;
            for side in Side::BOTH {
                let address = way.address(side);
                network.host(side).ip(&format!(
                    "addr add {address}/24 dev {interface}\nlink set {interface} up"
                ))?;
            }
        }
        Ok(network)
    }

    pub(crate) fn host(&self, side: Side) -> &Namespace {
        &self.hosts[side as usize]
    }

    /// From now on, or from now on not any more, nothing that `from` sends this way arrives. The sender is not told. What
    /// was cut twice is whole when either is undone.
    pub(crate) fn set_cut(&self, way: Way, from: Side, is_cut: bool) -> Result<()> {
        let kind = if is_cut { "blackhole" } else { "pfifo" };
        let interface = way.interface();
        self.host(from)
            .tc(&format!("qdisc replace dev {interface} root {kind}"))
    }

    /// From now on this way ships at most so much, each way. What waits for it, waits for 50 ms at most, or is dropped.
    pub(crate) fn set_rate(&self, way: Way, mbit_per_s: u64) -> Result<()> {
        let interface = way.interface();
        Side::BOTH.into_iter().try_for_each(|side| {
            self.host(side).tc(&format!(
                "qdisc replace dev {interface} root tbf rate {mbit_per_s}mbit burst 64kb latency 50ms"
            ))
        })
    }

    pub(crate) fn set_uplink(&self, side: Side, is_up: bool) -> Result<()> {
        let state = if is_up { "up" } else { "down" };
        self.host(side).ip(&format!("link set uplink {state}"))
    }

    /// The words before a program that is to run on a host: it sees the host's network in `/sys`, too, and does not
    /// outlive the thread that starts it.
    pub(crate) fn words(&self, side: Side) -> Vec<String> {
        let net = format!("--net={}", self.host(side).path());
        let words = [
            "--pdeathsig",
            "KILL",
            "nsenter",
            &net,
            "unshare",
            "--mount",
            "--propagation",
            "slave",
            "sh",
            "-c",
            "mount -t sysfs none /sys && exec \"$@\"",
            "sh",
        ];
        words.map(str::to_owned).to_vec()
    }
}
