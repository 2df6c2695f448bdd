//! Sees every frame that the guest sends where it enters the clients' bridge, and from which host.
//!
//! One socket for both ports: what it reads first was there first.

use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType,
    recvmsg, setsockopt, socket, sockopt,
};

use super::namespace::Namespace;
use super::topology::{GUEST_MAC_BYTES, Side};

/// Room for frames not yet looked at; if it does not suffice, the test fails.
const BUFFER_BYTES: usize = 64 << 20;
/// How much of a frame is looked at.
const HEAD_BYTES: usize = 64;
/// How often the end is looked for while no frame comes.
const LOOK_MS: u8 = 20;

const ARP: u16 = 0x0806;
const RARP: u16 = 0x8035;

/// What a frame of the guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A RARP request, which tells switches where the guest is.
    Rarp,
    /// An ARP announcement of the guest's address.
    GratuitousArp,
    /// Anything else.
    Traffic,
}

/// A frame of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spoken {
    pub(crate) side: Side,
    pub(crate) kind: Kind,
}

/// See the [module documentation](self). Ends when it is dropped.
pub(crate) struct Sniffer {
    spoken: Arc<Mutex<Vec<Spoken>>>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sniffer {
    /// Begins to listen; returns when it does.
    pub(crate) fn start(client: &Namespace) -> Self {
        let spoken = Arc::new(Mutex::new(Vec::new()));
        let end = Arc::new(AtomicBool::new(false));
        let (ready, listening) = std::sync::mpsc::sync_channel(1);
        let listener = Listener {
            namespace: client.path(),
            spoken: Arc::clone(&spoken),
            end: Arc::clone(&end),
        };
        let thread = std::thread::spawn(move || listener.run(&ready));
        listening.recv().expect("the sniffer listens");
        Self {
            spoken,
            end,
            thread: Some(thread),
        }
    }

    /// How many frames of the guest came from `side` so far.
    pub(crate) fn count(&self, side: Side) -> usize {
        let spoken = self.spoken.lock().unwrap_or_else(PoisonError::into_inner);
        spoken.iter().filter(|frame| frame.side == side).count()
    }

    /// All frames of the guest so far, in their order.
    pub(crate) fn so_far(&self) -> Vec<Spoken> {
        let spoken = self.spoken.lock().unwrap_or_else(PoisonError::into_inner);
        spoken.clone()
    }

    /// Ends listening; all frames of the guest, in their order.
    pub(crate) fn finish(mut self) -> Vec<Spoken> {
        self.end.store(true, Ordering::SeqCst);
        let thread = self.thread.take().expect("ended once");
        thread.join().expect("no frame was missed");
        std::mem::take(&mut self.spoken.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.end.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // The test has failed already; the sniffer's complaint was printed.
            let _ = thread.join();
        }
    }
}

struct Listener {
    namespace: PathBuf,
    spoken: Arc<Mutex<Vec<Spoken>>>,
    end: Arc<AtomicBool>,
}

impl Listener {
    fn run(&self, ready: &std::sync::mpsc::SyncSender<()>) {
        // Only this thread changes over.
        let namespace = File::open(&self.namespace).unwrap();
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let ports = Side::BOTH.map(|side| if_nametoindex(side.port()).unwrap() as usize);
        let socket = packet_socket();
        ready.send(()).unwrap();
        loop {
            // Looked at first: what was sent before the end was asked for is read below.
            let last = self.end.load(Ordering::SeqCst);
            while let Some((port, outgoing, head)) = receive(&socket) {
                let side = match port {
                    port if port == ports[0] => Side::A,
                    port if port == ports[1] => Side::B,
                    _ => continue,
                };
                if !outgoing && let Some(kind) = kind(&head) {
                    let frame = Spoken { side, kind };
                    let mut spoken = self.spoken.lock().unwrap_or_else(PoisonError::into_inner);
                    spoken.push(frame);
                }
            }
            if last {
                return;
            }
            let mut files = [PollFd::new(
                std::os::fd::AsFd::as_fd(&socket),
                PollFlags::POLLIN,
            )];
            // An interrupted poll is a short one.
            let _ = poll(&mut files, PollTimeout::from(LOOK_MS));
        }
    }
}

fn packet_socket() -> OwnedFd {
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )
    .unwrap();
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES).unwrap();
    setsockopt(&socket, sockopt::RxqOvfl, &1).unwrap();
    socket
}

/// The next frame that is here: its interface, whether it leaves there, its beginning.
fn receive(socket: &OwnedFd) -> Option<(usize, bool, Vec<u8>)> {
    let mut head = [0; HEAD_BYTES];
    let mut control = nix::cmsg_space!(u32);
    let mut parts = [IoSliceMut::new(&mut head)];
    let received = recvmsg::<LinkAddr>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::empty(),
    );
    let (bytes, address) = match received {
        Ok(message) => {
            for control in message.cmsgs().unwrap() {
                if let ControlMessageOwned::RxqOvfl(missed) = control {
                    assert_eq!(missed, 0, "the sniffer missed frames");
                }
            }
            (message.bytes, message.address.unwrap())
        }
        Err(Errno::EAGAIN) => return None,
        Err(error) => panic!("the sniffer cannot read: {error}"),
    };
    let outgoing = address.pkttype() == libc::PACKET_OUTGOING;
    Some((address.ifindex(), outgoing, head[..bytes].to_vec()))
}

/// What the frame is, if the guest sent it.
fn kind(head: &[u8]) -> Option<Kind> {
    if head.get(6..12)? != GUEST_MAC_BYTES {
        return None;
    }
    let protocol = u16::from_be_bytes([head[12], head[13]]);
    Some(match protocol {
        RARP => Kind::Rarp,
        // Sender and target address are the same: an announcement.
        ARP if head.get(28..32)? == head.get(38..42)? => Kind::GratuitousArp,
        _ => Kind::Traffic,
    })
}
