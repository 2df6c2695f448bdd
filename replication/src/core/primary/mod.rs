//! The primary's core: its inputs and effects. [`transitions`] has the decisions, [`epochs`] the
//! rhythm of epochs.
//!
//! ```text
//!            LinkUp       Welcome, marked, seen       synced: Capture(1)         ack 1, 2, 3 …
//!   Alone ───────────► Handshaking ──────► Syncing ─────────────────► Protected ◄────┐
//!     ▲                     │                 │  ▲                      │  │  └──────┘
//!     │◄────────────────────┴─────────────────┘  └──────────────────────┘  │ backup lost: hold, ask
//!     │      backup lost: same generation           capture of epoch 1     ▼
//!     │                                             failed             Claiming ──┐ no answer:
//!     └────────────────────────────────────────────────────────────────────┘ ▲    │ ask again
//!                     granted: GoAlone under the next generation             └────┘
//!
//!   any but Stopped ── the arbiter refuses ─────────────────────────────────────────────► Fenced
//!   any but Fenced ─── the guest stopped, and what it said last has left ───────────────► Stopped
//! ```
//!
//! | phase | output | losing the backup |
//! | --- | --- | --- |
//! | Alone, Handshaking, Syncing | flows: nothing was ever committed elsewhere | back to Alone, same generation |
//! | Protected | held; released epoch by epoch as acks come (R1) | a grant is needed, as the end of epoch 1 may have left |
//! | Claiming | held | – |
//! | Fenced, Stopped | dropped | – |
//!
//! A guest's flush is done once both hosts hold durably what was written before it. No output waits
//! for that: the guest is told of the flush only then, so what it says of it belongs to a later epoch.
//! The backup flushes while this side does. When this side goes alone, only its own part counts.
//!
//! If there are shared disks, an acked epoch's writes to them go first, then its other output. The
//! next epoch does not end before both are done, because the backup repeats those of one epoch
//! only.
//!
//! A backup that is dismissed while Protected keeps its link until the next generation is granted.
//! Then it is told that it is fenced. This side goes to Alone through Claiming, where the same
//! claim is granted again.
//!
//! A guest whose machine has broken is captured no more. Once what is on its way is released, the
//! backup is told to claim it. This side is then Fenced; or, without the backup, Stopped, so that
//! the guest is left to it. It never asks for the guest itself: a claim that is about to be made, or
//! repeated, is withdrawn, and so is a dismissal. One that the arbiter has before it is waited for.
//! If that is granted, or if the backup says that it stops, the guest is over.
//!
//! A guest that is to be handed over stays Protected for one more epoch. Then the backup is told to
//! claim it, and nothing ends or leaves here any more. This side is Fenced, or goes on by the way of
//! Claiming.
//!
//! After the guest's end, Protected goes on until its last epoch is released, and Claiming until
//! the arbiter has answered and everything held has left. If told to end at once, this side drops
//! what is held.
//!
//! While Protected, a jump of time (this process was stalled), a message after long silence on the
//! link (the link was stalled), or a later generation in a heartbeat of this session raises a
//! doubt. Acks are then remembered, but nothing is released and no epoch ends until the arbiter has
//! confirmed the generation. What a peer says about generations has no other effect (R10): a link
//! that carries a later one is given up like any broken link, and the arbiter decides.
//!
//! This side confirms its generation every few seconds in any case. In a session it writes a mark
//! to the arbiter's record each time, and tells the backup, which looks for it in its own arbiter's
//! record (R9). The first mark is written, and the backup has found it, before anything is copied.

pub mod epochs;
pub mod transitions;

use std::time::Duration;

use super::disk::PeerDisk;
use super::message::Message;
use super::throttle::RunShare;
use crate::arbiter::{Mark, Verdict};
use crate::ids::{EpochId, Generation};

pub use transitions::{EndingAwaits, PrimaryCore, PrimaryPhase};

/// How a guest stood still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pause {
    /// For how long.
    pub took: Duration,
    /// It had nothing to do anyway.
    pub idle: bool,
}

