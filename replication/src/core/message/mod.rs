//! The messages between the two sides on the logging channel.
//!
//! Every message travels in one transport frame. The frame's header carries the sender's generation
//! and the epoch, if the message belongs to one. This file defines the messages. [`wire`] converts
//! them to bytes and back, field by field as in `docs/PROTOCOL.md`. Nothing is decided here:
//! [`primary`](super::primary) and [`backup`](super::backup) know what a message means for a side.

pub mod wire;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::disk::{DiskSyncPlan, PeerDisk};
use crate::arbiter::{ArbiterId, Mark};
use crate::fingerprint::{Difference, Fingerprint};
use crate::ids::{EpochId, Generation};
use crate::output::{NetworkFrame, SealedOutput};
use crate::page_set::MemoryLayout;
use crate::peer_words::{NAME_CHARS_MAX, REASON_CHARS_MAX, at_most, for_people};

pub use wire::MessageError;

/// Most disks that a `Welcome` or a `SyncDisks` may name.
pub const DISKS_MAX: usize = 1024;
/// Most troubles that a `Health` names. Of more, the last one says so: see [`Trouble::is_further`].
pub const TROUBLES_MAX: usize = 32;
/// The topic of that one.
const FURTHER: &str = "further";
/// Longest reason of a trouble, in characters.
const TROUBLE_CHARS_MAX: usize = 200;
/// Most checks that a `Compared` answers.
pub const ANSWERS_MAX: usize = 4096;

/// One message. The order in a session is: `Hello`, `Welcome` or `Refuse`; the first `Marked` and
/// its `Seen`; then `SyncDisks` if there are disks, `SyncDisk` and `SyncPages` while the guest runs;
/// then for each epoch
/// `EpochPages`…, `EpochDisk`…, `EpochState`, `EpochOutput`, `EpochEnd`, answered by `Ack`, and after
/// a flush by `Flushed` later. Checks among the disk writes are answered by `Compared`, some time later. `Heartbeat`, `Marked`,
/// answered by `Seen`, and `NoArbiter` come at any time after `Welcome`, `Health` once the backup has a
/// whole epoch, `TakeOver`, `Arrived` and `Bye` last. An
/// `Inquiry` and its answer are a session of their own.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// The primary introduces itself and its machine.
    Hello(Hello),
    /// The backup accepts the primary.
    Welcome(Welcome),
    /// The backup does not accept the primary.
    Refuse(Refusal),
    /// Pages of the initial synchronisation. They are applied at once, as there is no committed
    /// state yet.
    SyncPages(Bytes),
    /// What will be copied of each disk. Comes before anything else about disks.
    SyncDisks(Vec<DiskSyncPlan>),
    /// Disk writes of the initial synchronisation, applied at once.
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
    /// The output sealed under an epoch (bounded), to be sent again after a failover.
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
        /// What it consisted of, for verification.
        summary: EpochSummary,
    },
    /// The backup has verified the whole epoch and can always commit it (step ⑧). Its disk writes
    /// are in the backup's journal.
    Ack {
        /// The epoch.
        epoch: EpochId,
        /// The last epoch of this session whose disk writes are durable on the backup's images.
        durable: EpochId,
    },
    /// The backup's journal holds all disk writes of an acknowledged epoch, and of those before it,
    /// durably. Said of epochs in which the guest flushed; one for several is enough.
    Flushed(EpochId),
    /// The backup has done the next checks, in the order in which they came: whether each found
    /// other content than the primary's. At most [`ANSWERS_MAX`].
    Compared(Vec<bool>),
    /// A sign of life.
    Heartbeat,
    /// The primary has written this mark to the arbiter's record.
    Marked(Mark),
    /// The backup has seen that mark, or a later one, in its arbiter's record, and could claim the
    /// guest there.
    Seen(Mark),
    /// The sender's arbiter does not do its part, for the given reason: a takeover would not be
    /// granted now.
    NoArbiter(String),
    /// All that fails on the backup's host of what the guest would need there. What is not named
    /// works. At most [`TROUBLES_MAX`].
    Health(Vec<Trouble>),
    /// The primary hands the guest over: the backup is to claim it. From here on the primary lets
    /// nothing leave.
    TakeOver {
        /// The reason, for people.
        why: String,
        /// Something of the primary's host failed, and its machine is of no more use. If the same
        /// soon happens here, it was the guest.
        machine_broke: bool,
        /// The frames of all epochs up to this one have left, and the network took each: they need not be repeated.
        left_through: EpochId,
    },
    /// What the guest was given on the primary's host after its last epoch, in order: it is to be given to it
    /// again. Comes after `TakeOver`, perhaps several times.
    Arrived(Vec<NetworkFrame>),
    /// The sender leaves on purpose.
    Bye(Bye),
    /// A side that is about to start the guest asks what the receiver has of it. Comes in place of
    /// `Hello`, and is answered by `Holdings` or `Refuse`.
    Inquiry(Inquiry),
    /// What the sender has of the guest.
    Holdings(Holdings),
}

