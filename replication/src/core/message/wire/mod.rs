//! Messages as bytes: `(kind, epoch, body)`, the three things that a transport frame carries beside
//! the sender's generation. Pages, disk writes and machine state travel raw, everything small as
//! postcard.
//!
//! Must not be done here: trusting a length. Every body has a limit that is checked before
//! decoding, and left-over bytes are errors. A message that decodes may still not be allowed; the
//! cores decide that.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{
    ANSWERS_MAX, DISKS_MAX, Hello, Holdings, Inquiry, Message, TROUBLES_MAX, Trouble, Welcome,
};
use crate::core::disk::DiskSyncPlan;
use crate::core::{codec, disk};
use crate::ids::EpochId;
use crate::output::{ARRIVALS_BYTES_MAX, FRAME_OVERHEAD_BYTES, NetworkFrame};
use crate::peer_words::{NAME_CHARS_MAX, REASON_CHARS_MAX, at_most, for_people};

/// Largest body of `Hello`, `Refuse`, `SyncDisks`, `EpochEnd`, `Ack`, `Bye`, `Marked`, `Seen`,
/// `NoArbiter`, `TakeOver`, `Compared`, `Inquiry`, `Holdings` and `Health`, in bytes.
const SMALL_BODY_BYTES_MAX: usize = 64 << 10;
/// Largest body of `Welcome`, in bytes: it has a bit for each block of each disk.
const WELCOME_BYTES_MAX: usize = 4 << 20;
/// Largest body of `EpochState`, in bytes: what a transport frame carries by default.
pub const STATE_BYTES_MAX: usize = 4 << 20;
/// Largest body of `EpochOutput`, in bytes. The runtime bounds what it seals far below this.
pub const OUTPUT_BYTES_MAX: usize = 4 << 20;

// Kinds of message on the wire. The numbers are part of the protocol: they are never reused for
// something else.
const HELLO: u16 = 1;
const WELCOME: u16 = 2;
const REFUSE: u16 = 3;
const SYNC_PAGES: u16 = 4;
const EPOCH_PAGES: u16 = 5;
const EPOCH_STATE: u16 = 6;
const EPOCH_OUTPUT: u16 = 7;
const EPOCH_END: u16 = 8;
const ACK: u16 = 9;
const HEARTBEAT: u16 = 10;
const BYE: u16 = 11;
const SYNC_DISKS: u16 = 12;
const SYNC_DISK: u16 = 13;
const EPOCH_DISK: u16 = 14;
const MARKED: u16 = 15;
const SEEN: u16 = 16;
const NO_ARBITER: u16 = 17;
const TAKE_OVER: u16 = 21;
const COMPARED: u16 = 18;
const INQUIRY: u16 = 19;
const HOLDINGS: u16 = 20;
const HEALTH: u16 = 22;
const ARRIVED: u16 = 23;
const FLUSHED: u16 = 24;

/// Most frames that fit into what follows a guest.
const ARRIVALS_MAX: usize = ARRIVALS_BYTES_MAX / FRAME_OVERHEAD_BYTES;

/// Why bytes are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// No message has this number.
    #[error("message kind {0} is unknown")]
    UnknownKind(u16),
    /// The body is longer than this kind of message may be.
    #[error("{kind}: body of {bytes} bytes, limit {limit}")]
    TooLong {
        /// The kind's name.
        kind: &'static str,
        /// Bytes received.
        bytes: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The body does not decode.
    #[error("{kind}: malformed body of {bytes} bytes: {why}")]
    Malformed {
        /// The kind's name.
        kind: &'static str,
        /// Bytes received.
        bytes: usize,
        /// What the decoder says.
        why: String,
    },
    /// Bytes are left over after the message.
    #[error("{kind}: {bytes} bytes left over after the message")]
    LeftOver {
        /// The kind's name.
        kind: &'static str,
        /// Bytes too many.
        bytes: usize,
    },
    /// An epoch number on a message that belongs to no epoch.
    #[error("{kind}: carries {epoch}, but belongs to no epoch")]
    UnexpectedEpoch {
        /// The kind's name.
        kind: &'static str,
        /// The number received.
        epoch: EpochId,
    },
    /// No epoch number on a message that belongs to an epoch.
    #[error("{kind}: carries no epoch number")]
    MissingEpoch {
        /// The kind's name.
        kind: &'static str,
    },
}

