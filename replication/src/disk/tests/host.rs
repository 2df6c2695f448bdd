//! A host for disks, in memory: images and files that can lose power, fail, and count what is done to them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::core::disk::{DISK_BATCH_BYTES_DEFAULT, DiskBatchWriter, DiskWrite};
use crate::disk::image::{HostFile, HostFiles};
use crate::disk::{Changed, DiskError, DiskLimits, DiskMode, DiskSet, DiskSpec, Storage};
use crate::ports::disks::Completion;

/// Nothing in these tests may take so long.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);

/// What happened to an image or a file, in order, over the whole host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    Write {
        name: String,
        offset: u64,
        bytes: u64,
    },
    Sync {
        name: String,
    },
}

/// One thing that stores bytes: what is in the cache, and what would be left after a loss of power.
#[derive(Clone, Default)]
struct Platter {
    cached: Vec<u8>,
    /// Ranges that are not durable, with what was there before, oldest first.
    unsynced: Vec<(usize, Vec<u8>)>,
    /// Length that is durable.
    durable_bytes: usize,
    /// Tells a file from others that have had its name.
    number: u64,
    content_ns: u64,
    anything_ns: u64,
}

impl Platter {
    fn write(&mut self, at: usize, data: &[u8]) {
        if self.cached.len() < at + data.len() {
            self.cached.resize(at + data.len(), 0);
        }
        let place = &mut self.cached[at..at + data.len()];
        self.unsynced.push((at, place.to_vec()));
        place.copy_from_slice(data);
    }

    fn sync(&mut self) {
        self.unsynced.clear();
        self.durable_bytes = self.cached.len();
    }

    /// Power is lost: any part of what was not synced is gone, in sectors.
    fn lose(&mut self, random: &mut StdRng) {
        let unsynced = std::mem::take(&mut self.unsynced);
        let mut lost = BTreeMap::new();
        for (at, old) in unsynced.into_iter().rev() {
            for (number, piece) in old.chunks(512).enumerate() {
                let place = at + number * 512;
                // A sector that was lost is lost with all that was written to it later, mostly.
                let gone = *lost
                    .entry(place / 512)
                    .or_insert_with(|| random.random_bool(0.5));
                if gone {
                    self.cached[place..place + piece.len()].copy_from_slice(piece);
                }
            }
        }
        if random.random_bool(0.5) {
            self.cached.truncate(self.durable_bytes.max(512));
        }
        self.durable_bytes = self.cached.len();
    }
}

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

#[derive(Default)]
struct World {
    platters: BTreeMap<String, Platter>,
    events: Vec<Event>,
    /// The next so many changes succeed, and all after them fail.
    fail_after: Option<(u64, io::ErrorKind)>,
    /// Only of names that contain this.
    fail_name: String,
    /// Is done before the next write.
    before_write: Option<Box<dyn FnOnce() + Send>>,
    /// Who holds the lock of an image.
    locks: BTreeMap<String, String>,
    now_ns: u64,
    boot: u128,
    /// Files made so far.
    made: u64,
}

impl World {
    /// A file of durable bytes in the place of whatever has this name.
    fn put(&mut self, name: &str, data: Vec<u8>) {
        self.made += 1;
        let platter = Platter {
            durable_bytes: data.len(),
            cached: data,
            unsynced: Vec::new(),
            number: self.made,
            content_ns: self.now_ns,
            anything_ns: self.now_ns,
        };
        self.platters.insert(name.into(), platter);
    }

    /// Its files as they are now, for another world.
    fn remains(&self) -> Self {
        Self {
            platters: self.platters.clone(),
            now_ns: self.now_ns,
            boot: self.boot,
            made: self.made,
            ..Self::default()
        }
    }
}

/// A host's storage. Clones are the same host; [`Host::peer`] is another one with the same shared images.
#[derive(Clone)]
pub(super) struct Host {
    name: String,
    world: Arc<Mutex<World>>,
}