/// Who asks what there is of a guest that it is to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inquiry {
    /// Name of the virtual machine.
    pub vm: String,
    /// The asking side's name. It has no copy of the guest in memory.
    pub node: String,
    /// The asking side's arbiter.
    pub arbiter: ArbiterId,
}

/// What a side has of a guest that runs nowhere, as far as the one who asks knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holdings {
    /// This side's name.
    pub node: String,
    /// What tells its host from others of that name.
    pub host: Option<String>,
    /// The generation and the epoch of its copy, if it has one that can take over.
    pub copy: Option<(Generation, EpochId)>,
}

/// The primary's introduction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Name of the virtual machine. Both sides must be configured with the same one.
    pub vm: String,
    /// The primary's name, for people.
    pub node: String,
    /// The primary's machine.
    pub fingerprint: Fingerprint,
    /// The primary's guest memory.
    pub layout: MemoryLayout,
    /// The primary's arbiter. Both sides must ask the same one.
    pub arbiter: ArbiterId,
    /// The primary's part of the [session's number](session_number): random, not 0.
    pub session: u64,
}

/// The number of a session, not 0, from the parts of the `Hello` and the `Welcome`. Heartbeats and
/// [marks](Mark) carry it, so that those of other sessions, and those of strangers, count for
/// nothing. Neither side can choose it, so what was recorded of one session fits no other one.
#[must_use]
pub fn session_number(primary: u64, backup: u64) -> u64 {
    (primary ^ backup).max(1)
}

/// The backup's acceptance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// The backup's name, for people.
    pub node: String,
    /// What tells its host from others of that name.
    pub host: Option<String>,
    /// The backup's part of the [session's number](session_number): random.
    pub session: u64,
    /// Its disks, in configuration order, with the blocks that need not be sent.
    #[serde(deserialize_with = "at_most::<DISKS_MAX, _, _>")]
    pub disks: Vec<PeerDisk>,
}

/// The backup's refusal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Refusal {
    /// The backup is configured for another virtual machine.
    OtherVm {
        /// The backup's virtual machine.
        vm: String,
    },
    /// The machines differ.
    Differs(Vec<Difference>),
    /// The backup knows of a later generation.
    Stale {
        /// The generation it knows.
        current: Generation,
    },
    /// The backup serves another primary, or holds a committed epoch of this generation.
    Busy(String),
    /// The backup asks another arbiter, or its arbiter does not know of the primary's generation.
    OtherArbiter {
        /// The backup's arbiter.
        arbiter: ArbiterId,
        /// The generation in force there, as far as the backup knows.
        current: Generation,
    },
    /// The backup's arbiter cannot be asked, or its record is not the one that the primary writes to, so
    /// nobody could take over.
    NoArbiter(String),
}

/// Something that fails on a host of what the guest needs there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// What fails. Both hosts call it the same.
    pub topic: String,
    /// In plain words.
    pub why: String,
}

impl Trouble {
    /// Cuts both texts to what fits into a message, and makes them fit to be shown.
    #[must_use]
    pub fn new(topic: &str, why: &str) -> Self {
        Self {
            topic: for_people(topic, NAME_CHARS_MAX),
            why: for_people(why, TROUBLE_CHARS_MAX),
        }
    }

