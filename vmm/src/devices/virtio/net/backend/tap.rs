//! A tap interface as network backend, with or without headers for offload.
//!
//! Few `unsafe` blocks: there are no safe calls that attach a descriptor to an interface and set it up.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::net::if_::InterfaceFlags;
use nix::unistd::geteuid;
use understudy_replication::output::{FrameSink, SendError};
use vmm_sys_util::ioctl::{
    _IOC_WRITE, ioctl_expr, ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val,
};

use super::{Backend, BackendError, FrameSource, Framing, HEADER_BYTES, Receives};

/// Where taps are opened.
pub const CLONE_DEVICE: &str = "/dev/net/tun";

/// `BR_STATE_FORWARDING` of `linux/if_bridge.h`.
const BRIDGE_FORWARDING: &str = "3";

/// `struct ifreq`, as `TUNSETIFF` reads and writes it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}
const _: () = assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>());

#[derive(Clone)]
struct Tap {
    file: Arc<File>,
    name: Arc<str>,
    framing: Framing,
    mtu_bytes: Option<u16>,
}

/// `struct ifreq`, as `SIOCGIFMTU` reads and writes it.
#[repr(C)]
struct MtuRequest {
    name: [u8; libc::IFNAMSIZ],
    bytes: libc::c_int,
    rest: [u8; 20],
}
const _: () = assert!(size_of::<MtuRequest>() == size_of::<libc::ifreq>());

/// Opens the tap `name`, which must be there: one that the kernel would make now were down and in no
/// bridge, and a guest without network would look like a guest at work.
///
/// # Errors
/// If it cannot be opened; the error says what to do.
pub fn open(name: &str, framing: Framing) -> Result<Backend, BackendError> {
    let request = InterfaceRequest::tap(name, framing)?;
    let file = open_driver()?;
    if nix::net::if_::if_nametoindex(name).is_err() {
        return Err(BackendError::NoTap {
            name: name.to_owned(),
            user: geteuid().as_raw(),
        });
    }
    attach(&file, request).map_err(|source| attach_error(name, source))?;
    let set_up = match framing {
        Framing::Bare => Ok(()),
        Framing::Headers => set_header_bytes(&file),
    };
    // The interface may have been another user's, who left something set.
    set_up
        .and_then(|()| set_offload(&file, Receives::default()))
        .map_err(|source| BackendError::Io {
            what: format!("set up tap {name}"),
            source,
        })?;
    if !has_flags(name, InterfaceFlags::IFF_UP) {
        tracing::warn!(
            "tap {name} is down, so the guest reaches nobody: ip link set {name} up master BRIDGE"
        );
    }
    let mtu_bytes = match framing {
        // As for a socket, of which it cannot be told.
        Framing::Bare => None,
        Framing::Headers => Some(mtu_bytes(name).map_err(|source| BackendError::Io {
            what: format!("read the MTU of tap {name}"),
            source,
        })?),
    };
    let tap = Tap {
        file: Arc::new(file),
        name: Arc::from(name),
        framing,
        mtu_bytes,
    };
    Ok(Backend {
        source: Box::new(tap.clone()),
        sink: Arc::new(tap),
    })
}

/// Bytes of the largest packet that the interface takes.
fn mtu_bytes(name: &str) -> io::Result<u16> {
    let invalid = |_| io::Error::from(ErrorKind::InvalidInput);
    let mut request = MtuRequest {
        name: interface_name(name).map_err(|_| io::Error::from(ErrorKind::InvalidInput))?,
        bytes: 0,
        rest: [0; 20],
    };
    // Any socket will do: it says in which network namespace.
    let socket = UnixDatagram::unbound()?;
    // SAFETY: `SIOCGIFMTU` reads and writes one `struct ifreq` at the pointer it is given. `MtuRequest` has that
    // layout and size, checked at compile time; every bit pattern is valid for it; it lives on this stack,
    // mutably borrowed, for the whole call, and the kernel keeps no pointer to it.
    done(unsafe { ioctl_with_mut_ref(&socket, libc::SIOCGIFMTU, &mut request) })?;
    request.bytes.try_into().map_err(invalid)
}

/// Whether the interface has all of these `flags`, as far as that can be seen.
fn has_flags(name: &str, flags: InterfaceFlags) -> bool {
    let lacks = |interface: InterfaceAddress| {
        interface.interface_name == name && !interface.flags.contains(flags)
    };
    !getifaddrs().is_ok_and(|mut all| all.any(lacks))
}

