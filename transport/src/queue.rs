//! The bounded queue in front of a [`LinkWriter`], for several senders, blocking threads among them.
//!
//! Rule R5 is enforced here: what is queued and not yet taken by the stream never exceeds the
//! queue's limit in bytes, except for a single larger frame, and what [`SendQueue::send_now`] has of its own. A
//! sender waits for room. Waiting senders get room in the order in which they came, whatever they send. Frames are never
//! dropped from a working link.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};

use crate::error::LinkError;
use crate::frame::{Frame, Limits};
use crate::link::LinkWriter;

/// How much [`SendTask::run`] writes at once. The room is given back after each batch.
const BATCH_BYTES: usize = 256 << 10;

/// Room for frames that cannot wait, when there is no other.
const URGENT_BYTES: usize = 256 << 10;

/// A frame and the room that it takes until it is written.
struct Queued {
    frame: Frame,
    room: OwnedSemaphorePermit,
}

/// Queues frames for a link. Clones queue to the same link. When the last clone is dropped, the
/// task writes what is queued and closes this direction of the link.
#[derive(Clone)]
pub struct SendQueue {
    frames: mpsc::UnboundedSender<Queued>,
    state: Arc<QueueState>,
    runtime: Handle,
}

/// What the queue and its task share. The channel itself needs no bound, because each frame in it
/// holds room.
struct QueueState {
    /// Free room in bytes.
    room: Arc<Semaphore>,
    /// The same of what is kept for frames that cannot wait.
    urgent: Arc<Semaphore>,
    room_bytes_max: u32,
    limits: Limits,
    /// A batch was written, or the link broke.
    written: Notify,
    /// Why the link is broken.
    broken: watch::Sender<Option<LinkError>>,
}

impl QueueState {
    /// Breaks the queue for good: all waiting and later sends fail. The first reason is kept.
    fn fail(&self, error: LinkError) {
        self.broken.send_if_modified(|broken| {
            let first = broken.is_none();
            if first {
                *broken = Some(error);
            }
            first
        });
        self.room.close();
        self.written.notify_waiters();
    }

    fn queued_bytes(&self) -> usize {
        let free = self.room.available_permits() + self.urgent.available_permits();
        (self.room_bytes_max as usize + URGENT_BYTES).saturating_sub(free)
    }

    fn reason(&self) -> LinkError {
        self.broken.borrow().clone().unwrap_or(LinkError::Closed)
    }
}

