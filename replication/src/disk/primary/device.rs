//! A disk as its device sees it.
//!
//! A write of a replicated disk marks its blocks durably, writes the image, and then logs. A flush is noted in the log
//! before the image is flushed, so that the backup flushes at the same time. What must not be done here: using another
//! order, or waiting for the network.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use parking_lot::Mutex;

use super::log::Log;
use super::overlay::Patch;
use super::write_log::WriteLog;
use crate::core::disk::{DiskWrite, SECTOR_BYTES, What};
use crate::disk::DiskError;
use crate::disk::image::map::DirtyMap;
use crate::disk::image::{Changed, DiskMode, Drive, Storage};
use crate::ports::disks::Callback;

/// A disk as its device sees it. Clones are the same disk.
#[derive(Clone)]
pub struct Disk {
    drive: Arc<Drive>,
    log: Arc<WriteLog>,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Drive {
            number, name, mode, ..
        } = &*self.drive;
        write!(f, "Disk({number}: {name}, {mode})")
    }
}

/// A flush that this host has done its part of. The guest may be told of it once [`Disk::may_answer`] says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "the guest is to wait for the backup"]
pub struct GuestFlush(u64);

impl GuestFlush {
    /// One that waits for nobody.
    pub const DONE: Self = Self(0);
}

fn not_shut(log: &mut Log) -> io::Result<&mut Log> {
    if log.shut {
        return Err(DiskError::Shut.into_io());
    }
    Ok(log)
}

impl Disk {
    pub(crate) fn new(drive: Arc<Drive>, log: Arc<WriteLog>) -> Self {
        Self { drive, log }
    }