/// Whether the bridge of the interface, if it has one, passes its frames on: not while the bridge still looks for
/// loops.
fn is_forwarding(name: &str) -> bool {
    let state = std::fs::read_to_string(format!("/sys/class/net/{name}/brport/state"));
    state.map_or(true, |state| state.trim() == BRIDGE_FORWARDING)
}

impl InterfaceRequest {
    fn tap(name: &str, framing: Framing) -> Result<Self, BackendError> {
        let headers = match framing {
            Framing::Bare => 0,
            Framing::Headers => libc::IFF_VNET_HDR,
        };
        Ok(Self {
            name: interface_name(name)?,
            flags: (libc::IFF_TAP | libc::IFF_NO_PI | headers) as libc::c_short,
            rest: [0; 22],
        })
    }
}

fn open_driver() -> Result<File, BackendError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(CLONE_DEVICE)
        .map_err(|source| match source.kind() {
            ErrorKind::NotFound => BackendError::NoTun,
            ErrorKind::PermissionDenied => BackendError::TunPermission,
            _ if source.raw_os_error() == Some(libc::ENODEV) => BackendError::NoTun,
            _ => BackendError::Io {
                what: format!("open {CLONE_DEVICE}"),
                source,
            },
        })
}

const TUNSETIFF: libc::c_ulong = number(202);
const TUNSETOFFLOAD: libc::c_ulong = number(208);
const TUNSETVNETHDRSZ: libc::c_ulong = number(216);

/// The ioctl of the tun driver that writes an `int`, or says so.
const fn number(ordinal: libc::c_uint) -> libc::c_ulong {
    ioctl_expr(
        _IOC_WRITE,
        b'T' as libc::c_uint,
        ordinal,
        size_of::<libc::c_int>() as libc::c_uint,
    )
}

/// What an ioctl has returned.
fn done(result: libc::c_int) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn attach(file: &File, mut request: InterfaceRequest) -> io::Result<()> {
    // SAFETY: `TUNSETIFF` reads and writes one `struct ifreq` at the pointer it is given (its opcode
    // says `int` for historical reasons). `InterfaceRequest` has that layout and size, checked above
    // at compile time; every bit pattern is valid for it; it lives on this stack, mutably borrowed,
    // for the whole call, and the kernel keeps no pointer to it. On any other kind of descriptor
    // than the one opened above the call would only fail.
    done(unsafe { ioctl_with_mut_ref(file, TUNSETIFF, &mut request) })
}

fn set_header_bytes(file: &File) -> io::Result<()> {
    let bytes = HEADER_BYTES as libc::c_int;
    // SAFETY: `TUNSETVNETHDRSZ` reads one `int` at the pointer it is given, and `bytes` is one that lives
    // on this stack for the whole call.
    done(unsafe { ioctl_with_ref(file, TUNSETVNETHDRSZ, &bytes) })
}

fn set_offload(file: &File, receives: Receives) -> io::Result<()> {
    let bits = [
        (receives.checksums, libc::TUN_F_CSUM),
        (receives.tso4, libc::TUN_F_TSO4),
        (receives.tso6, libc::TUN_F_TSO6),
        (receives.ecn, libc::TUN_F_TSO_ECN),
    ];
    let wanted = bits.iter().filter(|(wanted, _)| *wanted);
    let flags = wanted.fold(0, |flags, (_, bit)| flags | libc::c_ulong::from(*bit));
    // SAFETY: `TUNSETOFFLOAD` takes the flags themselves as its argument and touches no memory of ours.
    done(unsafe { ioctl_with_val(file, TUNSETOFFLOAD, flags) })
}

fn interface_name(name: &str) -> Result<[u8; libc::IFNAMSIZ], BackendError> {
    let mut field = [0; libc::IFNAMSIZ];
    // '%' would make the kernel choose a number.
    let is_bad = |b: u8| b == 0 || b == b'/' || b == b'%' || b == b':' || b.is_ascii_whitespace();
    // One byte stays 0: the name ends there.
    if name.is_empty() || name.len() >= field.len() || name.bytes().any(is_bad) {
        return Err(BackendError::TapName {
            name: name.to_owned(),
        });
    }
    field[..name.len()].copy_from_slice(name.as_bytes());
    Ok(field)
}

