//! `cargo xtask chaos`, `stalls` and `links`: builds `vmm` and the program in `chaos/`, and runs that with a mount namespace of its own.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::debian::{install, is_root, search_path};
use crate::workspace::{root, run as run_command};

/// Programs it calls, and the Debian package each is in.
const NEEDED: [(&str, &str); 9] = [
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("setpriv", "util-linux"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("fsfreeze", "util-linux"),
    ("mount", "mount"),
    ("mkfs.ext4", "e2fsprogs"),
    ("xfs_io", "xfsprogs"),
];

/// `task` is what the program is to do.
pub(crate) fn run(task: &str, options: &[String]) -> Result<()> {
    ensure!(
        is_root(),
        "{task} makes network namespaces, tap devices and file systems: run it as root \
         (`sudo env PATH=\"$PATH\" cargo xtask {task} …`)"
    );
    install(&NEEDED)?;
    let build = [
        "build",
        "--release",
        "--locked",
        "-p",
        "understudy-vmm",
        "-p",
        "understudy-chaos",
    ];
    run_command("cargo", &build, &[])?;
    let built = root().join("target/release");
    // What it mounts is seen by nobody else, and goes with it.
    let status = Command::new("setpriv")
        .args([
            "--pdeathsig",
            "KILL",
            "unshare",
            "--mount",
            "--propagation",
            "private",
        ])
        .arg(built.join("understudy-chaos"))
        .arg("--directory")
        .arg(root().join("target/chaos"))
        .arg("--binary")
        .arg(built.join("vmm"))
        .arg(task)
        .args(options)
        .env("PATH", search_path()?)
        .status()
        .context("cannot run setpriv (package util-linux)")?;
    ensure!(status.success(), "{task} failed ({status})");
    Ok(())
}
