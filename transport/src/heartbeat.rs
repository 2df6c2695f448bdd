//! Heartbeats: signs of life as small UDP packets, on a path of their own.
//!
//! A heartbeat says "the sender's process ran a moment ago" and nothing more. What its absence
//! means is not decided here. Packets may be lost, repeated or reordered like any UDP packet. A
//! packet that is malformed, from another sender, or for another virtual machine is dropped and
//! counted. It is never an error, because anyone can send us packets.

use std::io;
use std::mem::offset_of;
use std::net::SocketAddr;

use tokio::net::UdpSocket;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The first four bytes of every heartbeat, `USHB`, as a little-endian number.
const HEARTBEAT_MAGIC: u32 = u32::from_le_bytes(*b"USHB");

/// Version of the heartbeat packet.
const HEARTBEAT_VERSION: u16 = 2;

/// Size of a heartbeat packet in bytes.
pub const HEARTBEAT_BYTES: usize = 48;

/// The role of a heartbeat's sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Sender {
    /// The side that runs the guest.
    Primary = 1,
    /// The side that keeps the copy.
    Backup = 2,
}

impl TryFrom<u8> for Sender {
    type Error = u8;

    fn try_from(byte: u8) -> Result<Self, u8> {
        match byte {
            1 => Ok(Self::Primary),
            2 => Ok(Self::Backup),
            other => Err(other),
        }
    }
}

/// A sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    /// Who sent it.
    pub sender: Sender,
    /// The sender's generation.
    pub generation: u64,
    /// The session between the two sides that it belongs to; 0 if there is none. Only who took part
    /// in the session, or listened to it, knows the number.
    pub session: u64,
    /// Counts the sender's heartbeats from 0 at its start.
    pub sequence: u64,
}

/// Why a packet is not a heartbeat for us. The packets are only counted by kind, not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeartbeatError {
    /// Wrong length, magic, checksum, sender or reserved bytes.
    #[error("not a heartbeat packet")]
    Malformed,
    /// A heartbeat of another version.
    #[error("heartbeat version {theirs}, this side speaks {HEARTBEAT_VERSION}")]
    Version {
        /// The sender's version.
        theirs: u16,
    },
    /// A heartbeat of another virtual machine.
    #[error("heartbeat of another virtual machine")]
    OtherVm,
}

/// The first bytes of a packet, which are the same in every version.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Prefix {
    magic: U32,
    version: U16,
}

/// The packet as it is on the wire, little endian. `docs/PROTOCOL.md` has the same table. The
/// derived traits reject a layout with padding.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Packet {
    prefix: Prefix,
    sender: u8,
    reserved: u8,
    generation: U64,
    session: U64,
    sequence: U64,
    vm: U64,
    reserved_2: U32,
    /// CRC32 of the packet up to here.
    crc: U32,
}

const _: () = assert!(size_of::<Packet>() == HEARTBEAT_BYTES);

impl Packet {
    /// CRC32 of everything before `crc`.
    fn checksum(&self) -> u32 {
        crc32fast::hash(&self.as_bytes()[..offset_of!(Self, crc)])
    }
}

impl Heartbeat {
    /// The packet for the virtual machine with the name hash `vm`; see [`vm_hash`].
    #[must_use]
    pub fn encode(&self, vm: u64) -> [u8; HEARTBEAT_BYTES] {
        let mut packet = Packet {
            prefix: Prefix {
                magic: HEARTBEAT_MAGIC.into(),
                version: HEARTBEAT_VERSION.into(),
            },
            sender: self.sender as u8,
            reserved: 0,
            generation: self.generation.into(),
            session: self.session.into(),
            sequence: self.sequence.into(),
            vm: vm.into(),
            reserved_2: U32::ZERO,
            crc: U32::ZERO,
        };
        packet.crc = packet.checksum().into();
        zerocopy::transmute!(packet)
    }

