//! The world of the testbed: network, mount and process namespaces of its own, so that no traffic leaves it and
//! nothing survives it. The namespaces have no names; they and every process in them go with the first one.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::debian;

/// Set in the process that is inside.
const INSIDE: &str = "UNDERSTUDY_TESTBED_INSIDE";

pub(super) fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Makes sure that nobody else uses the testbed's directory while the value lives.
pub(super) fn take_turn(directory: &Path) -> Result<File> {
    let path = directory.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
            "a testbed is running in {} already: wait until it has ended",
            directory.display()
        ),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// Runs this program again, inside, with `arguments`. Returns its exit code.
pub(super) fn enter(arguments: &[String]) -> Result<i32> {
    let program = std::env::current_exe().context("cannot find this program")?;
    // If this process dies, unshare is killed; then its child, the first process inside; with that, all.
    let status = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "unshare"])
        .args([
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child=KILL",
            "--mount-proc",
        ])
        .arg(&program)
        .arg("testbed")
        .args(arguments)
        .env(INSIDE, "1")
        .env("PATH", debian::search_path()?)
        .status()
        .context("cannot run setpriv and unshare (package util-linux)")?;
    Ok(status.code().unwrap_or(1))
}

/// Fails with what to do unless this can make namespaces and the programs are there.
pub(super) fn check(programs: &[(&str, &'static str)]) -> Result<()> {
    ensure!(
        debian::is_root(),
        "the testbed makes namespaces and tap devices: run it as root \
         (`sudo env PATH=\"$PATH\" cargo xtask testbed …`)"
    );
    ensure!(
        Path::new("/dev/net/tun").exists(),
        "/dev/net/tun is missing: `modprobe tun`"
    );
    debian::install(programs)
}

/// `ip ARGUMENTS`, inside.
pub(super) fn ip(arguments: &str) -> Result<()> {
    quietly("ip", arguments)
}

/// Runs a command that must succeed and whose output is of interest only if it does not.
pub(super) fn quietly(program: &str, arguments: &str) -> Result<()> {
    let output = Command::new(program)
        .args(arguments.split(' '))
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(
        output.status.success(),
        "`{program} {arguments}`: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
