//! What a machine is to be like. Plain data; checked when the machine is built.

use std::path::PathBuf;

use super::actions::{OnPanic, OnWatchdog};
use crate::devices::virtio::blk::{ID_BYTES_MAX, ImageError};
use crate::devices::virtio::net::backend::{Backend, BackendError};
use crate::memory::Backing;
use crate::output::{ConsoleSink, GateLimits};

/// Most vCPUs of a machine.
pub const VCPUS_MAX: u8 = 16;

/// What a machine is to be like.
pub struct MachineConfig {
    /// vCPUs, 1 to [`VCPUS_MAX`].
    pub vcpus: u8,
    /// Guest RAM in MiB.
    pub memory_mib: u64,
    /// What RAM is made of.
    pub backing: Backing,
    /// What to boot. A standby machine needs nothing: it gets its memory from the primary.
    pub kernel: Option<Kernel>,
    /// An initramfs for the kernel.
    pub initrd: Option<PathBuf>,
    /// Kernel command line; what the guest needs to find devices and vCPUs is appended.
    pub cmdline: String,
    /// Network devices, in the guest's order.
    pub net: Vec<NetConfig>,
    /// Disks, in the guest's order.
    pub drives: Vec<DriveConfig>,
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
    /// A tap interface, by name.
    Tap(String),
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
    /// Whether the guest may only read it.
    pub read_only: bool,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            vcpus: 1,
            memory_mib: 256,
            backing: Backing::default(),
            kernel: None,
            initrd: None,
            cmdline: String::new(),
            net: Vec::new(),
            drives: Vec::new(),
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
    /// A disk's name does not fit.
    #[error(
        "a drive is called {0:?}; names of drives are 1 to {ID_BYTES_MAX} of letters, digits, '_' and '-'"
    )]
    DriveName(String),
    /// Two devices have one name.
    #[error("two devices are called {0}")]
    SameName(String),
}
