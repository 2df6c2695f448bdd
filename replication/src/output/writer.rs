//! The thread that writes a console's bytes.
//!
//! A console may block (a stopped terminal, a slow disk), but the guest, its checkpoints and the
//! releasing thread must not. So each console has a thread, and the gate bounds what waits for it.
//!
//! Every byte has a position, counted from the guest's first. The thread leaves out what the sink
//! already has. This makes a repeated epoch harmless.
//!
//! Storage that is full gets the bytes once it has room, as long as few wait. Beyond that they are
//! lost and counted: a guest must not stand still because its console's file system is full.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::{Condvar, Mutex};

use super::signals::Waker;
use super::sink::ConsoleSink;

/// Consecutive bytes are written together up to this size.
const RUN_BYTES_MAX: usize = 64 << 10;
/// Pause before storage that is full is tried again.
const FULL_RETRY: Duration = Duration::from_millis(500);

/// A console's queue and the thread behind it.
pub(super) struct ConsoleWriter {
    queue: Mutex<Queue>,
    changed: Condvar,
    waker: Waker,
    /// With more bytes than this, none of them wait for storage that is full. Far below the limit
    /// from which the guest is slowed.
    patient_bytes_max: usize,
    lost_bytes: AtomicU64,
}

#[derive(Default)]
struct Queue {
    runs: VecDeque<(u64, BytesMut)>,
    /// Bytes in `runs` and in the write in progress.
    bytes: usize,
    /// The write in progress.
    writing: Option<(u64, Bytes)>,
    /// The sink has everything before this position, or it is lost.
    written: Option<u64>,
    /// No more bytes are taken. The thread ends when nothing is left.
    is_closed: bool,
    /// The device was told to wait: it is woken after the next write.
    device_waits: bool,
}

impl ConsoleWriter {
    /// Starts the thread for `sink`. It ends after [`ConsoleWriter::close`] or
    /// [`ConsoleWriter::shut`].
    pub(super) fn spawn(
        device: u16,
        sink: Box<dyn ConsoleSink>,
        waker: Waker,
        bytes_max: usize,
    ) -> io::Result<Arc<Self>> {
        let writer = Arc::new(Self {
            queue: Mutex::new(Queue::default()),
            changed: Condvar::new(),
            waker,
            patient_bytes_max: bytes_max / 4,
            lost_bytes: AtomicU64::new(0),
        });
        let thread = Arc::clone(&writer);
        std::thread::Builder::new()
            .name(format!("console-{device}"))
            .spawn(move || thread.write_all_runs(device, sink))?;
        Ok(writer)
    }

    pub(super) fn push(&self, position: u64, bytes: &[u8]) {
        let mut queue = self.queue.lock();
        if queue.is_closed || bytes.is_empty() {
            return;
        }
        queue.bytes += bytes.len();
        match queue.runs.back_mut() {
            Some((start, run))
                if position.checked_sub(*start) == Some(run.len() as u64)
                    && run.len() + bytes.len() <= RUN_BYTES_MAX =>
            {
                run.extend_from_slice(bytes);
            }
            _ => queue.runs.push_back((position, BytesMut::from(bytes))),
        }
        drop(queue);
        self.changed.notify_all();
    }

    /// Bytes that could not be written.
    pub(super) fn lost_bytes(&self) -> u64 {
        self.lost_bytes.load(Ordering::Relaxed)
    }

    /// Whether a device is refused that finds so many bytes waiting here. It is woken after the next write then,
    /// which cannot end in between.
    pub(super) fn refuses(&self, is_full: impl FnOnce(usize) -> bool) -> bool {
        let mut queue = self.queue.lock();
        let is_full = is_full(queue.bytes);
        queue.device_waits |= is_full;
        is_full
    }

    /// The position before which the sink has everything, once it has something. If `pending` is
    /// wanted, also what it does not have yet.
    pub(super) fn progress(&self, pending: bool) -> (Option<u64>, Vec<(u64, Bytes)>) {
        let queue = self.queue.lock();
        let mut runs = Vec::new();
        if pending {
            runs.extend(queue.writing.clone());
            let queued = queue.runs.iter();
            runs.extend(queued.map(|(at, run)| (*at, Bytes::copy_from_slice(run))));
        }
        (queue.written, runs)
    }

