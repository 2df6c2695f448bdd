//! What a peer must not do. A violation ends the link, never the process.

use super::epoch::staging::StagingError;
use super::message::MessageError;
use crate::ids::{EpochId, Generation};

/// How a peer broke the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolViolation {
    /// A message that has no place in this phase.
    #[error("{message} has no place while {phase}")]
    Unexpected {
        /// The message's name.
        message: &'static str,
        /// The receiver's phase.
        phase: &'static str,
    },
    /// An acknowledgement of something else than the epoch in flight.
    #[error("acknowledgement of {acked}, in flight is {in_flight:?}")]
    Ack {
        /// The epoch acknowledged.
        acked: EpochId,
        /// The epoch in flight.
        in_flight: Option<EpochId>,
    },
    /// More is said to be durable than was acknowledged, or less than before.
    #[error("{durable} is said to be durable, acknowledged is {acked}, durable was {before}")]
    Durable {
        /// The epoch acknowledged.
        acked: EpochId,
        /// The epoch said to be durable.
        durable: EpochId,
        /// The one said to be durable before.
        before: EpochId,
    },
    /// Something about disks that does not fit the disks there are.
    #[error("disks: {0}")]
    Disks(String),
    /// A message of a later generation than the session's.
    #[error("message of {found} in a session of {session}")]
    LaterGeneration {
        /// The message's.
        found: Generation,
        /// The session's.
        session: Generation,
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
    /// Bytes that are no message.
    #[error(transparent)]
    Message(#[from] MessageError),
}
