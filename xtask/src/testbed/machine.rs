//! The emulated machine: how QEMU is started so that Linux finds KVM in it.

use std::path::Path;
use std::process::{Command, Stdio};

/// What to say if it cannot be started.
pub(super) const MISSING: &str =
    "cannot run setpriv and qemu-system-x86_64 (packages util-linux, qemu-system-x86)";

/// QEMU with software emulation of a processor with SVM. `parameters` are for the kernel's command line. It
/// dies with the thread that starts it.
pub(super) fn emulator(
    kernel: &Path,
    initramfs: &Path,
    parameters: &str,
    memory_mib: u32,
) -> Command {
    // util-linux' setpriv becomes QEMU.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
        .args(["-M", "q35", "-accel", "tcg,thread=multi"])
        .args(["-cpu", "max", "-smp", "2"])
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
