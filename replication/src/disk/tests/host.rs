//! A host for disks, in memory: images and files that can lose power, fail, and count what is done to them.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::core::disk::{DISK_BATCH_BYTES_DEFAULT, DiskBatchWriter, DiskWrite};
use crate::disk::{Changed, DiskError, DiskLimits, DiskMode, DiskSet, DiskSpec, Storage};
pub(super) use crate::files::simulated::Call as Event;
use crate::files::simulated::{self, SimulatedFiles};
use crate::ports::disks::Completion;

/// Nothing in these tests may take so long.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);

/// The content of an image; said as its checksum.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Content(pub(super) Vec<u8>);

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} bytes, crc {:08x}",
            self.0.len(),
            crc32fast::hash(&self.0)
        )
    }
}

impl std::ops::Deref for Content {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl std::ops::DerefMut for Content {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

/// A host: its process and its storage. Clones are the same; [`Host::as_user`] is another host with the same storage.
#[derive(Clone)]
pub(super) struct Host {
    name: String,
    files: SimulatedFiles,
    /// Who holds the lock of an image.
    locks: Arc<Mutex<BTreeMap<String, String>>>,
    /// An image, and which of its bytes cannot be read.
    unreadable: Arc<Mutex<(String, Range<u64>)>>,
    /// Is done once, after the next read of an image.
    after_read: Arc<Mutex<Option<Hook>>>,
    open_images: Arc<AtomicUsize>,
    /// How discards fail.
    no_discard: Arc<Mutex<Option<io::ErrorKind>>>,
}

type Hook = Box<dyn FnOnce() + Send>;

impl Host {
    pub(super) fn new(name: &str) -> Self {
        Self::with(name, SimulatedFiles::default())
    }

    fn with(name: &str, files: SimulatedFiles) -> Self {
        Self {
            name: name.into(),
            files,
            locks: Arc::default(),
            unreadable: Arc::new(Mutex::new((String::new(), 0..0))),
            after_read: Arc::default(),
            open_images: Arc::default(),
            no_discard: Arc::default(),
        }
    }

    /// Another user of the same storage.
    pub(super) fn as_user(&self, name: &str) -> Self {
        Self {
            name: name.into(),
            files: self.files.another_process(),
            locks: self.locks.clone(),
            unreadable: self.unreadable.clone(),
            after_read: self.after_read.clone(),
            open_images: Arc::default(),
            no_discard: Arc::default(),
        }
    }

    /// The files of its process.
    pub(super) fn files(&self) -> &SimulatedFiles {
        &self.files
    }

    /// Makes an image of random bytes that are durable.
    pub(super) fn make_image(&self, name: &str, bytes: u64, random: &mut StdRng) {
        let mut data = vec![0; bytes as usize];
        random.fill(&mut data[..]);
        self.replace(name, data);
    }

    /// Another file takes the place of this one.
    pub(super) fn replace(&self, name: &str, bytes: Vec<u8>) {
        self.files.put(name, bytes);
    }

    /// Somebody else writes to this file, and has it look as if it was last changed at `content_ns`.
    pub(super) fn overwrite(&self, name: &str, bytes: Vec<u8>, content_ns: Option<u64>) {
        self.files.overwrite(name, bytes, content_ns);
    }

    pub(super) fn pass(&self, time: Duration) {
        self.files.pass(time);
    }

    pub(super) fn content(&self, name: &str) -> Content {
        Content(self.files.content(name).unwrap())
    }

