//! The backup's core: what comes in and what is to be done. The deciding is in [`transitions`].
//!
//! ```text
//!               Hello, Welcome           epoch 1 committed         epoch n committed
//!   Listening ─────────────────► Syncing ─────────────────► Standby ◄───────┐
//!       ▲ ▲                         │                        │ │  └─────────┘
//!       │ │◄────────────────────────┘                        │ │ primary lost: close the link, discard, ask;
//!       │ │  primary lost: Reset, never a claim              │ │ promotion wanted: discard, ask
//!       │ │◄─────────────────────────────────────────────────┘ ▼
//!       │    guest stopped, other generation: Reset         Claiming ──┐ no answer: ask again
//!       │                                                    │  │ ▲    │
//!       └────────────────────────────────────────────────────┘  │ └────┘
//!                            refused: Reset                     └──────────► Promoted
//!                                                                 granted
//! ```
//!
//! | what happens in Standby | then |
//! | --- | --- |
//! | the link is closed or reset | the primary's process is dead: claim at once |
//! | a malformed frame, a protocol violation | the link is cut; the primary likely lives and will claim itself: claim only after silence on every path |
//! | silence on link and heartbeats for the timeout | claim |
//! | silence on the link only | wait: the primary gets no acks, it decides |
//! | promotion is asked for | claim with the link open, so that the primary does not claim too; acknowledge nothing more, and tell it when granted |
//!
//! An epoch that is whole is acked at once and committed at the next call of `handle`, which
//! `next_wakeup` asks for without delay: the ack does not wait for the pages to be copied. Whatever
//! comes in, a whole epoch is committed before it is looked at; a tick copies no more than a slice,
//! so that signs of life go on while a huge epoch is copied.
//!
//! An epoch that wrote to disks is acked, and committed to memory, only once those writes are in
//! the journal. What happens meanwhile waits for that: if it succeeds the epoch is committed,
//! although it may not be acked any more, otherwise it is discarded. So memory and disks are of one
//! epoch whatever comes.

pub mod transitions;

pub use transitions::{BackupCore, BackupIdentity, BackupPhase};

use bytes::Bytes;

use super::disk::DiskSyncPlan;
use super::message::Message;
use crate::arbiter::Verdict;
use crate::ids::{EpochId, Generation};

/// What happens to the backup.
///
/// After [`BackupEffect::CloseLink`], [`BackupInput::LinkClosed`] or [`BackupInput::LinkBroken`],
/// no message of that link may come in any more.
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
    /// A heartbeat of a side that runs the guest came on the separate path. Those of other backups
    /// must not come in: they would keep a dead primary alive.
    HeartbeatHeard {
        /// The sender's generation.
        generation: Generation,
    },
    /// What [`BackupEffect::Persist`] asked for has been done, or cannot be.
    Persisted {
        /// Of the effect. Tickets of what has been given up meanwhile mean nothing.
        ticket: u64,
        /// Why it cannot be done.
        outcome: Result<(), String>,
    },
    /// All through this epoch of this session is on the images for good.
    DisksDurable {
        /// The epoch.
        epoch: EpochId,
    },
    /// A disk cannot be written: there can be no copy here any more.
    DisksFailed {
        /// Why.
        error: String,
    },
    /// This side has stopped reading the link for a while, as its disks take no more: silence says
    /// nothing.
    NotReading,
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
    /// Welcome the primary, with this side's disks as they are now.
    Welcome {
        /// This side's name.
        node: String,
    },
    /// Disks are going to be copied as planned, one plan for each: mark them as unfinished.
    BeginCopy(Vec<DiskSyncPlan>),
    /// Write this good batch to the images: a part of the copy.
    SyncDisk(Bytes),
    /// Write an epoch's disk writes to the journal, for good if `flush`, and report `Persisted`.
    /// They must not get to the images before that was reported.
    Persist {
        /// For the report.
        ticket: u64,
        /// The epoch.
        epoch: EpochId,
        /// Batches of disk writes, in order.
        batches: Vec<Bytes>,
        /// Whether it must survive a loss of power.
        flush: bool,
        /// What the primary wrote to shared disks itself, so that it need not be kept.
        written_through: EpochId,
    },
    /// Close the link; a `Bye` or `Refuse` just before still goes out.
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
    /// The state is of no use any more (another side owns the guest, or the guest stopped): forget
    /// it, make memory zero, wait for a new primary.
    Reset {
        /// Why.
        reason: String,
    },
}
