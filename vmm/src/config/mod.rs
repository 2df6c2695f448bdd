//! Configuration files: JSON with Firecracker's names where the meaning is the same, plus a
//! `replication` section. Unknown keys are errors. Nothing is opened or checked against the host
//! here; that is the machine builder's business.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use understudy_replication::core::policy::Policy;
use understudy_replication::disk::DiskLimits;
use understudy_transport::Endpoint;

use crate::boot::BootProtocol;
use crate::machine::{OnPanic, OnReboot, OnWatchdog};
use crate::vcpu::CpuTemplate;

#[cfg(test)]
mod tests;

/// Longest configuration file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A whole configuration file. Every section may be missing; flags fill or override it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Config {
    /// What to boot.
    pub boot_source: BootSource,
    /// CPUs and memory.
    pub machine_config: MachineSection,
    /// Disks.
    pub drives: Vec<Drive>,
    /// Network interfaces.
    pub network_interfaces: Vec<NetworkInterface>,
    /// A virtio entropy device, if present.
    pub entropy: Option<Entropy>,
    /// A watchdog that the guest may drive (not in Firecracker).
    pub watchdog: Option<WatchdogSection>,
    /// The first serial port.
    pub serial: Serial,
    /// Replication.
    pub replication: Replication,
}

/// `boot-source`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BootSource {
    /// Path of a bzImage or ELF image, or `builtin` (default) for the guest inside this program.
    pub kernel_image_path: Option<PathBuf>,
    /// Path of an initramfs.
    pub initrd_path: Option<PathBuf>,
    /// Command line.
    pub boot_args: Option<String>,
    /// `auto` (default: the Linux boot protocol, or PVH if the image has only that), `linux` or `pvh` (not in
    /// Firecracker).
    pub boot_protocol: Option<BootProtocol>,
}

/// `machine-config`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MachineSection {
    /// Number of vCPUs. Default 1.
    pub vcpu_count: Option<u8>,
    /// Memory in MiB. Default 256.
    pub mem_size_mib: Option<u64>,
    /// Which CPU features the guest is offered: `host` (default), or a level that hosts of different models
    /// have in common, `x86-64` to `x86-64-v4`.
    pub cpu_template: Option<CpuTemplate>,
    /// What follows when the guest wants a reboot (not in Firecracker). Default `restart`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_reboot: Option<OnReboot>,
    /// What follows when the guest's kernel panics (not in Firecracker). Default `report`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_panic: Option<OnPanic>,
}

/// One of `network-interfaces`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterface {
    /// Name of the interface, equal on both hosts.
    pub iface_id: String,
    /// A tap device of this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_dev_name: Option<String>,
    /// Whether the tap takes over checksums and TCP segmentation (not in Firecracker). Default true; false if
    /// the other host's guest would be on a socket, which cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offload: Option<bool>,
    /// A Unix stream socket with the framing of QEMU and passt (not in Firecracker).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_path: Option<PathBuf>,
    /// MAC address, equal on both hosts. Default: made from the VM's name and the interface's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<String>,
}

/// One of `drives`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drive {
    /// Name of the disk, equal on both hosts; the guest reads it as the disk's serial number.
    pub drive_id: String,
    /// A raw image file or a block device of this host.
    pub path_on_host: PathBuf,
    /// Whether a Linux guest's root file system is on it; then it is the guest's first disk.
    #[serde(default)]
    pub is_root_device: bool,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub is_read_only: bool,
    /// What becomes of its writes while the guest is protected (not in Firecracker). Default
    /// `replicated`; a drive that is only read needs nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication: Option<DriveReplication>,
    /// Where a replicated drive's map of changed blocks is (not in Firecracker). Default: the image's path
    /// with `.understudy-map` behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map_path: Option<PathBuf>,
}

/// `drives.replication`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriveReplication {
    /// Each host has an image of its own; the standby's follows epoch by epoch.
    Replicated,
    /// Both hosts reach one image.
    Shared,
}

/// `entropy`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entropy {}

/// `watchdog`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WatchdogSection {
    /// What follows when the guest does not feed it. Default `reset`.
    pub action: OnWatchdog,
}

/// `serial`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Serial {
    /// `stdout` (default), `none`, or the path of a file to append to.
    pub output: Option<String>,
}