fn attach_error(name: &str, source: io::Error) -> BackendError {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => BackendError::TapPermission {
            name,
            user: geteuid().as_raw(),
        },
        Some(libc::EBUSY) => BackendError::TapBusy { name },
        Some(libc::EINVAL) => BackendError::NotATap { name },
        _ => BackendError::Io {
            what: format!("attach to tap {name}"),
            source,
        },
    }
}

impl FrameSource for Tap {
    fn framing(&self) -> Framing {
        self.framing
    }

    fn set_receives(&mut self, receives: Receives) -> Result<(), BackendError> {
        if self.framing == Framing::Bare && receives != Receives::default() {
            return Err(BackendError::NoOffload);
        }
        set_offload(&self.file, receives).map_err(|source| BackendError::Io {
            what: "set the tap's offload".to_owned(),
            source,
        })
    }

    fn recv(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, BackendError> {
        loop {
            match (&*self.file).read(buffer) {
                Ok(0) => return Err(BackendError::Closed),
                Ok(len) => return Ok(Some(len)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The interface is down: there is nothing to read until it is up again.
                Err(error) if error.raw_os_error() == Some(libc::EIO) => return Ok(None),
                Err(source) => {
                    return Err(BackendError::Io {
                        what: "read from tap".to_owned(),
                        source,
                    });
                }
            }
        }
    }

    /// A tap belongs to its descriptor: while that is open, only its interface can be deleted, which the
    /// next `recv` tells.
    fn probe(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    fn mtu_bytes(&self) -> Option<u16> {
        self.mtu_bytes
    }

    fn carries(&self) -> bool {
        let up = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING;
        has_flags(&self.name, up) && is_forwarding(&self.name)
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl FrameSink for Tap {
    fn send(&self, frame: &[u8]) -> Result<(), SendError> {
        loop {
            return match (&*self.file).write(frame) {
                Ok(_) => Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => Err(match error.raw_os_error() {
                    Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => SendError::Busy,
                    Some(libc::EIO) => SendError::Down,
                    Some(libc::EINVAL | libc::EMSGSIZE) => SendError::Refused,
                    _ => SendError::Closed,
                }),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_names_are_refused() {
        for name in ["", "a b", "a/b", "tap%d", "sixteen_bytes_xx", "a\0"] {
            let error = open(name, Framing::Bare).err().expect("refused");
            assert!(matches!(error, BackendError::TapName { .. }), "{name:?}");
        }
        assert_eq!(&interface_name("tap0").unwrap()[..5], b"tap0\0");
    }

    #[test]
    fn errors_say_what_to_do() {
        let errno = io::Error::from_raw_os_error;
        let text = attach_error("tap7", errno(libc::EPERM)).to_string();
        assert!(
            text.contains("ip tuntap add dev tap7 mode tap user "),
            "{text}"
        );
        let text = attach_error("tap7", errno(libc::EBUSY)).to_string();
        assert!(text.contains("another process"), "{text}");
        let text = BackendError::NoTun.to_string();
        assert!(text.contains("modprobe tun"), "{text}");
    }

    #[test]
    fn a_tap_opens_once_or_says_why_not_and_one_that_is_down_is_said_to_be() {
        let name = format!("us{}", std::process::id());
        let Err(error) = open(&name, Framing::Headers) else {
            panic!("opened {name}, which is not there");
        };
        let file = match error {
            BackendError::NoTun | BackendError::TunPermission => return,
            BackendError::NoTap { .. } => open_driver().unwrap(),
            other => panic!("{other}"),
        };
        // Gone again when it is closed, and never up: nothing is sent.
        match attach(
            &file,
            InterfaceRequest::tap(&name, Framing::Headers).unwrap(),
        ) {
            Ok(()) => {
                let tap = Tap {
                    file: Arc::new(file),
                    name: Arc::from(name.as_str()),
                    framing: Framing::Headers,
                    mtu_bytes: None,
                };
                assert_eq!(mtu_bytes(&name).unwrap(), 1500);
                assert!(!tap.carries(), "it was never switched on");
                let sent = tap.send(&[0; HEADER_BYTES + 60]);
                assert_eq!(sent, Err(SendError::Down));
                let error = open(&name, Framing::Headers).err().expect("it is in use");
                assert!(matches!(error, BackendError::TapBusy { .. }), "{error}");
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::PermissionDenied),
        }
    }
}