impl Host {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            world: Arc::default(),
        }
    }

    /// Another user of the same storage.
    pub(super) fn as_user(&self, name: &str) -> Self {
        Self {
            name: name.into(),
            world: self.world.clone(),
        }
    }

    fn change(&self, name: &str) -> io::Result<()> {
        let mut world = self.world.lock().unwrap();
        let matches = name.contains(&world.fail_name);
        if let Some((left, kind)) = world.fail_after.as_mut().filter(|_| matches) {
            if *left == 0 {
                return Err((*kind).into());
            }
            *left -= 1;
        }
        Ok(())
    }

    fn write(&self, name: &str, offset: u64, data: &[u8]) -> io::Result<()> {
        let hook = self.world.lock().unwrap().before_write.take();
        hook.into_iter().for_each(|hook| hook());
        self.change(name)?;
        let mut world = self.world.lock().unwrap();
        world.events.push(Event::Write {
            name: name.into(),
            offset,
            bytes: data.len() as u64,
        });
        let now_ns = world.now_ns;
        let platter = world
            .platters
            .get_mut(name)
            .ok_or(io::ErrorKind::NotFound)?;
        platter.write(offset as usize, data);
        (platter.content_ns, platter.anything_ns) = (now_ns, now_ns);
        Ok(())
    }

    fn read(&self, name: &str, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let world = self.world.lock().unwrap();
        let platter = world.platters.get(name).ok_or(io::ErrorKind::NotFound)?;
        let range = offset as usize..offset as usize + data.len();
        let found = platter.cached.get(range);
        data.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        self.change(name)?;
        let mut world = self.world.lock().unwrap();
        world.events.push(Event::Sync { name: name.into() });
        let platter = world
            .platters
            .get_mut(name)
            .ok_or(io::ErrorKind::NotFound)?;
        platter.sync();
        Ok(())
    }

    /// Makes an image of random bytes that are durable.
    pub(super) fn make_image(&self, name: &str, bytes: u64, random: &mut StdRng) {
        let mut data = vec![0; bytes as usize];
        random.fill(&mut data[..]);
        self.replace(name, data);
    }

    /// Another file takes the place of this one.
    pub(super) fn replace(&self, name: &str, bytes: Vec<u8>) {
        self.world.lock().unwrap().put(name, bytes);
    }

    /// Somebody else writes to this file, and has it look as if it was last changed at `content_ns`.
    pub(super) fn overwrite(&self, name: &str, bytes: Vec<u8>, content_ns: Option<u64>) {
        let mut world = self.world.lock().unwrap();
        let now_ns = world.now_ns;
        let platter = world.platters.get_mut(name).unwrap();
        platter.cached = bytes;
        platter.sync();
        platter.content_ns = content_ns.unwrap_or(now_ns);
        platter.anything_ns = now_ns;
    }

    pub(super) fn pass(&self, time: Duration) {
        self.world.lock().unwrap().now_ns += time.as_nanos() as u64;
    }

    pub(super) fn content(&self, name: &str) -> Content {
        Content(self.world.lock().unwrap().platters[name].cached.clone())
    }

    pub(super) fn set_content(&self, name: &str, bytes: Vec<u8>) {
        let mut world = self.world.lock().unwrap();
        let Some(platter) = world.platters.get_mut(name) else {
            return world.put(name, bytes);
        };
        platter.cached = bytes;
        platter.sync();
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.world.lock().unwrap().platters.contains_key(name)
    }

    pub(super) fn remove(&self, name: &str) {
        self.world.lock().unwrap().platters.remove(name);
    }

    pub(super) fn take_events(&self) -> Vec<Event> {
        std::mem::take(&mut self.world.lock().unwrap().events)
    }

    /// From the `after`th change on (writes and flushes), everything of names that contain `name` fails.
    pub(super) fn fail(&self, name: &str, after: u64, kind: io::ErrorKind) {
        let mut world = self.world.lock().unwrap();
        world.fail_name = name.into();
        world.fail_after = Some((after, kind));
    }

    /// Does something in the middle of the next write, before anything of it is there.
    pub(super) fn before_write(&self, hook: impl FnOnce() + Send + 'static) {
        self.world.lock().unwrap().before_write = Some(Box::new(hook));
    }

    pub(super) fn heal(&self) {
        self.world.lock().unwrap().fail_after = None;
    }

    /// What this host's storage is after a loss of power now. The old one goes on for whoever still uses it.
    pub(super) fn after_power_loss(&self, random: &mut StdRng) -> Self {
        let mut left = self.world.lock().unwrap().remains();
        left.boot += 1;
        for platter in left.platters.values_mut() {
            platter.lose(random);
        }
        Self {
            name: self.name.clone(),
            world: Arc::new(Mutex::new(left)),
        }
    }

    /// As it is after the process was killed: nothing that was written is lost.
    pub(super) fn after_kill(&self) -> Self {
        let left = self.world.lock().unwrap().remains();
        Self {
            name: self.name.clone(),
            world: Arc::new(Mutex::new(left)),
        }
    }

    /// The process of this user of the storage ends: its locks go.
    pub(super) fn unlock(&self) {
        let mut world = self.world.lock().unwrap();
        world.locks.retain(|_, holder| *holder != self.name);
    }

    pub(super) fn storage(&self, name: &str) -> Box<dyn Storage> {
        Box::new(MemoryImage {
            host: self.clone(),
            name: name.into(),
        })
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
        DiskSet::open_in(
            specs,
            Some("journal".into()),
            limits,
            Arc::new(self.clone()),
        )
    }
}

