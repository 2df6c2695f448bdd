//! An image with its storage and its map, and how writes are applied to it.
//!
//! What must not be done here: knowing of a log, a journal, or which side this host is.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::map::DirtyMap;
use super::storage::{DiskMode, Storage};
use crate::core::disk::{DiskWrite, What};
use crate::disk::DiskError;

/// So many requests that wait are known. Of more, the oldest are forgotten, which costs a flush each.
const WANTED_MAX: usize = 256;

/// A disk of a set.
pub(crate) struct Drive {
    pub(crate) number: u16,
    pub(crate) name: String,
    pub(crate) mode: DiskMode,
    pub(crate) storage: Box<dyn Storage>,
    pub(crate) map_path: PathBuf,
    /// None for shared disks.
    pub(crate) map: Option<Mutex<DirtyMap>>,
    /// Where the guest is going to write: requests that wait for their turn. The map marks them all by one flush.
    pub(crate) wanted: Mutex<VecDeque<(u64, u64)>>,
    /// Held during a write, so that the image and the log get writes in the same order.
    pub(crate) turn: Mutex<()>,
    /// A flush failed that the guest did not ask for. The host reports a loss only once, so the
    /// guest must be told, too.
    pub(crate) flush_failed: AtomicBool,
    /// The operator wants the next copy to replace all of the backup's image, whatever is in it.
    pub(crate) replace: AtomicBool,
}

impl Drive {
    pub(crate) fn is_shared(&self) -> bool {
        self.mode == DiskMode::Shared
    }

    /// The guest is going to write there.
    pub(crate) fn want(&self, offset: u64, bytes: u64) {
        let mut wanted = self.wanted.lock();
        if wanted.len() == WANTED_MAX {
            wanted.pop_front();
        }
        wanted.push_back((offset, bytes));
    }

    /// The guest writes there now, or does not any more.
    pub(crate) fn want_no_more(&self, offset: u64, bytes: u64) {
        let mut wanted = self.wanted.lock();
        let at = wanted.iter().position(|it| *it == (offset, bytes));
        at.map(|at| wanted.remove(at));
    }

    /// An error of its storage.
    pub(crate) fn failed(&self, what: &'static str, offset: u64, source: io::Error) -> DiskError {
        DiskError::Io {
            disk: self.name.clone(),
            what,
            offset,
            source,
        }
    }

    /// Applies a write from a log to the image.
    pub(crate) fn apply(&self, write: &DiskWrite) -> Result<(), DiskError> {
        let (storage, at) = (&self.storage, write.offset);
        if let Some(map) = self.map.as_ref().filter(|_| !write.is_check()) {
            map.lock().about_to_write(&**storage);
        }
        let done = match &write.what {
            What::Data(data) => storage.write_at(at, data),
            What::Check { .. } => Ok(()),
            What::Zero { bytes } => storage.write_zeroes(at, *bytes, true),
            What::Discard { bytes } => match storage.discard(at, *bytes) {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    storage.write_zeroes(at, *bytes, true)
                }
                done => done,
            },
        };
        done.map_err(|error| self.failed("write", at, error))
    }

    /// Makes earlier writes survive a loss of power. If that fails, the guest's next flush fails,
    /// too.
    pub(crate) fn flush(&self) -> Result<(), DiskError> {
        let flushed = self.flush_storage();
        flushed.map_err(|error| {
            self.flush_failed.store(true, Ordering::Release);
            self.failed("flush", 0, error)
        })
    }

    /// Flushes. A failure has no effect on the guest's next flush.
    pub(crate) fn flush_storage(&self) -> io::Result<()> {
        let flushed = self.storage.flush();
        if let (Err(_), Some(map)) = (&flushed, &self.map) {
            map.lock().doubt();
        }
        flushed
    }

    /// Tries to take the lock that excludes other users of the image. Returns whether it is held
    /// now.
    pub(crate) fn try_lock(&self) -> Result<bool, DiskError> {
        let locked = self.storage.lock();
        locked.map_err(|error| self.failed("lock", 0, error))
    }
}

impl Drop for Drive {
    fn drop(&mut self) {
        if let Some(map) = &mut self.map {
            map.get_mut().close(&*self.storage);
        }
    }
}

/// The drives of a set.
pub(crate) type Drives = Arc<[Arc<Drive>]>;

/// The turns of all these drives. As long as one is waited for, which its storage may keep for long, none is held: the
/// guest's other disks go on.
pub(in crate::disk) fn all_turns<'a>(
    drives: impl Iterator<Item = &'a Arc<Drive>>,
) -> Vec<MutexGuard<'a, ()>> {
    let drives: Vec<_> = drives.collect();
    'again: loop {
        let mut turns = Vec::with_capacity(drives.len());
        for drive in &drives {
            let Some(turn) = drive.turn.try_lock() else {
                drop(turns);
                drop(drive.turn.lock());
                continue 'again;
            };
            turns.push(turn);
        }
        return turns;
    }
}

/// The drives with one image that both hosts reach.
pub(crate) fn shared(drives: &Drives) -> impl Iterator<Item = &Arc<Drive>> {
    drives.iter().filter(|drive| drive.is_shared())
}
