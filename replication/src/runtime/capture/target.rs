//! Where the capture thread ships to: the link of one session.

use understudy_transport::{Frame, LinkError, SendQueue};

use crate::core::epoch::assemble::MessageSink;
use crate::core::message::Message;
use crate::ids::Generation;

/// The link to ship to.
#[derive(Debug, Clone)]
pub(in crate::runtime) struct Target {
    /// Number of the session, for reports.
    pub(in crate::runtime) session: u64,
    pub(in crate::runtime) queue: SendQueue,
    pub(in crate::runtime) generation: Generation,
    /// The backup's name, for the arbiter.
    pub(in crate::runtime) backup: String,
}

impl MessageSink for Target {
    type Error = LinkError;

    /// Hands a message to the link, waiting while its queue is full (R5).
    fn put(&mut self, message: Message) -> Result<(), LinkError> {
        let (kind, epoch, body) = message.encode();
        self.queue.blocking_send(Frame {
            kind,
            generation: self.generation.0,
            epoch,
            body,
        })
    }
}
