//! The backup's state machine.

use super::message::Message;
use crate::arbiter::Verdict;
use crate::ids::{EpochId, Generation};

/// What happens to the backup.
#[derive(Debug, Clone, PartialEq)]
pub enum BackupInput {
    /// A primary connected.
    LinkUp,
    /// A message came over the link.
    Received {
        /// The sender's generation, from the frame header.
        generation: Generation,
        /// The message.
        message: Message,
    },
    /// The peer closed or reset the link: its process is likely dead.
    LinkClosed,
    /// The link was broken by a malformed frame, which says nothing about the primary's life.
    LinkBroken {
        /// The error.
        cause: String,
    },
    /// A heartbeat came on the separate path.
    HeartbeatHeard {
        /// The sender's generation.
        generation: Generation,
    },
    /// The operator wants this side promoted now.
    PromotionWanted,
    /// The arbiter's answer.
    Verdict(Verdict),
    /// The arbiter could not be asked.
    ArbiterUnavailable,
    /// Time passed; look at the timers.
    Tick,
}

/// What the backup's runtime must do, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum BackupEffect {
    /// Send a message over the link.
    Send(Message),
    /// Close the link.
    CloseLink,
    /// A staged epoch was committed to memory; state and output are to be had from the core.
    Committed(EpochId),
    /// An incomplete or corrupt epoch was discarded whole.
    Discarded {
        /// The epoch.
        epoch: EpochId,
        /// Why.
        why: String,
    },
    /// Ask the arbiter for the generation after this one.
    Claim(Generation),
    /// This side owns the guest now: restore the committed state, announce, run.
    Promote {
        /// The generation granted.
        generation: Generation,
        /// The epoch the guest continues from.
        epoch: EpochId,
        /// Why the primary is lost.
        cause: String,
    },
    /// The state is of no use any more (another side owns the guest, or the guest stopped): forget it,
    /// make memory zero, wait for a new primary.
    Reset {
        /// Why.
        reason: String,
    },
}
