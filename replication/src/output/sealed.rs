//! The output of one epoch as it travels to the backup. Plain data; the wire format is `core::message`'s.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Output of one epoch, sealed at its end, in the order the guest sent it per device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedOutput {
    /// Network frames. May be a bounded suffix of what the epoch sent: they are sent once more after
    /// a failover to spare the clients a retransmission timeout, and networks may lose frames.
    pub frames: Vec<NetworkFrame>,
    /// Console bytes. Always complete.
    pub console: Vec<ConsoleOutput>,
}

/// One Ethernet frame that the guest sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkFrame {
    /// Number of the network device, in configuration order.
    pub device: u16,
    /// The frame, from the destination address on.
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
