//! The control queue (VIRTIO 1.2, section 5.1.6.5): what a driver has to say besides frames.
//!
//! One command is known: the driver has announced its guest, as it was asked to. All others are refused, as
//! their features are not offered.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};
use vm_memory::{Bytes, GuestAddress};

use super::packet::MalformedChain;
use crate::devices::virtio::{Chain, Progress, RingFault, Rings};

/// The queue's number, as long as there is one pair of the others.
pub(super) const CONTROL: usize = 2;
/// Its descriptors.
pub(super) const QUEUE_SIZE: u16 = 64;
/// Commands answered in one call.
const COMMANDS_PER_CALL: usize = 64;

/// Class and command.
const ANNOUNCED: [u8; 2] = [
    VIRTIO_NET_CTRL_ANNOUNCE as u8,
    VIRTIO_NET_CTRL_ANNOUNCE_ACK as u8,
];

/// Answers commands. `guest_is_asked` to announce itself until it says that it has done so.
pub(super) fn process(
    rings: &mut Rings<'_>,
    guest_is_asked: &mut bool,
    malformed_chains: &mut u64,
) -> Result<Progress, RingFault> {
    for _ in 0..COMMANDS_PER_CALL {
        let chain = match rings.pop(CONTROL)? {
            Some(chain) => chain,
            None if rings.await_kick(CONTROL)? => continue,
            None => return Ok(Progress::Done),
        };
        let head = chain.head_index();
        let written = match answer(chain, rings, guest_is_asked) {
            Ok(()) => 1,
            Err(MalformedChain) => {
                *malformed_chains += 1;
                0
            }
        };
        rings.push_used(CONTROL, head, written)?;
    }
    Ok(Progress::More(CONTROL))
}

/// Reads a command and writes the answer, one byte.
fn answer(
    chain: Chain<'_>,
    rings: &Rings<'_>,
    guest_is_asked: &mut bool,
) -> Result<(), MalformedChain> {
    let (command, into) = read_command(chain, rings)?;
    // Written first: a command whose answer has no place is not obeyed.
    let is_done = command == ANNOUNCED && *guest_is_asked;
    let answer = if is_done {
        VIRTIO_NET_OK
    } else {
        VIRTIO_NET_ERR
    };
    rings.memory.write_obj(answer as u8, into)?;
    if is_done {
        *guest_is_asked = false;
    }
    Ok(())
}

/// Class and command, however the chain is cut, and where the answer goes.
fn read_command(
    chain: Chain<'_>,
    rings: &Rings<'_>,
) -> Result<([u8; 2], GuestAddress), MalformedChain> {
    let mut command = [0; 2];
    let mut have = 0;
    for descriptor in chain {
        if descriptor.is_write_only() {
            if descriptor.len() == 0 {
                continue;
            }
            return match have == command.len() {
                true => Ok((command, descriptor.addr())),
                false => Err(MalformedChain),
            };
        }
        // What follows the command belongs to commands that are not known.
        let len = (descriptor.len() as usize).min(command.len() - have);
        rings
            .memory
            .read_slice(&mut command[have..have + len], descriptor.addr())?;
        have += len;
    }
    Err(MalformedChain)
}
