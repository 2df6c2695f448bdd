//! One connection between the two sides: frames in, messages out, and back.

use understudy_transport::{Frame, Link, LinkError, LinkReader, SendQueue};

use crate::core::message::{Message, MessageError};
use crate::ids::Generation;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Message(#[from] MessageError),
}

impl SessionError {
    /// Whether the peer's process is gone, as opposed to bytes that make no sense.
    pub(super) fn is_peer_gone(&self) -> bool {
        matches!(self, Self::Link(error) if error.is_peer_gone())
    }
}

pub(super) struct Session {
    reader: LinkReader,
    queue: SendQueue,
    writer: tokio::task::JoinHandle<()>,
    pub(super) peer: String,
}

impl Session {
    /// Takes a connected link; its writing side runs as a task of the current runtime.
    pub(super) fn start(link: Link, send_bytes_max: usize) -> Self {
        let peer = link.peer().to_owned();
        let (reader, writer) = link.split();
        let (queue, drain) = SendQueue::new(writer, send_bytes_max);
        let writer = tokio::spawn(async move {
            if let Err(error) = drain.run().await {
                tracing::debug!(%error, "the logging channel's writing side ended");
            }
        });
        Self { reader, queue, writer, peer }
    }

    pub(super) fn queue(&self) -> SendQueue {
        self.queue.clone()
    }

    /// Waits for a message. Cancel safe.
    pub(super) async fn recv(&mut self) -> Result<(Generation, Message), SessionError> {
        decode(self.reader.recv().await?)
    }

    /// A message that is already here; an error if it can already be seen that there will be none.
    pub(super) fn try_recv(&mut self) -> Result<Option<(Generation, Message)>, SessionError> {
        self.reader.try_recv()?.map(decode).transpose()
    }

    /// Queues a message without waiting. A full queue means that the peer reads slowly or not at all:
    /// a heartbeat behind it would be no sign of life, so it is left out.
    pub(super) fn send(&self, generation: Generation, message: &Message) {
        let (kind, epoch, body) = message.encode();
        let frame = Frame { kind, generation: generation.0, epoch, body };
        if let Err(error) = self.queue.try_send(frame) {
            tracing::debug!(%error, "a message was not queued");
        }
    }

    /// Ends the session after giving what is queued (a `Bye`) a moment to leave.
    pub(super) async fn close(self) {
        let Self { reader, queue, writer, peer: _ } = self;
        drop(queue);
        let abort = writer.abort_handle();
        if tokio::time::timeout(std::time::Duration::from_millis(50), writer).await.is_err() {
            abort.abort();
        }
        drop(reader);
    }

    /// Ends the session at once.
    pub(super) fn abort(self) {
        self.writer.abort();
    }
}

fn decode(frame: Frame) -> Result<(Generation, Message), SessionError> {
    let message = Message::decode(frame.kind, frame.epoch, frame.body)?;
    Ok((Generation(frame.generation), message))
}