/// A kind's name, whether it belongs to an epoch, and its largest body in bytes.
fn properties(kind: u16) -> Option<(&'static str, bool, usize)> {
    Some(match kind {
        HELLO => ("Hello", false, SMALL_BODY_BYTES_MAX),
        WELCOME => ("Welcome", false, WELCOME_BYTES_MAX),
        REFUSE => ("Refuse", false, SMALL_BODY_BYTES_MAX),
        SYNC_PAGES => ("SyncPages", false, codec::BATCH_BYTES_MAX),
        EPOCH_PAGES => ("EpochPages", true, codec::BATCH_BYTES_MAX),
        EPOCH_STATE => ("EpochState", true, STATE_BYTES_MAX),
        EPOCH_OUTPUT => ("EpochOutput", true, OUTPUT_BYTES_MAX),
        EPOCH_END => ("EpochEnd", true, SMALL_BODY_BYTES_MAX),
        ACK => ("Ack", true, SMALL_BODY_BYTES_MAX),
        HEARTBEAT => ("Heartbeat", false, 0),
        BYE => ("Bye", false, SMALL_BODY_BYTES_MAX),
        SYNC_DISKS => ("SyncDisks", false, SMALL_BODY_BYTES_MAX),
        SYNC_DISK => ("SyncDisk", false, disk::DISK_BATCH_BYTES_MAX),
        EPOCH_DISK => ("EpochDisk", true, disk::DISK_BATCH_BYTES_MAX),
        MARKED => ("Marked", false, SMALL_BODY_BYTES_MAX),
        SEEN => ("Seen", false, SMALL_BODY_BYTES_MAX),
        NO_ARBITER => ("NoArbiter", false, SMALL_BODY_BYTES_MAX),
        TAKE_OVER => ("TakeOver", false, SMALL_BODY_BYTES_MAX),
        COMPARED => ("Compared", false, SMALL_BODY_BYTES_MAX),
        INQUIRY => ("Inquiry", false, SMALL_BODY_BYTES_MAX),
        HOLDINGS => ("Holdings", false, SMALL_BODY_BYTES_MAX),
        ARRIVED => ("Arrived", false, ARRIVALS_BYTES_MAX),
        HEALTH => ("Health", false, SMALL_BODY_BYTES_MAX),
        FLUSHED => ("Flushed", true, 0),
        _ => return None,
    })
}

