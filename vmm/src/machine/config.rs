//! What a machine is to be like. Plain data; checked when the machine is built.

use std::path::PathBuf;

use understudy_replication::disk::{DiskError, DiskLimits};
use understudy_replication::output::{ConsoleSink, GateLimits};

use super::actions::{OnPanic, OnWatchdog};
use crate::boot::BootProtocol;
use crate::devices::virtio::blk::{ID_BYTES_MAX, ImageError};
use crate::devices::virtio::net::backend::{Backend, BackendError};
use crate::memory::Backing;
use crate::vcpu::CpuTemplate;

/// Most vCPUs of a machine.
pub const VCPUS_MAX: u8 = 16;

/// What a machine is to be like.
pub struct MachineConfig {
    /// vCPUs, 1 to [`VCPUS_MAX`].
    pub vcpus: u8,
    /// Which CPU features the guest is offered when it boots here.
    pub cpu_template: CpuTemplate,
    /// Guest RAM in MiB.
    pub memory_mib: u64,
    /// What RAM is made of.
    pub backing: Backing,
    /// What to boot. A standby machine needs nothing: it gets its memory from the primary.
    pub kernel: Option<Kernel>,
    /// By which protocol the kernel is entered.
    pub boot_protocol: BootProtocol,
    /// An initramfs for the kernel.
    pub initrd: Option<PathBuf>,
    /// Kernel command line; what the guest needs to find devices and vCPUs is appended.
    pub cmdline: String,
    /// Network devices, in the guest's order.
    pub net: Vec<NetConfig>,
    /// Disks, in the guest's order.
    pub drives: Vec<DriveConfig>,
    /// Where a standby notes writes to replicated disks; needed if there is such a disk.
    pub disk_journal: Option<PathBuf>,
    /// Limits of what copies of disks take.
    pub disk_limits: DiskLimits,
    /// Whether the guest gets a source of random numbers.
    pub rng: bool,
    /// A watchdog that the guest may drive, and what follows when it fires.
    pub watchdog: Option<OnWatchdog>,
    /// What follows when the guest's kernel says that it has panicked.
    pub on_panic: OnPanic,
    /// Where the guest's serial console goes; nowhere if `None`.
    pub console: Option<Box<dyn ConsoleSink>>,
    /// Limits of the output gate.
    pub gate: GateLimits,
}

/// A network device.
pub struct NetConfig {
    /// Its name, equal on both hosts.
    pub id: String,
    /// The guest's Ethernet address.
    pub mac: [u8; 6],
    /// What it is connected to on this host.
    pub backend: NetBackend,
}

/// What a network device is connected to.
pub enum NetBackend {
    /// A tap interface, by name, which takes over checksums and TCP segmentation.
    Tap(String),
    /// A tap interface, by name, without that: as a socket, which may be what the other host has.
    PlainTap(String),
    /// A listening Unix socket of a network process (passt, QEMU).
    Socket(PathBuf),
    /// Something that is open already.
    Open(Backend),
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveConfig {
    /// Its name, equal on both hosts; the guest can read it too.
    pub id: String,
    /// A raw image file or a block device of this host.
    pub path: PathBuf,
    /// What the guest may do to it, and what becomes of that.
    pub kind: DriveKind,
}

/// What a guest may do to a disk, and what becomes of that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DriveKind {
    /// It may only read.
    ReadOnly,
    /// What it writes is on this host alone.
    Local,
    /// The other host has an image of its own.
    Replicated {
        /// Where the map of changed blocks is.
        map_path: PathBuf,
    },
    /// The other host reaches the same image.
    Shared {
        /// Whether it must be free now; a standby takes it when it takes over.
        at_once: bool,
    },
}

impl DriveKind {
    /// Whether the guest may only read.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        *self == Self::ReadOnly
    }
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            vcpus: 1,
            cpu_template: CpuTemplate::Host,
            memory_mib: 256,
            backing: Backing::default(),
            kernel: None,
            boot_protocol: BootProtocol::Auto,
            initrd: None,
            cmdline: String::new(),
            net: Vec::new(),
            drives: Vec::new(),
            disk_journal: None,
            disk_limits: DiskLimits::default(),
            rng: true,
            watchdog: None,
            on_panic: OnPanic::default(),
            console: None,
            gate: GateLimits::default(),
        }
    }
}

/// A kernel image.
#[derive(Debug, Clone)]
pub enum Kernel {
    /// Its bytes.
    Bytes(Vec<u8>),
    /// A file with it.
    Path(PathBuf),
}

/// Why a configuration makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Wrong number of vCPUs.
    #[error("{vcpus} vCPUs are asked for; a machine here can have 1 to {max}")]
    Vcpus {
        /// What was asked for.
        vcpus: u8,
        /// The most.
        max: usize,
    },
    /// The kernel image or the initramfs cannot be read.
    #[error("cannot read the {what} {}", path.display())]
    File {
        /// Which of them.
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is nothing to boot.
    #[error(
        "there is nothing to run: no kernel image is configured, and no state has been restored"
    )]
    NoKernel,
    /// There is nothing to boot after a reset.
    #[error(
        "the guest wants a reboot, but no kernel image is configured on this host: it cannot begin anew here"
    )]
    NothingToReboot,
    /// A network backend cannot be opened.
    #[error("network device {device}")]
    NetBackend {
        /// The device's name.
        device: String,
        /// Why.
        #[source]
        source: BackendError,
    },
    /// A disk image cannot be used.
    #[error("drive {drive}")]
    Drive {
        /// The disk's name.
        drive: String,
        /// Why.
        #[source]
        source: ImageError,
    },
    /// Copies of disks cannot be kept.
    #[error("the guest's disks")]
    Disks(#[from] DiskError),
    /// A disk's name does not fit.
    #[error(
        "a drive is called {0:?}; names of drives are 1 to {ID_BYTES_MAX} of letters, digits, '_' and '-'"
    )]
    DriveName(String),
    /// Two devices have one name.
    #[error("two devices are called {0}")]
    SameName(String),
}