/// What happens to the primary.
///
/// After [`PrimaryEffect::CloseLink`] or `LinkDown`, nothing of that link may come in any more:
/// neither messages nor reports about its captures and rounds.
#[derive(Debug, Clone, PartialEq)]
pub enum PrimaryInput {
    /// A new link to a backup is up.
    LinkUp {
        /// This side's part of the session's number: random, not 0.
        session: u64,
    },
    /// A message came over the link.
    Received {
        /// The sender's generation, from the frame header.
        generation: Generation,
        /// The message.
        message: Message,
    },
    /// The link is gone: closed, reset, or broken by a malformed frame.
    LinkDown {
        /// Why, for people.
        cause: String,
    },
    /// The guest is to go on without this backup, which lives. While Protected this needs a grant,
    /// as the loss of the backup does. But the link stays up until then, so that the backup does
    /// not claim the guest itself.
    BackupDismissed {
        /// Why, for people.
        cause: String,
    },
    /// A heartbeat came on the separate path. In the present session it is a sign of life, or a
    /// reason to doubt the generation; otherwise it means nothing.
    HeartbeatHeard {
        /// The session that the sender says it belongs to.
        session: u64,
        /// The sender's generation.
        generation: Generation,
    },
    /// A pre-copy round has been shipped.
    SyncRoundShipped {
        /// Pages dirtied meanwhile and not shipped yet.
        pages_left: u64,
        /// Bytes of disks still to be copied. Memory comes after the disks, so rounds before that
        /// do not count.
        disk_bytes_left: u64,
        /// How long shipping those pages would take, as far as the last round tells.
        left_takes: Duration,
    },
    /// The epoch's pages, state and output are captured and sealed, and the guest runs again.
    Captured {
        /// The epoch.
        epoch: EpochId,
        /// The pause.
        pause: Pause,
    },
    /// The capture failed, and nothing of the epoch was shipped. Its dirty bits were given back.
    /// Its output is still held and will be sealed under the next attempt.
    CaptureFailed {
        /// The epoch.
        epoch: EpochId,
        /// Why.
        error: String,
    },
    /// The last message of the epoch has been handed to the link.
    Shipped {
        /// The epoch.
        epoch: EpochId,
        /// What it needed on the wire, without the machine's state.
        bytes: u64,
    },
    /// Everything that [`PrimaryEffect::WriteDisks`] released has been written.
    DisksWritten {
        /// The epoch.
        epoch: EpochId,
    },
    /// What the backup said about its disks, in a message that was passed on to them, cannot be so.
    DisksMisreported {
        /// Why not.
        what: String,
    },
    /// The guest is to go on at the backup, which lives. See [`PrimaryEffect::NotHandedOver`].
    HandOver {
        /// Why, for people.
        why: String,
    },
    /// Something of this host failed: the machine can neither go on nor be captured any more. If the
    /// backup may have a whole copy, the guest goes on there, from the last epoch that it has. See
    /// [`PrimaryEffect::NotHandedOver`] and [`PrimaryEffect::LeftToBackup`].
    MachineBroke {
        /// What failed, for people.
        why: String,
    },
    /// The gate holds output that is not sealed yet, or a flush of the guest waits for the backup
    /// whose epoch has not ended. To be said when that begins, and after [`PrimaryInput::Captured`]
    /// if it is so already.
    OutputWaiting,
    /// End the epoch as soon as possible: the gate, the dirty-page pool or the log of disk writes
    /// is nearly full, or a checkpoint was requested.
    CheckpointWanted,
    /// The arbiter's answer to [`PrimaryEffect::Claim`] or [`PrimaryEffect::Confirm`].
    Verdict(Verdict),
    /// The arbiter could not be asked, or its record is older than what this side knows.
    ArbiterUnavailable {
        /// Why.
        why: String,
    },
    /// Everything that [`PrimaryEffect::GoAlone`] released has left.
    Opened,
    /// The guest ended, or is to end. Its last output leaves by the usual rules, then this side is
    /// [`Stopped`](PrimaryPhase::Stopped).
    GuestStopped,
    /// This side is to end at once: what is held is dropped.
    Abandoned,
    /// Time passed. Look at the timers.
    Tick,
}

