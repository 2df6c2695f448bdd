//! A file system of its own in a file: it can hang, it can be full, and its device can be gone (EIO).

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::fcntl::{FallocateFlags, fallocate};

use crate::programs::run;

/// What is taken at once while the file system is being filled.
const PIECES: [i64; 3] = [1 << 20, 1 << 16, 1 << 12];
/// What others give back is taken, too.
const REFILL: Duration = Duration::from_millis(10);
/// The kernel lets a process's files go some time after it has reported its end.
const UNMOUNT: Duration = Duration::from_secs(2);

/// The file that takes all room.
const FILLER: &str = "filler";

/// A mounted file system. Whatever hangs in it goes on when this is dropped.
#[derive(Debug)]
pub(crate) struct Storage {
    place: PathBuf,
    freezer: Option<Freezer>,
    is_full: bool,
    filler: Option<Filler>,
    is_gone: bool,
    /// Since when nothing more than a mount is missing.
    is_back: Option<Instant>,
}

#[derive(Debug)]
struct Filler {
    end: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// A process that has frozen the file system and thaws it when this is dropped, or this program ends: nothing that waits
/// for the file system could be killed otherwise.
#[derive(Debug)]
struct Freezer(Child);

impl Freezer {
    fn start(place: &Path) -> Result<Self> {
        let script =
            "trap '' INT TERM; fsfreeze -f \"$1\" && echo frozen && read end; fsfreeze -u \"$1\"";
        let mut child = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(place)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run sh")?;
        let mut said = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output).read_line(&mut said)?;
        }
        ensure!(said == "frozen\n", "cannot freeze {}", place.display());
        Ok(Self(child))
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // Its failure shows: everything there goes on waiting.
        let _ = self.0.wait();
    }
}

impl Storage {
    /// Makes one of `mib` MiB and mounts it at `place`.
    pub(crate) fn new(place: &Path, mib: u32) -> Result<Self> {
        std::fs::create_dir(place).with_context(|| format!("cannot make {}", place.display()))?;
        let storage = Self {
            place: place.into(),
            freezer: None,
            is_full: false,
            filler: None,
            is_gone: false,
            is_back: None,
        };
        let image = storage.image();
        run("truncate", &["-s", &format!("{mib}M"), &image])?;
        run("mkfs.ext4", &["-q", "-m", "0", &image])?;
        storage.mount()?;
        Ok(storage)
    }

    fn image(&self) -> String {
        self.place.with_extension("ext4").display().to_string()
    }

    fn at(&self) -> String {
        self.place.display().to_string()
    }

    fn mount(&self) -> Result<()> {
        let options = ["-o", "loop,noatime", &self.image(), &self.at()];
        run("mount", &options)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.place.join(name)
    }

    /// What writes here from now on waits until this is undone. What is gone fails, and cannot hang.
    pub(crate) fn set_frozen(&mut self, is_frozen: bool) -> Result<()> {
        match (is_frozen, self.freezer.take()) {
            (true, None) if self.is_gone => {}
            (true, None) => self.freezer = Some(Freezer::start(&self.place)?),
            (true, freezer) => self.freezer = freezer,
            (false, freezer) => drop(freezer),
        }
        self.settle()
    }

    /// There is no room here from now on until this is undone; while it is frozen, from when it is not any more.
    pub(crate) fn set_full(&mut self, is_full: bool) -> Result<()> {
        self.is_full = is_full;
        self.settle()
    }

    /// The device is gone: all that is asked of what is open here fails with EIO from now on, and what is written in that
    /// moment and not synced is lost. That is undone when everybody has let go of it and [`Storage::mount_again`] is called.
    pub(crate) fn set_gone(&mut self, is_gone: bool) -> Result<()> {
        if !is_gone {
            self.is_back = self.is_gone.then(Instant::now);
            return Ok(());
        }
        if !self.is_gone {
            // What was written long before is on the device. What is frozen is, too, and must be told; what waits there
            // goes on waiting.
            if self.freezer.is_none() {
                run("sync", &["-f", &self.at()])?;
            }
            run("xfs_io", &["-x", "-c", "shutdown", &self.at()])?;
            self.is_gone = true;
        }
        self.is_back = None;
        self.settle()
    }

    /// After the device came back, and no process uses what was open before.
    pub(crate) fn mount_again(&mut self) -> Result<()> {
        let Some(since) = self.is_back.filter(|_| self.freezer.is_none()) else {
            return Ok(());
        };
        if let Err(error) = run("umount", &[&self.at()]) {
            return match since.elapsed() < UNMOUNT {
                true => Ok(()),
                false => Err(error),
            };
        }
        self.mount()?;
        (self.is_gone, self.is_back) = (false, None);
        // It may or may not have been there for good.
        let _ = std::fs::remove_file(self.path(FILLER));
        self.settle()
    }

    /// Whether nothing that writes here fails, or waits.
    pub(crate) fn is_well(&self) -> bool {
        self.freezer.is_none() && !self.is_full && !self.is_gone
    }

    fn settle(&mut self) -> Result<()> {
        // Nothing here can be changed while it is frozen.
        let is_to_be_full = self.is_full && !self.is_gone;
        if self.freezer.is_some() || is_to_be_full == self.filler.is_some() {
            return Ok(());
        }
        let path = self.path(FILLER);
        if let Some(filler) = self.filler.take() {
            filler.end.store(true, Ordering::Release);
            let ended = filler.thread.join();
            ended.map_err(|_| anyhow!("the filler panicked"))?;
            if self.is_gone {
                return Ok(());
            }
            return std::fs::remove_file(&path).context("cannot make room again");
        }
        let file = File::create(&path).context("cannot make the filler")?;
        let end = Arc::new(AtomicBool::new(false));
        let ending = Arc::clone(&end);
        let mut taken = 0;
        fill(&file, &mut taken);
        let thread = std::thread::spawn(move || {
            while !ending.load(Ordering::Acquire) {
                std::thread::sleep(REFILL);
                fill(&file, &mut taken);
            }
        });
        self.filler = Some(Filler { end, thread });
        Ok(())
    }
}

/// Takes what room there is.
fn fill(file: &File, taken: &mut i64) {
    for piece in PIECES {
        while fallocate(file, FallocateFlags::empty(), *taken, piece).is_ok() {
            *taken += piece;
        }
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        // Whoever fails to undo this has failed already.
        let _ = self.set_frozen(false);
        let _ = self.set_full(false);
        let _ = run("umount", &["--lazy", &self.at()]);
    }
}