/// The body of `SyncDisks`.
#[derive(Deserialize)]
struct Plans(#[serde(deserialize_with = "at_most::<DISKS_MAX, _, _>")] Vec<DiskSyncPlan>);

/// The body of `Compared`.
#[derive(Deserialize)]
struct Answers(#[serde(deserialize_with = "at_most::<ANSWERS_MAX, _, _>")] Vec<bool>);

/// The body of `Health`.
#[derive(Deserialize)]
struct Troubles(#[serde(deserialize_with = "at_most::<TROUBLES_MAX, _, _>")] Vec<Trouble>);

impl Troubles {
    fn for_people(self) -> Vec<Trouble> {
        let shown = |it: &Trouble| Trouble::new(&it.topic, &it.why);
        self.0.iter().map(shown).collect()
    }
}

/// The body of `Arrived`.
#[derive(Deserialize)]
struct Frames(#[serde(deserialize_with = "at_most::<ARRIVALS_MAX, _, _>")] Vec<NetworkFrame>);

/// Serialises a small body. Our own types cannot fail: they have no maps of unknown length and no
/// floats.
pub(in crate::core) fn small(value: &impl Serialize) -> Bytes {
    postcard::to_stdvec(value)
        .expect("messages of this crate always serialise")
        .into()
}

fn parse<T: DeserializeOwned>(kind: &'static str, body: &Bytes) -> Result<T, MessageError> {
    let (value, rest) =
        postcard::take_from_bytes(body).map_err(|error| MessageError::Malformed {
            kind,
            bytes: body.len(),
            why: error.to_string(),
        })?;
    if rest.is_empty() {
        Ok(value)
    } else {
        Err(MessageError::LeftOver {
            kind,
            bytes: rest.len(),
        })
    }
}

impl Message {
    /// The message as `(kind, epoch, body)`. The epoch is 0 if the message belongs to none. Batches
    /// and state are not copied.
    #[must_use]
    pub fn encode(&self) -> (u16, u64, Bytes) {
        match self {
            Self::Hello(hello) => (HELLO, 0, small(hello)),
            Self::Welcome(welcome) => (WELCOME, 0, small(welcome)),
            Self::Refuse(refusal) => (REFUSE, 0, small(refusal)),
            Self::SyncPages(batch) => (SYNC_PAGES, 0, batch.clone()),
            Self::EpochPages { epoch, batch } => (EPOCH_PAGES, epoch.0, batch.clone()),
            Self::EpochState { epoch, state } => (EPOCH_STATE, epoch.0, state.clone()),
            Self::EpochOutput { epoch, output } => (EPOCH_OUTPUT, epoch.0, small(output)),
            Self::EpochEnd { epoch, summary } => (EPOCH_END, epoch.0, small(summary)),
            Self::Ack { epoch, durable } => (ACK, epoch.0, small(durable)),
            Self::Flushed(epoch) => (FLUSHED, epoch.0, Bytes::new()),
            Self::Heartbeat => (HEARTBEAT, 0, Bytes::new()),
            Self::Bye(bye) => (BYE, 0, small(bye)),
            Self::SyncDisks(plan) => (SYNC_DISKS, 0, small(plan)),
            Self::SyncDisk(batch) => (SYNC_DISK, 0, batch.clone()),
            Self::EpochDisk { epoch, batch } => (EPOCH_DISK, epoch.0, batch.clone()),
            Self::Marked(mark) => (MARKED, 0, small(mark)),
            Self::Seen(mark) => (SEEN, 0, small(mark)),
            Self::NoArbiter(why) => (NO_ARBITER, 0, small(why)),
            Self::TakeOver {
                why,
                machine_broke,
                left_through,
            } => (TAKE_OVER, 0, small(&(why, machine_broke, left_through))),
            Self::Arrived(frames) => (ARRIVED, 0, small(frames)),
            Self::Health(troubles) => (HEALTH, 0, small(troubles)),
            Self::Compared(differ) => (COMPARED, 0, small(differ)),
            Self::Inquiry(inquiry) => (INQUIRY, 0, small(inquiry)),
            Self::Holdings(holdings) => (HOLDINGS, 0, small(holdings)),
        }
    }

    /// Makes a message of the `kind`, `epoch` and `body` of a frame.
    ///
    /// # Errors
    /// If the kind is unknown, the epoch number is missing or out of place, or the body is longer
    /// than the kind allows, malformed, or followed by more bytes. For batches and state only the
    /// length is checked here; the codecs and the machine check the rest.
    pub fn decode(kind: u16, epoch: u64, body: Bytes) -> Result<Self, MessageError> {
        let (name, has_epoch, limit) = properties(kind).ok_or(MessageError::UnknownKind(kind))?;
        let epoch = EpochId(epoch);
        if has_epoch && epoch.0 == 0 {
            return Err(MessageError::MissingEpoch { kind: name });
        }
        if !has_epoch && epoch.0 != 0 {
            return Err(MessageError::UnexpectedEpoch { kind: name, epoch });
        }
        if body.len() > limit {
            return Err(MessageError::TooLong {
                kind: name,
                bytes: body.len(),
                limit,
            });
        }
        Ok(match kind {
            HELLO => {
                let hello: Hello = parse(name, &body)?;
                Self::Hello(Hello {
                    node: for_people(&hello.node, NAME_CHARS_MAX),
                    ..hello
                })
            }
            WELCOME => {
                let welcome: Welcome = parse(name, &body)?;
                Self::Welcome(Welcome {
                    // It goes into the arbiter's record.
                    host: welcome.host.map(|host| for_people(&host, NAME_CHARS_MAX)),
                    node: for_people(&welcome.node, NAME_CHARS_MAX),
                    ..welcome
                })
            }
            REFUSE => Self::Refuse(parse(name, &body)?),
            SYNC_PAGES => Self::SyncPages(body),
            EPOCH_PAGES => Self::EpochPages { epoch, batch: body },
            EPOCH_STATE => Self::EpochState { epoch, state: body },
            EPOCH_OUTPUT => Self::EpochOutput {
                epoch,
                output: parse(name, &body)?,
            },
            EPOCH_END => Self::EpochEnd {
                epoch,
                summary: parse(name, &body)?,
            },
            ACK => Self::Ack {
                epoch,
                durable: parse(name, &body)?,
            },
            FLUSHED => Self::Flushed(epoch),
            HEARTBEAT => Self::Heartbeat,
            BYE => Self::Bye(parse(name, &body)?),
            SYNC_DISKS => Self::SyncDisks(parse::<Plans>(name, &body)?.0),
            SYNC_DISK => Self::SyncDisk(body),
            EPOCH_DISK => Self::EpochDisk { epoch, batch: body },
            MARKED => Self::Marked(parse(name, &body)?),
            SEEN => Self::Seen(parse(name, &body)?),
            NO_ARBITER => {
                let why: String = parse(name, &body)?;
                Self::NoArbiter(for_people(&why, REASON_CHARS_MAX))
            }
            TAKE_OVER => {
                let (why, machine_broke, left_through): (String, _, _) = parse(name, &body)?;
                Self::TakeOver {
                    why: for_people(&why, REASON_CHARS_MAX),
                    machine_broke,
                    left_through,
                }
            }
            ARRIVED => Self::Arrived(parse::<Frames>(name, &body)?.0),
            HEALTH => Self::Health(parse::<Troubles>(name, &body)?.for_people()),
            COMPARED => Self::Compared(parse::<Answers>(name, &body)?.0),
            // Names that are compared stay as they are; whoever shows them makes them fit to be
            // shown.
            INQUIRY => Self::Inquiry(parse::<Inquiry>(name, &body)?),
            HOLDINGS => Self::Holdings(parse::<Holdings>(name, &body)?),
            _ => return Err(MessageError::UnknownKind(kind)),
        })
    }
}

#[cfg(test)]
mod tests;