    fn check(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let end = offset.checked_add(bytes);
        let inside = end.is_some_and(|end| end <= self.drive.storage.bytes());
        if inside && offset.is_multiple_of(SECTOR_BYTES) && bytes.is_multiple_of(SECTOR_BYTES) {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "disk {}: {bytes} bytes at byte {offset} are not sectors of it",
                self.drive.name
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
        let _turn = self.drive.turn.lock();
        let entry = || DiskWrite {
            disk: self.drive.number,
            offset,
            what: what(),
        };
        let Some(map) = &self.drive.map else {
            let holding = self.log.with_log(|log| {
                let holding = not_shut(log)?.held.is_holding();
                if holding {
                    log.hold_write(entry());
                }
                Ok::<_, io::Error>(holding)
            })?;
            return if holding { Ok(()) } else { write() };
        };
        let number = self.drive.number;
        // Logging begins only with the turn.
        let is_logging = {
            let mut log = self.log.lock();
            not_shut(&mut log)?.begin_write(number, offset, bytes);
            log.is_logging()
        };
        let changed = self.mark(map, offset, bytes).and_then(|()| {
            let written = write();
            // Unsupported: nothing was written, this kind of storage does not know the request.
            if let Err(error) = &written
                && error.kind() != io::ErrorKind::Unsupported
            {
                self.log_what_is_there(offset, bytes);
            }
            written
        });
        // Copied before the log is locked: a pause wants the log, too.
        let entry = (is_logging && changed.is_ok()).then(entry);
        self.log.with_log(|log| {
            if let Some(entry) = entry {
                log.wrote(entry);
            }
            log.end_write(number);
        });
        changed
    }

    /// Whether a write there is under way: it may be on the image, and in no epoch yet.
    fn is_being_written(&self, offset: u64, bytes: u64) -> bool {
        let written = self.log.lock().under_way(self.drive.number);
        written.is_some_and(|(from, length)| offset < from + length && from < offset + bytes)
    }

    /// Marks what is about to be written.
    fn mark(&self, map: &Mutex<DirtyMap>, offset: u64, bytes: u64) -> io::Result<()> {
        let mut map = map.lock();
        self.drive.want_no_more(offset, bytes);
        let later = || self.drive.wanted.lock().iter().copied().collect();
        map.mark(offset, bytes, later).map_err(DiskError::into_io)?;
        map.about_to_write(&*self.drive.storage);
        Ok(())
    }

    /// Has the other side write once more what is on the image there. Its blocks are marked until that is durable.
    pub(super) fn send_again(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let data = Mutex::new(Bytes::new());
        self.change(
            offset,
            || What::Data(data.lock().clone()),
            || {
                let mut found = vec![0; bytes as usize];
                self.drive.storage.read_at(offset, &mut found)?;
                *data.lock() = found.into();
                Ok(())
            },
            bytes,
        )
    }

    /// After a failed write, any part of it may be on the image. The other side gets what is on the
    /// image. If that cannot be read, the blocks stay marked.
    fn log_what_is_there(&self, offset: u64, bytes: u64) {
        let mut piece = vec![0; bytes.min(1 << 20) as usize];
        let (mut at, end) = (offset, offset + bytes);
        while at < end {
            let length = (end - at).min(piece.len() as u64);
            let data = &mut piece[..length as usize];
            if self.drive.storage.read_at(at, data).is_ok() {
                let write = DiskWrite {
                    disk: self.drive.number,
                    offset: at,
                    what: What::Data(Bytes::copy_from_slice(data)),
                };
                self.log.with_log(|log| log.wrote(write));
            } else if let Some(map) = &self.drive.map {
                map.lock().unsure(at, length);
            }
            at += length;
        }
    }

    /// What is to be laid over a range of the image. Comes before reading it.
    fn patch(&self, offset: u64, bytes: u64) -> io::Result<Patch> {
        self.check(offset, bytes)?;
        let mut log = self.log.lock();
        let held = &not_shut(&mut log)?.held;
        Ok(if self.drive.is_shared() {
            held.patch(self.drive.number, offset, bytes)
        } else {
            Patch::default()
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.drive.name
    }

    /// Where its image is.
    #[must_use]
    pub fn mode(&self) -> DiskMode {
        self.drive.mode
    }

    /// Makes earlier writes survive a loss of power of this host, as the guest has asked for. What that
    /// needs of the backup is on its way when this returns; the guest is told only once it is done.
    ///
    /// # Errors
    /// Any error of the host's storage.
    pub fn flush_for_guest(&self) -> io::Result<GuestFlush> {
        let drive = &self.drive;
        let (flush, pass) = self.log.with_log(|log| {
            let log = not_shut(log)?;
            if !drive.is_shared() {
                // Earlier writes are logged already, so this epoch or an earlier one has them.
                return Ok::<_, io::Error>((log.begin_flush(), true));
            }
            let hold = log.held.is_holding();
            if hold {
                log.held.flushed();
            }
            Ok((0, !hold))
        })?;
        if pass {
            drive.flush_storage()?;
            if drive.flush_failed.swap(false, Ordering::AcqRel) {
                return Err(io::Error::other(
                    "an earlier flush of the host's storage failed",
                ));
            }
        }
        Ok(GuestFlush(flush))
    }

    /// Whether the guest may be told of this flush. If not, the room listener will be called.
    #[must_use]
    pub fn may_answer(&self, flush: GuestFlush) -> bool {
        flush == GuestFlush::DONE || self.log.lock().may_answer(flush.0)
    }

    /// The guest has asked for a write there (or a discard, or zeros), which is going to be done soon: what that takes
    /// may be prepared for many at once. A hint, of a range of the disk.
    pub fn will_write(&self, offset: u64, bytes: u64) {
        if self.drive.map.is_some() && bytes > 0 && self.check(offset, bytes).is_ok() {
            self.drive.want(offset, bytes);
        }
    }

    /// Nothing of what [`Disk::will_write`] told of is going to be done.
    pub fn will_write_no_more(&self) {
        self.drive.wanted.lock().clear();
    }

    /// Whether another request may be taken from the guest. If not, the room listener will be
    /// called.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.log.lock().has_room()
    }

    /// Sets who is told that there is room again after [`Disk::has_room`] returned false, or that a
    /// flush may be answered. It must not call the disk itself.
    pub fn set_room_listener(&self, listener: Callback) {
        self.log.set_room_listener(self.drive.number, listener);
    }
}

impl Storage for Disk {
    fn bytes(&self) -> u64 {
        self.drive.storage.bytes()
    }

    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let patch = self.patch(offset, data.len() as u64)?;
        self.drive.storage.read_at(offset, data)?;
        if self.is_being_written(offset, data.len() as u64) {
            // What the guest was shown must be there after a failover, too: it waits until that is logged.
            drop(self.drive.turn.lock());
        }
        patch.lay_over(offset, data);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let drive = &self.drive;
        self.change(
            offset,
            || What::Data(Bytes::copy_from_slice(data)),
            || drive.storage.write_at(offset, data),
            data.len() as u64,
        )
    }

    /// This host's part: a guest is to wait for more, see [`Disk::flush_for_guest`].
    fn flush(&self) -> io::Result<()> {
        self.flush_for_guest().map(|_| ())
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let drive = &self.drive;
        self.change(
            offset,
            || What::Discard { bytes },
            || drive.storage.discard(offset, bytes),
            bytes,
        )
    }

    fn write_zeroes(&self, offset: u64, bytes: u64, may_unmap: bool) -> io::Result<()> {
        let drive = &self.drive;
        self.change(
            offset,
            || What::Zero { bytes },
            || drive.storage.write_zeroes(offset, bytes, may_unmap),
            bytes,
        )
    }

    fn lock(&self) -> io::Result<bool> {
        self.drive.storage.lock()
    }

    fn is_locked_by_other(&self) -> io::Result<bool> {
        self.drive.storage.is_locked_by_other()
    }

    fn identity(&self) -> io::Result<Option<String>> {
        self.drive.storage.identity()
    }

    fn changed(&self) -> io::Result<Option<Changed>> {
        self.drive.storage.changed()
    }
}