    /// Waits until nothing is left to write. False if that takes longer than `timeout`.
    pub(super) fn wait_idle(&self, timeout: Duration) -> bool {
        let is_busy = |queue: &mut Queue| queue.writing.is_some() || !queue.runs.is_empty();
        let mut queue = self.queue.lock();
        !self
            .changed
            .wait_while_for(&mut queue, is_busy, timeout)
            .timed_out()
    }

    /// Drops what is queued, for good, and waits for the write in progress. False if that takes
    /// longer than `timeout`.
    pub(super) fn shut(&self, timeout: Duration) -> bool {
        let mut queue = self.queue.lock();
        let dropped: usize = queue.runs.drain(..).map(|(_, run)| run.len()).sum();
        queue.bytes -= dropped;
        drop(queue);
        self.close();
        (self.waker)();
        self.wait_idle(timeout)
    }

    /// Takes no more bytes. What is queued is still written.
    pub(super) fn close(&self) {
        self.queue.lock().is_closed = true;
        self.changed.notify_all();
    }

    fn write_all_runs(&self, device: u16, mut sink: Box<dyn ConsoleSink>) {
        let mut is_failing = false;
        while let Some((position, run)) = self.next_run() {
            let is_out = self.write_run(device, sink.as_mut(), position, &run, &mut is_failing);
            // What a sink refuses is lost here, but a backup may repeat it elsewhere.
            let end = position.saturating_add(run.len() as u64);
            self.written(run.len(), is_out.then_some(end));
        }
    }

    /// Writes a run, or counts what of it is lost. Returns whether all of it is written.
    fn write_run(
        &self,
        device: u16,
        sink: &mut dyn ConsoleSink,
        position: u64,
        run: &[u8],
        is_failing: &mut bool,
    ) -> bool {
        loop {
            let error = match append_missing(sink, position, run) {
                Ok(()) => {
                    if std::mem::take(is_failing) {
                        let lost_bytes = self.lost_bytes();
                        tracing::info!(device, lost_bytes, "the console is written again");
                    }
                    return true;
                }
                Err(error) => error,
            };
            if !std::mem::replace(is_failing, true) {
                tracing::warn!(device, %error, "the console cannot be written");
            }
            let is_full = matches!(
                error.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            );
            if !is_full || !self.wait_for_storage() {
                let has = sink.position().ok().flatten().unwrap_or(position);
                let lost = (run.len() as u64).saturating_sub(has.saturating_sub(position));
                self.lost_bytes.fetch_add(lost, Ordering::Relaxed);
                return false;
            }
        }
    }

    /// Waits before storage that is full is tried again. False if too much waits already, or
    /// nothing may.
    fn wait_for_storage(&self) -> bool {
        let may_wait = |queue: &Queue| !queue.is_closed && queue.bytes <= self.patient_bytes_max;
        let mut queue = self.queue.lock();
        let _ = self
            .changed
            .wait_while_for(&mut queue, |queue| may_wait(queue), FULL_RETRY);
        may_wait(&queue)
    }

    fn next_run(&self) -> Option<(u64, Bytes)> {
        let mut queue = self.queue.lock();
        self.changed.wait_while(&mut queue, |queue| {
            queue.runs.is_empty() && !queue.is_closed
        });
        let (position, run) = queue.runs.pop_front()?;
        let run = (position, run.freeze());
        queue.writing = Some(run.clone());
        Some(run)
    }

    fn written(&self, bytes: usize, through: Option<u64>) {
        let mut queue = self.queue.lock();
        queue.writing = None;
        queue.written = queue.written.max(through);
        queue.bytes -= bytes;
        let device_waits = std::mem::take(&mut queue.device_waits);
        drop(queue);
        if device_waits {
            (self.waker)();
        }
        self.changed.notify_all();
    }
}

/// Appends the part of `bytes` that `sink` does not have yet.
fn append_missing(sink: &mut dyn ConsoleSink, position: u64, bytes: &[u8]) -> io::Result<()> {
    let present = sink
        .position()?
        .map_or(0, |has| has.saturating_sub(position));
    let skip = usize::try_from(present).map_or(bytes.len(), |skip| skip.min(bytes.len()));
    let missing = &bytes[skip..];
    if missing.is_empty() {
        return Ok(());
    }
    sink.append(position.saturating_add(skip as u64), missing)
}
