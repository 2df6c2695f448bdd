//! The backup's core: its inputs and effects. [`transitions`] has the decisions.
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
//!             refused, a later one is in force: Reset           └──────────► Promoted
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
//! | the primary hands the guest over, for whatever reason | the same |
//! | a trial of the state fails | the link is cut: claim only after much longer silence on every path; a claim that waits is withdrawn, unless the primary's machine has broken |
//! | the guest stops while a claim waits that was not made yet | withdraw it: Reset |
//! | the primary says that a later generation is in force | claim: the arbiter knows whether that is so |
//! | this side is to stop | end at once; but a claim that may have been granted is waited for, and if it was, this side goes on |
//! | a primary of a later generation introduces itself | ask the arbiter first: the copy is given up only if that is the generation in force |
//!
//! Whoever is welcomed shows first that it is the primary of this arbiter: it writes a mark with the
//! session's number, and this side must find it in the record. Before that, nothing of it is taken,
//! and it has little time. So a stranger that speaks the whole protocol overwrites neither memory
//! nor images, and one that has recorded a session cannot play it again (R10).
//!
//! A side that is to start the guest may ask what this one has of it, and is told. While this side
//! has no copy and serves nobody, it looks now and then whether it is to start the guest itself, and
//! asks the other side: see [`start`](super::start).
//!
//! Nobody is welcomed, and no copy is given up, because of what a peer says about generations (R10).
//! Before a welcome, and for each mark that the primary says it has written, this side looks into
//! its own arbiter's record. So both sides know within seconds whether they see the same record and
//! whether a takeover would be granted (R9). A claim names the last mark: an arbiter whose record
//! does not show it gives no answer.
//!
//! A whole epoch is acked at once and committed at the next call of `handle`, which `next_wakeup`
//! requests without delay. So the ack does not wait for the pages to be copied. Whatever comes in,
//! a whole epoch is committed before the input is looked at. A tick copies no more than a slice, so
//! that heartbeats go on while a huge epoch is copied.
//!
//! The first epoch is acked, and committed, only once this side's machine has loaded its state on
//! trial. Later ones are tried now and then. If one cannot be loaded, the primary is told and goes on
//! alone; the copy is kept until the arbiter names another side. A trial has the machine that would
//! take over, so while one is open, a claim waits and no other copy begins.
//!
//! If the guest flushed in an epoch, the journal is made durable once that is acked, and the primary is
//! told. Further epochs are taken meanwhile, and a promotion does not wait for it: it makes the journal
//! durable itself. One flush is under way at a time, and the next one covers all that came meanwhile.
//!
//! An epoch that wrote to disks is acked, and committed to memory, only once those writes are in
//! the journal. A claim in the meantime waits for that. If the journal write succeeds, the epoch is
//! committed, although it may no longer be acked; otherwise it is discarded. So memory and disks
//! are always of the same epoch.

pub mod transitions;

pub use transitions::{BackupCore, BackupIdentity, BackupPhase};

use bytes::Bytes;

use super::disk::DiskSyncPlan;
use super::message::{Holdings, Message, Trouble};
use crate::arbiter::{Mark, Record, Verdict};
use crate::ids::{EpochId, Generation};
use crate::output::Arrivals;

/// What happens to the backup.
///
/// After [`BackupEffect::CloseLink`], [`BackupInput::LinkClosed`] or [`BackupInput::LinkBroken`],
/// no more messages of that link may come in.
#[derive(Debug, Clone, PartialEq)]
pub enum BackupInput {
    /// A primary connected.
    LinkUp {
        /// This side's part of the number of the session that may follow: random.
        session: u64,
    },
    /// A message came over the link.
    Received {
        /// The sender's generation, from the frame header.
        generation: Generation,
        /// The message.
        message: Message,
    },
    /// The peer closed or reset the link: its process is likely dead.
    LinkClosed,
    /// A malformed frame broke the link. It says nothing about whether the primary lives.
    LinkBroken {
        /// The error.
        cause: String,
    },
    /// A heartbeat of a side that runs the guest came on the separate path. Heartbeats of other
    /// backups must not come in: they would keep a dead primary alive. Outside the present session
    /// it means nothing.
    HeartbeatHeard {
        /// The session that the sender says it belongs to.
        session: u64,
        /// The sender's generation.
        generation: Generation,
    },
    /// What [`BackupEffect::Persist`] asked for has been done, or cannot be done.
    Persisted {
        /// The effect's ticket. Tickets of effects that were given up meanwhile are ignored.
        ticket: u64,
        /// Why it cannot be done.
        outcome: Result<(), String>,
    },
    /// What [`BackupEffect::FlushJournal`] asked for has been done, or cannot be done.
    Flushed {
        /// The effect's ticket. Tickets of effects that were given up meanwhile are ignored.
        ticket: u64,
        /// Why it cannot be done.
        outcome: Result<(), String>,
    },
    /// What [`BackupEffect::TryRestore`] asked for has been done.
    RestoreTried {
        /// The effect's ticket. Tickets of trials that mean nothing any more are ignored.
        ticket: u64,
        /// Why the state cannot be loaded.
        outcome: Result<(), String>,
    },
    /// Everything through this epoch of this session is durable on the images.
    DisksDurable {
        /// The epoch.
        epoch: EpochId,
    },
    /// The next checks of this session are done: whether each found a difference.
    Compared(Vec<bool>),
    /// A disk cannot be written, so this side cannot keep a copy any more.
    DisksFailed {
        /// Why.
        error: String,
    },
    /// This side has stopped reading the link for a while, because its disks take no more. Silence
    /// says nothing then.
    NotReading,
    /// All that fails on this host of what the guest would need here, as far as the VMM knows.
    Health(Vec<Trouble>),
    /// The operator wants this side promoted now.
    PromotionWanted,
    /// The operator wants this side to end. While the arbiter may have granted the guest to this
    /// side, it waits for the answer, as nobody else could run the guest then. Asked again, it ends
    /// at once.
    StopWanted,
    /// The guest of [`BackupEffect::Promote`] runs here.
    Runs,
    /// The arbiter's answer to [`BackupEffect::Claim`].
    Verdict(Verdict),
    /// The arbiter's record, as [`BackupEffect::Rehearse`] found it. It could also be written.
    Rehearsed(Record),
    /// The arbiter's record, as [`BackupEffect::Look`] found it.
    Looked {
        /// The record.
        record: Record,
        /// Whether a process that may hold a generation is known to live.
        holder_lives: bool,
    },
    /// What came of [`BackupEffect::Inquire`].
    Inquired {
        /// What the other side has of the guest, or why it cannot be asked.
        theirs: Result<Holdings, String>,
        /// Whether this side's disks could be run, or why not.
        disks: Result<(), String>,
    },
    /// The arbiter could not be asked, or its record is older than what this side knows.
    ArbiterUnavailable {
        /// Why.
        why: String,
    },
    /// Time passed. Look at the timers.
    Tick,
}

