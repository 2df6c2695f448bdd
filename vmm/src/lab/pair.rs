//! A primary and its standby, joined to the lab's network.

use std::path::{Path, PathBuf};
use std::time::Duration;

use understudy_replication::runtime::{Role, Status};

use super::hosts::Host;
use super::network::Network;
use super::{GUEST, LabError};

/// How long a guest may take to boot and be copied. Generous: only a failure waits that long.
const START: Duration = Duration::from_secs(60);

/// What a pair is made of.
#[derive(Debug, Clone)]
pub struct PairOptions {
    /// The `vmm` binary.
    pub binary: PathBuf,
    /// Memory of the guest in MiB.
    pub memory_mib: u64,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// The guest's workload options; its address is added.
    pub workload: String,
    /// Further arguments for both sides.
    pub arguments: Vec<String>,
}

/// Two hosts in a directory.
pub struct Pair {
    /// Switch and clients.
    pub network: Network,
    /// The side that starts the guest; port 0 of the switch.
    pub primary: Host,
    /// The side that keeps the copy; port 1 of the switch.
    pub standby: Host,
    /// How the standby was started.
    standby_start: (PathBuf, PathBuf, Vec<String>),
}

impl Pair {
    /// Starts both sides in `directory` and waits until the guest is protected.
    ///
    /// # Errors
    /// If a side cannot be started, or the guest is not protected in time.
    pub fn start(directory: &Path, options: &PairOptions) -> Result<Self, LabError> {
        let port = |side: &str| directory.join(format!("{side}.net"));
        let network = Network::start(&[&port("primary"), &port("standby")])?;
        let heartbeats = [free_udp_port()?, free_udp_port()?];
        let link = format!("unix:{}", directory.join("channel").display());
        let arguments = |side: &str, mine: u16, theirs: u16, link: [&str; 2]| -> Vec<String> {
            let mut arguments: Vec<String> = [
                side,
                "--name",
                "lab",
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
                &format!("{} ip={GUEST}/24 gateway=10.77.0.1", options.workload),
            ]
            .iter()
            .map(ToString::to_string)
            .collect();
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
        let mut primary = Host::start(&options.binary, "primary", directory, &primary)?;
        primary.await_status("protected", START, |status| status.protected)?;
        Ok(Self {
            network,
            primary,
            standby,
            standby_start,
        })
    }

    /// Starts the standby afresh, as it was started first: for one that has ended. Its log begins anew.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn restart_standby(&mut self) -> Result<(), LabError> {
        self.standby = start_standby(&self.standby_start)?;
        Ok(())
    }

    /// Waits until the standby runs the guest.
    ///
    /// # Errors
    /// If it does not within `patience`.
    pub fn await_promotion(&mut self, patience: Duration) -> Result<Status, LabError> {
        self.standby
            .await_status("promoted", patience, |status| status.failover.is_some())
    }
}

fn start_standby(
    (binary, directory, arguments): &(PathBuf, PathBuf, Vec<String>),
) -> Result<Host, LabError> {
    let mut standby = Host::start(binary, "standby", directory, arguments)?;
    standby.await_status("listening", START, |status| status.role == Role::Standby)?;
    Ok(standby)
}

/// A UDP port that is free now. Another process may take it before ours does; then that says so.
fn free_udp_port() -> Result<u16, LabError> {
    std::net::UdpSocket::bind("127.0.0.1:0")
        .and_then(|socket| socket.local_addr())
        .map(|address| address.port())
        .map_err(|source| LabError::System {
            what: "find a free UDP port",
            source,
        })
}
