//! One connection between the two sides: converts frames to messages and back.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use understudy_transport::{Frame, Limits, Link, LinkCounters, LinkError, LinkReader, SendQueue};

use crate::core::message::{Message, MessageError};
use crate::ids::Generation;

/// How long a `Bye` may take to leave before the link is closed anyway.
const FAREWELL: Duration = Duration::from_millis(50);

/// How much a standby may send in a second. It sends a few bytes for each epoch and heartbeat, and
/// one `Welcome`.
const DRAIN_BYTES_MAX: u64 = 8 << 20;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error("the peer sends more than {DRAIN_BYTES_MAX} bytes a second, which no standby does")]
    Flood,
}

impl SessionError {
    /// Whether the peer's process is gone, in contrast to bytes that make no sense.
    pub(super) fn is_peer_gone(&self) -> bool {
        matches!(self, Self::Link(error) if error.is_peer_gone())
    }
}

pub(super) struct Session {
    reader: LinkReader,
    queue: SendQueue,
    writer: tokio::task::JoinHandle<Result<(), LinkError>>,
    pub(super) peer: String,
    /// The begin of the present second of [`Session::drain`], and the bytes received until then.
    drained: (Instant, u64),
    /// A `Bye`, `Refuse`, `Holdings` or `TakeOver` is on its way: it is worth a short wait at the end.
    farewell: bool,
}

impl Session {
    /// Takes a connected link. Its writing side runs as a task of the current runtime.
    pub(super) fn start(link: Link, send_bytes_max: u32) -> Self {
        let peer = link.peer.clone();
        let (reader, writer) = link.split();
        let (queue, task) = SendQueue::new(writer, send_bytes_max);
        Self {
            reader,
            queue,
            writer: tokio::spawn(task.run()),
            peer,
            drained: (Instant::now(), 0),
            farewell: false,
        }
    }

    /// Changes what is accepted from the peer.
    pub(super) fn set_limits(&mut self, limits: Limits) {
        self.reader.set_limits(limits);
    }

    /// Bytes read from the peer so far.
    fn received_bytes(&self) -> u64 {
        self.reader.counters().snapshot().bytes_in
    }

    /// The link's traffic so far.
    pub(super) fn counters(&self) -> Arc<LinkCounters> {
        self.reader.counters()
    }

    pub(super) fn queue(&self) -> SendQueue {
        self.queue.clone()
    }

    /// Waits for a message. Cancel safe.
    pub(super) async fn recv(&mut self) -> Result<(Generation, Message), SessionError> {
        decode(self.reader.recv().await?)
    }

    /// To be called before [`Session::drain`], and not again before there is nothing left.
    pub(super) fn begin_drain(&mut self) {
        let now = Instant::now();
        if now.saturating_duration_since(self.drained.0) >= Duration::from_secs(1) {
            self.drained = (now, self.received_bytes());
        }
    }

    /// A message that is already here, or an error if it is already known that none will come. A
    /// peer that sends without end is an error too, so that whoever wants to see all of it first
    /// neither takes for ever nor needs memory without limit (R5).
    pub(super) fn drain(&mut self) -> Result<Option<(Generation, Message)>, SessionError> {
        if self.received_bytes() - self.drained.1 > DRAIN_BYTES_MAX {
            return Err(SessionError::Flood);
        }
        self.reader.try_recv()?.map(decode).transpose()
    }

    /// Queues a message without waiting, also while the queue is full of pages. If there is no room for such messages any
    /// more, the peer reads nothing. A heartbeat is then left out: behind so much it would be no sign of life. So is what
    /// arrived for the guest, as networks may lose frames. Any other message must not get lost, so the link is broken.
    pub(super) fn send(&mut self, generation: Generation, message: &Message) {
        let (kind, epoch, body) = message.encode();
        let frame = Frame {
            kind,
            generation: generation.0,
            epoch,
            body,
        };
        match self.queue.send_now(frame) {
            Ok(true) => {}
            Err(error) => tracing::debug!(%error, "a message was not queued"),
            Ok(false) if matches!(message, Message::Heartbeat | Message::Arrived(_)) => {}
            Ok(false) => self.queue.fail(LinkError::Closed),
        }
        self.farewell |= matches!(
            message,
            Message::Bye(_) | Message::Refuse(_) | Message::Holdings(_) | Message::TakeOver { .. }
        );
    }

    /// Closes the link: at once, or after a queued farewell has left.
    pub(super) async fn close(self) {
        let deadline = Instant::now() + FAREWELL;
        while self.farewell
            && !self.writer.is_finished()
            && self.queue.queued_bytes() > 0
            && Instant::now() < deadline
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Others hold clones of the queue, so end the task instead of waiting for them.
        self.queue.fail(LinkError::Closed);
        let _ = self.writer.await;
    }
}

fn decode(frame: Frame) -> Result<(Generation, Message), SessionError> {
    let message = Message::decode(frame.kind, frame.epoch, frame.body)?;
    Ok((Generation(frame.generation), message))
}

#[cfg(test)]
mod tests {
    use understudy_transport::memory::{Faults, pair_with};

    use super::*;
    use crate::arbiter::Mark;

    #[tokio::test(start_paused = true)]
    async fn a_message_goes_out_while_the_queue_is_full_of_pages() {
        let faults = Faults {
            in_flight_bytes_max: 10_000,
            ..Faults::default()
        };
        let (near, mut far) = pair_with(1, faults.clone(), faults, Limits::default());
        let mut session = Session::start(near, 20_000);
        // Then smaller ones, for the last bytes of room.
        let frame = |bytes| Frame {
            body: vec![0; bytes].into(),
            ..Frame::default()
        };
        let mut queued = Vec::new();
        let queue = session.queue();
        // Expires when nothing moves any more.
        let stuck = Duration::from_secs(3600);
        for bytes in [1024, 0] {
            while tokio::time::timeout(stuck, queue.send(frame(bytes)))
                .await
                .is_ok()
            {
                queued.push(bytes);
            }
        }
        let mark = Message::Marked(Mark::default());
        session.send(Generation(1), &mark);
        for bytes in queued {
            let got = far.reader.recv().await.expect("the link is up");
            assert_eq!(got.body.len(), bytes);
        }
        let (_, message) = decode(far.reader.recv().await.expect("the link is up")).unwrap();
        assert_eq!(message, mark);
    }
}
