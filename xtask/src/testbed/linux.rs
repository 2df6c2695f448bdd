//! `cargo xtask testbed linux`: the Linux guest image in an emulated host, with both of Debian's kernels: its
//! root file system on virtio-blk, its ends (power-off, reboot, panic), and what a panic leaves on the disk.
//!
//! One host, no network, no root. What must not be done here: change the image, which others use too.

use std::time::Duration;

use anyhow::Result;

use super::one_host::{self, Task};
use super::{init, prepare, vmm_binary};
use crate::debian::{Flavor, Tree, text_of};
use crate::guest_image::image;

/// Ordinary is 80 s, several minutes on a busy machine.
const LIMIT: Duration = Duration::from_secs(1200);
/// Guests that the host's init runs.
const GUESTS: usize = 4;

/// Boots the host, which runs its guests, and fails unless each did what it should.
pub(crate) fn linux() -> Result<()> {
    let cloud = image(Flavor::Cloud)?;
    let generic = image(Flavor::Generic)?;
    let (directory, kernel, vmm) = prepare::one_host()?;
    let init = init::script(include_str!("init/linux-host.sh"));
    let host = Tree::new(&directory, "linux-host", &init)?;
    host.modules(&kernel, &["kvm_amd", "virtio_pci", "virtio_blk"])?;
    vmm_binary::copy(&vmm, &host)?;
    for (name, image) in [("cloud", &cloud), ("generic", &generic)] {
        host.copy(&image.kernel, format!("guest/{name}"))?;
        host.copy(&image.initrd, format!("guest/{name}.initrd"))?;
    }
    // What the guests write goes to a file that QEMU forgets.
    let rootfs = text_of(&cloud.rootfs)?;
    let drive = format!("file={rootfs},format=raw,if=virtio,snapshot=on");
    one_host::run(&Task {
        kernel: &kernel,
        tree: &host,
        further: &["-drive", &drive],
        console: &directory.join("linux-console.log"),
        guests: GUESTS,
        limit: LIMIT,
    })
}
