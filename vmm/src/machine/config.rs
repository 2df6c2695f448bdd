//! The configuration of a machine. Plain data, checked against the host when the machine is built.
//!
//! [`Config`](crate::config::Config) has one that holds for every [`Start`]; what depends on the start is filled
//! in there too. What must not be done here: open anything.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use understudy_replication::core::policy::Policy;
use understudy_replication::disk::{DiskError, DiskLimits, DiskMode};
use understudy_replication::output::{ConsoleSink, GateLimits};

use super::actions::{OnError, OnPanic, OnWatchdog};
use crate::boot::{BootError, BootProtocol};
use crate::devices::virtio::blk::{ID_BYTES_MAX, ImageError};
use crate::devices::virtio::net::backend::{Backend, BackendError};
use crate::memory::Backing;
use crate::vcpu::CpuTemplate;

/// Most vCPUs of a machine.
pub const VCPUS_MAX: u8 = 16;

/// How a guest comes to run on this host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Start {
    /// It boots here, and nobody has a second copy.
    #[default]
    Unprotected,
    /// It boots here, and is protected.
    Primary,
    /// It booted elsewhere, and continues here when this host takes over.
    Standby,
}

/// The configuration of a machine.
#[derive(Debug, Clone)]
pub struct MachineConfig {
    /// How the guest comes to run here.
    pub start: Start,
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
    /// Kernel command line; what the guest needs to find vCPUs, and perhaps devices, is appended.
    pub cmdline: String,
    /// How the kernel is told about virtio devices.
    pub discovery: Discovery,
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
    /// Where the guest's serial console goes.
    pub console: Console,
    /// Limits of the output gate.
    pub gate: GateLimits,
}

/// How a kernel is told about virtio devices, which are on no bus that it could search. There is one way only:
/// a kernel that knows both would see each device twice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Discovery {
    /// By ACPI's tables.
    #[default]
    Acpi,
    /// By words of the command line, for kernels that do not read ACPI's tables.
    CommandLine,
}

/// Where a guest's console goes.
#[derive(Debug, Clone, Default)]
pub enum Console {
    /// Nowhere.
    #[default]
    Nowhere,
    /// To standard output.
    Stdout,
    /// To the end of a file. It is emptied for a guest that boots here; a standby goes on with it.
    File(PathBuf),
    /// Something that is open already.
    Open(Opened<Box<dyn ConsoleSink>>),
}

/// A network device.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// Its name, equal on both hosts.
    pub id: String,
    /// The guest's Ethernet address.
    pub mac: [u8; 6],
    /// What it is connected to on this host.
    pub backend: NetBackend,
}

/// What a network device is connected to.
#[derive(Debug, Clone)]
pub enum NetBackend {
    /// A tap interface, by name, which takes over checksums and TCP segmentation.
    Tap(String),
    /// A tap interface, by name, without that: as a socket, which may be what the other host has.
    PlainTap(String),
    /// A listening Unix socket of a network process (passt, QEMU).
    Socket(PathBuf),
    /// Something that is open already.
    Open(Opened<Backend>),
}

/// Something that is open already. Clones are the same thing: the machine that is built first gets it.
pub struct Opened<T>(Arc<Mutex<Option<T>>>);

impl<T> Opened<T> {
    /// Has `thing` ready for a machine.
    pub fn new(thing: T) -> Self {
        Self(Arc::new(Mutex::new(Some(thing))))
    }

    /// Takes it, for the machine that is `device`'s.
    pub(super) fn take(&self, device: &str) -> Result<T, ConfigError> {
        let mut thing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        thing
            .take()
            .ok_or_else(|| ConfigError::Taken(device.into()))
    }
}

impl<T> Clone for Opened<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> fmt::Debug for Opened<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opened")
    }
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveConfig {
    /// Its name, equal on both hosts; the guest can read it too.
    pub id: String,
    /// A raw image file or a block device of this host.
    pub path: PathBuf,
    /// What the guest may do to it, and what happens to its writes.
    pub kind: DriveKind,
    /// Where the map of changed blocks is, if the disk is replicated.
    pub map_path: PathBuf,
    /// What follows when this host's storage fails a request of the guest. Unless it is [`OnError::Report`], the machine's
    /// owner decides: it has to answer each [`DiskHolds`](super::MachineEvent::DiskHolds).
    pub on_error: OnError,
    /// After how long without anything done another host may serve the guest better.
    pub stalls_after: Duration,
}

/// What a guest may do to a disk, and what happens to its writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriveKind {
    /// It may only read.
    ReadOnly,
    /// What it writes is on this host alone.
    Local,
    /// What it writes is, or may come to be, on another host too.
    Copied(DiskMode),
}

impl DriveConfig {
    /// A disk with its map of changed blocks beside the image, whose errors the guest sees.
    pub fn new(id: impl Into<String>, path: impl Into<PathBuf>, kind: DriveKind) -> Self {
        let path = path.into();
        Self {
            id: id.into(),
            map_path: beside(&path, "map"),
            path,
            kind,
            on_error: OnError::Report,
            stalls_after: Policy::default().storage_timeout,
        }
    }

    /// Whether each host has an image of its own for what the guest writes.
    #[must_use]
    pub fn is_replicated(&self) -> bool {
        self.kind == DriveKind::Copied(DiskMode::Replicated)
    }
}

impl DriveKind {
    /// Whether the guest may only read.
    #[must_use]
    pub fn is_read_only(self) -> bool {
        self == Self::ReadOnly
    }

    /// What it is called in the status.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ReadOnly => "readonly",
            Self::Local => "local",
            Self::Copied(mode) => mode.name(),
        }
    }
}

/// A file of ours beside an image or another such file.
pub(crate) fn beside(path: &Path, what: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(format!(".understudy-{what}"));
    path.into()
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            start: Start::default(),
            vcpus: 1,
            cpu_template: CpuTemplate::Host,
            memory_mib: 256,
            backing: Backing::default(),
            kernel: None,
            boot_protocol: BootProtocol::Auto,
            initrd: None,
            cmdline: String::new(),
            discovery: Discovery::default(),
            net: Vec::new(),
            drives: Vec::new(),
            disk_journal: None,
            disk_limits: DiskLimits::default(),
            rng: false,
            watchdog: None,
            on_panic: OnPanic::default(),
            console: Console::default(),
            gate: GateLimits::default(),
        }
    }
}

/// A kernel image.
#[derive(Clone)]
pub enum Kernel {
    /// Its bytes.
    Bytes(Vec<u8>),
    /// A file with it.
    Path(PathBuf),
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "Bytes({} bytes)", bytes.len()),
            Self::Path(path) => f.debug_tuple("Path").field(path).finish(),
        }
    }
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
    /// The kernel image cannot be booted.
    #[error("the kernel image {}", path.display())]
    Kernel {
        /// Where it is.
        path: PathBuf,
        /// Why.
        #[source]
        source: BootError,
    },
    /// The guest's console cannot be opened.
    #[error("cannot append the guest's console to {}", path.display())]
    Console {
        /// Where it should be.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What was open already belongs to another machine.
    #[error("what {0} is connected to has been given to another machine")]
    Taken(String),
    /// There is nothing to boot.
    #[error(
        "there is nothing to run: no kernel image is configured, and no state has been restored"
    )]
    NoKernel,
    /// There is nothing to boot after a reset.
    #[error(
        "the guest wants a reboot, but no kernel image is configured on this host: it cannot start again here"
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
