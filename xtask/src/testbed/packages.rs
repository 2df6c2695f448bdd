//! What the testbed needs from Debian: programs that are installed, and packages that are only unpacked, so
//! that no service of theirs ever starts on this machine.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::run;

/// Programs the testbed calls, and the package each is in.
pub(super) const PROGRAMS: [(&str, &str); 9] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("ip", "iproute2"),
    ("bridge", "iproute2"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
    ("mkfs.ext4", "e2fsprogs"),
    ("strip", "binutils"),
];

/// Downloads packages and unpacks them all into `to`.
pub(super) fn unpack(packages: &[&str], to: &Path) -> Result<()> {
    let fresh = to.with_extension(format!("download.{}", std::process::id()));
    let contents = fresh.join("contents");
    fs::create_dir_all(&contents)?;
    eprintln!("+ apt-get download {}", packages.join(" "));
    let status = Command::new("apt-get")
        .args(["download", "-q"])
        // apt-get would complain that its own user cannot write here.
        .args(["-o", "APT::Sandbox::User=root"])
        .args(packages)
        .current_dir(&fresh)
        .status()
        .context("cannot run apt-get; the testbed needs Debian")?;
    ensure!(
        status.success(),
        "apt-get download {} failed ({status}): run apt-get update",
        packages.join(" ")
    );
    for entry in fs::read_dir(&fresh)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            run("dpkg", &["-x", text_of(&path)?, text_of(&contents)?], &[])?;
        }
    }
    // Last, so that what is there is whole.
    fs::rename(&contents, to)?;
    fs::remove_dir_all(&fresh)?;
    Ok(())
}

pub(super) fn text_of(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}
