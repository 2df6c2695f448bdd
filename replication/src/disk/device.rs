//! A disk as its device sees it.
//!
//! A write of a replicated disk: mark its blocks durably, write the image, then log. What must not be
//! done here: another order, or waiting for the network.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::log::Log;
use super::map::DirtyMap;
use super::{DiskError, DiskMode, Listener};
use crate::core::disk::{DiskWrite, SECTOR_BYTES, What};
use crate::ports::Storage;

/// Locks; whoever panicked while it had the lock has not left anything half-done.
pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the disks of a set share. Locks are taken in this order: a disk's `turn`, its `map`, `log`.
pub(super) struct Common {
    pub(super) log: Mutex<Log>,
    listener: Mutex<Option<Listener>>,
    rooms: Mutex<Vec<Option<Listener>>>,
}

impl Common {
    pub(super) fn new(disks: usize, log_bytes_max: u64) -> Self {
        Self {
            log: Mutex::new(Log::new(disks, log_bytes_max)),
            listener: Mutex::new(None),
            rooms: Mutex::new((0..disks).map(|_| None).collect()),
        }
    }

    pub(super) fn set_listener(&self, listener: Listener) {
        *lock(&self.listener) = Some(listener);
    }

    /// Works on the log, and then tells those who wait for what has come of it.
    pub(super) fn with_log<T>(&self, work: impl FnOnce(&mut Log) -> T) -> T {
        let mut log = lock(&self.log);
        let result = work(&mut log);
        let (half_full, room) = (log.take_half_full(), log.take_wakeup());
        drop(log);
        if half_full {
            let listener = lock(&self.listener).clone();
            listener.iter().for_each(|tell| tell());
        }
        if room {
            let rooms = lock(&self.rooms).clone();
            rooms.iter().flatten().for_each(|tell| tell());
        }
        result
    }
}

/// A disk of a set.
pub(super) struct Drive {
    pub(super) number: u16,
    pub(super) name: String,
    pub(super) mode: DiskMode,
    pub(super) storage: Box<dyn Storage>,
    pub(super) map_path: PathBuf,
    /// None for shared disks.
    pub(super) map: Option<Mutex<DirtyMap>>,
    /// Whose turn it is to write: image and log have the same order.
    pub(super) turn: Mutex<()>,
    /// A flush failed that the guest did not ask for. The host tells of what it lost once, so the guest must
    /// be told, too.
    pub(super) flush_failed: AtomicBool,
    pub(super) common: Arc<Common>,
}

/// A disk as its device sees it. Clones are the same disk.
#[derive(Clone)]
pub struct Disk(pub(super) Arc<Drive>);

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Disk({}: {}, {:?})",
            self.0.number, self.0.name, self.0.mode
        )
    }
}

impl Drive {
    pub(super) fn is_shared(&self) -> bool {
        self.mode == DiskMode::Shared
    }

    /// An error of its storage.
    pub(super) fn failed(&self, what: &'static str, offset: u64, source: io::Error) -> DiskError {
        DiskError::Io {
            disk: self.name.clone(),
            what,
            offset,
            source,
        }
    }

    /// Makes a write that came from a log on the image.
    pub(super) fn apply(&self, write: &DiskWrite) -> Result<(), DiskError> {
        let (storage, at) = (&self.storage, write.offset);
        let done = match &write.what {
            What::Data(data) => storage.write_at(at, data),
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

    pub(super) fn flush(&self) -> Result<(), DiskError> {
        let flushed = self.flush_storage();
        flushed.map_err(|error| {
            self.flush_failed.store(true, Ordering::Release);
            self.failed("flush", 0, error)
        })
    }

    fn flush_storage(&self) -> io::Result<()> {
        let flushed = self.storage.flush();
        if let (Err(_), Some(map)) = (&flushed, &self.map) {
            lock(map).doubt();
        }
        flushed
    }

    fn check(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let end = offset.checked_add(bytes);
        let inside = end.is_some_and(|end| end <= self.storage.bytes());
        if inside && offset.is_multiple_of(SECTOR_BYTES) && bytes.is_multiple_of(SECTOR_BYTES) {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "disk {}: {bytes} bytes at byte {offset} are not sectors of it",
                self.name
            ),
        ))
    }

