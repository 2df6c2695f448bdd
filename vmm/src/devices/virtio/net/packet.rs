//! Header and frame in the guest's buffers.
//!
//! Whatever a chain says is the guest's word (R6). What must not be done here: decide what becomes of a frame.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::backend::{FRAME_BYTES_MAX, FRAME_BYTES_MIN, HEADER_BYTES};
use super::offload::BadHeader;
use crate::devices::virtio::{Chain, Rings};

/// Why a chain was not used.
#[derive(Debug)]
pub(super) struct MalformedChain;

impl From<GuestMemoryError> for MalformedChain {
    fn from(_: GuestMemoryError) -> Self {
        Self
    }
}

impl From<BadHeader> for MalformedChain {
    fn from(_: BadHeader) -> Self {
        Self
    }
}

/// Reads header and frame in a chain: its readable bytes.
pub(super) fn read_packet(chain: Chain<'_>, rings: &Rings<'_>) -> Result<Vec<u8>, MalformedChain> {
    // The lengths are the guest's words: checked before anything of that size is allocated.
    let mut bytes = 0;
    for descriptor in chain.clone() {
        bytes += descriptor.len() as usize;
        if descriptor.is_write_only() || bytes > HEADER_BYTES + FRAME_BYTES_MAX {
            return Err(MalformedChain);
        }
    }
    // Exactly as much as it needs, because the gate may keep it.
    let mut packet: Vec<u8> = Vec::with_capacity(bytes);
    for descriptor in chain {
        let (len, have) = (descriptor.len() as usize, packet.len());
        // The guest may have changed it meanwhile.
        if descriptor.is_write_only() || have + len > bytes {
            return Err(MalformedChain);
        }
        packet.resize(have + len, 0);
        rings
            .memory
            .read_slice(&mut packet[have..], descriptor.addr())?;
    }
    if packet.len() < HEADER_BYTES + FRAME_BYTES_MIN {
        return Err(MalformedChain);
    }
    Ok(packet)
}

/// Writes header and frame into a chain, all or (to the guest's eyes) nothing.
pub(super) fn write_frame(
    chain: Chain<'_>,
    rings: &Rings<'_>,
    header: &[u8; HEADER_BYTES],
    frame: &[u8],
) -> Result<u32, MalformedChain> {
    let mut parts = [&header[..], frame];
    let mut written = 0;
    for descriptor in chain {
        if !descriptor.is_write_only() {
            return Err(MalformedChain);
        }
        let (mut address, mut room) = (descriptor.addr(), descriptor.len() as usize);
        for part in &mut parts {
            let len = room.min(part.len());
            rings.memory.write_slice(&part[..len], address)?;
            address = GuestAddress(address.0.checked_add(len as u64).ok_or(MalformedChain)?);
            *part = &part[len..];
            room -= len;
            written += len as u32;
        }
        if parts[1].is_empty() {
            return Ok(written);
        }
    }
    Err(MalformedChain)
}