impl SendQueue {
    /// A queue for up to `room_bytes` of frames, headers included, and the task that must run to
    /// empty it. A single frame larger than that goes through alone.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn new(writer: LinkWriter, room_bytes: u32) -> (Self, SendTask) {
        let (frames, queued) = mpsc::unbounded_channel();
        let room_bytes_max = room_bytes.max(1);
        let state = Arc::new(QueueState {
            room: Arc::new(Semaphore::new(room_bytes_max as usize)),
            urgent: Arc::new(Semaphore::new(URGENT_BYTES)),
            room_bytes_max,
            limits: writer.limits(),
            written: Notify::new(),
            broken: watch::Sender::new(None),
        });
        let queue = Self {
            frames,
            state: state.clone(),
            runtime: Handle::current(),
        };
        let task = SendTask {
            writer,
            queued,
            state,
        };
        (queue, task)
    }

    /// Queues a frame. Waits for room. Dropping the future before it is done queues nothing.
    ///
    /// # Errors
    /// At once if the link is broken, as soon as it breaks during the wait, or if the body is over
    /// the link's limit.
    pub async fn send(&self, frame: Frame) -> Result<(), LinkError> {
        let share = self.share_of(&frame)?;
        let room = self.state.room.clone().acquire_many_owned(share).await;
        self.queue(frame, room.map_err(|_| self.state.reason())?)
    }

    /// Queues a frame without waiting: if there is no room, in what is kept for such frames. So it goes before those
    /// that wait for room. Returns whether there was enough.
    ///
    /// # Errors
    /// If the link is broken, or the body is over the link's limit.
    pub fn send_now(&self, frame: Frame) -> Result<bool, LinkError> {
        let share = self.share_of(&frame)?;
        let wire_bytes = u32::try_from(frame.wire_bytes()).unwrap_or(u32::MAX);
        let state = &self.state;
        if state.room.is_closed() {
            return Err(state.reason());
        }
        let mut rooms = [(&state.room, share), (&state.urgent, wire_bytes)].into_iter();
        let room = |(room, bytes): (&Arc<Semaphore>, _)| {
            Arc::clone(room).try_acquire_many_owned(bytes).ok()
        };
        match rooms.find_map(room) {
            Some(room) => self.queue(frame, room).map(|()| true),
            None => Ok(false),
        }
    }

    /// The room that a frame takes.
    fn share_of(&self, frame: &Frame) -> Result<u32, LinkError> {
        if frame.body.len() > self.state.limits.body_bytes_max as usize {
            return Err(LinkError::OversizeSend {
                len: frame.body.len(),
                limit: self.state.limits.body_bytes_max,
            });
        }
        let wire_bytes = u32::try_from(frame.wire_bytes()).unwrap_or(u32::MAX);
        Ok(wire_bytes.min(self.state.room_bytes_max))
    }

    fn queue(&self, frame: Frame, room: OwnedSemaphorePermit) -> Result<(), LinkError> {
        let sent = self.frames.send(Queued { frame, room });
        sent.map_err(|_| self.state.reason())
    }

    /// Like [`Self::send`], for a thread outside the runtime: blocks it until there is room.
    ///
    /// # Errors
    /// As [`Self::send`].
    ///
    /// # Panics
    /// On a thread of an async runtime, which must not block.
    pub fn blocking_send(&self, frame: Frame) -> Result<(), LinkError> {
        self.runtime.block_on(self.send(frame))
    }

    /// Waits until the stream has taken all that was queued before, and what was queued meanwhile. Nobody else waits
    /// for that.
    ///
    /// # Errors
    /// At once if the link is broken, or as soon as it breaks.
    pub async fn written(&self) -> Result<(), LinkError> {
        loop {
            let written = self.state.written.notified();
            if self.state.room.is_closed() {
                return Err(self.state.reason());
            }
            if self.queued_bytes() == 0 {
                return Ok(());
            }
            written.await;
        }
    }

    /// Like [`Self::written`], for a thread outside the runtime.
    ///
    /// # Errors
    /// As [`Self::written`].
    ///
    /// # Panics
    /// On a thread of an async runtime, which must not block.
    pub fn blocking_written(&self) -> Result<(), LinkError> {
        self.runtime.block_on(self.written())
    }

    /// Breaks the queue with a reason learnt elsewhere, for example by the reader of the same link.
    /// All waiting and later sends fail with it, and so does the task, even in the middle of a
    /// write.
    pub fn fail(&self, error: LinkError) {
        self.state.fail(error);
    }

    /// Bytes that are queued and not yet taken by the stream.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.state.queued_bytes()
    }
}

impl std::fmt::Debug for SendQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SendQueue")
            .field("queued_bytes", &self.queued_bytes())
            .field("room_bytes_max", &self.state.room_bytes_max)
            .finish_non_exhaustive()
    }
}

/// Empties a [`SendQueue`] into its link. Dropping it breaks the queue.
pub struct SendTask {
    writer: LinkWriter,
    queued: mpsc::UnboundedReceiver<Queued>,
    state: Arc<QueueState>,
}

impl SendTask {
    /// Runs until the last [`SendQueue`] is dropped and everything is written, or the link breaks.
    ///
    /// # Errors
    /// If the link broke. The queue's senders have got the same reason.
    pub async fn run(mut self) -> Result<(), LinkError> {
        let state = self.state.clone();
        let mut broken = state.broken.subscribe();
        // Clones the reason, so that the channel's lock is released before anything else is done.
        let reason = async {
            let reason = broken.wait_for(Option::is_some).await;
            reason
                .ok()
                .and_then(|reason| reason.clone())
                .unwrap_or(LinkError::Closed)
        };
        let outcome = tokio::select! {
            biased;
            reason = reason => Err(reason),
            outcome = self.drain() => outcome,
        };
        if let Err(error) = &outcome {
            state.fail(error.clone());
        }
        outcome
    }

    async fn drain(&mut self) -> Result<(), LinkError> {
        while let Some(first) = self.queued.recv().await {
            let mut batch_bytes = first.frame.wire_bytes();
            let mut frames = vec![first.frame];
            let mut room = vec![first.room];
            while batch_bytes < BATCH_BYTES
                && let Ok(next) = self.queued.try_recv()
            {
                batch_bytes += next.frame.wire_bytes();
                frames.push(next.frame);
                room.push(next.room);
            }
            self.writer.send_all(&frames).await?;
            drop(room);
            self.state.written.notify_waiters();
        }
        self.writer.shutdown().await
    }
}

impl Drop for SendTask {
    fn drop(&mut self) {
        // Who waits for room, or for the queue to empty, waits for nothing any more.
        self.state.fail(LinkError::Closed);
    }
}

impl std::fmt::Debug for SendTask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SendTask")
            .field("writer", &self.writer)
            .finish_non_exhaustive()
    }
}
