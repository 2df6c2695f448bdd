//! One emulated host that runs guests by itself, one after the other, and tells on its console how they did.
//!
//! No network, no root. What must not be done here: knowing what its guests are for.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::qemu;
use crate::debian::{Kernel, Tree};

const MEMORY_MIB: u32 = 2048;

/// What a host is to do.
pub(super) struct Task<'a> {
    pub(super) kernel: &'a Kernel,
    /// Its init runs the guests.
    pub(super) tree: &'a Tree,
    /// Further arguments of QEMU.
    pub(super) further: &'a [&'a str],
    /// Where its console is kept.
    pub(super) console: &'a Path,
    /// Guests that its init runs.
    pub(super) guests: usize,
    /// How long everything in it may take together.
    pub(super) limit: Duration,
}

/// Boots the host and fails unless each of its guests did what it should.
pub(super) fn run(task: &Task<'_>) -> Result<()> {
    let console = task.console.display();
    eprintln!("+ booting the host; its console goes to {console}");
    let emulator = Emulator::start(task)?;
    follow(&emulator.lines, task).with_context(|| format!("the log is {console}"))
}

/// A running QEMU. It ends with the value, and with this process.
struct Emulator {
    process: Child,
    lines: Receiver<String>,
}

impl Emulator {
    fn start(task: &Task<'_>) -> Result<Self> {
        let initramfs = task.tree.pack()?;
        let mut process = qemu::emulator(&task.kernel.image, &initramfs, "", MEMORY_MIB)
            .args(["-serial", "stdio"])
            .args(task.further)
            .stdout(Stdio::piped())
            .spawn()
            .context(qemu::MISSING)?;
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
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // It may have ended by itself: then there is nothing to kill, only to reap.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Keeps the console's log, shows what is for us, and judges it.
fn follow(lines: &Receiver<String>, task: &Task<'_>) -> Result<()> {
    let mut log = File::create(task.console)?;
    let begin = Instant::now();
    let mut passed = 0;
    loop {
        let left = task.limit.saturating_sub(begin.elapsed());
        let line = match lines.recv_timeout(left) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => {
                bail!("the host was not done within {:?}", task.limit)
            }
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
        passed == task.guests,
        "{passed} of {} guests did what they should",
        task.guests
    );
    Ok(())
}
