//! Configuration: what a file and flags say becomes one validated [`Config`], from which the machine, replication and
//! the node take what is theirs.
//!
//! The walk of one value, `--epoch-ms 10`:
//!
//! 1. `bin/vmm/args.rs`: clap takes it, with the help that [`keys`] has for it.
//! 2. [`ConfigFile`]: laid over what the file says as `replication.epoch_ms`; both have one shape ([`mod@file`]).
//! 3. [`Config::load`]: checked against its range in [`keys`], it is `replication.policy.epoch_interval`.
//! 4. `node` hands the policy to the builder of a primary or standby.
//! 5. `replication`: the core's `Policy`, by which epochs end.
//!
//! Each default stands where the value is used (`Policy`, `DiskLimits`, `MachineConfig`), each range in [`keys`]. What
//! must not be done here: open anything.

mod checks;
mod devices;
mod endurance;
mod error;
mod file;
pub mod keys;
mod on_sigterm;
#[cfg(test)]
mod tests;
mod watched;

use std::path::{Path, PathBuf};
use std::time::Duration;

use understudy_replication::core::policy::Policy;
use understudy_replication::disk::DiskLimits;
use understudy_replication::runtime::HeartbeatPath;
use understudy_transport::Endpoint;
use understudy_workload::options::Options;

use crate::machine::{Console, Discovery, DriveKind, Kernel, MachineConfig, Start};

pub use endurance::{Endurance, LockMemory, Priority};
pub use error::ConfigError;
pub use file::{
    BootSource, ConfigFile, Drive, Entropy, HeartbeatSection, Ignored, MachineSection,
    NetworkInterface, Replication, Serial, WatchdogSection,
};
pub use understudy_replication::core::policy::Checkpointing;
pub use understudy_replication::disk::DiskMode;

pub use crate::boot::BootProtocol;
pub use crate::machine::{OnPanic, OnReboot, OnWatchdog};
pub use crate::vcpu::CpuTemplate;
pub(crate) use devices::digest;
pub use on_sigterm::OnSigterm;
pub use watched::{GuestNetwork, OnCut, WatchedNetwork};

/// The kernel image that stands for the guest inside this program.
const BUILTIN: &str = "builtin";
const BUILTIN_CMDLINE: &str = "workload=stream,counter,echo ip=10.77.0.2/24 gateway=10.77.0.1";

/// What a node is to do: all of it known, and every value in its range.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of the VM, equal on both hosts.
    pub vm: String,
    /// This host's name in messages.
    pub node: String,
    /// What the machine is to be like, but for what depends on how it starts: [`Config::machine`].
    pub machine: MachineConfig,
    /// What follows when the guest wants a reboot.
    pub on_reboot: OnReboot,
    /// The guest's networks.
    pub networks: Vec<GuestNetwork>,
    /// Where requests are taken.
    pub control_socket: Option<PathBuf>,
    /// How the guest is protected.
    pub replication: ReplicationConfig,
}

/// How a guest is protected.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplicationConfig {
    /// Where the (next) standby listens.
    pub backup: Option<Endpoint>,
    /// Where this host listens as a standby.
    pub listen: Option<Endpoint>,
    /// The arbiter's directory.
    pub arbiter: Option<PathBuf>,
    /// A separate path for heartbeats.
    pub heartbeat: Option<HeartbeatPath>,
    /// Epochs and time-outs.
    pub policy: Policy,
    /// What a signal to end means to a primary.
    pub on_sigterm: OnSigterm,
    /// What the process is to have of its host.
    pub endurance: Endurance,
}

impl Config {
    /// Reads `file` if there is one, lays `flags` over it, and checks all of it. What the file says that only
    /// Firecracker needs is returned, for one warning.
    ///
    /// # Errors
    /// If the file cannot be read, or anything in it or in the flags makes no sense.
    pub fn load(file: Option<&Path>, flags: ConfigFile) -> Result<(Self, Ignored), ConfigError> {
        let (file, ignored) = file.map(ConfigFile::read).transpose()?.unwrap_or_default();
        Ok((Self::new(file.overridden_by(flags))?, ignored))
    }

