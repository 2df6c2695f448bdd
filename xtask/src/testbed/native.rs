//! What a guest's programs do on this machine itself, in their root file system but without guest and emulation:
//! what they must do in the guest, too. Only to be used inside [the sandbox](super::sandbox), where mounts end with it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::debian::{quiet, text_of};

/// Runs a shell script as in the guest whose root file system is on `image`; it must succeed. Returns what it printed.
/// `work` is a directory for it, which is emptied first.
pub(super) fn shell(image: &Path, work: &Path, script: &str) -> Result<String> {
    if work.exists() {
        fs::remove_dir_all(work)?;
    }
    fs::create_dir_all(work)?;
    let root = text_of(work)?;
    let dump = format!("rdump / {root}");
    // It says so of owners and the like that it cannot set, and succeeds whatever happens.
    quiet(Command::new("debugfs").args(["-R", &dump]).arg(image))?;
    ensure!(
        work.join("bin/busybox").exists(),
        "debugfs found no root file system on {}",
        image.display()
    );
    for (kind, place) in [("proc", "proc"), ("devtmpfs", "dev")] {
        quiet(
            Command::new("mount")
                .args(["-t", kind, kind])
                .arg(work.join(place)),
        )?;
    }
    let output = quiet(
        Command::new("chroot")
            .args([root, "/bin/sh", "-c", script])
            .env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    );
    for place in ["proc", "dev"] {
        quiet(Command::new("umount").arg(work.join(place)))?;
    }
    fs::remove_dir_all(work)?;
    output
}
