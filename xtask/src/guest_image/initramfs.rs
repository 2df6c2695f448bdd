//! The kernel and its initramfs: e2fsck, the modules that reach the root file system, an init script. What must
//! not be done here: anything that depends on the machine it is built on.

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::{Work, lines};
use crate::debian::{self, Flavor, Kernel, Tree};

const OPTIONAL: &str = "optional:";
const INIT: &str = include_str!("../../../guest-images/linux/initramfs/init");
const LIST: &str = include_str!("../../../guest-images/linux/initramfs/modules.txt");

/// Puts `vmlinuz` and `initrd.cpio` into `into`.
pub(super) fn build(work: &Work, flavor: Flavor, into: &Path) -> Result<()> {
    work.step(&format!("kernel: {}", flavor.package()));
    let kernel = Kernel::provide(work.path(), flavor)?;
    let result = work.path().join("boot");
    fs::create_dir_all(&result)?;
    fs::copy(&kernel.image, result.join("vmlinuz"))?;

    work.step("initramfs");
    let e2fsck = work.path().join("e2fsck");
    debian::provide(&["e2fsck-static"], &e2fsck)?;
    let tree = Tree::new(work.path(), "initramfs", INIT)?;
    tree.copy(&e2fsck.join("sbin/e2fsck.static"), "bin/e2fsck")?;
    tree.write("etc/mtab", "")?;
    tree.directory("root")?;
    take_modules(&kernel, &tree)?;
    fs::rename(tree.pack()?, result.join("initrd.cpio"))?;
    // Last, so that what is there is whole.
    match fs::rename(&result, into) {
        // Another build was quicker.
        Err(_) if into.exists() => Ok(()),
        other => Ok(other?),
    }
}

/// Takes the modules that are always loaded, and each of the others that this kernel has with a list of its own.
fn take_modules(kernel: &Kernel, tree: &Tree) -> Result<()> {
    let (optional, always): (Vec<&str>, Vec<&str>) =
        lines(LIST).partition(|line| line.starts_with(OPTIONAL));
    tree.modules(kernel, &always)?;
    for line in optional {
        let name = line.trim_start_matches(OPTIONAL).trim();
        if let Err(why) = tree.modules_in(kernel, &[name], &format!("optional/{name}.order")) {
            eprintln!("          left out: {why}");
        }
    }
    Ok(())
}
