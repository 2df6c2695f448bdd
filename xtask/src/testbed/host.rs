//! One emulated host: power, disk, and commands in it. Knows nothing of guests and scenarios.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::network::{Network, Side};
use super::wait::{say, until};
use super::{qemu, sandbox, shell};
use crate::debian::{Kernel, text_of};

const MEMORY_MIB: u32 = 1536;
/// Ordinary is 6 to 10 s, with two hosts at once.
const BOOT: Duration = Duration::from_secs(90);
/// A host that is off does not answer.
const CONNECT: Duration = Duration::from_secs(5);
/// For a command that does little.
const COMMAND: Duration = Duration::from_secs(30);
/// Room for what a scenario writes to `/data` besides its images.
const DISK_SPARE_BYTES: u64 = 1 << 30;

/// What a host keeps saying: the kernel's console, vmm's log, and the console of its guest.
pub(super) const LOGS: [&str; 3] = ["console", "vmm", "guest"];

/// See the [module documentation](self). Its power is cut when it is dropped.
pub(super) struct Host {
    pub(super) side: Side,
    kernel: PathBuf,
    initramfs: PathBuf,
    /// Where its disk and its logs are.
    directory: PathBuf,
    power: Option<Child>,
    frozen: bool,
}

impl Host {
    /// A host without power, with an empty disk.
    pub(super) fn new(
        side: Side,
        directory: &Path,
        kernel: &Kernel,
        initramfs: &Path,
    ) -> Result<Self> {
        let host = Self {
            side,
            kernel: kernel.image.clone(),
            initramfs: initramfs.to_owned(),
            directory: directory.to_owned(),
            power: None,
            frozen: false,
        };
        fs::create_dir_all(directory)?;
        for log in LOGS {
            File::create(host.log(log))?;
        }
        host.make_disk(&[])?;
        Ok(host)
    }

    /// One of [`LOGS`]. It grows while the host runs, over all its reboots.
    pub(super) fn log(&self, log: &str) -> PathBuf {
        self.directory
            .join(format!("{}.{log}.log", self.side.name()))
    }

    /// The raw file behind its disk, an ext4 file system that the host sees as `/data`.
    pub(super) fn disk(&self) -> PathBuf {
        self.directory.join(format!("{}.disk", self.side.name()))
    }

    /// Makes the disk anew, with these files in it under these names.
    pub(super) fn make_disk(&self, files: &[(&Path, &str)]) -> Result<()> {
        ensure!(self.power.is_none(), "{} runs", self.side.name());
        let content = self.disk().with_extension("content");
        fs::create_dir_all(&content)?;
        let mut bytes = DISK_SPARE_BYTES;
        for (file, name) in files {
            bytes += fs::metadata(file)?.len();
            // Sparse, and without copying where the file system can.
            let copy = ["--reflink=auto", "--sparse=always", "-L"];
            let to = content.join(name);
            let status = Command::new("cp").args(copy).arg(file).arg(&to).status()?;
            ensure!(status.success(), "cannot copy {}", file.display());
        }
        let disk = self.disk();
        let _ = fs::remove_file(&disk);
        File::create(&disk)?.set_len(bytes)?;
        let (content_text, disk_text) = (text_of(&content)?, text_of(&disk)?);
        sandbox::quietly(
            "mkfs.ext4",
            &format!("-q -F -E lazy_itable_init=1 -d {content_text} {disk_text}"),
        )?;
        fs::remove_dir_all(&content)?;
        Ok(())
    }