/// `replication`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Replication {
    /// Name of the virtual machine, equal on both hosts. Default `vm`.
    pub vm: Option<String>,
    /// This host's name in messages. Default: the host name.
    pub node: Option<String>,
    /// Where the standby listens, as the primary reaches it.
    pub backup: Option<String>,
    /// Where this standby listens.
    pub listen: Option<String>,
    /// The arbiter's file, on storage that both hosts see.
    pub arbiter: Option<PathBuf>,
    /// Separate path for heartbeats.
    pub heartbeat: Option<HeartbeatSection>,
    /// Longest epoch, in milliseconds. Default 25.
    pub epoch_ms: Option<u64>,
    /// Shortest epoch when output waits, in milliseconds. Default 2.
    pub epoch_min_ms: Option<u64>,
    /// Pause between heartbeats, in milliseconds. Default 20.
    pub heartbeat_ms: Option<u64>,
    /// Silence after which the other side counts as lost, in milliseconds. Default 150.
    pub timeout_ms: Option<u64>,
    /// Unix socket for `vmm status` and `vmm failover`.
    pub control_socket: Option<PathBuf>,
    /// Where a standby notes writes to replicated drives before they go to the images; two files are made of
    /// it. Default: the path of the first replicated drive, or of its map if that is given, with
    /// `.understudy-journal` behind it.
    pub disk_journal: Option<PathBuf>,
    /// Most room that the journal takes, in MiB. Default 1024.
    pub disk_journal_mib: Option<u64>,
    /// Most memory for writes that the standby has not got yet, in MiB. Default 32.
    pub disk_log_mib: Option<u64>,
}

/// `replication.heartbeat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeartbeatSection {
    /// Local UDP address.
    pub listen: SocketAddr,
    /// The other host's UDP address.
    pub peer: SocketAddr,
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The file is too large to be a configuration.
    #[error("the configuration {} has {bytes} bytes; at most {FILE_BYTES_MAX} are read", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The file is not JSON of the expected shape.
    #[error("the configuration {} is malformed: {source}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Key, line and column.
        source: serde_json::Error,
    },
    /// A value is out of its range, or two contradict each other.
    #[error("{key}: {why}")]
    Value {
        /// The key, as in the file.
        key: String,
        /// What is wrong and what would be right.
        why: String,
    },
}

impl ConfigError {
    pub(crate) fn value(key: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self::Value {
            key: key.into(),
            why: why.to_string(),
        }
    }
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, is too large, or has a key or value that means nothing.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read {
            path: path.into(),
            source,
        };
        let bytes = std::fs::metadata(path).map_err(read)?.len();
        if bytes > FILE_BYTES_MAX {
            return Err(ConfigError::TooLarge {
                path: path.into(),
                bytes,
            });
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        serde_json::from_str(&text).map_err(|source| ConfigError::Malformed {
            path: path.into(),
            source,
        })
    }

    /// Checks what is said of drives.
    ///
    /// # Errors
    /// If two settings of a drive contradict each other, or a limit is out of its range.
    pub fn check_drives(&self) -> Result<(), ConfigError> {
        for drive in &self.drives {
            let wrong = |key: &str, why: &str| {
                Err(ConfigError::value(
                    format!("drives.{}.{key}", drive.drive_id),
                    why,
                ))
            };
            if drive.is_read_only && drive.replication.is_some() {
                let why = "what the guest only reads is not copied: leave it out, and give both hosts the same image";
                return wrong("replication", why);
            }
            if drive.map_path.is_some() && !drive.is_replicated() {
                let why = "only a replicated drive has a map: leave it out";
                return wrong("map_path", why);
            }
        }
        self.replication.disk_limits().map(drop)
    }
}

impl Drive {
    /// Whether each host has an image of its own for what the guest writes.
    #[must_use]
    pub fn is_replicated(&self) -> bool {
        !self.is_read_only && self.replication != Some(DriveReplication::Shared)
    }

    /// Where its map of changed blocks is.
    #[must_use]
    pub fn map_path(&self) -> PathBuf {
        let beside = || beside(&self.path_on_host, "map");
        self.map_path.clone().unwrap_or_else(beside)
    }

    /// Where the journal is, if this is the first replicated drive and nothing else is said.
    #[must_use]
    pub fn journal_path(&self) -> PathBuf {
        match &self.map_path {
            Some(map) => beside(map, "journal"),
            None => beside(&self.path_on_host, "journal"),
        }
    }
}

