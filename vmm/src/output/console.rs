//! Where console bytes end: the thread that writes them, and the sinks.
//!
//! A console may block (a stopped terminal, a slow disk); the guest, its checkpoints and the releasing
//! thread may not. So each console has a thread, and what waits for it is bounded by the gate.
//!
//! Every byte has a position, counted from the guest's first. The thread leaves out what the sink
//! already has: that is what makes a repeated epoch harmless.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use bytes::BytesMut;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::ConsoleSink;

/// Bytes that follow one another are written together up to this size.
const RUN_BYTES_MAX: usize = 64 << 10;

/// A console's queue and the thread behind it.
pub(super) struct ConsoleLine {
    queue: Mutex<Queue>,
    changed: Condvar,
    space: EventFd,
}

#[derive(Default)]
struct Queue {
    runs: VecDeque<(u64, BytesMut)>,
    /// Bytes in `runs` and in the write under way.
    bytes: usize,
    writing: bool,
    /// Nothing is taken any more; the thread ends when nothing is left.
    closed: bool,
    starved: bool,
}

impl ConsoleLine {
    /// Starts the thread for `sink`. It ends after [`ConsoleLine::close`] or [`ConsoleLine::shut`].
    pub(super) fn spawn(device: u16, sink: Box<dyn ConsoleSink>) -> io::Result<Arc<Self>> {
        let line = Arc::new(Self {
            queue: Mutex::new(Queue::default()),
            changed: Condvar::new(),
            space: EventFd::new(EFD_NONBLOCK)?,
        });
        let writer = Arc::clone(&line);
        std::thread::Builder::new()
            .name(format!("console-{device}"))
            .spawn(move || writer.write_all_runs(device, sink))?;
        Ok(line)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue
            .lock()
            .expect("no thread panics while it holds a console queue")
    }

