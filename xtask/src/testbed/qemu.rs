//! QEMU, which plays a host: which one, and how it is started so that Linux finds KVM in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::debian::{self, Release};

/// What to say if it cannot be started.
pub(super) const MISSING: &str = "cannot run setpriv (package util-linux)";

/// QEMU, and the firmware it boots with. Debian 12's own forgets more of what an instruction needs again after a page
/// fault than newer ones do (`docs/failover.md`), and a guest whose memory is write-protected has many.
const PACKAGES: [&str; 4] = [
    "qemu-system-x86",
    "qemu-system-common",
    "qemu-system-data",
    "seabios",
];

/// Downloads QEMU unless it is there.
pub(super) fn provide() -> Result<()> {
    let directory = directory();
    debian::provide_programs(&PACKAGES, Release::Backports, &directory)?;
    // It may lack a library that was there when it was unpacked.
    debian::quiet(qemu().arg("--version")).with_context(|| {
        format!(
            "QEMU does not run; remove {} to download it again",
            directory.display()
        )
    })?;
    Ok(())
}

fn qemu() -> Command {
    let mut command = Command::new(directory().join(PROGRAM));
    command.env("LD_LIBRARY_PATH", debian::libraries(&directory()));
    command
}

/// Below the directory.
const PROGRAM: &str = "usr/bin/qemu-system-x86_64";

fn directory() -> PathBuf {
    crate::workspace::root().join("target/debian/qemu")
}

/// QEMU with software emulation of a processor with SVM. `parameters` are for the kernel's command line. It
/// dies with the thread that starts it.
pub(super) fn emulator(
    kernel: &Path,
    initramfs: &Path,
    parameters: &str,
    memory_mib: u32,
) -> Command {
    let qemu = directory();
    // util-linux' setpriv becomes QEMU.
    let mut command = Command::new("setpriv");
    command
        .env("LD_LIBRARY_PATH", debian::libraries(&qemu))
        .args(["--pdeathsig", "KILL"])
        .arg(qemu.join(PROGRAM))
        .arg("-L")
        .arg(qemu.join("usr/share/qemu"))
        .arg("-L")
        .arg(qemu.join("usr/share/seabios"))
        .args(["-M", "q35", "-accel", "tcg,thread=multi"])
        // One processor: the emulator now and then takes an interrupt that another one sends right after a guest was
        // left, where the processor must hold it back, and the host's kernel or its guest is lost.
        .args(["-cpu", "max", "-smp", "1"])
        .args(["-m", &memory_mib.to_string()])
        .args(["-nodefaults", "-no-reboot", "-display", "none"])
        .arg("-append")
        // A host that is emulated slowly at that moment fails the kernel's check of its timer, and panics.
        .arg(format!(
            "console=ttyS0 loglevel=4 panic=-1 no_timer_check ipv6.disable=1 {parameters}"
        ))
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .stdin(Stdio::null());
    command
}
