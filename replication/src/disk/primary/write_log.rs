//! The log of a set of disks as threads use it: behind a lock, with its listeners.
//!
//! What must not be done here: calling a listener with the lock held.

use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::log::Log;
use crate::ports::disks::Callback;

/// The log of a set under its lock, and the listeners that are told when it fills or empties. Locks
/// are taken in this order: a disk's `turn`, its `map`, `log`.
pub(crate) struct WriteLog {
    log: Mutex<Log>,
    listener: Mutex<Option<Callback>>,
    flush_listener: Mutex<Option<Callback>>,
    rooms: Mutex<Vec<Option<Callback>>>,
    /// Rings when the backup has answered checks, and when a session ends.
    answers: Condvar,
}

impl WriteLog {
    pub(crate) fn new(disks: usize, log_bytes_max: u64) -> Self {
        Self {
            log: Mutex::new(Log::new(disks, log_bytes_max)),
            listener: Mutex::new(None),
            flush_listener: Mutex::new(None),
            rooms: Mutex::new((0..disks).map(|_| None).collect()),
            answers: Condvar::new(),
        }
    }

    pub(crate) fn set_listener(&self, listener: Callback) {
        *self.listener.lock() = Some(listener);
    }

    pub(crate) fn set_flush_listener(&self, listener: Callback) {
        *self.flush_listener.lock() = Some(listener);
    }

    /// Does `work` on the log, and then calls the listeners if necessary.
    pub(crate) fn with_log<T>(&self, work: impl FnOnce(&mut Log) -> T) -> T {
        let mut log = self.log.lock();
        let result = work(&mut log);
        let (half_full, room) = (log.take_half_full(), log.take_wakeup());
        let (flush_began, flush_done) = log.take_flush_news();
        drop(log);
        if flush_began {
            let listener = self.flush_listener.lock().clone();
            listener.iter().for_each(|tell| tell());
        }
        if half_full {
            let listener = self.listener.lock().clone();
            listener.iter().for_each(|tell| tell());
        }
        if room || flush_done {
            let rooms = self.rooms.lock().clone();
            rooms.iter().flatten().for_each(|tell| tell());
        }
        result
    }

    /// The backup's answers. Returns whether so many checks are open.
    pub(crate) fn answered(&self, differ: &[bool]) -> bool {
        let known = self.log.lock().answered(differ);
        self.answers.notify_all();
        known
    }

    /// Waits so long for answers, or for the session's end.
    pub(crate) fn await_answers(&self, log: &mut MutexGuard<'_, Log>, time: Duration) {
        self.answers.wait_for(log, time);
    }

    /// Nothing is logged from now on.
    pub(crate) fn end(&self) {
        self.with_log(Log::end);
        self.answers.notify_all();
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock()
    }

    /// Sets who is told that the disk has room again, or that a flush may be answered.
    pub(crate) fn set_room_listener(&self, disk: u16, listener: Callback) {
        self.rooms.lock()[usize::from(disk)] = Some(listener);
    }
}
