//! What a simulated storage holds, and what a loss of power may leave of it.
//!
//! What may survive is what file systems promise, and nothing more. Each sector of a file, and its length, is as it
//! was at some moment since the last sync. Each change of names happened or not, whole, whatever became of others
//! before it. A synced name does not make the content durable, nor the other way round.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const SECTOR_BYTES: usize = 512;

/// What a loss of power leaves of content that was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Nothing,
    Everything,
    /// Anything, by this seed.
    Torn(u64),
}

/// What was there before a change of content.
#[derive(Debug, Clone)]
struct Undo {
    at: usize,
    old: Vec<u8>,
    old_bytes: usize,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Inode {
    /// Its name, or the last one it had.
    pub(super) name: PathBuf,
    is_directory: bool,
    pub(super) cached: Vec<u8>,
    unsynced: Vec<Undo>,
    pub(super) content_ns: u64,
    pub(super) anything_ns: u64,
}

impl Inode {
    pub(super) fn durable(data: Vec<u8>, now_ns: u64) -> Self {
        Self {
            cached: data,
            content_ns: now_ns,
            anything_ns: now_ns,
            ..Self::default()
        }
    }

    pub(super) fn directory() -> Self {
        Self {
            is_directory: true,
            ..Self::default()
        }
    }

    pub(super) fn write(&mut self, at: usize, data: &[u8]) {
        let old_bytes = self.cached.len();
        self.cached.resize(old_bytes.max(at + data.len()), 0);
        let place = &mut self.cached[at..at + data.len()];
        let old = place.to_vec();
        place.copy_from_slice(data);
        self.unsynced.push(Undo { at, old, old_bytes });
    }

    pub(super) fn resize(&mut self, bytes: usize) {
        let old_bytes = self.cached.len();
        let at = bytes.min(old_bytes);
        let old = self.cached[at..].to_vec();
        self.cached.resize(bytes, 0);
        self.unsynced.push(Undo { at, old, old_bytes });
    }

    pub(super) fn sync(&mut self) {
        self.unsynced.clear();
    }

    /// What is left after a loss of power, or after a failed sync that drops what it could not write.
    pub(super) fn lose(&mut self, content: Content) {
        let changes = std::mem::take(&mut self.unsynced);
        let mut random = match content {
            Content::Everything => return,
            Content::Nothing => None,
            Content::Torn(seed) => Some(StdRng::seed_from_u64(seed)),
        };
        // How many of the changes a sector, or the length, has seen. Mostly all or none.
        let mut seen = || match &mut random {
            None => 0,
            Some(random) => match random.random_range(0..10) {
                0..4 => 0,
                4..8 => changes.len(),
                _ => random.random_range(0..=changes.len()),
            },
        };
        let (bytes_seen, mut sectors_seen) = (seen(), BTreeMap::new());
        let mut bytes = self.cached.len();
        for (number, change) in changes.iter().enumerate().rev() {
            if bytes_seen <= number {
                bytes = change.old_bytes;
            }
            let (mut at, end) = (change.at, change.at + change.old.len());
            self.cached.resize(self.cached.len().max(end), 0);
            while at < end {
                let sector = at / SECTOR_BYTES;
                let next = end.min((sector + 1) * SECTOR_BYTES);
                if *sectors_seen.entry(sector).or_insert_with(&mut seen) <= number {
                    let old = &change.old[at - change.at..next - change.at];
                    self.cached[at..next].copy_from_slice(old);
                }
                at = next;
            }
        }
        self.cached.resize(bytes, 0);
    }
}

/// A change of names in one directory.
#[derive(Debug, Clone)]
struct Naming {
    directory: PathBuf,
    new: Vec<(PathBuf, Option<u64>)>,
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<PathBuf, u64>) {
        for (path, inode) in &self.new {
            match inode {
                Some(inode) => names.insert(path.clone(), *inode),
                None => names.remove(path),
            };
        }
    }
}

/// A lock that an open file has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lock {
    pub(super) inode: u64,
    pub(super) byte: u64,
    pub(super) handle: u64,
    pub(super) process: u64,
}

#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) inodes: BTreeMap<u64, Inode>,
    pub(super) names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    unsynced_names: Vec<Naming>,
    pub(super) locks: Vec<Lock>,
    pub(super) now_ns: u64,
    pub(super) boot: u128,
    /// Numbers given out so far.
    made: u64,
}

