//! What the two sides say to each other over the logging channel.
//!
//! Every message travels in one transport frame, whose header carries the sender's generation and,
//! where it belongs to one, the epoch. This file has the words; [`wire`] turns them into bytes and
//! back, field by field as `docs/PROTOCOL.md` says. No decisions here: what a message means for a
//! side is in [`primary`](super::primary) and [`backup`](super::backup).

pub mod wire;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::disk::{DiskSyncPlan, PeerDisk};
use crate::fingerprint::{Difference, Fingerprint};
use crate::ids::{EpochId, Generation};
use crate::output::SealedOutput;
use crate::page_set::MemoryLayout;

pub use wire::MessageError;

/// One message. The order of a session is: `Hello`, `Welcome` or `Refuse`; then `SyncDisks` if
/// there are disks, `SyncDisk` and `SyncPages` while the guest runs; then for each epoch
/// `EpochPages`…, `EpochDisk`…, `EpochState`, `EpochOutput`, `EpochEnd`, answered by `Ack`.
/// `Heartbeat` comes at any time after `Welcome`; `Bye` last.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// Primary introduces itself and its machine.
    Hello(Hello),
    /// Backup accepts.
    Welcome(Welcome),
    /// Backup does not accept.
    Refuse(Refusal),
    /// Pages of the initial synchronisation; applied at once, as there is no committed state yet.
    SyncPages(Bytes),
    /// What is going to be copied of each disk; before anything else about disks.
    SyncDisks(Vec<DiskSyncPlan>),
    /// Writes to disks of the initial synchronisation; applied at once.
    SyncDisk(Bytes),
    /// Pages of an epoch, encoded by the page codec.
    EpochPages {
        /// The epoch.
        epoch: EpochId,
        /// A batch of the page codec.
        batch: Bytes,
    },
    /// What the guest wrote to its disks in an epoch, in order.
    EpochDisk {
        /// The epoch.
        epoch: EpochId,
        /// A batch of disk writes.
        batch: Bytes,
    },
    /// Machine state at the end of an epoch.
    EpochState {
        /// The epoch.
        epoch: EpochId,
        /// As [`PausedMachine::save`](crate::ports::PausedMachine::save) wrote it.
        state: Bytes,
    },
    /// The output sealed under an epoch (bounded), for repetition after a failover.
    EpochOutput {
        /// The epoch.
        epoch: EpochId,
        /// The output.
        output: SealedOutput,
    },
    /// An epoch is complete.
    EpochEnd {
        /// The epoch.
        epoch: EpochId,
        /// What it consisted of, to be verified.
        summary: EpochSummary,
    },
    /// Backup has the epoch whole and verified and can always commit it (step ⑧); its disk writes
    /// are in the backup's journal, for good if the epoch had a flush.
    Ack {
        /// The epoch.
        epoch: EpochId,
        /// The last epoch of this session whose disk writes are on the backup's images for good.
        durable: EpochId,
    },
    /// A sign of life.
    Heartbeat,
    /// The sender leaves on purpose.
    Bye(Bye),
}

/// The primary's introduction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Name of the virtual machine; both sides must be configured for the same.
    pub vm: String,
    /// The primary's name, for messages to people.
    pub node: String,
    /// The primary's machine.
    pub fingerprint: Fingerprint,
    /// The primary's guest memory.
    pub layout: MemoryLayout,
}

/// The backup's acceptance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// The backup's name, for messages to people.
    pub node: String,
    /// Its disks, in configuration order: which of their blocks need not be sent.
    pub disks: Vec<PeerDisk>,
}

/// The backup's refusal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Refusal {
    /// Configured for another virtual machine.
    OtherVm {
        /// The backup's.
        vm: String,
    },
    /// The machines differ.
    Differs(Vec<Difference>),
    /// The backup knows of a later generation.
    Stale {
        /// The one it knows.
        current: Generation,
    },
    /// The backup is protecting against another primary's failure, or has been promoted.
    Busy(String),
}

/// What an epoch consisted of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochSummary {
    /// Pages shipped.
    pub pages: u64,
    /// `EpochPages` messages shipped.
    pub batches: u32,
    /// `EpochDisk` messages shipped.
    pub disk_batches: u32,
    /// Whether the guest had a disk flushed in this epoch: it may be acknowledged only once its
    /// disk writes survive a loss of power.
    pub flush: bool,
    /// The last epoch whose writes to shared disks the primary has seen on their images for good.
    pub written_through: EpochId,
    /// CRC32 over the bodies of all the epoch's messages before `EpochEnd`, in order.
    pub digest: u32,
}

/// Why a side leaves on purpose.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Bye {
    /// The guest ended (powered off) or the operator stopped the primary: nothing to take over.
    GuestStopped,
    /// The backup goes away; the primary should look for another one.
    BackupStopped,
    /// The sender holds an older generation, or learnt that the other does.
    Fenced {
        /// The generation in force.
        current: Generation,
    },
    /// The sender could not accept what it received.
    Protocol(String),
    /// The backup cannot keep its copy any more, for the reason given: its disk is full, for
    /// example.
    Unable(String),
}

impl Message {
    /// The message's name, for people.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "Hello",
            Self::Welcome(_) => "Welcome",
            Self::Refuse(_) => "Refuse",
            Self::SyncPages(_) => "SyncPages",
            Self::SyncDisks(_) => "SyncDisks",
            Self::SyncDisk(_) => "SyncDisk",
            Self::EpochPages { .. } => "EpochPages",
            Self::EpochDisk { .. } => "EpochDisk",
            Self::EpochState { .. } => "EpochState",
            Self::EpochOutput { .. } => "EpochOutput",
            Self::EpochEnd { .. } => "EpochEnd",
            Self::Ack { .. } => "Ack",
            Self::Heartbeat => "Heartbeat",
            Self::Bye(_) => "Bye",
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OtherVm { vm } => write!(f, "the backup is configured for {vm:?}"),
            Self::Differs(differences) => {
                write!(f, "the machines differ")?;
                differences
                    .iter()
                    .try_for_each(|difference| write!(f, "; {difference}"))
            }
            Self::Stale { current } => write!(f, "the backup knows of {current}"),
            Self::Busy(why) => write!(f, "the backup is busy: {why}"),
        }
    }
}

impl std::fmt::Display for Bye {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::GuestStopped => write!(f, "the guest stopped"),
            Self::BackupStopped => write!(f, "the backup stopped"),
            Self::Fenced { current } => write!(f, "{current} is in force"),
            Self::Protocol(what) => write!(f, "the peer could not accept what it got: {what}"),
            Self::Unable(why) => write!(f, "the backup cannot keep its copy: {why}"),
        }
    }
}