    pub(super) fn push(&self, position: u64, bytes: &[u8]) {
        let mut queue = self.lock();
        if queue.closed || bytes.is_empty() {
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
        self.lock().bytes
    }

    /// The device waits: the space event fires after the next write.
    pub(super) fn set_starved(&self) {
        self.lock().starved = true;
    }

    pub(super) fn space_event(&self) -> &EventFd {
        &self.space
    }

    /// Waits until nothing is left to write. False if that took longer than `timeout`.
    pub(super) fn wait_idle(&self, timeout: Duration) -> bool {
        let busy = |queue: &mut Queue| queue.writing || !queue.runs.is_empty();
        let (_queue, result) = self
            .changed
            .wait_timeout_while(self.lock(), timeout, busy)
            .expect("no thread panics while it holds a console queue");
        !result.timed_out()
    }

    /// Drops what is queued, for good, and waits for the write under way.
    pub(super) fn shut(&self, timeout: Duration) -> bool {
        let mut queue = self.lock();
        let dropped: usize = queue.runs.drain(..).map(|(_, run)| run.len()).sum();
        queue.bytes -= dropped;
        drop(queue);
        self.close();
        let _ = self.space.write(1);
        self.wait_idle(timeout)
    }

    /// Takes nothing any more; what is queued is still written.
    pub(super) fn close(&self) {
        self.lock().closed = true;
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
        let mut queue = self
            .changed
            .wait_while(self.lock(), |queue| queue.runs.is_empty() && !queue.closed)
            .expect("no thread panics while it holds a console queue");
        let run = queue.runs.pop_front()?;
        queue.writing = true;
        Some(run)
    }

    fn written(&self, bytes: usize) {
        let mut queue = self.lock();
        queue.writing = false;
        queue.bytes -= bytes;
        if std::mem::take(&mut queue.starved) {
            let _ = self.space.write(1);
        }
        drop(queue);
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

/// The terminal. It cannot know what another host's terminal shows, so it shows what it is given.
#[derive(Debug, Default)]
pub struct StdoutSink {
    position: Option<u64>,
}

impl ConsoleSink for StdoutSink {
    fn position(&mut self) -> io::Result<Option<u64>> {
        Ok(self.position)
    }

    fn append(&mut self, position: u64, bytes: &[u8]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()?;
        self.position = Some(position.saturating_add(bytes.len() as u64));
        Ok(())
    }
}

/// No console: bytes are forgotten.
#[derive(Debug, Default)]
pub struct DiscardSink;

impl ConsoleSink for DiscardSink {
    fn position(&mut self) -> io::Result<Option<u64>> {
        Ok(None)
    }

    fn append(&mut self, _position: u64, _bytes: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

/// A file that holds the guest's console output and nothing else, so that its length is the position.
///
/// Primary and backup may name the same file on shared storage: then it has every byte once. Where each
/// host has its own file, a backup that takes over appends what it is given; the file then lacks what
/// was written elsewhere, and its length tells nothing any more.
#[derive(Debug)]
pub struct FileSink {
    file: File,
    has: Has,
}

/// What a console file has.
#[derive(Debug, Clone, Copy)]
enum Has {
    /// Another guest's life, to be dropped. Only when this one speaks: a host that asks for the guest and
    /// is refused must not empty the console of a guest that runs elsewhere.
    OtherLife,
    /// As much as its length says, unless it is a file of this host's own. Asked when this side has taken
    /// over: until then the old primary may append.
    ItsLength,
    /// So many bytes of the guest's output.
    Bytes(u64),
}

impl FileSink {
    /// For a guest that boots here: the file is emptied before the guest's first byte.
    ///
    /// # Errors
    /// If it cannot be opened or created.
    pub fn create(path: &Path) -> io::Result<Self> {
        Self::open(path, Has::OtherLife)
    }

    /// For a standby: goes on with the file as it is when this side takes over.
    ///
    /// # Errors
    /// If it cannot be opened or created.
    pub fn join(path: &Path) -> io::Result<Self> {
        Self::open(path, Has::ItsLength)
    }

    fn open(path: &Path, has: Has) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        Ok(Self { file, has })
    }

    /// How many of `len` bytes from `position` on a joined file has already. The old primary cannot have
    /// written more than the guest had said when this side took over: a longer file is not shared.
    fn present(&self, position: u64, len: usize) -> io::Result<usize> {
        let present = self.file.metadata()?.len().saturating_sub(position);
        Ok(usize::try_from(present).map_or(0, |present| if present <= len { present } else { 0 }))
    }
}

impl ConsoleSink for FileSink {
    fn position(&mut self) -> io::Result<Option<u64>> {
        match self.has {
            Has::OtherLife => Ok(Some(0)),
            // `append` knows more.
            Has::ItsLength => Ok(None),
            Has::Bytes(position) => Ok(Some(position)),
        }
    }

    fn append(&mut self, position: u64, bytes: &[u8]) -> io::Result<()> {
        let missing = match self.has {
            Has::OtherLife => {
                self.file.set_len(0)?;
                bytes
            }
            Has::ItsLength => &bytes[self.present(position, bytes.len())?..],
            Has::Bytes(_) => bytes,
        };
        self.file.write_all(missing)?;
        self.has = Has::Bytes(position.saturating_add(bytes.len() as u64));
        Ok(())
    }
}

/// A console in memory, for tests and for callers that show it themselves. Clones are the same console.
///
/// It keeps everything: whoever uses it decides how long the guest may talk.
#[derive(Debug, Clone, Default)]
pub struct MemorySink {
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl MemorySink {
    /// What has been written so far.
    #[must_use]
    pub fn contents(&self) -> Vec<u8> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes
            .lock()
            .expect("no thread panics while it holds a memory console")
    }
}

impl ConsoleSink for MemorySink {
    fn position(&mut self) -> io::Result<Option<u64>> {
        Ok(Some(self.lock().len() as u64))
    }

    fn append(&mut self, _position: u64, bytes: &[u8]) -> io::Result<()> {
        self.lock().extend_from_slice(bytes);
        Ok(())
    }
}
