//! What a guest's programs do on this machine itself, in their root file system but without guest and emulation:
//! what they must do in the guest, too.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::debian::{quiet, text_of};

/// Mounts what programs need, where nobody else sees it, and becomes the shell with a script: root file system and
/// script are its arguments.
const ENTER: &str = "mount -t proc proc \"$0/proc\" && mount -t tmpfs dev \"$0/dev\" \
    && mknod -m 666 \"$0/dev/null\" c 1 3 && exec chroot \"$0\" /bin/sh -c \"$1\"";

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
        "debugfs found no root file system on {}, or no room for it in {root}",
        image.display()
    );
    // In a world of its own, so that no mount is left when the directory is removed, whatever happens. Without this
    // process' variables: the compiler listens to some.
    let output = quiet(
        Command::new("unshare")
            .args(["--mount", "/bin/sh", "-c", ENTER, root, script])
            .env_clear()
            .env(
                "PATH",
                "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
            ),
    );
    fs::remove_dir_all(work)?;
    output
}
