//! What the guest's new host tells the network, as a machine beside the hosts hears it: frames that say where the
//! guest is and that nobody asked for. What must not be done here: count what the guest sends for its own ends.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::libc::PACKET_OUTGOING;
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
    sockopt,
};
use parking_lot::Mutex;

use super::network::{GUEST, Network, Side};
use super::vmm::GUEST_MAC;
use super::wait::until;

/// How long a new host may take; it announces for a bit more than a second.
const PATIENCE: Duration = Duration::from_secs(20);
/// Room for everything on the guest's network while the thread waits for its turn.
const BUFFER_BYTES: usize = 32 << 20;
/// How often the thread looks whether it should end.
const LOOK_MS: u16 = 100;
/// Enough of a frame to know what it is.
const HEAD_BYTES: usize = 64;

const ARP: u16 = 0x0806;
const RARP: u16 = 0x8035;
const IPV6: u16 = 0x86dd;
const ICMPV6: u8 = 58;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// The flag of an advertisement that answers somebody.
const SOLICITED: u8 = 0x40;

/// A kind of announcement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Its Ethernet address is here.
    Rarp,
    /// So is its IPv4 address.
    GratuitousArp,
    /// So is an IPv6 address of its.
    NeighbourAdvertisement,
}

impl Kind {
    const ALL: [Self; 3] = [
        Self::Rarp,
        Self::GratuitousArp,
        Self::NeighbourAdvertisement,
    ];
}

type Heard = Arc<Mutex<Vec<(Side, Kind)>>>;

/// Listens on the guest's network, at both hosts' ports. It ends with the value.
pub(super) struct Announcements {
    heard: Heard,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Announcements {
    pub(super) fn listen() -> Result<Self> {
        let socket = packet_socket()?;
        let mut ports = [0; 2];
        for side in Side::BOTH {
            let port = Network::Service.tap(side);
            ports[side as usize] = if_nametoindex(port.as_str()).context(port)? as usize;
        }
        let (heard, end) = (Heard::default(), Arc::new(AtomicBool::new(false)));
        let (hears, ends) = (Arc::clone(&heard), Arc::clone(&end));
        let thread = std::thread::Builder::new()
            .name("announcements".into())
            .spawn(move || listen(&socket, ports, &hears, &ends))?;
        Ok(Self {
            heard,
            end,
            thread: Some(thread),
        })
    }

    /// How many have been heard so far.
    pub(super) fn mark(&self) -> usize {
        self.heard.lock().len()
    }

    /// Waits until `side` has announced the guest in every way since `mark`; returns how.
    pub(super) fn await_from(&self, side: Side, mark: usize) -> Result<Vec<Kind>> {
        let mut kinds = Vec::new();
        let announced = until("the guest to be announced", PATIENCE, || {
            if (self.thread.as_ref()).is_none_or(JoinHandle::is_finished) {
                bail!("nobody listens for announcements any more");
            }
            let heard = self.heard.lock();
            let from_side = heard[mark..].iter().filter(|(from, _)| *from == side);
            kinds = from_side.map(|(_, kind)| *kind).collect();
            let different: BTreeSet<Kind> = kinds.iter().copied().collect();
            Ok((different.len() == Kind::ALL.len()).then_some(()))
        });
        announced.with_context(|| format!("{} has sent {kinds:?}", side.name()))?;
        Ok(kinds)
    }
}

impl Drop for Announcements {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        // Why it ended before is told to who waits for it.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn packet_socket() -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let all = SockProtocol::EthAll;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, all)
        .context("cannot make a packet socket")?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES).context("cannot size its buffer")?;
    Ok(socket)
}

fn listen(socket: &OwnedFd, ports: [usize; 2], heard: &Heard, end: &AtomicBool) -> Result<()> {
    let mut head = [0; HEAD_BYTES];
    while !end.load(Ordering::Relaxed) {
        match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut head) {
            Ok((bytes, Some(address))) if address.pkttype() != PACKET_OUTGOING => {
                let side = (Side::BOTH.into_iter())
                    .find(|side| ports[*side as usize] == address.ifindex());
                heard.lock().extend(side.zip(kind(&head[..bytes])));
            }
            Ok(_) => {}
            Err(Errno::EAGAIN) => {
                let mut files = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
                // An interrupted poll is a short one.
                let _ = poll(&mut files, PollTimeout::from(LOOK_MS));
            }
            Err(error) => return Err(error).context("cannot read frames"),
        }
    }
    Ok(())
}

/// What kind of announcement of the guest a frame is, if it is one.
fn kind(head: &[u8]) -> Option<Kind> {
    let bytes = |at: usize, count: usize| head.get(at..at + count);
    let octets: Vec<String> = bytes(6, 6)?.iter().map(|it| format!("{it:02x}")).collect();
    if octets.join(":") != GUEST_MAC {
        return None;
    }
    let address = |at: usize| -> Option<String> {
        let octets: Vec<String> = bytes(at, 4)?.iter().map(ToString::to_string).collect();
        Some(octets.join("."))
    };
    match u16::from_be_bytes(bytes(12, 2)?.try_into().ok()?) {
        RARP => Some(Kind::Rarp),
        // Who says it and whom it is about.
        ARP if address(28)? == GUEST && address(38)? == GUEST => Some(Kind::GratuitousArp),
        IPV6 => {
            let is_advertisement = bytes(20, 1)? == [ICMPV6]
                && bytes(54, 1)? == [NEIGHBOUR_ADVERTISEMENT]
                && bytes(58, 1)?[0] & SOLICITED == 0;
            is_advertisement.then_some(Kind::NeighbourAdvertisement)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST_MAC_BYTES: [u8; 6] = [0x52, 0x54, 0, 0x77, 0, 0x64];

    /// A frame of the guest of so many bytes, with these at these places.
    fn frame(ethertype: u16, further: &[(usize, &[u8])]) -> Vec<u8> {
        let mut frame = vec![0; 86];
        let ethertype = ethertype.to_be_bytes();
        let always: [(usize, &[u8]); 2] = [(6, &GUEST_MAC_BYTES), (12, &ethertype)];
        for (at, bytes) in always.iter().chain(further) {
            frame[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        frame
    }

    #[test]
    fn only_what_nobody_asked_for_is_an_announcement() {
        let guest: &[u8] = &[10, 77, 0, 100];
        let rarp = frame(RARP, &[]);
        assert_eq!(kind(&rarp), Some(Kind::Rarp));
        let gratuitous = frame(ARP, &[(28, guest), (38, guest)]);
        assert_eq!(kind(&gratuitous), Some(Kind::GratuitousArp));
        let question = frame(ARP, &[(28, guest), (38, &[10, 77, 0, 1])]);
        assert_eq!(kind(&question), None);
        let override_only = [0x20];
        let advertisement = [(20, &[58][..]), (54, &[136]), (58, &override_only)];
        assert_eq!(
            kind(&frame(IPV6, &advertisement)),
            Some(Kind::NeighbourAdvertisement)
        );
        let answer = [(20, &[58][..]), (54, &[136]), (58, &[0x60])];
        assert_eq!(kind(&frame(IPV6, &answer)), None);
        assert_eq!(kind(&frame(IPV6, &[(20, &[58]), (54, &[135])])), None);
        let mut another = rarp.clone();
        another[11] = 1;
        assert_eq!(kind(&another), None);
        assert_eq!(kind(&rarp[..13]), None);
    }
}