    /// As many as a message holds: what does not fit is said to be left out.
    #[must_use]
    pub fn bounded(mut all: Vec<Self>) -> Vec<Self> {
        if all.len() > TROUBLES_MAX {
            let left_out = all.len() - (TROUBLES_MAX - 1);
            all.truncate(TROUBLES_MAX - 1);
            let why = format!("{left_out} further troubles, which are not named");
            all.push(Self::new(FURTHER, &why));
        }
        all
    }

    /// Whether it stands for others that are not named: what is not named may not work then.
    #[must_use]
    pub fn is_further(&self) -> bool {
        self.topic == FURTHER
    }
}

/// What an epoch consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochSummary {
    /// Pages shipped.
    pub pages: u64,
    /// `EpochPages` messages shipped.
    pub batches: u32,
    /// `EpochDisk` messages shipped.
    pub disk_batches: u32,
    /// Whether the guest flushed a disk in this epoch. If so, it waits until the backup has said
    /// that its disk writes survive a loss of power.
    pub flush: bool,
    /// The last epoch whose writes to shared disks the primary knows to be durable on their images.
    pub written_through: EpochId,
    /// CRC32 over the bodies of all the epoch's messages before `EpochEnd`, in order.
    pub digest: u32,
}

/// Why a side leaves on purpose.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Bye {
    /// The guest ended (powered off) or the operator stopped the primary. There is nothing to take
    /// over.
    GuestStopped,
    /// The backup goes away. The primary should look for another one.
    BackupStopped,
    /// The sender or the receiver holds a generation older than `current`.
    Fenced {
        /// The generation in force.
        current: Generation,
    },
    /// The sender could not accept what it received.
    Protocol(String),
    /// The backup cannot keep its copy any more, for the given reason: for example, its disk is
    /// full.
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
            Self::Flushed(_) => "Flushed",
            Self::Compared(_) => "Compared",
            Self::Heartbeat => "Heartbeat",
            Self::Marked(_) => "Marked",
            Self::Seen(_) => "Seen",
            Self::NoArbiter(_) => "NoArbiter",
            Self::Health(_) => "Health",
            Self::TakeOver { .. } => "TakeOver",
            Self::Arrived(_) => "Arrived",
            Self::Bye(_) => "Bye",
            Self::Inquiry(_) => "Inquiry",
            Self::Holdings(_) => "Holdings",
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OtherVm { vm } => {
                let vm = for_people(vm, NAME_CHARS_MAX);
                write!(f, "the backup is configured for \"{vm}\"")
            }
            Self::Differs(differences) => {
                let all: String = differences.iter().map(|it| format!("; {it}")).collect();
                let all = for_people(&all, REASON_CHARS_MAX);
                write!(f, "the machines differ{all}")
            }
            Self::Stale { current } => write!(f, "the backup knows of {current}"),
            Self::Busy(why) => {
                let why = for_people(why, REASON_CHARS_MAX);
                write!(f, "the backup is busy: {why}")
            }
            Self::OtherArbiter { arbiter, current } => {
                let arbiter = for_people(&arbiter.0, NAME_CHARS_MAX);
                write!(
                    f,
                    "the backup asks another arbiter: its own is {arbiter}, where {current} is in \
                     force; both hosts must use the same directory"
                )
            }
            Self::NoArbiter(why) => {
                let why = for_people(why, REASON_CHARS_MAX);
                write!(f, "nobody could take over: {why}")
            }
        }
    }
}

impl std::fmt::Display for Bye {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::GuestStopped => write!(f, "the guest stopped"),
            Self::BackupStopped => write!(f, "the backup stopped"),
            Self::Fenced { current } => write!(f, "{current} is in force"),
            Self::Protocol(what) => {
                let what = for_people(what, REASON_CHARS_MAX);
                write!(f, "the peer could not accept what it got: {what}")
            }
            Self::Unable(why) => {
                let why = for_people(why, REASON_CHARS_MAX);
                write!(f, "the backup cannot keep its copy: {why}")
            }
        }
    }
}