    fn new(file: ConfigFile) -> Result<Self, ConfigError> {
        checks::check_texts(&file)?;
        let vm = file.replication.vm.clone().unwrap_or_else(|| "vm".into());
        let config = Self {
            machine: machine(&vm, &file)?,
            on_reboot: file.machine_config.on_reboot.unwrap_or_default(),
            networks: devices::guest_networks(
                file.network_interfaces.as_deref().unwrap_or_default(),
            ),
            control_socket: file.replication.control_socket.clone(),
            node: file.replication.node.clone().unwrap_or_else(host_name),
            replication: ReplicationConfig::new(&file.replication)?,
            vm,
        };
        checks::check_files(&config)?;
        Ok(config)
    }

    /// What the machine is to be like for a guest that comes to run here by `start`.
    ///
    /// # Errors
    /// If a disk needs something that cannot be made up for it.
    pub fn machine(&self, start: Start) -> Result<MachineConfig, ConfigError> {
        let mut machine = self.machine.clone();
        machine.start = start;
        // Only where the guest boots its kernel is known: a standby must not reboot it into another one.
        if machine.kernel.is_none() && start != Start::Standby {
            machine.kernel = Some(builtin());
        }
        // A guest that runs alone has no copies; but images that are one of a pair stay that: what changes is
        // noted, and is all that has to be copied when the guest is protected again.
        for drive in &mut machine.drives {
            drive.stalls_after = self.replication.policy.storage_timeout;
        }
        let mut drives = machine.drives.iter();
        let has_maps = drives.any(|drive| drive.is_replicated() && drive.map_path.exists());
        for drive in &mut machine.drives {
            match drive.kind {
                DriveKind::Copied(_) if start == Start::Unprotected && !has_maps => {
                    drive.kind = DriveKind::Local;
                }
                DriveKind::Copied(DiskMode::Replicated) => devices::check_map(drive)?,
                _ => {}
            }
        }
        Ok(machine)
    }
}

impl ReplicationConfig {
    fn new(section: &Replication) -> Result<Self, ConfigError> {
        let backup = endpoint(&keys::BACKUP, section.backup.as_deref())?;
        let listen = endpoint(&keys::LISTEN, section.listen.as_deref())?;
        let why = match &backup {
            Some(Endpoint::Tcp(address)) if address.ends_with(":0") => "nobody listens on port 0",
            Some(_) if backup == listen => {
                "this is where this host itself listens; name the other host's address"
            }
            _ => "",
        };
        if !why.is_empty() {
            return Err(ConfigError::value(&keys::BACKUP, why));
        }
        section.heartbeat.map_or(Ok(()), checks::check_heartbeat)?;
        Ok(Self {
            backup,
            listen,
            arbiter: section.arbiter.clone(),
            heartbeat: section.heartbeat.map(|section| HeartbeatPath {
                listen: section.listen,
                peer: section.peer,
            }),
            policy: policy(section)?,
            on_sigterm: section.on_sigterm.unwrap_or_default(),
            endurance: Endurance {
                oom_protection: section.oom_protection,
                lock_memory: section.lock_memory,
                priority: section.priority,
            },
        })
    }

    /// The arbiter's directory.
    ///
    /// # Errors
    /// If none is named.
    pub fn needed_arbiter(&self) -> Result<&Path, ConfigError> {
        let why = "none is given; name a file on storage that both hosts see: it decides who may run alone";
        let missing = || ConfigError::value(&keys::ARBITER, why);
        self.arbiter.as_deref().ok_or_else(missing)
    }

