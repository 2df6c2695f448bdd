//! The output of one epoch as it travels to the backup. Plain data; `core::message` has the wire
//! format.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ids::EpochId;
use crate::peer_words::at_most;

/// Most frames that an epoch may carry.
const FRAMES_MAX: usize = 32 << 10;
/// Most runs of console bytes that an epoch may carry, and most consoles it may tell of.
const RUNS_MAX: usize = 4 << 10;

/// Output of one epoch, sealed at its end. The output of each device is in the order in which the
/// guest sent it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedOutput {
    /// Network frames, possibly only the last ones that fit a limit. They are sent again after a
    /// failover to spare clients a retransmission timeout; networks may lose frames.
    #[serde(deserialize_with = "at_most::<FRAMES_MAX, _, _>")]
    pub frames: Vec<NetworkFrame>,
    /// Console bytes. Always complete; in a session's first epoch with what the consoles had not
    /// written yet.
    #[serde(deserialize_with = "at_most::<RUNS_MAX, _, _>")]
    pub console: Vec<ConsoleOutput>,
    /// The frames of all earlier epochs up to this one were handed to the network.
    pub sent_through: EpochId,
    /// How far the consoles have really got. Missing ones have written nothing yet.
    #[serde(deserialize_with = "at_most::<RUNS_MAX, _, _>")]
    pub written: Vec<ConsoleProgress>,
}

/// What a console has shown of its guest's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleProgress {
    /// Number of the console device, in configuration order.
    pub device: u16,
    /// Bytes before this position need not be repeated.
    pub position: u64,
}

/// One Ethernet frame that the guest sent, or was given.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NetworkFrame {
    /// Number of the network device, in configuration order.
    pub device: u16,
    /// The frame, starting with the destination address.
    pub bytes: Bytes,
}

/// Bytes that the guest wrote to a console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleOutput {
    /// Number of the console device, in configuration order.
    pub device: u16,
    /// How many bytes the guest had written to this console before these.
    pub position: u64,
    /// The bytes.
    pub bytes: Bytes,
}
