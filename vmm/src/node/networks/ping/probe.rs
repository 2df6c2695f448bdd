//! One echo request on its way to a target, by a socket that never blocks.
//!
//! Each has a socket of its own, which costs little and fits whatever addresses and routes this host has by then. What must
//! not be done here: wait, or judge.

use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

use super::echo;

/// Longest that is received: an IPv4 header with all its options, and an answer. The rest of anything longer is dropped.
const RECEIVE_BYTES: usize = 128;
/// So many packets of the target are looked at: a raw socket receives others, too.
const RECEIVES_MAX: usize = 64;

#[derive(Debug)]
pub(super) struct Probe {
    socket: Socket,
    target: IpAddr,
    token: u64,
}

impl Probe {
    /// Sends a request, through `device` alone if there is one.
    ///
    /// # Errors
    /// If this host cannot or may not.
    pub(super) fn send(target: IpAddr, device: Option<&str>, token: u64) -> io::Result<Self> {
        let (domain, protocol) = match target {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        // Whether somebody may use the first kind (`net.ipv4.ping_group_range`) and the other one (CAP_NET_RAW) are two
        // questions.
        let socket = Socket::new(domain, Type::DGRAM, Some(protocol))
            .or_else(|_| Socket::new(domain, Type::RAW, Some(protocol)))?;
        socket.set_nonblocking(true)?;
        socket.bind_device(device.map(str::as_bytes))?;
        // Nobody else's packets are received then.
        socket.connect(&SocketAddr::new(target, 0).into())?;
        socket.send(&echo::request(target, token))?;
        Ok(Self {
            socket,
            target,
            token,
        })
    }

    pub(super) fn target(&self) -> IpAddr {
        self.target
    }

    /// Whether the answer is there.
    pub(super) fn is_answered(&self) -> bool {
        let mut buffer = [0; RECEIVE_BYTES];
        for _ in 0..RECEIVES_MAX {
            match (&self.socket).read(&mut buffer) {
                Ok(bytes) if echo::is_answer(self.target, &buffer[..bytes], self.token) => {
                    return true;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                // Another packet, or what a router says.
                _ => {}
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::process::Command;
    use std::time::{Duration, Instant};

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    const TARGETS: [IpAddr; 2] = [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ];
    /// Only a failure waits that long.
    const PATIENCE: Duration = Duration::from_secs(30);

    fn ip(arguments: &str) {
        let done = Command::new("ip").args(arguments.split(' ')).status();
        assert!(done.expect("ip (iproute2)").success(), "ip {arguments}");
    }

    /// In a network namespace of its own, where these groups need no right to ping.
    fn in_namespace(groups: &str, body: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                // Only this thread changes over, and what it starts.
                unshare(CloneFlags::CLONE_NEWNET).expect("network namespaces need root");
                ip("link set lo up");
                std::fs::write("/proc/sys/net/ipv4/ping_group_range", groups).unwrap();
                body();
            });
            thread.join().unwrap();
        });
    }

    fn await_answer(probe: &Probe) {
        let deadline = Instant::now() + PATIENCE;
        while !probe.is_answered() {
            assert!(Instant::now() < deadline, "no answer to {probe:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_host_answers_whichever_socket_this_process_may_have() {
        for (groups, kind) in [("1 0", Type::RAW), ("0 0", Type::DGRAM)] {
            in_namespace(groups, || {
                for target in TARGETS {
                    for device in [None, Some("lo")] {
                        let probe = Probe::send(target, device, 7).unwrap();
                        assert_eq!(probe.socket.r#type().unwrap(), kind);
                        await_answer(&probe);
                        assert!(!probe.is_answered(), "once");
                    }
                }
            });
        }
    }

    #[test]
    fn nobody_is_reached_but_through_the_device() {
        in_namespace("1 0", || {
            ip("link add lan type bridge");
            ip("link set lan up");
            for target in TARGETS {
                let elsewhere = Probe::send(target, Some("lan"), 7);
                // Had that one gone the same way, it would have been there before this one.
                await_answer(&Probe::send(target, None, 8).unwrap());
                assert!(!elsewhere.is_ok_and(|probe| probe.is_answered()));
                assert!(Probe::send(target, Some("gone"), 9).is_err());
            }
        });
    }
}
