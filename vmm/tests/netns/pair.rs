//! A primary on host A and its standby on host B, the guest protected.

use std::path::Path;

use tempfile::TempDir;
use understudy_replication::runtime;
use understudy_vmm::local_cluster::VmmProcess;

use super::DEADLINE;
use super::sniffer::{Kind, Sniffer, Spoken};
use super::topology::{GUEST, GUEST_MAC, Side, Topology, Way};

/// The binary under test.
pub(crate) const VMM: &str = env!("CARGO_BIN_EXE_vmm");
/// Rate of a stream client.
pub(crate) const STREAM_BYTES_PER_S: u64 = 1 << 20;
/// Silence after which a side counts as lost: long enough for a machine with better things to do.
pub(crate) const TIMEOUT_MS: u64 = 1000;

/// See the [module documentation](self). The hosts are killed before their namespaces go.
pub(crate) struct Pair {
    pub(crate) a: VmmProcess,
    pub(crate) b: VmmProcess,
    pub(crate) sniffer: Sniffer,
    pub(crate) topology: Topology,
    _directory: TempDir,
}

impl Pair {
    pub(crate) fn protected() -> Self {
        Self::on(Topology::new())
    }

    pub(crate) fn on(topology: Topology) -> Self {
        Self::with(topology, "")
    }

    /// With these further options of `--net` on both sides.
    pub(crate) fn with(topology: Topology, net: &str) -> Self {
        Self::working(topology, net, "")
    }

    /// The guest also does `more`, which continues its list of workloads.
    pub(crate) fn working(topology: Topology, net: &str, more: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let sniffer = Sniffer::start(&topology.client);
        let listen = format!("{}:7000", Way::Channel.address(Side::B));
        let mut b = start(
            &topology,
            Side::B,
            directory.path(),
            ["standby", "--listen", &listen],
            (net, more),
        );
        b.await_status("listening", DEADLINE, |status| {
            status.side == runtime::Side::Standby
        })
        .unwrap_or_else(|error| panic!("{error}"));
        let mut a = start(
            &topology,
            Side::A,
            directory.path(),
            ["primary", "--backup", &listen],
            (net, more),
        );
        a.await_status("protected", DEADLINE, |status| status.protected)
            .unwrap_or_else(|error| panic!("{error}"));
        Self {
            a,
            b,
            sniffer,
            topology,
            _directory: directory,
        }
    }

    /// Both logs, for messages of failed tests.
    pub(crate) fn logs(&self) -> String {
        format!("log of a:\n{}log of b:\n{}", self.a.log(), self.b.log())
    }

    /// Ends everything; what the guest said on the way.
    pub(crate) fn finish(self) -> Vec<Spoken> {
        let Self { a, b, sniffer, .. } = self;
        let spoken = sniffer.finish();
        drop((a, b));
        spoken
    }
}

fn start(
    topology: &Topology,
    side: Side,
    directory: &Path,
    role: [&str; 3],
    (net, more): (&str, &str),
) -> VmmProcess {
    let other = match side {
        Side::A => Side::B,
        Side::B => Side::A,
    };
    let beat = |side| format!("{}:7001", Way::Beat.address(side));
    let mut arguments: Vec<String> = ["netns", "exec", topology.host(side).name(), VMM]
        .into_iter()
        .chain(role)
        .map(str::to_owned)
        .collect();
    for (flag, value) in [
        ("--name", "netns".into()),
        ("--node", side.letter().into()),
        ("--arbiter", directory.join("arbiter").display().to_string()),
        ("--heartbeat", format!("{}={}", beat(side), beat(other))),
        ("--timeout-ms", TIMEOUT_MS.to_string()),
        ("--memory-mib", "64".into()),
        ("--net", format!("tap=tap0,mac={GUEST_MAC}{net}")),
        (
            "--cmdline",
            format!(
                "workload=stream{more} stream.rate={STREAM_BYTES_PER_S} ip={GUEST}/24 gateway=10.77.0.1"
            ),
        ),
    ] {
        arguments.extend([flag.to_owned(), value]);
    }
    VmmProcess::start(Path::new("ip"), side.letter(), directory, &arguments)
        .unwrap_or_else(|error| panic!("{error}"))
}

/// R4 as the network sees it: host A spoke for the guest, then perhaps B, and A never again once B
/// had begun. Returns how many frames each said.
pub(crate) fn one_speaker(spoken: &[Spoken]) -> [usize; 2] {
    let of_a = spoken.iter().take_while(|frame| frame.side == Side::A);
    let of_a = of_a.count();
    let (_, rest) = spoken.split_at(of_a);
    let relapses = rest.iter().filter(|frame| frame.side == Side::A).count();
    assert_eq!(
        relapses,
        0,
        "two speakers: host a sent {of_a} frames, then host b spoke {} times and host a again {relapses} times",
        rest.len() - relapses,
    );
    [of_a, rest.len()]
}

/// The promoted side says where the guest is before anything else, to switches and to neighbours.
pub(crate) fn announced_first(spoken: &[Spoken]) {
    let first: Vec<Kind> = spoken
        .iter()
        .filter(|frame| frame.side == Side::B)
        .map(|frame| frame.kind)
        .take_while(|kind| *kind != Kind::Traffic)
        .collect();
    assert!(first.contains(&Kind::Rarp), "no RARP first: {first:?}");
    assert!(
        first.contains(&Kind::GratuitousArp),
        "no gratuitous ARP first: {first:?}"
    );
}
