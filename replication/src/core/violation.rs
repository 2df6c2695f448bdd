//! What a peer must not do. A violation ends the link, never the process.

use super::epoch::staging::StagingError;
use super::message::MessageError;
use crate::arbiter::Mark;
use crate::ids::{EpochId, Generation};

/// How a peer broke the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolViolation {
    /// A message that is not allowed in this phase.
    #[error("{message} has no place while {phase}")]
    Unexpected {
        /// The message's name.
        message: &'static str,
        /// The receiver's phase.
        phase: &'static str,
    },
    /// An acknowledgement of something other than the epoch in flight.
    #[error("acknowledgement of {acked}, in flight is {in_flight:?}")]
    Ack {
        /// The epoch acknowledged.
        acked: EpochId,
        /// The epoch in flight.
        in_flight: Option<EpochId>,
    },
    /// The peer says that more is durable than it has acknowledged, or less than it said before.
    #[error("{durable} is said to be durable, acknowledged is {acked}, durable was {before}")]
    Durable {
        /// The epoch acknowledged.
        acked: EpochId,
        /// The epoch said to be durable.
        durable: EpochId,
        /// The epoch said to be durable before.
        before: EpochId,
    },
    /// The peer says that an epoch is flushed that it has not acknowledged, or no more than it said before.
    #[error("{flushed} is said to be flushed, acknowledged is {acked}, flushed was {before}")]
    Flushed {
        /// The epoch said to be flushed.
        flushed: EpochId,
        /// The epoch acknowledged.
        acked: EpochId,
        /// The epoch said to be flushed before.
        before: EpochId,
    },
    /// A statement about disks that does not match the actual disks.
    #[error("disks: {0}")]
    Disks(String),
    /// A message of a later generation than that of the session.
    #[error("message of {found} in a session of {session}")]
    LaterGeneration {
        /// The message's generation.
        found: Generation,
        /// The session's generation.
        session: Generation,
    },
    /// A mark that nobody wrote in this session, or that is older than one before.
    #[error("{mark} is not of this session")]
    Mark {
        /// The mark.
        mark: Mark,
    },
    /// A primary that holds no generation.
    #[error("a primary without a generation")]
    NoGeneration,
    /// A second link while the first is in use.
    #[error("a second link while the first is in use")]
    SecondLink,
    /// An epoch that cannot be staged.
    #[error(transparent)]
    Staging(#[from] StagingError),
    /// Bytes that are not a message.
    #[error(transparent)]
    Message(#[from] MessageError),
}
