//! Who speaks for the guest: every frame of it is seen where it enters the clients' bridge, and from which host.
//!
//! One socket for both ports: what it reads first was there first. Who may speak, and in which order, is what the
//! arbiter's record says.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, ensure};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType,
    recvmsg, setsockopt, socket, sockopt,
};
use parking_lot::Mutex;

use crate::network::{GUEST_MAC_BYTES, Network, Side};

/// Room for frames not yet looked at; if it does not suffice, the run fails.
const BUFFER_BYTES: usize = 32 << 20;
/// How often the end is looked for while no frame comes.
const LOOK_MS: u8 = 20;

/// Frames that one host sent before the other one did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) side: Side,
    pub(crate) frames: u64,
}

/// See the [module documentation](self). Ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Sniffer {
    turns: Arc<Mutex<Vec<Turn>>>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Sniffer {
    /// Begins to listen; returns when it does.
    pub(crate) fn start(network: &Arc<Network>) -> Result<Self> {
        let turns = Arc::new(Mutex::new(Vec::new()));
        let end = Arc::new(AtomicBool::new(false));
        let (ready, listening) = std::sync::mpsc::sync_channel(1);
        let (network, heard, ending) = (Arc::clone(network), Arc::clone(&turns), Arc::clone(&end));
        let thread = std::thread::spawn(move || {
            network.clients.enter()?;
            let socket = packet_socket()?;
            let ports = [port_number(Side::A)?, port_number(Side::B)?];
            // Nobody waits for it if this thread was too slow.
            let _ = ready.send(());
            listen(&socket, ports, &heard, &ending)
        });
        let this = Self {
            turns,
            end,
            thread: Some(thread),
        };
        match listening.recv() {
            Ok(()) => Ok(this),
            Err(_) => Err(this
                .finish()
                .err()
                .unwrap_or_else(|| anyhow!("nobody listens"))),
        }
    }

    /// Who has spoken so far.
    pub(crate) fn so_far(&self) -> Vec<Turn> {
        self.turns.lock().clone()
    }

    /// Ends listening.
    ///
    /// # Errors
    /// If frames were missed.
    pub(crate) fn finish(mut self) -> Result<Vec<Turn>> {
        self.end.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread
                .join()
                .map_err(|_| anyhow!("who listens panicked"))??;
        }
        Ok(self.so_far())
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // The run has failed already.
            let _ = thread.join();
        }
    }
}

fn port_number(side: Side) -> Result<usize> {
    let number = if_nametoindex(side.port().as_str()).context("a port of the clients' bridge")?;
    Ok(number as usize)
}

fn listen(
    socket: &OwnedFd,
    ports: [usize; 2],
    turns: &Mutex<Vec<Turn>>,
    end: &AtomicBool,
) -> Result<()> {
    loop {
        // Looked at first: what was sent before the end was asked for is read below.
        let last = end.load(Ordering::Acquire);
        while let Some(port) = receive(socket)? {
            let Some(side) = Side::BOTH
                .into_iter()
                .find(|side| ports[*side as usize] == port)
            else {
                continue;
            };
            let mut turns = turns.lock();
            match turns.last_mut() {
                Some(turn) if turn.side == side => turn.frames += 1,
                _ => turns.push(Turn { side, frames: 1 }),
            }
        }
        if last {
            return Ok(());
        }
        // An interrupted poll is a short one.
        let _ = poll(
            &mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)],
            PollTimeout::from(LOOK_MS),
        );
    }
}

fn packet_socket() -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        flags,
        SockProtocol::EthAll,
    )
    .context("cannot make a packet socket")?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES).context("cannot size its buffer")?;
    setsockopt(&socket, sockopt::RxqOvfl, &1).context("cannot count what it misses")?;
    Ok(socket)
}

/// The interface at which the next frame of the guest has come in, 0 for any other frame; `None` if none is here.
fn receive(socket: &OwnedFd) -> Result<Option<usize>> {
    let mut head = [0; 12];
    let mut control = nix::cmsg_space!(u32);
    let mut parts = [IoSliceMut::new(&mut head)];
    let flags = MsgFlags::empty();
    let (bytes, address) =
        match recvmsg::<LinkAddr>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags) {
            Ok(message) => {
                for control in message.cmsgs()? {
                    if let ControlMessageOwned::RxqOvfl(missed) = control {
                        ensure!(missed == 0, "{missed} frames were missed");
                    }
                }
                (message.bytes, message.address)
            }
            Err(Errno::EAGAIN) => return Ok(None),
            Err(error) => return Err(error).context("cannot read frames"),
        };
    let address = address.context("a frame without an address")?;
    let is_outgoing = address.pkttype() == nix::libc::PACKET_OUTGOING;
    let is_the_guests = head[..bytes].get(6..12) == Some(&GUEST_MAC_BYTES[..]);
    Ok(Some(match !is_outgoing && is_the_guests {
        true => address.ifindex(),
        false => 0,
    }))
}

/// Whether those who spoke did so in the order in which the arbiter let them: `holders` of all generations. One may have
/// said nothing in its generation, but whoever was followed by another one speaks again in a later one only.
pub(crate) fn check(turns: &[Turn], holders: &[Side]) -> Result<(), String> {
    let mut granted = holders.iter();
    let mut now = None;
    for turn in turns {
        while now != Some(turn.side) {
            now = granted.next().copied();
            if now.is_none() {
                return Err(format!(
                    "two speakers: {turns:?}, but the arbiter let {holders:?}"
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(turns: &[Side], holders: &[Side]) -> bool {
        let turns: Vec<Turn> = turns
            .iter()
            .map(|side| Turn {
                side: *side,
                frames: 1,
            })
            .collect();
        check(&turns, holders).is_ok()
    }

    #[test]
    fn who_speaks_without_a_new_grant_after_the_other_has_spoken_is_found() {
        use Side::{A, B};
        assert!(holds(&[], &[A]));
        assert!(holds(&[A], &[A, A]));
        assert!(holds(&[A, B], &[A, B]));
        assert!(holds(&[A, B, A], &[A, A, B, A]));
        assert!(holds(&[B], &[A, B]), "a had nothing to say");
        assert!(!holds(&[A, B], &[A, A]), "b was granted nothing");
        assert!(!holds(&[A, B, A], &[A, B]), "a was not asked again");
        assert!(!holds(&[A, B, A, B], &[A, B, A]));
    }
}