impl World {
    pub(super) fn next_number(&mut self) -> u64 {
        self.made += 1;
        self.made
    }

    /// Changes names of `directory`. Durable only after a sync of it.
    pub(super) fn rename(&mut self, new: impl Into<Vec<(PathBuf, Option<u64>)>>) {
        let new = new.into();
        let directory = parent(&new[0].0);
        let naming = Naming { directory, new };
        naming.apply(&mut self.names);
        for (path, number) in &naming.new {
            if let Some(inode) = number.and_then(|number| self.inodes.get_mut(&number)) {
                inode.name.clone_from(path);
            }
        }
        self.unsynced_names.push(naming);
    }

    pub(super) fn sync_names(&mut self, directory: &Path) {
        let (synced, left) = std::mem::take(&mut self.unsynced_names)
            .into_iter()
            .partition(|naming| naming.directory == directory);
        self.unsynced_names = left;
        let synced: Vec<Naming> = synced;
        for naming in synced {
            naming.apply(&mut self.durable_names);
        }
    }

    /// Puts a durable file in the place of whatever has this name.
    pub(super) fn put(&mut self, path: &Path, data: Vec<u8>) {
        let number = self.next_number();
        self.inodes
            .insert(number, Inode::durable(data, self.now_ns));
        self.rename([(path.to_path_buf(), Some(number))]);
        self.sync_names(&parent(path));
    }

    pub(super) fn is_directory(&self, path: &Path) -> bool {
        let inode = self
            .names
            .get(path)
            .and_then(|number| self.inodes.get(number));
        path.as_os_str().is_empty() || inode.is_some_and(|inode| inode.is_directory)
    }

    /// How many changes of names a loss of power may undo.
    pub(super) fn unsynced_names(&self) -> usize {
        self.unsynced_names.len()
    }

    /// What is there once every process has ended.
    pub(super) fn after_kill(&self) -> Self {
        let named: BTreeSet<u64> = self
            .names
            .values()
            .chain(self.durable_names.values())
            .chain(
                self.unsynced_names
                    .iter()
                    .flat_map(|n| n.new.iter().filter_map(|n| n.1.as_ref())),
            )
            .copied()
            .collect();
        let inodes = self
            .inodes
            .iter()
            .filter(|(number, _)| named.contains(number));
        Self {
            inodes: inodes
                .map(|(number, inode)| (*number, inode.clone()))
                .collect(),
            names: self.names.clone(),
            durable_names: self.durable_names.clone(),
            unsynced_names: self.unsynced_names.clone(),
            locks: Vec::new(),
            now_ns: self.now_ns,
            boot: self.boot,
            made: self.made,
        }
    }

    /// What a loss of power leaves. `survives` says it of each unsynced change of names, and `content`
    /// of each file.
    pub(super) fn after_power_loss(
        &self,
        mut survives: impl FnMut(usize) -> bool,
        mut content: impl FnMut(&Path) -> Content,
    ) -> Self {
        let mut names = self.durable_names.clone();
        for (number, naming) in self.unsynced_names.iter().enumerate() {
            if survives(number) {
                naming.apply(&mut names);
            }
        }
        let mut left = Self {
            durable_names: names.clone(),
            names,
            unsynced_names: Vec::new(),
            boot: self.boot + 1,
            ..self.after_kill()
        };
        // What is in a directory goes with its name.
        loop {
            let lost = left
                .names
                .keys()
                .find(|path| !left.is_directory(&parent(path)));
            let Some(lost) = lost.cloned() else { break };
            left.names.remove(&lost);
            left.durable_names.remove(&lost);
        }
        for (path, number) in &left.names {
            if let Some(inode) = left.inodes.get_mut(number) {
                inode.lose(content(path));
            }
        }
        left
    }

    pub(super) fn overlapping(&self, inode: u64, bytes: Range<u64>, handle: u64) -> bool {
        let mut locks = self.locks.iter();
        locks.any(|lock| lock.inode == inode && bytes.contains(&lock.byte) && lock.handle != handle)
    }
}

/// The directory of a name. The working directory is "".
pub(super) fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).to_path_buf()
}
