//! Guests: what they are made of, and the ways in which a client speaks with them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use super::initramfs::Tree;
use super::kernel::Kernel;
use super::network::GUEST;
use super::shell;

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
#[allow(dead_code)]
pub(super) enum Mode {
    /// Each host has an image that is never written.
    ReadOnly,
    /// Each host has its own; writes travel in epochs.
    Replicated,
    /// One image on the shared storage.
    Shared,
}

impl Mode {
    /// The drive's `replication` in vmm's configuration.
    pub(super) fn replication(self) -> Option<&'static str> {
        match self {
            Self::ReadOnly => None,
            Self::Replicated => Some("replicated"),
            Self::Shared => Some("shared"),
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
            Mode::ReadOnly | Mode::Replicated => format!("/data/{}", self.file_name()),
            Mode::Shared => format!("{directory}/{}", self.file_name()),
        }
    }
}

/// Runs a shell script in the guest, over the network; it must succeed. Returns what it printed.
pub(super) fn shell(script: &str, patience: Duration) -> Result<String> {
    shell::must(&format!("{GUEST}:9000"), script, patience)
}

/// Lines of the web guest's file.
pub(super) const WEB_LINES: u64 = 600_000;
const WEB_INIT: &str = include_str!("web-guest-init.sh");
const WEB_MODULES: [&str; 3] = ["virtio_mmio", "virtio_net", "virtio_rng"];

/// The guest for scenarios without disks: the kernel and an initramfs that serves `/numbers`, the lines 1 to
/// [`WEB_LINES`], over HTTP.
pub(super) fn web(directory: &Path, kernel: &Kernel) -> Result<Guest> {
    let tree = Tree::new(directory, "web-guest", WEB_INIT)?;
    tree.modules(kernel, &WEB_MODULES)?;
    Ok(Guest {
        name: "web".into(),
        kernel: kernel.image.clone(),
        initrd: Some(tree.pack()?),
        cmdline: format!(
            "console=ttyS0 loglevel=4 panic=-1 noxsave address={GUEST}/24 lines={WEB_LINES}"
        ),
        memory_mib: 192,
        drives: Vec::new(),
    })
}