    /// Reads a packet meant for the virtual machine with the name hash `vm`.
    ///
    /// # Errors
    /// If it is not such a packet.
    pub fn decode(bytes: &[u8], vm: u64) -> Result<Self, HeartbeatError> {
        use HeartbeatError::Malformed;
        // Another version may have another length.
        let (prefix, _) = Prefix::ref_from_prefix(bytes).map_err(|_| Malformed)?;
        if prefix.magic != HEARTBEAT_MAGIC {
            return Err(Malformed);
        }
        if prefix.version != HEARTBEAT_VERSION {
            return Err(HeartbeatError::Version {
                theirs: prefix.version.get(),
            });
        }
        let packet = Packet::ref_from_bytes(bytes).map_err(|_| Malformed)?;
        if packet.crc != packet.checksum() || packet.reserved != 0 || packet.reserved_2 != 0 {
            return Err(Malformed);
        }
        if packet.vm != vm {
            return Err(HeartbeatError::OtherVm);
        }
        Ok(Self {
            sender: Sender::try_from(packet.sender).map_err(|_| Malformed)?,
            generation: packet.generation.get(),
            session: packet.session.get(),
            sequence: packet.sequence.get(),
        })
    }
}

/// FNV-1a, 64 bits, of a virtual machine's name. It keeps virtual machines that share a network
/// apart. It is not a secret.
#[must_use]
pub fn vm_hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// How many packets were dropped, by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HeartbeatDrops {
    /// Not heartbeats at all, or damaged.
    pub malformed_packets: u64,
    /// Of another version.
    pub version_packets: u64,
    /// Of another virtual machine.
    pub other_vm_packets: u64,
    /// From an address other than the configured peer's.
    pub other_peer_packets: u64,
}

/// Sends and receives the heartbeats of one virtual machine.
#[derive(Debug)]
pub struct HeartbeatSocket {
    socket: UdpSocket,
    /// The address to send to: the configured peer, or else the sender of the last good heartbeat.
    peer: Option<SocketAddr>,
    peer_is_fixed: bool,
    vm: u64,
    sequence_next: u64,
    drops: HeartbeatDrops,
}

impl HeartbeatSocket {
    /// Opens the socket at `local`. With a `peer`, only its packets count. Without one, the peer is
    /// the sender of the last good heartbeat for this `vm`.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub async fn bind(local: SocketAddr, peer: Option<SocketAddr>, vm: &str) -> io::Result<Self> {
        Ok(Self {
            // Not connected to the peer: otherwise a refusal by its host would fail our next call.
            socket: UdpSocket::bind(local).await?,
            peer,
            peer_is_fixed: peer.is_some(),
            vm: vm_hash(vm),
            sequence_next: 0,
            drops: HeartbeatDrops::default(),
        })
    }

    /// The address that it is bound to, with the actual port.
    ///
    /// # Errors
    /// If the operating system does not say.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Sends a heartbeat; `false` if no peer is known yet.
    ///
    /// # Errors
    /// If the network refuses it, perhaps only for now. The sequence number still counts up.
    pub async fn send(
        &mut self,
        sender: Sender,
        generation: u64,
        session: u64,
    ) -> io::Result<bool> {
        let Some(peer) = self.peer else {
            return Ok(false);
        };
        let heartbeat = Heartbeat {
            sender,
            generation,
            session,
            sequence: self.sequence_next,
        };
        self.sequence_next += 1;
        let packet = heartbeat.encode(self.vm);
        self.socket.send_to(&packet, peer).await.map(|_| true)
    }

    /// Waits for the next good heartbeat. Cancel safe.
    ///
    /// # Errors
    /// If the socket fails.
    pub async fn recv(&mut self) -> io::Result<Heartbeat> {
        // One byte more than a packet, so that longer packets are recognised.
        let mut packet = [0; HEARTBEAT_BYTES + 1];
        loop {
            let (bytes, from) = self.socket.recv_from(&mut packet).await?;
            if self.peer_is_fixed && self.peer != Some(from) {
                self.drops.other_peer_packets += 1;
                continue;
            }
            match Heartbeat::decode(&packet[..bytes], self.vm) {
                Ok(heartbeat) => {
                    self.peer = Some(from);
                    return Ok(heartbeat);
                }
                Err(HeartbeatError::Malformed) => self.drops.malformed_packets += 1,
                Err(HeartbeatError::Version { .. }) => self.drops.version_packets += 1,
                Err(HeartbeatError::OtherVm) => self.drops.other_vm_packets += 1,
            }
        }
    }

    /// What has been dropped so far.
    #[must_use]
    pub fn drops(&self) -> HeartbeatDrops {
        self.drops
    }
}
