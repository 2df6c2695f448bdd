//! A primary and its standby, connected to the network of the local cluster.

use std::path::{Path, PathBuf};
use std::time::Duration;

use understudy_replication::disk::DiskMode;
use understudy_replication::runtime::{Side, Status};

use super::disks::{DiskFault, WorkloadDisk};
use super::network::Network;
use super::process::VmmProcess;
use super::{ClusterError, GUEST};

/// How long a guest may take to boot and be copied. Generous: only a failure waits that long.
const START: Duration = Duration::from_secs(60);

/// What a local cluster is made of.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// The `vmm` binary.
    pub binary: PathBuf,
    /// Memory of the guest in MiB.
    pub memory_mib: u64,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// The guest's workload options; its address is added.
    pub workload: String,
    /// A disk for the guest, with how it gets its second copy.
    pub disk: Option<DiskMode>,
    /// Further arguments for both sides.
    pub arguments: Vec<String>,
}

/// Size of an image: more than the workload uses.
const IMAGE_BYTES: u64 = 64 << 20;
/// Blocks of 4 KiB that the disk workload uses.
const DISK_BLOCKS: u32 = 2048;

/// Two hosts in a directory.
pub struct LocalCluster {
    /// Switch and clients.
    pub network: Network,
    /// The side that starts the guest; port 0 of the switch.
    pub primary: VmmProcess,
    /// The side that keeps the copy; port 1 of the switch.
    pub standby: VmmProcess,
    /// The image of the standby's disk, if there is one.
    pub standby_disk: Option<WorkloadDisk>,
    /// How the standby was started.
    standby_start: (PathBuf, PathBuf, Vec<String>),
}

impl LocalCluster {
    /// Starts both sides in `directory` and waits until the guest is protected.
    ///
    /// # Errors
    /// If a side cannot be started, or the guest is not protected in time.
    pub fn start(directory: &Path, options: &ClusterOptions) -> Result<Self, ClusterError> {
        let port = |side: &str| directory.join(format!("{side}.net"));
        let network = Network::start(&[&port("primary"), &port("standby")])?;
        let heartbeats = [free_udp_port()?, free_udp_port()?];
        let [primary_disk, standby_disk] = match options.disk {
            Some(kind) => make_disks(directory, kind)?.map(Some),
            None => [None, None],
        };
        let link = format!("unix:{}", directory.join("channel").display());
        let arguments = |side: &str, mine: u16, theirs: u16, link: [&str; 2]| -> Vec<String> {
            let mut arguments: Vec<String> = [
                side,
                "--name",
                "guest",
                "--node",
                side,
                link[0],
                link[1],
                "--arbiter",
                &directory.join("arbiter").display().to_string(),
                "--heartbeat",
                &format!("127.0.0.1:{mine}=127.0.0.1:{theirs}"),
                "--memory-mib",
                &options.memory_mib.to_string(),
                "--vcpus",
                &options.vcpus.to_string(),
                "--rng",
                "--net",
                &format!("socket={},mac=52:54:00:75:73:01", port(side).display()),
                "--cmdline",
                &cmdline(options),
            ]
            .iter()
            .map(ToString::to_string)
            .collect();
            let disk = match side {
                "primary" => &primary_disk,
                _ => &standby_disk,
            };
            if let (Some(disk), Some(kind)) = (disk, options.disk) {
                arguments.extend(["--drive".into(), drive(disk, kind)]);
            }
            arguments.extend(options.arguments.iter().cloned());
            arguments
        };
        let [a, b] = heartbeats;
        let standby_start = (
            options.binary.clone(),
            directory.to_owned(),
            arguments("standby", b, a, ["--listen", &link]),
        );
        let standby = start_standby(&standby_start)?;
        let primary = arguments("primary", a, b, ["--backup", &link]);
        let mut primary = VmmProcess::start(&options.binary, "primary", directory, &primary)?;
        primary.await_status("protected", START, |status| status.protected)?;
        Ok(Self {
            network,
            primary,
            standby,
            standby_disk,
            standby_start,
        })
    }

    /// Starts the standby afresh, as it was started first: for one that has ended. Its log begins anew.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn restart_standby(&mut self) -> Result<(), ClusterError> {
        self.standby = start_standby(&self.standby_start)?;
        Ok(())
    }

    /// Waits until the standby runs the guest.
    ///
    /// # Errors
    /// If it does not within `patience`.
    pub fn await_promotion(&mut self, patience: Duration) -> Result<Status, ClusterError> {
        self.standby
            .await_status("promoted", patience, |status| status.failover.is_some())
    }
}

fn cmdline(options: &ClusterOptions) -> String {
    let disk = match options.disk {
        Some(_) => format!(" disk.blocks={DISK_BLOCKS} disk.log_ms=100"),
        None => String::new(),
    };
    format!("{}{disk} ip={GUEST}/24 gateway=10.77.0.1", options.workload)
}

/// The image of each side, which is the same if it is shared.
fn make_disks(directory: &Path, kind: DiskMode) -> Result<[WorkloadDisk; 2], DiskFault> {
    let make = |name| WorkloadDisk::create(&directory.join(name), IMAGE_BYTES, DISK_BLOCKS);
    match kind {
        DiskMode::Replicated => Ok([make("primary.disk")?, make("standby.disk")?]),
        DiskMode::Shared => {
            let disk = make("shared.disk")?;
            Ok([disk.clone(), disk])
        }
    }
}

fn drive(disk: &WorkloadDisk, kind: DiskMode) -> String {
    format!("path={},{}", disk.path().display(), kind.name())
}

fn start_standby(
    (binary, directory, arguments): &(PathBuf, PathBuf, Vec<String>),
) -> Result<VmmProcess, ClusterError> {
    let mut standby = VmmProcess::start(binary, "standby", directory, arguments)?;
    standby.await_status("listening", START, |status| status.side == Side::Standby)?;
    Ok(standby)
}

/// A UDP port that is free now. Another process may take it before ours does; then that says so.
fn free_udp_port() -> Result<u16, ClusterError> {
    std::net::UdpSocket::bind("127.0.0.1:0")
        .and_then(|socket| socket.local_addr())
        .map(|address| address.port())
        .map_err(|source| ClusterError::System {
            what: "find a free UDP port",
            source,
        })
}
