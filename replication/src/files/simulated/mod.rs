//! A file system in memory that can lose its power, and calls that can fail, end, or wait for others.
//!
//! [`SimulatedFiles`] is one process's view of a storage. Others see the same storage ([`another_process`]), or what
//! is left of it ([`after_kill`], [`after_power_loss`]).
//!
//! [`another_process`]: SimulatedFiles::another_process
//! [`after_kill`]: SimulatedFiles::after_kill
//! [`after_power_loss`]: SimulatedFiles::after_power_loss

mod process;
mod turns;
mod world;

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

pub(crate) use self::process::{Call, Failure};
use self::process::{Fate, Process, Remembered};
pub(crate) use self::turns::{Orders, Turns};
pub(crate) use self::world::Content;
use self::world::{Inode, Lock, World, parent};
use super::{HostFile, HostFiles, Open};

/// A file as it is at a moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Looks {
    /// Tells it from others that have had its name.
    pub(crate) number: u64,
    pub(crate) bytes: u64,
    pub(crate) content_ns: u64,
    pub(crate) anything_ns: u64,
}

/// A process and the storage it sees. Clones are the same process.
#[derive(Debug, Clone)]
pub(crate) struct SimulatedFiles {
    number: u64,
    world: Arc<Mutex<World>>,
    process: Arc<Mutex<Process>>,
}

impl Default for SimulatedFiles {
    fn default() -> Self {
        Self::in_world(World::default())
    }
}

impl SimulatedFiles {
    fn in_world(world: World) -> Self {
        Self::of(Arc::new(Mutex::new(world)))
    }

    fn of(world: Arc<Mutex<World>>) -> Self {
        let number = world.lock().unwrap().next_number();
        Self {
            number,
            world,
            process: Arc::default(),
        }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap()
    }

    // ---- other processes, and what is left ----

    /// Another process that sees the same storage.
    pub(crate) fn another_process(&self) -> Self {
        Self::of(self.world.clone())
    }

    /// A copy of the storage as it is once every process was killed: nothing that was written is lost.
    pub(crate) fn after_kill(&self) -> Self {
        let left = self.world().after_kill();
        Self::in_world(left)
    }

    /// A copy of the storage as a loss of power leaves it.
    pub(crate) fn after_power_loss(
        &self,
        names: impl FnMut(usize) -> bool,
        content: impl FnMut(&Path) -> Content,
    ) -> Self {
        let left = self.world().after_power_loss(names, content);
        Self::in_world(left)
    }

    /// How many changes of names are not durable.
    pub(crate) fn unsynced_names(&self) -> usize {
        self.world().unsynced_names()
    }

    // ---- what happens to this process ----

    /// Ends it at its `at`th call from now, or in the middle of it if it is a write.
    pub(crate) fn end_at(&self, at: u64, torn: bool) {
        let mut process = self.process();
        process.ends = Some((process.count + at, torn));
    }

    /// Its `at`th call from now fails.
    pub(crate) fn fail_at(&self, at: u64, failure: Failure) {
        let mut process = self.process();
        process.fails = Some((process.count + at, failure));
    }

    /// From the `after`th change on, every change of names that contain `name` fails.
    pub(crate) fn fail_from(&self, name: &str, after: u64, kind: ErrorKind) {
        self.process().failing = Some((name.into(), after, kind));
    }

    pub(crate) fn heal(&self) {
        let mut process = self.process();
        (process.failing, process.fails) = (None, None);
    }

    /// Does something in the middle of the next write, before anything of it is there.
    pub(crate) fn before_write(&self, hook: impl FnOnce() + Send + 'static) {
        self.process().before_write = Some(Box::new(hook));
    }

    /// Does something in the middle of the next sync.
    pub(crate) fn before_sync(&self, hook: impl FnOnce() + Send + 'static) {
        self.process().before_sync = Some(Box::new(hook));
    }

