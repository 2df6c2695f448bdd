//! What a network device's frames come from and go to.
//!
//! A backend is opened in two halves, because two sides use it: the device receives, the output gate
//! sends, from whichever thread releases.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

use understudy_replication::output::FrameSink;

pub mod socket;
pub mod tap;

/// Bytes of `struct virtio_net_hdr_v1`.
pub const HEADER_BYTES: usize = 12;
/// The longest Ethernet frame: what fits the length of an IP packet, plus headers.
pub const FRAME_BYTES_MAX: usize = 65_536 + 18;
/// The shortest: an Ethernet header. (Padding is the wire's business.)
pub const FRAME_BYTES_MIN: usize = 14;

/// Whether a backend's frames, in both directions, come behind a `struct virtio_net_hdr_v1`
/// ([`HEADER_BYTES`] long).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Frames as they are on the wire.
    Bare,
    /// Frames behind headers, perhaps without checksums and longer than the wire takes.
    Headers,
}

/// What a guest takes upon itself of the frames it receives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Receives {
    /// Frames without a complete checksum.
    pub checksums: bool,
    /// TCP over IPv4 that is not cut into segments.
    pub tso4: bool,
    /// TCP over IPv6 that is not cut into segments.
    pub tso6: bool,
    /// And that with congestion marks.
    pub ecn: bool,
}

/// A network backend.
pub struct Backend {
    /// Where the guest's input comes from, for its device.
    pub source: Box<dyn FrameSource>,
    /// Where the guest's output goes, for the gate.
    pub sink: Arc<dyn FrameSink>,
}

/// The receiving half of a backend. It never blocks.
pub trait FrameSource: Send {
    /// What frames look like, here and in the backend's other half. It never changes.
    fn framing(&self) -> Framing;

    /// Tells the backend what it may leave to the guest: nothing, until it is told so.
    ///
    /// # Errors
    /// If the host refuses; or if there is something to leave and the backend has no headers to say so.
    fn set_receives(&mut self, receives: Receives) -> Result<(), BackendError>;

    /// Copies the next frame, with its header if there are headers, into `buffer` ([`FRAME_BYTES_MAX`] long,
    /// and the header) and tells its length, or `None` if there is none now.
    ///
    /// # Errors
    /// If there will never be one again.
    fn recv(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, BackendError>;

    /// Asks, without taking a frame, whether the backend is still there. It may go unnoticed as long as
    /// frames are waiting.
    ///
    /// # Errors
    /// As [`FrameSource::recv`].
    fn probe(&mut self) -> Result<(), BackendError>;

    /// Whether frames that are sent now get further than to this host, as far as that can be seen.
    fn carries(&self) -> bool;

    /// Bytes of the largest packet that the network takes, if that can be told: always the same.
    fn mtu_bytes(&self) -> Option<u16>;

    /// What becomes readable when frames arrive. Always the same descriptor.
    fn as_fd(&self) -> BorrowedFd<'_>;
}

/// Why a backend cannot be opened or is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The host has no TUN/TAP driver.
    #[error("{} is missing; load the module: modprobe tun", tap::CLONE_DEVICE)]
    NoTun,
    /// Not allowed to open the TUN/TAP driver at all.
    #[error(
        "no permission to open {}; ask for read and write access to it",
        tap::CLONE_DEVICE
    )]
    TunPermission,
    /// There is no such interface.
    #[error(
        "there is no tap {name}; create it and connect it to the guest's network: \
         ip tuntap add dev {name} mode tap user {user}; ip link set {name} up master BRIDGE"
    )]
    NoTap {
        /// Name of the interface.
        name: String,
        /// The user who needs it.
        user: u32,
    },
    /// Not allowed to use this tap.
    #[error(
        "no permission for tap {name}; make it again for this user: ip link del {name}; \
         ip tuntap add dev {name} mode tap user {user}; ip link set {name} up master BRIDGE"
    )]
    TapPermission {
        /// Name of the interface.
        name: String,
        /// The user who needs it.
        user: u32,
    },
    /// The tap is in use.
    #[error("tap {name} is used by another process; each VM needs its own")]
    TapBusy {
        /// Name of the interface.
        name: String,
    },
    /// The interface is there but is no plain tap.
    #[error("interface {name} is no tap with one queue; delete it or name another one")]
    NotATap {
        /// Name of the interface.
        name: String,
    },
    /// No interface can have this name.
    #[error("{name:?} is no interface name (1 to 15 bytes, no blank, no slash)")]
    TapName {
        /// The name.
        name: String,
    },
    /// The socket cannot be connected.
    #[error("cannot connect to {}; is the network process (passt, QEMU) listening there?", path.display())]
    Connect {
        /// Path of the socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Offload without headers.
    #[error("this network backend has no offload")]
    NoOffload,
    /// The other side has closed the socket.
    #[error("the network process has closed its socket")]
    Closed,
    /// The other side sends what cannot be a frame.
    #[error(
        "a frame of {bytes} bytes announced, from {FRAME_BYTES_MIN} to {FRAME_BYTES_MAX} are possible"
    )]
    FrameLength {
        /// The length announced.
        bytes: u32,
    },
    /// The host fails.
    #[error("network backend {what}")]
    Io {
        /// What was attempted, on what.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}