    /// Where this host listens as a standby.
    ///
    /// # Errors
    /// If it is not said.
    pub fn needed_listen(&self) -> Result<&Endpoint, ConfigError> {
        let why =
            "none is given; say where the primary reaches this standby, for example 0.0.0.0:7000";
        let missing = || ConfigError::value(&keys::LISTEN, why);
        self.listen.as_ref().ok_or_else(missing)
    }
}

fn machine(vm: &str, file: &ConfigFile) -> Result<MachineConfig, ConfigError> {
    let (boot, section) = (&file.boot_source, &file.machine_config);
    let drives = file.drives.as_deref().unwrap_or_default();
    let drives = devices::drives(drives)?;
    let net = devices::networks(vm, file.network_interfaces.as_deref().unwrap_or_default())?;
    checks::check_distinct(
        &keys::DRIVE_ID,
        drives.drives.iter().map(|drive| &*drive.id),
    )?;
    checks::check_distinct(&keys::NET_ID, net.iter().map(|net| &*net.id))?;
    let cmdline = cmdline(boot, drives.root)?;
    let mut machine = MachineConfig {
        discovery: discovery(boot, &cmdline),
        kernel: boot.kernel_image_path.as_deref().map(kernel),
        boot_protocol: boot.boot_protocol.unwrap_or_default(),
        initrd: boot.initrd_path.clone(),
        cmdline,
        net,
        disk_journal: file.replication.disk_journal.clone().or(drives.journal),
        drives: drives.drives,
        disk_limits: disk_limits(&file.replication)?,
        rng: file.entropy.is_some(),
        watchdog: file
            .watchdog
            .map(|watchdog| watchdog.action.unwrap_or_default()),
        on_panic: section.on_panic.unwrap_or_default(),
        console: match file.serial.output.as_deref() {
            None | Some("stdout") => Console::Stdout,
            Some("none") => Console::Nowhere,
            Some(path) => Console::File(path.into()),
        },
        ..MachineConfig::default()
    };
    if let Some(count) = section.vcpu_count {
        // The most fit.
        machine.vcpus = ConfigError::check(&keys::VCPUS, count)? as u8;
    }
    if let Some(mib) = section.mem_size_mib {
        machine.memory_mib = ConfigError::check(&keys::MEMORY, mib)?;
    }
    if let Some(name) = &section.cpu_template {
        let wrong = |error| ConfigError::value(&keys::CPU_TEMPLATE, error);
        machine.cpu_template = name.parse().map_err(wrong)?;
    }
    Ok(machine)
}

/// How the kernel finds its devices. What reads no ACPI tables is the built-in guest, and what was told not to.
fn discovery(boot: &BootSource, cmdline: &str) -> Discovery {
    let reads_acpi = boot_kernel(boot).is_some()
        && !cmdline
            .split_ascii_whitespace()
            .any(|word| word == "acpi=off");
    match reads_acpi {
        true => Discovery::Acpi,
        false => Discovery::CommandLine,
    }
}

/// The kernel, unless it is the built-in guest.
fn boot_kernel(boot: &BootSource) -> Option<&Path> {
    let path = boot.kernel_image_path.as_deref();
    path.filter(|path| !is_builtin(path))
}

fn is_builtin(path: &Path) -> bool {
    path == Path::new(BUILTIN)
}

fn builtin() -> Kernel {
    Kernel::Bytes(understudy_guest_images::BUILTIN.to_vec())
}

fn kernel(path: &Path) -> Kernel {
    if is_builtin(path) {
        builtin()
    } else {
        Kernel::Path(path.into())
    }
}

/// The guest's command line, with what it says of the `root` file system.
fn cmdline(boot: &BootSource, root: Option<String>) -> Result<String, ConfigError> {
    let given = boot.boot_args.clone();
    if boot_kernel(boot).is_some() {
        let words = given.into_iter().chain(root);
        return Ok(words.collect::<Vec<_>>().join(" "));
    }
    if boot.initrd_path.is_some() {
        let why = "the built-in guest takes no initramfs; give a kernel_image_path, too";
        return Err(ConfigError::value(&keys::INITRD, why));
    }
    if root.is_some() {
        let why = "the built-in guest has no root file system; leave it out";
        return Err(ConfigError::value(&keys::DRIVE_ROOT, why));
    }
    if let Some(cmdline) = &given {
        // The built-in guest would say so too, but on its console and after booting.
        Options::parse(cmdline).map_err(|error| ConfigError::value(&keys::CMDLINE, error))?;
    }
    Ok(given.unwrap_or_else(|| BUILTIN_CMDLINE.into()))
}

