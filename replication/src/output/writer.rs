//! The thread that writes a console's bytes.
//!
//! A console may block (a stopped terminal, a slow disk), but the guest, its checkpoints and the
//! releasing thread must not. So each console has a thread, and the gate bounds what waits for it.
//!
//! Every byte has a position, counted from the guest's first. The thread leaves out what the sink
//! already has. This makes a repeated epoch harmless.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use parking_lot::{Condvar, Mutex};

use super::signals::Waker;
use super::sink::ConsoleSink;

/// Consecutive bytes are written together up to this size.
const RUN_BYTES_MAX: usize = 64 << 10;

/// A console's queue and the thread behind it.
pub(super) struct ConsoleWriter {
    queue: Mutex<Queue>,
    changed: Condvar,
    waker: Waker,
}

#[derive(Default)]
struct Queue {
    runs: VecDeque<(u64, BytesMut)>,
    /// Bytes in `runs` and in the write in progress.
    bytes: usize,
    is_writing: bool,
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
    ) -> io::Result<Arc<Self>> {
        let writer = Arc::new(Self {
            queue: Mutex::new(Queue::default()),
            changed: Condvar::new(),
            waker,
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

    pub(super) fn queued_bytes(&self) -> usize {
        self.queue.lock().bytes
    }

    /// Wakes the device after the next write.
    pub(super) fn wake_device_later(&self) {
        self.queue.lock().device_waits = true;
    }

    /// Waits until nothing is left to write. False if that takes longer than `timeout`.
    pub(super) fn wait_idle(&self, timeout: Duration) -> bool {
        let is_busy = |queue: &mut Queue| queue.is_writing || !queue.runs.is_empty();
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
        let mut failures: u64 = 0;
        while let Some((position, run)) = self.next_run() {
            if let Err(error) = append_missing(sink.as_mut(), position, &run) {
                failures += 1;
                if failures.is_power_of_two() {
                    tracing::warn!(device, failures, %error, "console output lost");
                }
            }
            self.written(run.len());
        }
    }

    fn next_run(&self) -> Option<(u64, BytesMut)> {
        let mut queue = self.queue.lock();
        self.changed.wait_while(&mut queue, |queue| {
            queue.runs.is_empty() && !queue.is_closed
        });
        let run = queue.runs.pop_front()?;
        queue.is_writing = true;
        Some(run)
    }

    fn written(&self, bytes: usize) {
        let mut queue = self.queue.lock();
        queue.is_writing = false;
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
