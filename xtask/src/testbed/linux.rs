//! `cargo xtask testbed linux`: the Linux guest image in an emulated host, with both of Debian's kernels: its
//! root file system on virtio-blk, its ends (power-off, reboot, panic), and what a panic leaves on the disk.
//!
//! One host, no network, no root. What must not be done here: change the image, which others use too.

use std::time::Duration;

use anyhow::{Context, Result};

use super::boot::{Host, follow};
use super::{ONE_HOST, directory, machine, vmm_binary};
use crate::debian::{Flavor, Kernel, Tree, install, text_of};
use crate::guest_image::image;

/// How long everything in the emulated host may take together. Ordinary is 80 s, several minutes on a busy machine.
const LIMIT: Duration = Duration::from_secs(1200);
/// Guests that the host's init runs.
const GUESTS: usize = 4;
const HOST_INIT: &str = include_str!("linux-host-init.sh");

/// Boots the host, which runs its guests, and fails unless each did what it should.
pub(crate) fn linux() -> Result<()> {
    install(&ONE_HOST)?;
    machine::provide()?;
    let directory = directory()?;
    let cloud = image(Flavor::Cloud)?;
    let generic = image(Flavor::Generic)?;
    let kernel = Kernel::provide(&directory, Flavor::Cloud)?;
    let vmm = vmm_binary::build(&directory)?;
    let tree = Tree::new(&directory, "linux-host", HOST_INIT)?;
    tree.modules(&kernel, &["kvm_amd", "virtio_pci", "virtio_blk"])?;
    tree.copy(&vmm, "bin/vmm")?;
    for (name, image) in [("cloud", &cloud), ("generic", &generic)] {
        tree.copy(&image.kernel, format!("guest/{name}"))?;
        tree.copy(&image.initrd, format!("guest/{name}.initrd"))?;
    }
    let console = directory.join("linux-console.log");
    eprintln!(
        "+ booting the host; its console goes to {}",
        console.display()
    );
    // What the guests write goes to a file that QEMU forgets.
    let rootfs = text_of(&cloud.rootfs)?;
    let drive = format!("file={rootfs},format=raw,if=virtio,snapshot=on");
    let mut host = Host::start(&kernel.image, &tree.pack()?, &["-drive", &drive])?;
    let outcome = follow(&host.lines, &console, GUESTS, LIMIT);
    host.stop();
    outcome.with_context(|| format!("the log is {}", console.display()))
}