/// What the backup's runtime must do, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum BackupEffect {
    /// Send a message over the link.
    Send(Message),
    /// Welcome the primary: say who this side is, and what its disks have now.
    Welcome {
        /// This side's part of the session's number.
        session: u64,
    },
    /// The disks will be copied as planned, one plan for each. Mark them as unfinished.
    BeginCopy(Vec<DiskSyncPlan>),
    /// Write this valid batch, a part of the copy, to the images. Report the checks in it by
    /// `Compared`.
    SyncDisk(Bytes),
    /// Write an epoch's disk writes to the journal, and report `Persisted`. They must not reach the images before that report. Report the checks among them by
    /// `Compared`, once everything before them is on the images.
    Persist {
        /// The ticket for the report.
        ticket: u64,
        /// The epoch.
        epoch: EpochId,
        /// Batches of disk writes, in order.
        batches: Vec<Bytes>,
        /// The epoch through which the primary itself wrote to shared disks: those writes need not
        /// be kept.
        written_through: EpochId,
    },
    /// Make the journal durable through this epoch, which was persisted, while others may be persisted,
    /// and report `Flushed`. Emitted only while no other one is under way.
    FlushJournal {
        /// The ticket for the report.
        ticket: u64,
        /// The epoch.
        epoch: EpochId,
    },
    /// Load this state into the machine on trial, undo that, and report `RestoreTried`. Memory is
    /// not that of the state yet. Nobody outside may notice anything. Emitted only while no other
    /// trial is open.
    TryRestore {
        /// The ticket for the report.
        ticket: u64,
        /// As [`PausedMachine::save`](crate::ports::PausedMachine::save) wrote it.
        state: Bytes,
    },
    /// Close the link. A `Bye`, `Refuse` or `Holdings` just before it still goes out.
    CloseLink,
    /// A staged epoch was committed to memory. The core has its state and output.
    Committed(EpochId),
    /// An incomplete or corrupt epoch was discarded as a whole.
    Discarded {
        /// The epoch.
        epoch: EpochId,
        /// Why.
        why: String,
    },
    /// Ask the arbiter for the generation after this one.
    Claim {
        /// The generation of the session.
        known: Generation,
        /// What the primary said that it wrote to the record last.
        mark: Mark,
    },
    /// The primary is lost or lets the guest go, and this side cannot ask for it yet. It does as soon
    /// as it can. A person should know.
    ClaimWaits {
        /// What for.
        why: String,
    },
    /// The copy's state could not be loaded on trial. The copy is kept, in case that the primary is
    /// gone. A person should know.
    Doubtful {
        /// Why.
        why: String,
    },
    /// Read the arbiter's record, and make sure that a claim could be granted.
    Rehearse,
    /// Read the arbiter's record, and look whether a holder lives.
    Look,
    /// Ask the other side what it has of the guest, which nobody runs, and look whether this side's
    /// disks could be run.
    Inquire,
    /// This side cannot start the guest, which nobody runs. It tries again.
    CannotStart {
        /// Why.
        why: String,
    },
    /// This side is to start the guest, of which nobody has a copy: [`Claim::Restart`].
    ///
    /// [`Claim::Restart`]: crate::arbiter::Claim::Restart
    StartGuest {
        /// The generation in force.
        known: Generation,
    },
    /// Whether this side's takeover would be granted now. Emitted when that has changed.
    Takeover(Result<(), String>),
    /// This side now owns the guest: restore the committed state, announce, run, report `Runs`. If something
    /// follows the guest, the link stays open until then.
    Promote {
        /// The generation granted.
        generation: Generation,
        /// The epoch the guest continues from.
        epoch: EpochId,
        /// Why this side takes over.
        cause: String,
        /// Because the primary's machine has broken. If this one soon breaks, too, it is the guest.
        machine_broke: bool,
        /// What the guest was given on the primary's host after this epoch, if it was handed over: its devices are
        /// to have it first. If the link is still open, more of it may come.
        arrivals: Option<Arrivals>,
    },
    /// This side ends.
    Stop,
    /// The state is useless (for example, another side owns the guest, or the guest stopped):
    /// forget it, zero the memory, wait for a new primary.
    Reset {
        /// Why.
        reason: String,
    },
}