    /// From now on, it waits for its turn before each call that others can notice, or that notices others: of files
    /// that get a name only when they are complete, and of which those in `same` are the same all the time.
    pub(crate) fn take_turns(
        &self,
        turns: &Arc<Turns>,
        process: usize,
        same: &'static [&'static str],
    ) {
        self.process().turns = Some((turns.clone(), process, same));
    }

    /// It has done what was to be done in turns.
    pub(crate) fn take_no_turns(&self) {
        self.process().turns = None;
    }

    /// From now on, it remembers names as an NFS client does.
    pub(crate) fn remember_names(&self) {
        self.process().remembered = Some(Remembered::default());
    }

    /// The server has lost all locks.
    pub(crate) fn lose_locks(&self) {
        self.world().locks.clear();
    }

    /// Its calls since this was asked last.
    pub(crate) fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.process().calls)
    }

    // ---- the storage, seen from outside ----

    pub(crate) fn pass(&self, time: Duration) {
        self.world().now_ns += time.as_nanos() as u64;
    }

    pub(crate) fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.world().names.contains_key(path.as_ref())
    }

    /// Puts a durable file in the place of whatever has this name.
    pub(crate) fn put(&self, path: impl AsRef<Path>, data: Vec<u8>) {
        self.world().put(path.as_ref(), data);
    }

    pub(crate) fn unlink(&self, path: impl AsRef<Path>) {
        let mut world = self.world();
        world.rename([(path.as_ref().to_path_buf(), None)]);
        world.sync_names(&parent(path.as_ref()));
    }

    /// A file as it is now.
    pub(crate) fn look(&self, path: impl AsRef<Path>) -> io::Result<Looks> {
        self.named(path.as_ref(), |number, inode| Looks {
            number,
            bytes: inode.cached.len() as u64,
            content_ns: inode.content_ns,
            anything_ns: inode.anything_ns,
        })
    }

    pub(crate) fn content(&self, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        self.named(path.as_ref(), |_, inode| inode.cached.clone())
    }

    /// Changes a file behind everybody's back: its content, durably, and when it was changed last.
    pub(crate) fn overwrite(&self, path: impl AsRef<Path>, data: Vec<u8>, content_ns: Option<u64>) {
        let now_ns = self.world().now_ns;
        let done = self.named(path.as_ref(), |_, inode| {
            let name = std::mem::take(&mut inode.name);
            *inode = Inode::durable(data, now_ns);
            inode.name = name;
            inode.content_ns = content_ns.unwrap_or(now_ns);
        });
        done.unwrap();
    }

    fn named<T>(&self, path: &Path, act: impl FnOnce(u64, &mut Inode) -> T) -> io::Result<T> {
        let mut world = self.world();
        let number = *world.names.get(path).ok_or(ErrorKind::NotFound)?;
        let inode = world.inodes.get_mut(&number).ok_or(ErrorKind::NotFound)?;
        Ok(act(number, inode))
    }

    // ---- calls ----

    fn begin(&self, call: Call) -> io::Result<Fate> {
        let turns = self.process().turns.clone();
        if let Some((turns, process, same)) = turns
            && is_noticed(&call)
            && !same.contains(&call.name())
        {
            turns.before_call(process);
        }
        let hook = match call {
            Call::Write { .. } => self.process().before_write.take(),
            Call::Sync { .. } => self.process().before_sync.take(),
            _ => None,
        };
        hook.into_iter().for_each(|hook| hook());
        let mut process = self.process();
        let fate = process.fate(&call);
        if process.has_ended {
            self.world()
                .locks
                .retain(|lock| lock.process != self.number);
        }
        fate
    }

    /// Reads from a file by its name.
    pub(crate) fn read(&self, path: &Path, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.open(path, Open::Reading)?.read_at(offset, data)
    }

    /// Writes to a file by its name.
    pub(crate) fn write(&self, path: &Path, offset: u64, data: &[u8]) -> io::Result<()> {
        let number = self.named(path, |number, _| number)?;
        self.handle(number).write_at(offset, data)
    }

    /// Syncs a file by its name.
    pub(crate) fn sync(&self, path: &Path) -> io::Result<()> {
        let number = self.named(path, |number, _| number)?;
        self.handle(number).sync()
    }

    fn handle(&self, inode: u64) -> Handle {
        Handle {
            number: self.world().next_number(),
            files: self.clone(),
            inode,
        }
    }

    /// What the process takes for the file of this name.
    fn look_up(&self, path: &Path) -> Option<u64> {
        let now = self.world().names.get(path).copied();
        match &mut self.process().remembered {
            Some(remembered) => remembered.look_up(path, now),
            None => now,
        }
    }

    /// The process opens this directory.
    fn look_anew(&self, directory: &Path) {
        if let Some(remembered) = &mut self.process().remembered {
            remembered.forget(directory);
        }
    }

    /// The process itself has changed that.
    fn learn(&self, path: &Path) {
        let now = self.world().names.get(path).copied();
        if let Some(remembered) = &mut self.process().remembered {
            remembered.learn(path, now);
        }
    }
}