    /// Takes a file of its disk out. The host must be off.
    pub(super) fn take_from_disk(&self, name: &str, to: &Path) -> Result<()> {
        ensure!(self.power.is_none(), "{} runs", self.side.name());
        let (disk, to_text) = (self.disk(), text_of(to)?);
        // Brings what only the journal has to its place first; 1 says that it did something.
        let replayed = Command::new("e2fsck").arg("-fy").arg(&disk).output()?;
        ensure!(
            matches!(replayed.status.code(), Some(0 | 1)),
            "the disk of {} is broken: {}",
            self.side.name(),
            String::from_utf8_lossy(&replayed.stdout)
        );
        let dump = format!("dump /{name} {to_text}");
        let output = Command::new("debugfs")
            .arg("-R")
            .arg(dump)
            .arg(disk)
            .output()?;
        ensure!(
            fs::metadata(to).is_ok_and(|found| found.len() > 0),
            "no {name} on the disk of {}: {}",
            self.side.name(),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    pub(super) fn is_on(&self) -> bool {
        self.power.is_some()
    }

    /// Whether it runs and does so unhindered.
    pub(super) fn is_well(&mut self) -> bool {
        let alive = (self.power.as_mut()).is_some_and(|power| matches!(power.try_wait(), Ok(None)));
        alive && !self.frozen && self.run("true").is_ok()
    }

    /// Switches it on. [`Host::await_boot`] waits until it can be used.
    pub(super) fn power_on(&mut self) -> Result<()> {
        ensure!(self.power.is_none(), "{} is on already", self.side.name());
        let parameters = format!("number={} quiet", self.side.number());
        let mut emulator = qemu::emulator(&self.kernel, &self.initramfs, &parameters, MEMORY_MIB);
        for log in LOGS {
            let path = self.log(log);
            emulator.arg("-chardev");
            emulator.arg(format!("file,id={log},append=on,path={}", text_of(&path)?));
            emulator.args(["-serial", &format!("chardev:{log}")]);
        }
        let disk = self.disk();
        emulator.arg("-drive");
        emulator.arg(format!(
            "if=virtio,format=raw,cache=writeback,file={}",
            text_of(&disk)?
        ));
        for network in Network::ALL {
            let (name, tap, mac) = (
                network.name(),
                network.tap(self.side),
                network.mac(self.side),
            );
            emulator.arg("-netdev");
            emulator.arg(format!(
                "tap,id={name},ifname={tap},script=no,downscript=no"
            ));
            emulator.arg("-device");
            emulator.arg(format!("virtio-net-pci,netdev={name},mac={mac},romfile="));
        }
        let errors = File::create(self.log("qemu"))?;
        let power = emulator
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .context(qemu::MISSING)?;
        self.power = Some(power);
        self.frozen = false;
        Ok(())
    }

    /// Waits until commands can be run in it.
    pub(super) fn await_boot(&mut self) -> Result<()> {
        let name = self.side.name();
        let ended = |power: &mut Option<Child>| match power {
            Some(power) => Ok::<bool, std::io::Error>(power.try_wait()?.is_some()),
            None => Ok(true),
        };
        until(&format!("{name} to boot"), BOOT, || {
            if ended(&mut self.power)? {
                let why = fs::read_to_string(self.log("qemu")).unwrap_or_default();
                bail!("QEMU of {name} has ended: {why}");
            }
            Ok(self
                .run("grep -q ' /data ' /proc/mounts && grep -q ' /shared ' /proc/mounts")
                .ok()
                .filter(|done| done.code == 0))
        })
        .with_context(|| format!("its console is {}", self.log("console").display()))?;
        say(format_args!("{name} is up"));
        Ok(())
    }

    /// How fast its kernel believes that its time-stamp counter runs, in MHz.
    pub(super) fn counter_mhz(&self) -> Result<f64> {
        let said = self.must("dmesg | grep -o 'tsc: Detected [0-9.]* MHz' | head -n 1")?;
        let mhz = said.split_whitespace().nth(2);
        let mhz = mhz.with_context(|| format!("{} has no counter", self.side.name()))?;
        Ok(mhz.parse()?)
    }

    /// Power failure: it is gone at once, and only what reached its disk is left.
    pub(super) fn power_off(&mut self) -> Result<()> {
        if let Some(mut power) = self.power.take() {
            power.kill()?;
            power.wait()?;
        }
        Ok(())
    }

    /// It hangs as a whole; its neighbours hear nothing of it any more.
    pub(super) fn freeze(&mut self) -> Result<()> {
        self.signal("STOP")?;
        self.frozen = true;
        Ok(())
    }

    /// It goes on where it was, and time has leapt.
    pub(super) fn thaw(&mut self) -> Result<()> {
        self.signal("CONT")?;
        self.frozen = false;
        Ok(())
    }

    fn signal(&self, name: &str) -> Result<()> {
        let power = self.power.as_ref().context("the host is off")?;
        sandbox::quietly("kill", &format!("-{name} {}", power.id()))
    }

    /// Runs a shell script in it to its end.
    pub(super) fn run(&self, script: &str) -> Result<shell::Output> {
        shell::run(&self.shell(), script, CONNECT, COMMAND)
    }

    /// Runs a shell script that must succeed; returns what it printed.
    pub(super) fn must(&self, script: &str) -> Result<String> {
        shell::must(&self.shell(), script, CONNECT, COMMAND)
    }

    fn shell(&self) -> String {
        format!("{}:7", Network::Management.address(self.side))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Nothing is left to do if it cannot be killed: it dies with this process.
        let _ = self.power_off();
    }
}