    fn change(
        &self,
        offset: u64,
        what: impl Fn() -> What,
        write: impl FnOnce() -> io::Result<()>,
        bytes: u64,
    ) -> io::Result<()> {
        self.check(offset, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        let _turn = lock(&self.turn);
        let entry = || DiskWrite {
            disk: self.number,
            offset,
            what: what(),
        };
        let Some(map) = &self.map else {
            let holding = self.common.with_log(|log| {
                let holding = not_shut(log)?.held.is_holding();
                if holding {
                    log.hold_write(entry());
                }
                Ok::<_, io::Error>(holding)
            })?;
            return if holding { Ok(()) } else { write() };
        };
        not_shut(&mut lock(&self.common.log))?;
        lock(map).mark(offset, bytes).map_err(DiskError::into_io)?;
        match write() {
            Ok(()) => {
                self.common.with_log(|log| {
                    if log.is_logging() {
                        log.wrote(entry());
                    }
                });
                Ok(())
            }
            // It has not begun: this kind of storage does not know how.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Err(error),
            Err(error) => {
                self.log_what_is_there(offset, bytes);
                Err(error)
            }
        }
    }

    /// After a write that failed, any part of it may be on the image. The other side gets what is there;
    /// if that cannot be known, the blocks stay marked.
    fn log_what_is_there(&self, offset: u64, bytes: u64) {
        let mut piece = vec![0; bytes.min(1 << 20) as usize];
        let (mut at, end) = (offset, offset + bytes);
        while at < end {
            let length = (end - at).min(piece.len() as u64);
            let data = &mut piece[..length as usize];
            if self.storage.read_at(at, data).is_ok() {
                let write = DiskWrite {
                    disk: self.number,
                    offset: at,
                    what: What::Data(Bytes::copy_from_slice(data)),
                };
                self.common.with_log(|log| log.wrote(write));
            } else if let Some(map) = &self.map {
                lock(map).unsure(at, length);
            }
            at += length;
        }
    }
}

fn not_shut(log: &mut Log) -> io::Result<&mut Log> {
    if log.shut {
        return Err(DiskError::Shut.into_io());
    }
    Ok(log)
}

impl Disk {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Where its image is.
    #[must_use]
    pub fn mode(&self) -> DiskMode {
        self.0.mode
    }

    /// Whether a further request may be taken from the guest. If not, the room listener will be called.
    #[must_use]
    pub fn has_room(&self) -> bool {
        lock(&self.0.common.log).has_room()
    }

    /// Who is told that there is room again after [`Disk::has_room`] said no. It must not call the disk
    /// itself.
    pub fn set_room_listener(&self, listener: Listener) {
        lock(&self.0.common.rooms)[usize::from(self.0.number)] = Some(listener);
    }
}

impl Storage for Disk {
    fn bytes(&self) -> u64 {
        self.0.storage.bytes()
    }

    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let drive = &self.0;
        drive.check(offset, data.len() as u64)?;
        let patch = {
            let mut log = lock(&drive.common.log);
            let held = &not_shut(&mut log)?.held;
            drive
                .is_shared()
                .then(|| held.patch(drive.number, offset, data.len() as u64))
        };
        drive.storage.read_at(offset, data)?;
        if let Some(patch) = patch {
            patch.lay_over(offset, data);
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let drive = &self.0;
        drive.change(
            offset,
            || What::Data(Bytes::copy_from_slice(data)),
            || drive.storage.write_at(offset, data),
            data.len() as u64,
        )
    }

    fn flush(&self) -> io::Result<()> {
        let drive = &self.0;
        let pass = drive.common.with_log(|log| {
            let held = &mut not_shut(log)?.held;
            let hold = drive.is_shared() && held.is_holding();
            if hold {
                held.flushed();
            }
            Ok::<_, io::Error>(!hold)
        })?;
        if pass {
            drive.flush_storage()?;
            if drive.flush_failed.swap(false, Ordering::AcqRel) {
                return Err(io::Error::other(
                    "an earlier flush of the host's storage failed",
                ));
            }
        }
        if !drive.is_shared() {
            // What was written before is logged already, so this epoch or an earlier one has it.
            drive.common.with_log(Log::flushed);
        }
        Ok(())
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let drive = &self.0;
        drive.change(
            offset,
            || What::Discard { bytes },
            || drive.storage.discard(offset, bytes),
            bytes,
        )
    }

    fn write_zeroes(&self, offset: u64, bytes: u64, may_unmap: bool) -> io::Result<()> {
        let drive = &self.0;
        drive.change(
            offset,
            || What::Zero { bytes },
            || drive.storage.write_zeroes(offset, bytes, may_unmap),
            bytes,
        )
    }

    fn lock(&self) -> io::Result<bool> {
        self.0.storage.lock()
    }

    fn is_locked_by_other(&self) -> io::Result<bool> {
        self.0.storage.is_locked_by_other()
    }
}
