//! A file system of its own in a file: it can hang, and it can be full.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::fcntl::{FallocateFlags, fallocate};

use crate::programs::run;

/// What is taken at once while the file system is being filled.
const PIECES: [i64; 3] = [1 << 20, 1 << 16, 1 << 12];
/// What others give back is taken, too.
const REFILL: Duration = Duration::from_millis(10);

/// A mounted file system. Whatever hangs in it goes on when this is dropped.
#[derive(Debug)]
pub(crate) struct Storage {
    place: PathBuf,
    freezer: Option<Freezer>,
    is_full: bool,
    filler: Option<Filler>,
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
        let image = place.with_extension("ext4").display().to_string();
        let at = place.display().to_string();
        run("truncate", &["-s", &format!("{mib}M"), &image])?;
        run("mkfs.ext4", &["-q", "-m", "0", &image])?;
        run("mount", &["-o", "loop,noatime", &image, &at])?;
        Ok(Self {
            place: place.into(),
            freezer: None,
            is_full: false,
            filler: None,
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.place.join(name)
    }

    /// What writes here from now on waits until this is undone.
    pub(crate) fn set_frozen(&mut self, is_frozen: bool) -> Result<()> {
        match (is_frozen, self.freezer.take()) {
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

    /// Whether what writes here fails, or waits.
    pub(crate) fn is_well(&self) -> bool {
        self.freezer.is_none() && !self.is_full
    }

    fn settle(&mut self) -> Result<()> {
        // Nothing here can be changed while it is frozen.
        if self.freezer.is_some() || self.is_full == self.filler.is_some() {
            return Ok(());
        }
        let path = self.path("filler");
        if let Some(filler) = self.filler.take() {
            filler.end.store(true, Ordering::Release);
            let ended = filler.thread.join();
            ended.map_err(|_| anyhow!("the filler panicked"))?;
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
        let _ = run("umount", &["--lazy", &self.place.display().to_string()]);
    }
}
