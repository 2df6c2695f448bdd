//! Disks of the built-in guest's `disk` workload, seen from the host: images made, and checked block by block.
//!
//! The guest does one request after the other, so an image of any moment holds the writes 1 to some `s` and
//! nothing later: [`WorkloadDisk::check_exact`] looks for just that. What must not be done here: run anything.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use understudy_workload::disk::{self, BLOCK_BYTES, BadBlock, ImageState};

/// The image of a guest's disk, of which the workload uses the first blocks.
#[derive(Debug, Clone)]
pub struct WorkloadDisk {
    path: PathBuf,
    blocks: u32,
}

/// What is wrong with an image.
#[derive(Debug, thiserror::Error)]
pub enum DiskFault {
    /// It cannot be read or made.
    #[error("{}", path.display())]
    Io {
        /// The image.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A block is not what it must be.
    #[error("{}: block {block}: {bad}", path.display())]
    Block {
        /// The image.
        path: PathBuf,
        /// The block.
        block: u32,
        /// What is wrong with it.
        bad: BadBlock,
    },
}

/// What the guest says on its console about its disk, every `disk.log_ms`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GuestDiskProgress {
    /// Writes begun.
    pub writes: u64,
    /// Of these, flushed.
    pub flushed: u64,
    /// Blocks read back and found right.
    pub checked: u64,
}

impl WorkloadDisk {
    /// An image that is there already.
    #[must_use]
    pub fn at(path: &Path, blocks: u32) -> Self {
        Self {
            path: path.into(),
            blocks,
        }
    }

    /// Makes an empty image of `bytes` bytes; the workload is to use `blocks` blocks.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn create(path: &Path, bytes: u64, blocks: u32) -> Result<Self, DiskFault> {
        let disk = Self::at(path, blocks);
        let file = File::create(path).map_err(|source| disk.io(source))?;
        file.set_len(bytes).map_err(|source| disk.io(source))?;
        Ok(disk)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Checks that every block is whole, and none older than it was when the guest had flushed `flushed` writes.
    ///
    /// # Errors
    /// The first bad block.
    pub fn check(&self, flushed: u64) -> Result<ImageState, DiskFault> {
        let image = File::open(&self.path).map_err(|source| self.io(source))?;
        disk::check_image(self.blocks, flushed, |block, bytes: &mut disk::Block| {
            let at = u64::from(block) * BLOCK_BYTES as u64;
            image.read_exact_at(bytes, at).map_err(Bad::Io)
        })
        .map_err(|bad| match bad {
            Bad::Io(source) => self.io(source),
            Bad::Block(block, bad) => DiskFault::Block {
                path: self.path.clone(),
                block,
                bad,
            },
        })
    }

    /// Checks in addition that it holds exactly the writes up to the latest that is there: the disk of one
    /// moment of the guest.
    ///
    /// # Errors
    /// The first bad block.
    pub fn check_exact(&self, flushed: u64) -> Result<ImageState, DiskFault> {
        let report = self.check(flushed)?;
        self.check(report.highest)
    }

    fn io(&self, source: io::Error) -> DiskFault {
        DiskFault::Io {
            path: self.path.clone(),
            source,
        }
    }
}

enum Bad {
    Io(io::Error),
    Block(u32, BadBlock),
}

impl From<(u32, BadBlock)> for Bad {
    fn from((block, bad): (u32, BadBlock)) -> Self {
        Self::Block(block, bad)
    }
}

impl GuestDiskProgress {
    /// The guest's latest words in what a console took; `Err` if it found something wrong with its disk.
    ///
    /// # Errors
    /// The line in which it says so.
    pub fn latest(console: &str) -> Result<Option<Self>, String> {
        for bad in ["BAD", "disk: cannot", "fatal", "panic"] {
            if let Some(line) = console.lines().find(|line| line.contains(bad)) {
                return Err(line.into());
            }
        }
        // The last line may have come in part only.
        let whole = console.rfind('\n').map_or("", |end| &console[..end]);
        Ok(whole.lines().rev().find_map(Self::parse))
    }

    fn parse(line: &str) -> Option<Self> {
        let words = line.trim_end().strip_prefix("disk: ")?;
        let number = |key: &str| {
            let mut words = words.split(' ');
            words.find_map(|word| word.strip_prefix(key)?.parse().ok())
        };
        Some(Self {
            writes: number("writes=")?,
            flushed: number("flushed=")?,
            checked: number("checked=")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_two_moments_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let (blocks, path) = (16, directory.path().join("disk"));
        let image = WorkloadDisk::create(&path, 1 << 20, blocks).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        let mut bytes = [0; BLOCK_BYTES];
        for write in 1..=100 {
            let block = disk::block_of(write, blocks);
            disk::fill(&mut bytes, block, write, blocks);
            let at = u64::from(block) * BLOCK_BYTES as u64;
            file.write_all_at(&bytes, at).unwrap();
        }
        assert_eq!(image.check_exact(90).unwrap().highest, 100);
        // Writes 101 and 102 go to different blocks: only the later one is there.
        let block = disk::block_of(102, blocks);
        assert_ne!(block, disk::block_of(101, blocks));
        disk::fill(&mut bytes, block, 102, blocks);
        let at = u64::from(block) * BLOCK_BYTES as u64;
        file.write_all_at(&bytes, at).unwrap();
        assert_eq!(image.check(90).unwrap().highest, 102);
        let error = image.check_exact(90).unwrap_err();
        assert!(matches!(error, DiskFault::Block { .. }), "{error}");
    }

    #[test]
    fn the_guests_words_are_understood() {
        let said = "ready: disk blocks=64 writes=0 flushed=0\r\ndisk: writes=9 flushed=8 checked=7\r\ndisk: writes=10 fl";
        let words = GuestDiskProgress {
            writes: 9,
            flushed: 8,
            checked: 7,
        };
        assert_eq!(GuestDiskProgress::latest(said), Ok(Some(words)));
        assert_eq!(GuestDiskProgress::latest("ready: disk\n"), Ok(None));
        let bad = "disk: BAD block 3: it is no block of this workload";
        let said = format!("{bad}\ndisk: writes=9 flushed=8 checked=7\n");
        assert_eq!(GuestDiskProgress::latest(&said), Err(bad.into()));
    }
}
