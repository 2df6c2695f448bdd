//! Disks of the machine without KVM: images in files, and what its guest writes to them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use understudy_replication::disk::{Changed, DiskLimits, DiskMode, DiskSet, DiskSpec, Storage};

use super::hang::Hang;

/// Size of each image; most of it is never written.
pub(crate) const IMAGE_BYTES: u64 = 64 << 20;
/// What the guest writes at once.
pub(crate) const BLOCK_BYTES: usize = 4096;
/// The guest writes to so many blocks from the beginning on.
const BLOCKS: u64 = 512;

/// An image in a file, which can be made to refuse writes.
struct FileStorage {
    path: PathBuf,
    file: File,
    is_full: Arc<AtomicBool>,
    hangs: Arc<Hang>,
    refuses: Option<Arc<Refuses>>,
}

/// Makes an image refuse every write, and counts them.
#[derive(Default)]
pub(crate) struct Refuses {
    pub(crate) is_on: AtomicBool,
    pub(crate) count: AtomicU64,
    /// What it refuses is not answered any more.
    pub(crate) hangs: Hang,
}

impl Storage for FileStorage {
    fn bytes(&self) -> u64 {
        IMAGE_BYTES
    }

    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(data, offset)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.hangs.pass();
        if self.is_full.load(Ordering::Acquire) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if let Some(refuses) = self
            .refuses
            .as_ref()
            .filter(|r| r.is_on.load(Ordering::Acquire))
        {
            refuses.count.fetch_add(1, Ordering::AcqRel);
            refuses.hangs.pass();
            return Err(io::ErrorKind::HostUnreachable.into());
        }
        self.file.write_all_at(data, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.write_zeroes(offset, bytes, true)
    }

    fn write_zeroes(&self, offset: u64, bytes: u64, _may_unmap: bool) -> io::Result<()> {
        let zeros = vec![0; 1 << 20];
        let mut at = offset;
        while at < offset + bytes {
            let piece = (offset + bytes - at).min(zeros.len() as u64);
            let mut there = vec![0; piece as usize];
            self.read_at(at, &mut there)?;
            // A hole stays one.
            if there.iter().any(|byte| *byte != 0) {
                self.write_at(at, &zeros[..piece as usize])?;
            }
            at += piece;
        }
        Ok(())
    }

    fn lock(&self) -> io::Result<bool> {
        match self.file.try_lock() {
            Ok(()) => Ok(true),
            Err(std::fs::TryLockError::WouldBlock) => Ok(false),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        }
    }

    fn identity(&self) -> io::Result<Option<String>> {
        Ok(None)
    }

    fn changed(&self) -> io::Result<Option<Changed>> {
        Ok(None)
    }

    /// Asked only where this file does not hold the lock itself.
    fn is_locked_by_other(&self) -> io::Result<bool> {
        match File::open(&self.path)?.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(std::fs::TryLockError::WouldBlock) => Ok(true),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        }
    }
}

/// One host's disks.
pub(crate) struct Images {
    pub(crate) set: DiskSet,
    /// Its images refuse every write.
    pub(crate) is_full: Arc<AtomicBool>,
    /// Its images do not answer a write.
    pub(crate) hangs: Arc<Hang>,
    /// Its way to the shared image refuses writes.
    pub(crate) shared: Arc<Refuses>,
}

impl Images {
    /// The disks of host `host`: `root` has an image of its own, `data`, if wanted, is shared by all.
    /// Images that are there already are used as they are.
    pub(crate) fn open(directory: &Path, host: &str, shared: bool, limits: DiskLimits) -> Self {
        let (is_full, hangs): (Arc<AtomicBool>, Arc<Hang>) = Default::default();
        let to_shared: Arc<Refuses> = Arc::default();
        let own = directory.join(format!("{host}.img"));
        let mut specs = vec![("root", own.clone(), DiskMode::Replicated)];
        if shared {
            specs.push(("data", directory.join("shared.img"), DiskMode::Shared));
        }
        let spec = |(name, path, mode): (&str, PathBuf, DiskMode)| {
            let mut options = OpenOptions::new();
            let options = options.read(true).write(true).create(true).truncate(false);
            let file = options.open(&path).unwrap();
            file.set_len(IMAGE_BYTES).unwrap();
            DiskSpec {
                name: name.into(),
                storage: Box::new(FileStorage {
                    path: path.clone(),
                    file,
                    is_full: Arc::clone(&is_full),
                    hangs: Arc::clone(&hangs),
                    refuses: (mode == DiskMode::Shared).then(|| Arc::clone(&to_shared)),
                }),
                mode,
                map_path: path.with_extension("img.understudy-map"),
            }
        };
        let specs = specs.into_iter().map(spec).collect();
        let journal = own.with_extension("img.understudy-journal");
        Self {
            set: DiskSet::open(specs, Some(journal), limits).unwrap(),
            is_full,
            hangs,
            shared: to_shared,
        }
    }
}

fn block(step: u64) -> u64 {
    step * 13 % BLOCKS
}

fn content(step: u64) -> [u8; BLOCK_BYTES] {
    let mut content = [0; BLOCK_BYTES];
    super::fake::noise(step, &mut content);
    content
}

/// What a guest has done to its disks beside writing.
#[derive(Default)]
pub(crate) struct DiskUse {
    /// How often there was no room for a write.
    pub(crate) refused: AtomicU64,
    /// Writes that were done.
    pub(crate) writes: AtomicU64,
    /// While set, the guest does nothing.
    pub(crate) rests: AtomicBool,
}

/// The guest's write at `step`, and a look at what it has just written. Fails once the disks are shut.
pub(crate) fn step(set: &DiskSet, step: u64) -> io::Result<()> {
    let disks = set.disks();
    let disk = &disks[step as usize % disks.len()];
    let offset = block(step) * BLOCK_BYTES as u64;
    disk.write_at(offset, &content(step))?;
    let mut there = [0; BLOCK_BYTES];
    disk.read_at(offset, &mut there)?;
    assert_eq!(
        there,
        content(step),
        "the guest does not read what it wrote"
    );
    if step.is_multiple_of(64) {
        disk.flush()?;
    }
    Ok(())
}

/// Panics unless the disks have exactly what `steps` steps wrote.
pub(crate) fn assert_written(set: &DiskSet, steps: u64) {
    let disks = set.disks();
    let mut last = std::collections::HashMap::new();
    for step in 1..=steps {
        last.insert((step as usize % disks.len(), block(step)), step);
    }
    for (number, disk) in disks.iter().enumerate() {
        for block in 0..BLOCKS {
            let mut there = [0; BLOCK_BYTES];
            disk.read_at(block * BLOCK_BYTES as u64, &mut there)
                .unwrap();
            let expected = last
                .get(&(number, block))
                .map_or([0; BLOCK_BYTES], |s| content(*s));
            assert!(
                there == expected,
                "disk {number}, block {block} after {steps} steps"
            );
        }
    }
}

/// The file of `host`'s own image has exactly what `steps` steps wrote to disk 0 of `disks`.
pub(crate) fn file_matches(directory: &Path, host: &str, set: &DiskSet) -> bool {
    let file = File::open(directory.join(format!("{host}.img"))).unwrap();
    let disk = &set.disks()[0];
    (0..BLOCKS).all(|block| {
        let (mut here, mut there) = ([0; BLOCK_BYTES], [0; BLOCK_BYTES]);
        file.read_exact_at(&mut here, block * BLOCK_BYTES as u64)
            .unwrap();
        disk.read_at(block * BLOCK_BYTES as u64, &mut there)
            .unwrap();
        here == there
    })
}
