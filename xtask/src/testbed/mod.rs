//! `cargo xtask testbed boot`: a Linux guest on real KVM with nested paging, in an emulated host.
//!
//! QEMU emulates a machine with SVM; it boots Debian's cloud kernel and an initramfs with the `vmm` binary,
//! which runs the same kernel as its guest. Nothing is installed and no root is needed: the kernel's package
//! is downloaded and unpacked below `target/testbed`, where the console's log is kept too. What must not be
//! done here: measure. Everything in there is some 30 times slower than on a real machine.

mod initramfs;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::{root, run};

/// How long everything in the emulated host may take together. Ordinary is 25 s.
const LIMIT: Duration = Duration::from_secs(300);
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Guests that the host's init runs.
const GUESTS: usize = 4;

/// Boots the host, which runs its guests, and fails unless each did what it should.
pub(crate) fn boot() -> Result<()> {
    let directory = root().join("target/testbed");
    std::fs::create_dir_all(&directory)?;
    let kernel = kernel(&directory)?;
    let vmm = build_vmm(&directory)?;
    let initramfs = initramfs::host(&directory, &kernel, &vmm)?;
    let console = directory.join("console.log");
    eprintln!(
        "+ booting the host; its console goes to {}",
        console.display()
    );
    let mut host = Host::start(&kernel.image, &initramfs)?;
    let outcome = follow(&host.lines, &console);
    host.stop();
    outcome.with_context(|| format!("the log is {}", console.display()))
}

/// Debian's kernel, unpacked.
struct Kernel {
    image: PathBuf,
    /// Where its modules are.
    modules: PathBuf,
}

fn kernel(directory: &Path) -> Result<Kernel> {
    let unpacked = directory.join("kernel");
    if !unpacked.exists() {
        download(directory, &unpacked)?;
    }
    let only = |below: &str, beginning: &str| -> Result<PathBuf> {
        let below = unpacked.join(below);
        let mut entries = std::fs::read_dir(&below)?.collect::<Result<Vec<_>, _>>()?;
        entries.retain(|entry| entry.file_name().to_string_lossy().starts_with(beginning));
        ensure!(
            entries.len() == 1,
            "expected one {beginning}* in {}; remove {} to download it again",
            below.display(),
            unpacked.display()
        );
        Ok(entries[0].path())
    };
    Ok(Kernel {
        image: only("boot", "vmlinuz-")?,
        modules: only("lib/modules", "")?.join("kernel"),
    })
}

/// Downloads the package with the image, on which the one that is asked for depends.
fn download(directory: &Path, unpacked: &Path) -> Result<()> {
    let output = Command::new("apt-cache")
        .args(["depends", "--important", KERNEL_PACKAGE])
        .output()
        .context("cannot run apt-cache; the testbed needs Debian")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let package = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"))
        .with_context(|| format!("apt-cache knows no {KERNEL_PACKAGE}: run apt-get update"))?;
    let package = format!("linux-image-{package}");
    eprintln!("+ apt-get download {package}");
    let fresh = tempdir(directory)?;
    let status = Command::new("apt-get")
        .args(["download", "-q", &package])
        .current_dir(&fresh)
        .status()?;
    ensure!(
        status.success(),
        "apt-get download {package} failed ({status})"
    );
    let mut archives = std::fs::read_dir(&fresh)?;
    let archive = archives
        .next()
        .context("apt-get downloaded nothing")??
        .path();
    let contents = fresh.join("contents");
    run(
        "dpkg",
        &["-x", text_of(&archive)?, text_of(&contents)?],
        &[],
    )?;
    // Last, so that what is there is whole.
    std::fs::rename(&contents, unpacked)?;
    std::fs::remove_dir_all(&fresh)?;
    Ok(())
}

fn tempdir(directory: &Path) -> Result<PathBuf> {
    let fresh = directory.join(format!("download.{}", std::process::id()));
    std::fs::create_dir_all(&fresh)?;
    Ok(fresh)
}

/// Builds `vmm` so that it needs no libraries.
fn build_vmm(directory: &Path) -> Result<PathBuf> {
    let build = directory.join("build");
    run(
        "cargo",
        &[
            "build",
            "--target",
            TARGET,
            "-p",
            "understudy-vmm",
            "--bin",
            "vmm",
        ],
        &[
            ("RUSTFLAGS", "-C target-feature=+crt-static"),
            ("CARGO_TARGET_DIR", text_of(&build)?),
        ],
    )?;
    Ok(build.join(TARGET).join("debug/vmm"))
}

fn text_of(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}

/// An emulated host. It ends with the value, and with this process.
struct Host {
    process: Child,
    lines: Receiver<String>,
}

impl Host {
    fn start(kernel: &Path, initramfs: &Path) -> Result<Self> {
        // util-linux' setpriv becomes QEMU, which then dies with its parent.
        let mut process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args([
                "-M",
                "q35",
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                "max",
                "-smp",
                "2",
                "-m",
                "2048",
            ])
            .args([
                "-nodefaults",
                "-no-reboot",
                "-display",
                "none",
                "-serial",
                "stdio",
            ])
            .args(["-append", "console=ttyS0 loglevel=4 panic=-1"])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initramfs)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context(
                "cannot run setpriv and qemu-system-x86_64 (packages util-linux, qemu-system-x86)",
            )?;
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

    fn stop(&mut self) {
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
fn follow(lines: &Receiver<String>, log: &Path) -> Result<()> {
    let mut log = File::create(log)?;
    let begin = Instant::now();
    let mut passed = 0;
    loop {
        let left = LIMIT.saturating_sub(begin.elapsed());
        let line = match lines.recv_timeout(left) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => bail!("the host was not done within {LIMIT:?}"),
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
        passed == GUESTS,
        "{passed} of {GUESTS} guests did what they should"
    );
    Ok(())
}
