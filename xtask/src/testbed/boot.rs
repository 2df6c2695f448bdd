//! `cargo xtask testbed boot`: a Linux guest on real KVM with nested paging, in an emulated host.
//!
//! One host, no network, no root: its init runs the guests and says what became of them. What must not be
//! done here: measure. Everything in there is some 30 times slower than on a real machine.

use std::time::Duration;

use anyhow::Result;

use super::one_host::{self, Task};
use super::{init, prepare, vmm_binary};
use crate::debian::Tree;

/// Ordinary is 25 s.
const LIMIT: Duration = Duration::from_secs(300);
/// Guests that the host's init runs.
const GUESTS: usize = 7;

/// Boots the host, which runs its guests, and fails unless each did what it should.
pub(crate) fn boot() -> Result<()> {
    let (directory, kernel, vmm) = prepare::one_host()?;
    let init = init::script(include_str!("init/boot-guest.sh"));
    let guest = Tree::new(&directory, "boot-guest", &init)?;
    let drivers = [
        "virtio_mmio",
        "virtio_rng",
        "pvpanic_mmio",
        "button",
        "evdev",
        "wdat_wdt",
    ];
    guest.modules(&kernel, &drivers)?;
    let init = init::script(include_str!("init/boot-host.sh"));
    let host = Tree::new(&directory, "boot-host", &init)?;
    host.modules(&kernel, &["kvm_amd"])?;
    vmm_binary::copy(&vmm, &host)?;
    host.copy(&kernel.image, "guest/bzImage")?;
    host.copy(&guest.pack()?, "guest/initrd")?;
    one_host::run(&Task {
        kernel: &kernel,
        tree: &host,
        further: &[],
        console: &directory.join("console.log"),
        guests: GUESTS,
        limit: LIMIT,
    })
}
