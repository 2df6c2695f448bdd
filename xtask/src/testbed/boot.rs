//! `cargo xtask testbed boot`: a Linux guest on real KVM with nested paging, in an emulated host.
//!
//! One host, no network, no root: its init runs the guests and says what became of them. What must not be
//! done here: measure. Everything in there is some 30 times slower than on a real machine.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{ONE_HOST, directory, machine, vmm_binary};
use crate::debian::{Flavor, Kernel, Tree, install};

/// How long everything in the emulated host may take together. Ordinary is 25 s.
const LIMIT: Duration = Duration::from_secs(300);
/// Guests that the host's init runs.
const GUESTS: usize = 6;
const HOST_INIT: &str = include_str!("boot-host-init.sh");
const GUEST_INIT: &str = include_str!("boot-guest-init.sh");

/// Boots the host, which runs its guests, and fails unless each did what it should.
pub(crate) fn boot() -> Result<()> {
    install(&ONE_HOST)?;
    machine::provide()?;
    let directory = directory()?;
    let kernel = Kernel::provide(&directory, Flavor::Cloud)?;
    let vmm = vmm_binary::build(&directory)?;
    let guest = Tree::new(&directory, "boot-guest", GUEST_INIT)?;
    let drivers = [
        "virtio_mmio",
        "virtio_rng",
        "pvpanic_mmio",
        "button",
        "evdev",
        "wdat_wdt",
    ];
    guest.modules(&kernel, &drivers)?;
    let host = Tree::new(&directory, "boot-host", HOST_INIT)?;
    host.modules(&kernel, &["kvm_amd"])?;
    host.copy(&vmm, "bin/vmm")?;
    host.copy(&kernel.image, "guest/bzImage")?;
    host.copy(&guest.pack()?, "guest/initrd")?;
    let console = directory.join("console.log");
    eprintln!(
        "+ booting the host; its console goes to {}",
        console.display()
    );
    let mut host = Host::start(&kernel.image, &host.pack()?, &[])?;
    let outcome = follow(&host.lines, &console, GUESTS, LIMIT);
    host.stop();
    outcome.with_context(|| format!("the log is {}", console.display()))
}

/// An emulated host. It ends with the value, and with this process.
pub(super) struct Host {
    process: Child,
    pub(super) lines: Receiver<String>,
}

impl Host {
    pub(super) fn start(kernel: &Path, initramfs: &Path, further: &[&str]) -> Result<Self> {
        let mut process = machine::emulator(kernel, initramfs, "", 2048)
            .args(["-serial", "stdio"])
            .args(further)
            .stdout(Stdio::piped())
            .spawn()
            .context(machine::MISSING)?;
        let output = process.stdout.take().context("QEMU has no output")?;
        let (sender, lines) = channel();
        // Ends when QEMU does.
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { process, lines })
    }

    pub(super) fn stop(&mut self) {
        // It may have ended by itself: then there is nothing to kill, only to reap.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Keeps the console's log, shows what is for us, and judges it.
pub(super) fn follow(
    lines: &Receiver<String>,
    log: &Path,
    guests: usize,
    limit: Duration,
) -> Result<()> {
    let mut log = File::create(log)?;
    let begin = Instant::now();
    let mut passed = 0;
    loop {
        let left = limit.saturating_sub(begin.elapsed());
        let line = match lines.recv_timeout(left) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => bail!("the host was not done within {limit:?}"),
            Err(RecvTimeoutError::Disconnected) => bail!("the host ended before it was done"),
        };
        writeln!(log, "{line}")?;
        let Some(message) = line.strip_prefix("testbed: ") else {
            continue;
        };
        eprintln!("{:6.1} s  {message}", begin.elapsed().as_secs_f64());
        if message.starts_with("pass ") {
            passed += 1;
        } else if message == "done" {
            break;
        }
    }
    ensure!(
        passed == guests,
        "{passed} of {guests} guests did what they should"
    );
    Ok(())
}