    /// Damages a file, or makes it, without a trace.
    pub(super) fn set_content(&self, name: &str, bytes: Vec<u8>) {
        match self.files.look(name) {
            Ok(was) => self.files.overwrite(name, bytes, Some(was.content_ns)),
            Err(_) => self.files.put(name, bytes),
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.files.exists(name)
    }

    pub(super) fn remove(&self, name: &str) {
        self.files.unlink(name);
    }

    pub(super) fn take_events(&self) -> Vec<Event> {
        self.files.take_calls()
    }

    /// From the `after`th change on, everything of names that contain `name` fails.
    pub(super) fn fail(&self, name: &str, after: u64, kind: io::ErrorKind) {
        self.files.fail_from(name, after, kind);
    }

    /// These bytes of an image cannot be read any more, and no others.
    pub(super) fn make_unreadable(&self, name: &str, bytes: Range<u64>) {
        *self.unreadable.lock().unwrap() = (name.into(), bytes);
    }

    /// From now on, discards fail, and only they.
    pub(super) fn fail_discards(&self, kind: io::ErrorKind) {
        *self.no_discard.lock().unwrap() = Some(kind);
    }

    /// Does something after the next read of an image, before its reader goes on.
    pub(super) fn after_read(&self, hook: impl FnOnce() + Send + 'static) {
        *self.after_read.lock().unwrap() = Some(Box::new(hook));
    }

    /// Does something in the middle of the next write, before anything of it is there.
    pub(super) fn before_write(&self, hook: impl FnOnce() + Send + 'static) {
        self.files.before_write(hook);
    }

    pub(super) fn heal(&self) {
        self.files.heal();
    }

    /// What this host's storage is after a loss of power now. The old one goes on for whoever still uses it.
    pub(super) fn after_power_loss(&self, random: &mut StdRng) -> Self {
        let seed = random.random();
        let mut names = seeded(seed);
        let left = self.files.after_power_loss(
            |_| names.random_bool(0.5),
            |_| simulated::Content::Torn(seed),
        );
        Self::with(&self.name, left)
    }

    /// The same, with this left of content that was not synced. Names that were not are kept if it is.
    pub(super) fn without_power(&self, survives: simulated::Content) -> Self {
        let names = survives != simulated::Content::Nothing;
        Self::with(
            &self.name,
            self.files.after_power_loss(|_| names, |_| survives),
        )
    }

    /// As it is after the process was killed: nothing that was written is lost.
    pub(super) fn after_kill(&self) -> Self {
        Self::with(&self.name, self.files.after_kill())
    }

    /// The process of this user of the storage ends: its locks go.
    pub(super) fn unlock(&self) {
        let mut locks = self.locks.lock().unwrap();
        locks.retain(|_, holder| *holder != self.name);
    }

    pub(super) fn storage(&self, name: &str) -> Box<dyn Storage> {
        self.open_images.fetch_add(1, Ordering::SeqCst);
        Box::new(MemoryImage {
            host: self.clone(),
            name: name.into(),
        })
    }

    /// How many of its images its user has open.
    pub(super) fn open_images(&self) -> usize {
        self.open_images.load(Ordering::SeqCst)
    }

    /// A set of images `disk0` … of which each is replicated or shared.
    pub(super) fn open(&self, modes: &[DiskMode], limits: DiskLimits) -> DiskSet {
        self.try_open(modes, limits).unwrap()
    }

    pub(super) fn try_open(
        &self,
        modes: &[DiskMode],
        limits: DiskLimits,
    ) -> Result<DiskSet, DiskError> {
        let spec = |(number, mode): (usize, &DiskMode)| DiskSpec {
            name: format!("disk{number}"),
            storage: self.storage(&format!("disk{number}")),
            mode: *mode,
            map_path: format!("disk{number}-map").into(),
        };
        let specs = modes.iter().enumerate().map(spec).collect();
        let files = Arc::new(self.files.clone());
        DiskSet::open_in(specs, Some("journal".into()), limits, files)
    }
}

struct MemoryImage {
    host: Host,
    name: String,
}

impl MemoryImage {
    fn path(&self) -> &Path {
        self.name.as_ref()
    }
}

impl Drop for MemoryImage {
    fn drop(&mut self) {
        self.host.open_images.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Storage for MemoryImage {
    fn bytes(&self) -> u64 {
        self.host.files.look(&self.name).unwrap().bytes
    }

    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let (name, bad) = self.host.unreadable.lock().unwrap().clone();
        if name == self.name && offset < bad.end && bad.start < offset + data.len() as u64 {
            return Err(io::Error::other("bad sector"));
        }
        self.host.files.read(self.path(), offset, data)?;
        let hook = self.host.after_read.lock().unwrap().take();
        hook.into_iter().for_each(|hook| hook());
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.host.files.write(self.path(), offset, data)
    }

    fn flush(&self) -> io::Result<()> {
        self.host.files.sync(self.path())
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        if let Some(kind) = *self.host.no_discard.lock().unwrap() {
            return Err(kind.into());
        }
        self.write_at(offset, &vec![0; bytes as usize])
    }

    fn write_zeroes(&self, offset: u64, bytes: u64, _may_unmap: bool) -> io::Result<()> {
        self.write_at(offset, &vec![0; bytes as usize])
    }

    fn lock(&self) -> io::Result<bool> {
        let mut locks = self.host.locks.lock().unwrap();
        let holder = locks
            .entry(self.name.clone())
            .or_insert(self.host.name.clone());
        Ok(*holder == self.host.name)
    }

    fn is_locked_by_other(&self) -> io::Result<bool> {
        let locks = self.host.locks.lock().unwrap();
        let holder = locks.get(&self.name);
        Ok(holder.is_some_and(|holder| *holder != self.host.name))
    }

    fn identity(&self) -> io::Result<Option<String>> {
        let image = self.host.files.look(&self.name)?;
        Ok(Some(format!("file {}", image.number)))
    }

    fn changed(&self) -> io::Result<Option<Changed>> {
        let image = self.host.files.look(&self.name)?;
        Ok(Some(Changed {
            content_ns: image.content_ns,
            anything_ns: image.anything_ns,
        }))
    }
}

/// Writes as the batches of a message.
pub(super) fn batches(writes: &[DiskWrite]) -> Vec<Bytes> {
    let mut writer = DiskBatchWriter::new(DISK_BATCH_BYTES_DEFAULT);
    let mut full = Vec::new();
    for write in writes {
        writer.push(write, |batch| full.push(batch.body));
    }
    full.extend(writer.finish().map(|batch| batch.body));
    full
}

/// A `Done`, and where its result arrives.
pub(super) fn done() -> (Completion, Receiver<Result<(), DiskError>>) {
    let (sender, receiver) = channel();
    let done = move |result| {
        let _ = sender.send(result);
    };
    (Box::new(done), receiver)
}

/// Waits until something that threads do has come true.
pub(super) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < DEADLINE, "in vain: {what}");
        std::thread::yield_now();
    }
}

pub(super) fn seeded(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

/// Limits for small disks, and nothing is put off.
pub(super) fn limits() -> DiskLimits {
    DiskLimits {
        log_bytes_max: 4 << 20,
        journal_bytes_max: 8 << 20,
        destage_interval: Duration::from_millis(1),
        destage_bytes: 1 << 20,
        marks_kept: Duration::ZERO,
        sync_slice_bytes: 256 << 10,
    }
}

/// As [`limits`], but the journal is brought to the images only when it must.
pub(super) fn lazy() -> DiskLimits {
    DiskLimits {
        destage_interval: Duration::from_secs(3600),
        destage_bytes: u64::MAX,
        ..limits()
    }
}

/// Does a random change to a disk of `bytes`.
pub(super) fn scribble(disk: &crate::disk::Disk, bytes: u64, random: &mut StdRng) {
    let sectors = bytes / 512;
    let first = random.random_range(0..sectors);
    let count = random.random_range(1..=(sectors - first).min(200));
    let (offset, length) = (first * 512, count * 512);
    match random.random_range(0..10) {
        0 => disk.write_zeroes(offset, length, true).unwrap(),
        1 => disk.discard(offset, length).unwrap(),
        2 => disk.flush().unwrap(),
        _ => {
            let mut data = vec![0; length as usize];
            random.fill(&mut data[..]);
            disk.write_at(offset, &data).unwrap();
        }
    }
}

pub(super) fn journal_files() -> [PathBuf; 2] {
    ["journal.0".into(), "journal.1".into()]
}
