//! What a testbed needs on this machine before it can start.

use std::path::PathBuf;

use anyhow::Result;

use super::{chrony, qemu, sandbox, storage, vmm_binary};
use crate::debian::{self, Flavor, Kernel};
use crate::workspace::root;

/// Programs that one host needs, and the Debian package each is in.
const ONE_HOST: [(&str, &str); 5] = [
    ("setpriv", "util-linux"),
    ("cpio", "cpio"),
    ("strip", "binutils"),
    ("dpkg-deb", "dpkg"),
    ("apt-get", "apt"),
];
/// What a cluster needs besides.
const CLUSTER: [(&str, &str); 5] = [
    ("ip", "iproute2"),
    ("bridge", "iproute2"),
    ("unshare", "util-linux"),
    ("mkfs.ext4", "e2fsprogs"),
    // Where the NFS server looks transports up.
    ("/etc/netconfig", "libtirpc-common"),
];

/// Provides what one emulated host needs: the testbed's directory, the kernel of hosts, and `vmm` for them.
pub(super) fn one_host() -> Result<(PathBuf, Kernel, PathBuf)> {
    debian::install(&ONE_HOST)?;
    qemu::provide()?;
    let directory = directory()?;
    let kernel = Kernel::provide(&directory, Flavor::Cloud)?;
    let vmm = vmm_binary::build(&directory)?;
    Ok((directory, kernel, vmm))
}

/// Provides what two hosts need.
pub(super) fn two_hosts() -> Result<()> {
    sandbox::check(&CLUSTER)?;
    let (directory, _, _) = one_host()?;
    debian::provide_busybox()?;
    chrony::provide()?;
    storage::provide(&directory)
}

/// Where everything of the testbed is kept.
pub(super) fn directory() -> Result<PathBuf> {
    let directory = root().join("target/testbed");
    std::fs::create_dir_all(&directory)?;
    Ok(directory)
}