impl PrimaryInput {
    /// Whether this says that the backup has an epoch.
    #[must_use]
    pub fn is_ack(&self) -> bool {
        let Self::Received { message, .. } = self else {
            return false;
        };
        matches!(message, Message::Ack { .. })
    }
}

/// What the primary's runtime must do, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum PrimaryEffect {
    /// Send a message over the link.
    Send(Message),
    /// Ship what the backup's disks lack, or, without disks to copy, start dirty tracking and ship
    /// all of memory. Then report `SyncRoundShipped`.
    StartSync {
        /// The backup's disks, as it describes them.
        disks: Vec<PeerDisk>,
    },
    /// Ship more of the disks; once they are copied, start dirty tracking and ship all of memory;
    /// from then on, ship what was dirtied since the last round. Then report `SyncRoundShipped`.
    SyncRound,
    /// Pause, capture, hold output from now on, seal, resume, ship. Report `Captured` and
    /// `Shipped`.
    Capture(EpochId),
    /// Let writes to shared disks through this epoch go, then report `DisksWritten`. Emitted only
    /// for acked epochs (R1), and only if there are shared disks.
    WriteDisks(EpochId),
    /// Everything through this epoch is durable on the backup's images.
    Durable(EpochId),
    /// The backup's host holds the disk writes of all epochs through this one durably: as far as it
    /// is concerned, the guest's flushes in them are done. Emitted only for epochs that it has
    /// acknowledged.
    Flushed(EpochId),
    /// The backup has done the next checks of its disks: whether each found a difference. If there
    /// are not so many, report `DisksMisreported`.
    Compared(Vec<bool>),
    /// Let output through this epoch leave. Emitted only for acked epochs (R1).
    Release(EpochId),
    /// Send the backup a `TakeOver`, with how much has left that was released.
    TakeOver {
        /// The reason, for people.
        why: String,
        /// Something of this side's host failed, and its machine is of no more use.
        machine_broke: bool,
    },
    /// From the end of the running epoch on, keep copies of what the guest is given.
    KeepArrivals,
    /// Send the backup what the guest was given since, and what it is given from now on, for as long as the
    /// link is up.
    SendArrivals,
    /// Close the link to the backup. Drop what is still queued for it, except a `Bye` or `TakeOver` just before.
    CloseLink,
    /// Let the guest's vCPUs run for this part of the time from now on.
    Throttle(RunShare),
    /// Ask the arbiter for the generation after this one.
    Claim {
        /// The generation held.
        known: Generation,
        /// What this side wrote to the record last.
        mark: Mark,
    },
    /// Ask the arbiter whether this generation is still in force and this side its holder, and if
    /// so, write the mark. The answer is a verdict.
    Confirm {
        /// The generation held.
        generation: Generation,
        /// The record must show that this side has written so many marks in this generation, at
        /// least. One that shows fewer is outdated: no answer.
        beat: u64,
        /// `None` if there is no session, or nothing may be written.
        mark: Option<Mark>,
    },
    /// Whether the backup's takeover would be granted now. Emitted when that has changed.
    Takeover(Result<(), String>),
    /// Run alone: open the gate, stop dirty tracking, raise an alarm, look for a new backup. Report
    /// `Opened` when everything that was held has left.
    GoAlone {
        /// The generation to run under: the one just granted, or the one held before if the backup
        /// was lost before epoch 1 could be complete.
        generation: Generation,
        /// Why this side runs alone.
        cause: String,
    },
    /// The guest could not be handed over, and stays here. If its machine has broken, it is over.
    NotHandedOver {
        /// Why, for people.
        why: String,
    },
    /// The machine has broken, and the backup is to go on with the guest: shut the gate, stop the
    /// guest, end, and say nothing. This side does not know whether the backup does.
    LeftToBackup {
        /// Why, for people.
        why: String,
    },
    /// Another side owns the guest: shut the gate, stop the guest, end with this reason.
    Fenced {
        /// For people: the generation in force, this side's generation, and how it was learnt.
        reason: String,
        /// This side had let the other one have it.
        handed_over: bool,
    },
}
