//! Guests: what they are made of, and the ways in which a client speaks with them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use super::network::GUEST;
use super::{chrony, init, shell};
use crate::debian::{Flavor, Kernel, Tree};
use crate::guest_image;

pub(super) const EPOCH_MS: u64 = 100;
/// Epochs of a guest that computes and answers nobody: write faults and pauses, dear in an emulated host, come
/// less often.
pub(super) const LONG_EPOCH_MS: u64 = 500;

/// A Linux guest. It must bring its interface up with the address [`GUEST`], and serve a shell on port 9000
/// (`nc -ll -p 9000 -e /bin/sh`).
#[derive(Debug, Clone)]
pub(super) struct Guest {
    pub(super) name: String,
    /// Files on this machine.
    pub(super) kernel: PathBuf,
    pub(super) initrd: Option<PathBuf>,
    pub(super) cmdline: String,
    pub(super) memory_mib: u32,
    /// Length of its epochs.
    pub(super) epoch_ms: u64,
    pub(super) drives: Vec<Drive>,
}

/// One of its disks.
#[derive(Debug, Clone)]
pub(super) struct Drive {
    pub(super) id: String,
    /// What is on it at first: a raw image on this machine.
    pub(super) image: PathBuf,
    pub(super) mode: Mode,
    pub(super) is_root: bool,
}

/// Where a disk's image is, and who writes to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Each host has its own; writes travel in epochs.
    Replicated,
    /// One image on the shared storage.
    Shared,
}

impl Mode {
    /// The drive's `replication` in vmm's configuration.
    pub(super) fn replication(self) -> &'static str {
        match self {
            Self::Replicated => "replicated",
            Self::Shared => "shared",
        }
    }
}

impl Drive {
    /// Its image's name.
    pub(super) fn file_name(&self) -> String {
        format!("{}.img", self.id)
    }

    /// Its image, as hosts see it.
    pub(super) fn path_on_host(&self, directory: &str) -> String {
        match self.mode {
            Mode::Replicated => format!("/data/{}", self.file_name()),
            Mode::Shared => format!("{directory}/{}", self.file_name()),
        }
    }
}

/// Runs a shell script in the guest, over the network; it must succeed. Returns what it printed.
pub(super) fn shell(script: &str, patience: Duration) -> Result<String> {
    shell::must(&format!("{GUEST}:9000"), script, patience, patience)
}

/// The Linux guest from Debian's packages, with its root file system on a drive called `root`.
pub(super) fn linux(mode: Mode) -> Result<Guest> {
    let image = guest_image::image(Flavor::Cloud)?;
    Ok(Guest {
        name: "linux".into(),
        kernel: image.kernel,
        initrd: Some(image.initrd),
        cmdline: format!(
            "console=ttyS0 loglevel=4 panic=-1 understudy.ip={GUEST}/24 understudy.services=redis,fsync,shell"
        ),
        memory_mib: 384,
        epoch_ms: EPOCH_MS,
        drives: vec![Drive {
            id: "root".into(),
            image: image.rootfs,
            mode,
            is_root: true,
        }],
    })
}

/// Lines of the web guest's file.
pub(super) const WEB_LINES: u64 = 600_000;
const WEB_MODULES: [&str; 5] = ["virtio_mmio", "virtio_net", "virtio_rng", "button", "evdev"];

/// The guest for scenarios without disks: the kernel and an initramfs that serves `/numbers`, the lines 1 to
/// [`WEB_LINES`], over HTTP.
pub(super) fn web(directory: &Path, kernel: &Kernel) -> Result<Guest> {
    small(directory, kernel, "web", &[], |_| Ok(()))
}

/// The same with chrony, and the clock of its host.
pub(super) fn clock(directory: &Path) -> Result<Guest> {
    let kernel = Kernel::find(directory)?;
    small(
        directory,
        &kernel,
        "clock",
        &["ptp_kvm"],
        chrony::copy_for_guest,
    )
}

fn small(
    directory: &Path,
    kernel: &Kernel,
    name: &str,
    modules: &[&str],
    fill: impl FnOnce(&Tree) -> Result<()>,
) -> Result<Guest> {
    let init = init::script(include_str!("init/web-guest.sh"));
    let tree = Tree::new(directory, &format!("{name}-guest"), &init)?;
    tree.modules(kernel, &[&WEB_MODULES[..], modules].concat())?;
    fill(&tree)?;
    Ok(Guest {
        name: name.into(),
        kernel: kernel.image.clone(),
        initrd: Some(tree.pack()?),
        cmdline: format!("console=ttyS0 loglevel=4 panic=-1 address={GUEST}/24 lines={WEB_LINES}"),
        memory_mib: 192,
        epoch_ms: EPOCH_MS,
        drives: Vec::new(),
    })
}