impl HostFiles for Host {
    fn open(&self, path: &Path) -> io::Result<Option<Box<dyn HostFile>>> {
        let name = path.display().to_string();
        Ok(self.has(&name).then(|| {
            Box::new(MemoryFile {
                host: self.clone(),
                name,
            }) as Box<dyn HostFile>
        }))
    }

    fn create(&self, path: &Path, content: &[u8]) -> io::Result<Box<dyn HostFile>> {
        let name = path.display().to_string();
        self.change(&name)?;
        self.set_content(&name, content.to_vec());
        let file = HostFiles::open(self, path)?;
        file.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn now_ns(&self) -> u64 {
        self.world.lock().unwrap().now_ns
    }

    fn boot(&self) -> u128 {
        self.world.lock().unwrap().boot
    }
}

struct MemoryFile {
    host: Host,
    name: String,
}

impl HostFile for MemoryFile {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.host.content(&self.name).len() as u64)
    }

    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.host.read(&self.name, offset, data)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.host.write(&self.name, offset, data)
    }

    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        self.host.change(&self.name)?;
        let mut world = self.host.world.lock().unwrap();
        let platter = world.platters.get_mut(&self.name).unwrap();
        platter.cached.resize(bytes as usize, 0);
        platter.sync();
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.host.sync(&self.name)
    }
}

struct MemoryImage {
    host: Host,
    name: String,
}

impl Storage for MemoryImage {
    fn bytes(&self) -> u64 {
        self.host.world.lock().unwrap().platters[&self.name]
            .cached
            .len() as u64
    }

    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.host.read(&self.name, offset, data)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.host.write(&self.name, offset, data)
    }

    fn flush(&self) -> io::Result<()> {
        self.host.sync(&self.name)
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.host
            .write(&self.name, offset, &vec![0; bytes as usize])
    }

    fn write_zeroes(&self, offset: u64, bytes: u64, _may_unmap: bool) -> io::Result<()> {
        self.host
            .write(&self.name, offset, &vec![0; bytes as usize])
    }

    fn lock(&self) -> io::Result<bool> {
        let mut world = self.host.world.lock().unwrap();
        let holder = world
            .locks
            .entry(self.name.clone())
            .or_insert(self.host.name.clone());
        Ok(*holder == self.host.name)
    }

    fn is_locked_by_other(&self) -> io::Result<bool> {
        let world = self.host.world.lock().unwrap();
        let holder = world.locks.get(&self.name);
        Ok(holder.is_some_and(|holder| *holder != self.host.name))
    }

    fn identity(&self) -> io::Result<Option<String>> {
        let world = self.host.world.lock().unwrap();
        let platter = world.platters.get(&self.name);
        let platter = platter.ok_or(io::ErrorKind::NotFound)?;
        Ok(Some(format!("file {}", platter.number)))
    }

    fn changed(&self) -> io::Result<Option<Changed>> {
        let world = self.host.world.lock().unwrap();
        let platter = world.platters.get(&self.name);
        let platter = platter.ok_or(io::ErrorKind::NotFound)?;
        Ok(Some(Changed {
            content_ns: platter.content_ns,
            anything_ns: platter.anything_ns,
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
