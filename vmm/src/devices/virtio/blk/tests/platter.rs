//! Storage in memory that does what a test wants.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::SECTORS;
use crate::devices::virtio::blk::SECTOR_BYTES;
use understudy_replication::disk::{Changed, Storage};

/// What hangs fails in the end: who waits for it must fail, not wait for ever.
const HANG: Duration = Duration::from_secs(120);

/// A disk in memory that can be told to fail, or to hang; clones are the same one.
#[derive(Clone, Default)]
pub(super) struct Platter {
    pub(super) bytes: Arc<Mutex<Vec<u8>>>,
    fails: Arc<Mutex<Option<io::ErrorKind>>>,
    /// Calls panic.
    pub(super) panics: Arc<AtomicBool>,
    calls: Arc<Mutex<Vec<&'static str>>>,
    /// Calls that do not return.
    hangs: Arc<(Mutex<Vec<&'static str>>, Condvar)>,
}

impl Platter {
    pub(super) fn new() -> Self {
        let platter = Self::default();
        let bytes = (0..SECTORS * SECTOR_BYTES).map(|at| (at / SECTOR_BYTES) as u8);
        *platter.bytes.lock().unwrap() = bytes.collect();
        platter
    }

    pub(super) fn fail(&self, with: Option<io::ErrorKind>) {
        *self.fails.lock().unwrap() = with;
    }

    /// How many calls were made since they were asked for last.
    pub(super) fn calls_now(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    pub(super) fn calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    /// These calls do not return from now on; others go on.
    pub(super) fn hang(&self, calls: &[&'static str]) {
        *self.hangs.0.lock().unwrap() = calls.to_vec();
        self.hangs.1.notify_all();
    }

    fn called(&self, what: &'static str) -> io::Result<()> {
        self.calls.lock().unwrap().push(what);
        assert!(!self.panics.load(Ordering::Acquire), "ordered by the test");
        let hangs = self.hangs.0.lock().unwrap();
        let hung = |hangs: &mut Vec<&str>| hangs.contains(&what);
        let (hangs, waited) = self.hangs.1.wait_timeout_while(hangs, HANG, hung).unwrap();
        drop(hangs);
        if waited.timed_out() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.fails
            .lock()
            .unwrap()
            .map_or(Ok(()), |kind| Err(kind.into()))
    }

    pub(super) fn sector(&self, number: u64) -> Vec<u8> {
        let at = (number * SECTOR_BYTES) as usize;
        self.bytes.lock().unwrap()[at..at + SECTOR_BYTES as usize].to_vec()
    }
}

impl Storage for Platter {
    fn bytes(&self) -> u64 {
        SECTORS * SECTOR_BYTES
    }

    fn lock(&self) -> io::Result<bool> {
        Ok(true)
    }

    fn is_locked_by_other(&self) -> io::Result<bool> {
        Ok(false)
    }

    fn identity(&self) -> io::Result<Option<String>> {
        Ok(None)
    }

    fn changed(&self) -> io::Result<Option<Changed>> {
        Ok(None)
    }

    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.called("read")?;
        data.copy_from_slice(&self.bytes.lock().unwrap()[offset as usize..][..data.len()]);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.called("write")?;
        self.bytes.lock().unwrap()[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.called("flush")
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.called("discard")?;
        self.bytes.lock().unwrap()[offset as usize..][..bytes as usize].fill(0);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, bytes: u64, may_unmap: bool) -> io::Result<()> {
        self.called(if may_unmap { "unmap" } else { "zero" })?;
        self.bytes.lock().unwrap()[offset as usize..][..bytes as usize].fill(0);
        Ok(())
    }
}