/// How many times the time-out of silence the one of storage has at least, if nothing is said.
const STORAGE_TIMEOUTS_MIN: u32 = 4;

/// Epochs and time-outs.
fn policy(section: &Replication) -> Result<Policy, ConfigError> {
    let mut policy = Policy::default();
    for (to, value, key) in [
        (&mut policy.epoch_interval, section.epoch_ms, &keys::EPOCH),
        (
            &mut policy.heartbeat_interval,
            section.heartbeat_ms,
            &keys::HEARTBEAT,
        ),
        (
            &mut policy.heartbeat_timeout,
            section.timeout_ms,
            &keys::TIMEOUT,
        ),
        (
            &mut policy.latency_target,
            section.latency_target_ms,
            &keys::LATENCY_TARGET,
        ),
        (
            &mut policy.storage_timeout,
            section.storage_timeout_ms,
            &keys::STORAGE_TIMEOUT,
        ),
    ] {
        if let Some(value) = value {
            *to = Duration::from_millis(ConfigError::check(key, value)?);
        }
    }
    if section.storage_timeout_ms.is_none() {
        // Who gives the other host more time has slower ones.
        let least = policy.heartbeat_timeout * STORAGE_TIMEOUTS_MIN;
        policy.storage_timeout = policy.storage_timeout.max(least);
    }
    if let Some(percent) = section.overhead_percent {
        let percent = ConfigError::check(&keys::OVERHEAD, percent)?;
        policy.overhead_percent = u32::try_from(percent).unwrap_or(u32::MAX);
    }
    let checkpointing = section.checkpointing.unwrap_or_default();
    if checkpointing != Checkpointing::Adaptive {
        for (key, given) in [
            (&keys::OVERHEAD, section.overhead_percent),
            (&keys::LATENCY_TARGET, section.latency_target_ms),
        ] {
            if given.is_some_and(|value| value > 0) {
                let why = format!(
                    "there is none of it with {}, which has a fixed interval: leave it out",
                    keys::CHECKPOINTING.path
                );
                return Err(ConfigError::value(key, why));
            }
        }
    }
    policy = checkpointing.policy(policy);
    let least = policy.heartbeat_interval * 3;
    if policy.heartbeat_timeout < least {
        let why = format!(
            "{} ms is less than three heartbeats of {} ms: a lost packet would look like a lost host; write at least {}",
            policy.heartbeat_timeout.as_millis(),
            policy.heartbeat_interval.as_millis(),
            least.as_millis()
        );
        return Err(ConfigError::value(&keys::TIMEOUT, why));
    }
    Ok(policy)
}

/// What copies of disks may take.
fn disk_limits(section: &Replication) -> Result<DiskLimits, ConfigError> {
    let mut limits = DiskLimits::default();
    if let Some(mib) = section.disk_log_mib {
        limits.log_bytes_max = ConfigError::check(&keys::DISK_LOG_MIB, mib)? << 20;
    }
    if let Some(mib) = section.disk_journal_mib {
        limits.journal_bytes_max = ConfigError::check(&keys::JOURNAL_MIB, mib)? << 20;
    }
    Ok(limits)
}

fn endpoint(key: &keys::Key, text: Option<&str>) -> Result<Option<Endpoint>, ConfigError> {
    let parse = |text: &str| text.parse().map_err(|error| ConfigError::value(key, error));
    text.map(parse).transpose()
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "host".into(),
        name => name.into(),
    }
}
