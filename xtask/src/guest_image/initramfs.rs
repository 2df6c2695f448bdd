//! The kernel and its initramfs: busybox, e2fsck, the modules that reach the root file system, an init script.
//! What must not be done here: anything that depends on the machine it is built on.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::packages;
use super::{Flavor, Work, files_below, lines, quiet, settle_times};
use crate::testbed::Kernel;

const OPTIONAL: &str = "optional:";
const LIST: &str = include_str!("../../../guest-images/linux/initramfs/modules.txt");

/// Puts `vmlinuz` and `initrd.cpio` into `into`.
pub(super) fn build(work: &Work, flavor: Flavor, into: &Path) -> Result<()> {
    work.step(&format!("kernel: {}", flavor.package()));
    let package = packages::kernel_package(flavor.package())?;
    let archives = packages::fetch(&[&package, "busybox-static", "e2fsck-static"])?;
    let unpacked = work.path.join("kernel");
    packages::unpack(&archives[0], &unpacked)?;
    let kernel = Kernel::unpacked(&unpacked)?;
    let result = work.path.join("boot");
    fs::create_dir_all(&result)?;
    fs::copy(&kernel.image, result.join("vmlinuz"))?;

    work.step("initramfs");
    let programs = work.path.join("initramfs-programs");
    for archive in &archives[1..] {
        packages::unpack(archive, &programs)?;
    }
    let tree = work.path.join("initramfs");
    for directory in [
        "bin",
        "dev",
        "etc",
        "modules/optional",
        "proc",
        "root",
        "sys",
    ] {
        fs::create_dir_all(tree.join(directory))?;
    }
    fs::copy(programs.join("bin/busybox"), tree.join("bin/busybox"))?;
    symlink("busybox", tree.join("bin/sh"))?;
    fs::copy(programs.join("sbin/e2fsck.static"), tree.join("bin/e2fsck"))?;
    fs::copy(
        crate::root().join("guest-images/linux/initramfs/init"),
        tree.join("init"),
    )?;
    fs::write(tree.join("etc/mtab"), "")?;
    take_modules(&kernel, &tree.join("modules"))?;
    pack(&tree, &result.join("initrd.cpio"))?;
    // Last, so that what is there is whole.
    match fs::rename(&result, into) {
        // Another build was quicker.
        Err(_) if into.exists() => Ok(()),
        other => Ok(other?),
    }
}

/// Copies the modules, and writes down in which order to load them: `order` for those that always are, and
/// `optional/NAME.order` for each of the others that this kernel has.
fn take_modules(kernel: &Kernel, into: &Path) -> Result<()> {
    let (optional, always): (Vec<&str>, Vec<&str>) =
        lines(LIST).partition(|line| line.starts_with(OPTIONAL));
    write_order(&kernel.modules(&always)?, into, "order")?;
    for line in optional {
        let name = line.trim_start_matches(OPTIONAL).trim();
        match kernel.modules(&[name]) {
            Ok(files) => write_order(&files, into, &format!("optional/{name}.order"))?,
            Err(why) => eprintln!("          left out: {why}"),
        }
    }
    Ok(())
}

fn write_order(files: &[PathBuf], into: &Path, list: &str) -> Result<()> {
    let mut order = String::new();
    for file in files {
        let name = file.file_name().context("a module has a name")?;
        fs::copy(file, into.join(name))?;
        order.push_str(&format!("{}\n", name.to_string_lossy()));
    }
    Ok(fs::write(into.join(list), order)?)
}

/// Packs a tree into an uncompressed cpio archive, always the same.
fn pack(tree: &Path, archive: &Path) -> Result<()> {
    quiet(
        Command::new("chmod")
            .arg("-R")
            .arg("u+rwX,go+rX,go-w")
            .arg(tree),
    )?;
    settle_times(tree)?;
    let mut names = String::new();
    for path in files_below(tree)? {
        let name = path.strip_prefix(tree)?.to_string_lossy();
        names += if name.is_empty() { "." } else { &name };
        names.push('\n');
    }
    let mut cpio = Command::new("cpio")
        .args(["--create", "--format=newc", "--quiet", "--reproducible"])
        .arg("--owner=0:0")
        .current_dir(tree)
        .stdin(Stdio::piped())
        .stdout(fs::File::create(archive)?)
        .spawn()
        .context("cannot run cpio")?;
    // Dropped behind the names, so that cpio sees their end.
    let mut input = cpio.stdin.take().context("cpio takes no names")?;
    input.write_all(names.as_bytes())?;
    drop(input);
    let status = cpio.wait()?;
    ensure!(status.success(), "cpio failed ({status})");
    Ok(())
}