/// Whether others can notice a call, or it notices others. Nobody else looks at a file that has no name of its own
/// yet, and what has one is never written to.
fn is_noticed(call: &Call) -> bool {
    match call {
        Call::Rename { .. } | Call::Link { .. } => true,
        Call::Read { .. } => false,
        call => !call.name().contains("/.new-"),
    }
}

/// The directory at a path as the world names it.
fn directory(path: &Path) -> PathBuf {
    let path = path.strip_prefix(".").unwrap_or(path);
    path.to_path_buf()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

impl HostFiles for SimulatedFiles {
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn HostFile>> {
        let name = text(path);
        let fate = self.begin(Call::Open { name, how })?;
        let remembered = match how {
            Open::Reading | Open::Existing => Some(self.look_up(path).ok_or(ErrorKind::NotFound)?),
            _ => self.world().names.get(path).copied(),
        };
        let number = match remembered {
            Some(_) if how == Open::New => return Err(ErrorKind::AlreadyExists.into()),
            Some(number) => number,
            None => {
                let mut world = self.world();
                if !world.is_directory(&parent(path)) {
                    return Err(ErrorKind::NotFound.into());
                }
                let number = world.next_number();
                let made = Inode::durable(Vec::new(), world.now_ns);
                world.inodes.insert(number, made);
                world.rename([(path.to_path_buf(), Some(number))]);
                number
            }
        };
        if how == Open::Emptied {
            self.world().inodes.get_mut(&number).unwrap().resize(0);
        }
        self.learn(path);
        fate.told(Box::new(self.handle(number)) as Box<dyn HostFile>)
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        let fate = self.begin(Call::MakeDirectory { name: text(path) })?;
        let mut world = self.world();
        if world.names.contains_key(path) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        if !world.is_directory(&parent(path)) {
            return Err(ErrorKind::NotFound.into());
        }
        let number = world.next_number();
        world.inodes.insert(number, Inode::directory());
        world.rename([(path.to_path_buf(), Some(number))]);
        fate.told(())
    }

    fn is_directory(&self, path: &Path) -> bool {
        self.world().is_directory(path)
    }

    fn names(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let fate = self.begin(Call::Names { name: text(path) })?;
        self.look_anew(path);
        let world = self.world();
        if !world.is_directory(path) {
            return Err(ErrorKind::NotFound.into());
        }
        let inside = world.names.keys().filter(|name| parent(name) == path);
        let names = inside.filter_map(|name| name.file_name());
        fate.told(names.map(OsString::from).collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (name, onto) = (text(from), text(to));
        let fate = self.begin(Call::Rename { name, to: onto })?;
        let number = self.named(from, |number, _| number)?;
        let (from, to) = (from.to_path_buf(), to.to_path_buf());
        self.world()
            .rename([(from, None), (to.clone(), Some(number))]);
        self.learn(&to);
        fate.told(())
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (name, second) = (text(from), text(to));
        let fate = self.begin(Call::Link { name, to: second })?;
        let number = self.named(from, |number, _| number)?;
        if self.exists(to) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        self.world().rename([(to.to_path_buf(), Some(number))]);
        self.learn(to);
        fate.told(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let fate = self.begin(Call::Remove { name: text(path) })?;
        self.named(path, |_, _| ())?;
        self.world().rename([(path.to_path_buf(), None)]);
        self.learn(path);
        fate.told(())
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        let path = directory(path);
        let fate = self.begin(Call::SyncDirectory { name: text(&path) })?;
        self.look_anew(&path);
        let mut world = self.world();
        if !world.is_directory(&path) {
            return Err(ErrorKind::NotFound.into());
        }
        world.sync_names(&path);
        fate.told(())
    }

    fn changed_ns(&self, path: &Path) -> io::Result<u64> {
        self.named(path, |_, inode| inode.content_ns)
    }

    fn now_ns(&self) -> u64 {
        self.world().now_ns
    }

    fn boot(&self) -> u128 {
        self.world().boot
    }
}

/// An open file.
#[derive(Debug)]
struct Handle {
    number: u64,
    files: SimulatedFiles,
    inode: u64,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut world = self.files.world();
        world.locks.retain(|lock| lock.handle != self.number);
    }
}

impl Handle {
    fn name(&self) -> String {
        self.inode(|inode| text(&inode.name))
    }

    fn inode<T>(&self, act: impl FnOnce(&mut Inode) -> T) -> T {
        act(self.files.world().inodes.get_mut(&self.inode).unwrap())
    }

    fn change(&self, act: impl FnOnce(&mut Inode)) {
        let now_ns = self.files.now_ns();
        self.inode(|inode| {
            act(inode);
            (inode.content_ns, inode.anything_ns) = (now_ns, now_ns);
        });
    }
}

impl HostFile for Handle {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.inode(|inode| inode.cached.len() as u64))
    }

    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let fate = self.files.begin(Call::Read { name: self.name() })?;
        self.inode(|inode| {
            let range = offset as usize..offset as usize + data.len();
            let found = inode.cached.get(range).ok_or(ErrorKind::UnexpectedEof)?;
            data.copy_from_slice(found);
            fate.told(())
        })
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let bytes = data.len() as u64;
        let name = self.name();
        let fate = self.files.begin(Call::Write {
            name,
            offset,
            bytes,
        })?;
        let written = if fate == Fate::Torn {
            &data[..data.len() / 2]
        } else {
            data
        };
        self.change(|inode| inode.write(offset as usize, written));
        fate.told(())
    }

    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        let fate = self.files.begin(Call::Resize { name: self.name() })?;
        self.change(|inode| inode.resize(bytes as usize));
        fate.told(())
    }

    fn sync(&self) -> io::Result<()> {
        match self.files.begin(Call::Sync { name: self.name() })? {
            Fate::Dropped(errno) => {
                self.inode(|inode| inode.lose(Content::Nothing));
                Fate::Dropped(errno).told(())
            }
            fate => {
                self.inode(Inode::sync);
                fate.told(())
            }
        }
    }

    fn lock(&self, byte: u64, locked: bool) -> io::Result<()> {
        let fate = self.files.begin(Call::Lock { name: self.name() })?;
        let mut world = self.files.world();
        if locked && world.overlapping(self.inode, byte..byte + 1, self.number) {
            return Err(ErrorKind::WouldBlock.into());
        }
        let lock = Lock {
            inode: self.inode,
            byte,
            handle: self.number,
            process: self.files.number,
        };
        world.locks.retain(|one| *one != lock);
        if locked {
            world.locks.push(lock);
        }
        fate.told(())
    }

    fn is_locked_by_other(&self, byte: u64) -> io::Result<bool> {
        let fate = self.files.begin(Call::Lock { name: self.name() })?;
        let world = self.files.world();
        fate.told(world.overlapping(self.inode, byte..u64::MAX, self.number))
    }
}