/// A file of ours beside an image.
fn beside(image: &Path, what: &str) -> PathBuf {
    let mut path = image.as_os_str().to_owned();
    path.push(format!(".understudy-{what}"));
    path.into()
}

impl Replication {
    /// Epochs and time-outs.
    ///
    /// # Errors
    /// If they make no sense together.
    pub fn policy(&self) -> Result<Policy, ConfigError> {
        let mut policy = Policy::default();
        let set = |to: &mut Duration,
                   value: Option<u64>,
                   key: &str,
                   range: std::ops::RangeInclusive<u64>| {
            let Some(value) = value else { return Ok(()) };
            if !range.contains(&value) {
                let why = format!("{value} is not in {}..={} ms", range.start(), range.end());
                return Err(ConfigError::value(format!("replication.{key}"), why));
            }
            *to = Duration::from_millis(value);
            Ok(())
        };
        set(
            &mut policy.epoch_interval,
            self.epoch_ms,
            "epoch_ms",
            1..=10_000,
        )?;
        set(
            &mut policy.epoch_interval_min,
            self.epoch_min_ms,
            "epoch_min_ms",
            1..=10_000,
        )?;
        set(
            &mut policy.heartbeat_interval,
            self.heartbeat_ms,
            "heartbeat_ms",
            1..=10_000,
        )?;
        set(
            &mut policy.heartbeat_timeout,
            self.timeout_ms,
            "timeout_ms",
            10..=600_000,
        )?;
        policy.epoch_interval_min = policy.epoch_interval_min.min(policy.epoch_interval);
        if policy.heartbeat_timeout < 3 * policy.heartbeat_interval {
            let why = format!(
                "{} ms is less than three heartbeats of {} ms: one late packet would be a failover",
                policy.heartbeat_timeout.as_millis(),
                policy.heartbeat_interval.as_millis()
            );
            return Err(ConfigError::value("replication.timeout_ms", why));
        }
        Ok(policy)
    }

    /// What copies of disks may take.
    ///
    /// # Errors
    /// If a limit is out of its range.
    pub fn disk_limits(&self) -> Result<DiskLimits, ConfigError> {
        let mut limits = DiskLimits::default();
        let set = |to: &mut u64, mib: Option<u64>, key: &str, most: u64| {
            let Some(mib) = mib else { return Ok(()) };
            // A request of the guest has up to 1 MiB, and several must fit.
            let range = 8..=most;
            if !range.contains(&mib) {
                let why = format!("{mib} is not in {}..={most} MiB", range.start());
                return Err(ConfigError::value(format!("replication.{key}"), why));
            }
            *to = mib << 20;
            Ok(())
        };
        let (log, journal) = (self.disk_log_mib, self.disk_journal_mib);
        set(&mut limits.log_bytes_max, log, "disk_log_mib", 4096)?;
        set(
            &mut limits.journal_bytes_max,
            journal,
            "disk_journal_mib",
            1 << 20,
        )?;
        Ok(limits)
    }

    /// Where the standby listens, as seen from the primary.
    ///
    /// # Errors
    /// If it is not an endpoint.
    pub fn backup_endpoint(&self) -> Result<Option<Endpoint>, ConfigError> {
        endpoint("replication.backup", self.backup.as_deref())
    }

    /// Where this standby listens.
    ///
    /// # Errors
    /// If it is not an endpoint.
    pub fn listen_endpoint(&self) -> Result<Option<Endpoint>, ConfigError> {
        endpoint("replication.listen", self.listen.as_deref())
    }

    /// The VM's name.
    #[must_use]
    pub fn vm_name(&self) -> String {
        self.vm.clone().unwrap_or_else(|| "vm".into())
    }

    /// This host's name.
    #[must_use]
    pub fn node_name(&self) -> String {
        self.node.clone().unwrap_or_else(|| {
            let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            let name = name.trim();
            if name.is_empty() {
                "host".into()
            } else {
                name.into()
            }
        })
    }
}

fn endpoint(key: &str, text: Option<&str>) -> Result<Option<Endpoint>, ConfigError> {
    text.map(|text| text.parse().map_err(|error| ConfigError::value(key, error)))
        .transpose()
}
